"""What tells SA-GD (2021, arXiv 2107.07558) the loss: mmengine's two optimizer wrappers, extended."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor

from mmext.optim.sagd import SAGD
from mmext.registry import OPTIM_WRAPPERS

__all__ = ['SAGDAmpOptimWrapper', 'SAGDOptimWrapper']


@OPTIM_WRAPPERS.register_module()
class SAGDOptimWrapper(OptimWrapper):
    """The optimizer wrapper of :class:`SAGD`, which learns from it the loss and the epoch of each real step.

    The loss is the mean of the losses given to :meth:`update_params` since the last step, as the model returned them:
    before the division by ``accumulative_counts`` and before the scaling of AMP. Where a model calls ``backward`` and
    ``step`` itself, it gives the loss to the latter: ``step(loss=loss)``.

    The epoch comes from the running loop. A loop of a single epoch would never anneal, and mmengine's iteration-based one
    always reports a single one, so steps are counted there; that is our reading. The share of ascents so far is logged
    as ``ascent_rate``.

    Args:
        *args: Those of mmengine's ``OptimWrapper``.
        **kwargs: Those of mmengine's ``OptimWrapper``.

    Raises:
        TypeError: If the optimizer is not SAGD.

    Example:
        >>> optim_wrapper = dict(type='mmext.SAGDOptimWrapper', optimizer=dict(type='mmext.SAGD', lr=0.1))
    """

    example = dict(optimizer=dict(type='mmext.SAGD', lr=0.1))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.optimizer, SAGD):
            name = type(self).__name__
            raise TypeError(
                f"mmext.{name} needs the optimizer 'mmext.SAGD', got {type(self.optimizer).__name__}; "
                f"for other optimizers use type='{name.removeprefix('SAGD')}'"
            )
        self._losses: list[Tensor] = []

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Accumulate the gradient of ``loss`` and, where one is due, take a step; other arguments as in mmengine."""
        self._losses.append(loss.detach())
        super().update_params(loss, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, and the losses since the last step."""
        return {**super().state_dict(), 'losses': list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of mmengine's wrapper."""
        losses = state_dict.get('losses', [])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != 'losses'})
        self._losses = list(losses)

    def step(self, **kwargs: Any) -> None:
        """Take a step; ``kwargs`` are those of :meth:`SAGD.step`."""
        losses, self._losses = self._losses, []
        if losses:
            kwargs.setdefault('loss', torch.stack(losses).mean())
        if (self.message_hub.get_info('max_epochs') or 1) > 1:
            kwargs.setdefault('epoch', self.message_hub.get_info('epoch'))
        super().step(**kwargs)
        self.message_hub.update_scalar('train/ascent_rate', self.optimizer.ascent_rate)


@OPTIM_WRAPPERS.register_module()
class SAGDAmpOptimWrapper(SAGDOptimWrapper, AmpOptimWrapper):
    """:class:`SAGDOptimWrapper` with automatic mixed precision.

    A step that the gradient scaler skips because of an overflow is no step of the annealing either.

    Args:
        *args: Those of mmengine's ``AmpOptimWrapper``.
        **kwargs: Those of mmengine's ``AmpOptimWrapper``.

    Example:
        >>> optim_wrapper = dict(type='mmext.SAGDAmpOptimWrapper', optimizer=dict(type='mmext.SAGD', lr=0.1))
    """

    example = dict(optimizer=dict(type='mmext.SAGD', lr=0.1))
