"""Validate and test the folded form of a model while the trained one goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmext.checkpoints import unwrap
from mmext.export import example_inputs
from mmext.folding import fold
from mmext.registry import HOOKS

__all__ = ['SwitchToDeployHook']


@HOOKS.register_module()
class SwitchToDeployHook(Hook):
    """Runs each validation and test with a folded copy of the model, as it would be deployed (ours).

    The trained model is not touched: it is put back afterwards, before a checkpoint is written. The hook comes after an EMA
    hook, so that the average is what is folded. Folding proves that both forms compute the same, see
    :func:`mmext.folding.fold`.

    Args:
        fuse_bn: Whether to fuse norms into the layers before them.
        shape: Height and width of the images of noise on which both forms are compared, and the norms are found.

    Raises:
        ValueError: If ``shape`` is not two positive numbers.
        RuntimeError: If the folded copy does not compute the same, or the model does not fold.

    Example:
        >>> custom_hooks = [dict(type='mmext.SwitchToDeployHook', fuse_bn=True)]
    """

    priority = 'LOW'

    def __init__(self, fuse_bn: bool = False, shape: Sequence[int] = (128, 128)) -> None:
        if len(shape) != 2 or not all(isinstance(s, int) and s > 0 for s in shape):
            raise ValueError(f'SwitchToDeployHook needs a shape of two positive numbers, got {shape=}')
        self.fuse_bn = fuse_bn
        self.shape = tuple(shape)
        self._trained: nn.Module | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Put the folded copy in the place of the model."""
        self._switch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the trained model back."""
        self._restore(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the folded copy in the place of the model."""
        self._switch(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the trained model back."""
        self._restore(runner)

    def _switch(self, runner: Runner) -> None:
        self._trained = runner.model
        model = copy.deepcopy(unwrap(runner.model))
        model.eval()  # not chained: the train() of some hosts' models returns None
        inputs = example_inputs(model, *self.shape).to(next(model.parameters()).device)
        runner.model = fold(model, self.fuse_bn, inputs)

    def _restore(self, runner: Runner) -> None:
        if self._trained is not None:
            runner.model, self._trained = self._trained, None
