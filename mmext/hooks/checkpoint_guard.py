"""Checkpoints that are damaged, incomplete or of another model: refused in one sentence instead of a traceback or silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmext.checkpoints import compare, hand_over, read_checkpoint, release, serve, state_dict_of, unwrap
from mmext.errors import CheckpointError
from mmext.hosts import loads_weights
from mmext.registry import HOOKS

__all__ = ['CheckpointGuardHook']


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint that cannot be right; ``tools/train.py`` and ``tools/test.py`` add it (ours).

    It refuses one from which nothing sensible can come, and logs how many tensors fit. mmengine loads with
    ``strict=False``, where a wrong checkpoint is a long warning followed by a model with random weights.

    Raises:
        CheckpointError: If the checkpoint holds no tensors by name; if not one of them fits the model; if it is to be
            resumed from and holds weights only; if it fits in part a model that says of itself ``fits_whole``, as
            :class:`mmext.SignalModel` does; or if it was saved by a training model with generated kernels
            (:class:`mmext.convs.generated.GeneratedConv2d`) and the model has plain convolutions in their place.

    Example:
        >>> custom_hooks = [dict(type='mmext.CheckpointGuardHook')]
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        serve()

    def before_run(self, runner: Runner) -> None:
        """Check the local files that ``init_cfg=dict(type='Pretrained', ...)`` is about to load, in training."""
        if not isinstance(runner._train_loop, BaseLoop) or runner._resume:
            return
        for name, module in unwrap(runner.model).named_modules():
            for cfg in _pretrained(module):
                content = read_checkpoint(cfg['checkpoint'])
                hand_over(cfg['checkpoint'], content)
                saved, prefix = state_dict_of(content), cfg.get('prefix') or ''
                prefix += '.' if prefix and not prefix.endswith('.') else ''
                saved = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
                compare(saved, module, f'{cfg["checkpoint"]} for {name or "the model"}', runner.logger)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check ``checkpoint`` against the runner's model and log the report."""
        lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
        if runner._resume and lacking:
            raise CheckpointError(
                f'cannot resume from a checkpoint without {" and ".join(lacking)} (weights only, as a published or '
                'deployed model has); start from it instead: --cfg-options load_from=PATH, without --resume'
            )
        compare(state_dict_of(checkpoint), unwrap(runner.model), 'checkpoint', runner.logger)
        release()

    def before_train(self, runner: Runner) -> None:
        """Free what ``init_cfg`` has loaded."""
        release()


def _pretrained(module: nn.Module) -> list[dict]:
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
    # What is downloaded or comes from a model zoo is mmengine's to check.
    return [c for c in cfgs if loads_weights(c) and '://' not in (c.get('checkpoint') or '://')]
