"""The schedule of deep supervision: companions count less and less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmext.checkpoints import unwrap
from mmext.contracts import TakesCompanionScale, find
from mmext.errors import UsageError
from mmext.registry import HOOKS

__all__ = ['CompanionWeightHook']


@HOOKS.register_module()
class CompanionWeightHook(Hook):
    r"""Lets the weights of companions fade: those of :mod:`mmext.heads.deep_supervision`, and of mmseg's auxiliary heads.

    Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185.

    With t of N epochs done, or iterations in a loop that counts only them, every weight is multiplied by

    .. math:: 1 - t / N \quad (\text{linear}), \qquad 0.1\,(1 - t / N) \text{ from } t = 1 \text{ on} \quad (\text{paper})

    The factor follows from t alone, so a resumed run continues with the same one. After training, the weights are those of
    the config again.

    Args:
        mode: ``'linear'``, our default, or ``'paper'``, as we read its update rule.

    Raises:
        ValueError: If the model has nothing whose weight could fade.

    Example:
        >>> custom_hooks = [dict(type='mmext.CompanionWeightHook')]
    """

    def __init__(self, mode: Literal['linear', 'paper'] = 'linear') -> None:
        self.mode = mode
        self._auxiliary: list[tuple[Any, float]] = []

    def factor(self, done: int, whole: int) -> float:
        """Return the factor after ``done`` of ``whole`` epochs or iterations."""
        rest = 1 - done / whole
        return 0.1 * rest if self.mode == 'paper' and done else rest

    def before_train(self, runner: Runner) -> None:
        """Find what fades."""
        model = unwrap(runner.model)
        self._auxiliary = [(loss, loss.loss_weight) for loss in _auxiliary_losses(model)]
        if not self._auxiliary and next(find(model, TakesCompanionScale), None) is None:
            raise UsageError(
                f'CompanionWeightHook found in {type(model).__name__} neither companions nor an auxiliary_head with losses; '
                'remove it from custom_hooks, or add auxiliary_head=dict(...) or companions=[...]'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the weights of this iteration."""
        loop: Any = runner.train_loop
        by_epoch = hasattr(loop, 'max_epochs') and type(loop).__name__ != 'IterBasedTrainLoop'
        done, whole = (runner.epoch, runner.max_epochs) if by_epoch else (runner.iter, runner.max_iters)
        self._set(unwrap(runner.model), self.factor(done, whole))

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        self._set(unwrap(runner.model), 1.0)

    def _set(self, model: nn.Module, factor: float) -> None:
        for _, companion in find(model, TakesCompanionScale):
            companion.companion_scale = factor
        for loss, weight in self._auxiliary:
            loss.loss_weight = factor * weight


def _auxiliary_losses(model: nn.Module) -> Iterator[Any]:
    heads = getattr(model, 'auxiliary_head', None)
    if isinstance(heads, nn.Module):
        for module in heads.modules():
            if isinstance(getattr(module, 'loss_weight', None), (int, float)):
                yield module
