"""Checkpoints that are damaged, incomplete or of another model: refused in one sentence instead of a traceback or silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmext.checkpoints import hand_over, read_checkpoint, release, serve, state_dict_of, unwrap
from mmext.fit import check_resumable, check_start, check_whole
from mmext.official import local_files, published_state
from mmext.registry import HOOKS

__all__ = ['CheckpointGuardHook']


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuses a checkpoint that cannot be right; ``tools/train.py`` and ``tools/test.py`` add it (ours).

    It looks at every checkpoint that reaches the model, be it through the runner or through ``init_cfg``. What is asked of one
    depends on the intent, see :mod:`mmext.fit`. A checkpoint that is tested must say every tensor of the model. One that is
    resumed from must agree with model, optimizer and schedules. Of one that a training starts from, one line says how much
    fits. mmengine loads with ``strict=False``, where a wrong checkpoint is a long warning followed by random weights.

    Raises:
        CheckpointError: If the checkpoint holds no tensors by name, does not serve the intent, or has not one that fits; if
            values are not finite, or of another kind of number; if it fits in part a model that says of itself
            ``fits_whole``, as :class:`mmext.SignalModel` does; or if it was saved by a training model with generated kernels
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
            for cfg in local_files(module):
                content = read_checkpoint(cfg['checkpoint'])
                hand_over(cfg['checkpoint'], content)
                if published_state(module, cfg['checkpoint'], content) is not None:
                    continue  # converted where it is loaded, if it fits whole
                saved, prefix = state_dict_of(content), cfg.get('prefix') or ''
                prefix += '.' if prefix and not prefix.endswith('.') else ''
                saved = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
                check_start(saved, module, f'{cfg["checkpoint"]} for {name or "the model"}', runner.logger)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check ``checkpoint`` against what it is loaded for, and log the report."""
        if runner._resume:
            check_resumable(checkpoint, runner)
        else:
            check = check_whole if _is_test(runner) else check_start
            check(state_dict_of(checkpoint), unwrap(runner.model), 'checkpoint', runner.logger)
        release()

    def before_train(self, runner: Runner) -> None:
        """Free what ``init_cfg`` has loaded."""
        release()


def _is_test(runner: Runner) -> bool:
    """Tell whether the weights are evaluated as they are: a validation or test runs, and no training."""
    loops = [getattr(runner, name, None) for name in ('_train_loop', '_val_loop', '_test_loop')]
    return not isinstance(loops[0], BaseLoop) and any(isinstance(loop, BaseLoop) for loop in loops)
