"""A loss of the parameters, added to those of any model by config alone."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmext.arguments import Natural, NonNegative
from mmext.checkpoints import unwrap

__all__ = ['AuxiliaryLossHook']


class AuxiliaryLossHook(Hook):
    """The base of hooks that add terms to the losses which a model returns in training.

    A subclass is the function :meth:`loss`. Each term is multiplied by ``weight`` and joins the model's own losses, under
    its key, before mmengine sums and logs them; so it obeys the run's gradient accumulation, AMP and DDP. The model is not
    changed, its checkpoints neither. (Where a model calls a loss of its own ``loss``, as mmpretrain's classifiers do, that one
    hides the sum in the log; the sum is trained with all the same.)

    Args:
        weight: The factor of every term; the log shows the product.
        start_epoch: The first epoch, counted from 0, with the terms.
        start_iter: The first iteration, counted from 0, with the terms. Both must be reached.

    Raises:
        ValueError: In a loop that counts iterations only, if ``start_epoch`` is not 0; or if a term's key does not begin with
            ``loss`` (mmengine would not add it to the sum) or is one of the model's own.
        RuntimeError: If the model took a training step without ``forward(mode='loss')``, so that nothing could be added.
    """

    def __init__(self, weight: NonNegative = 1.0, start_epoch: Natural = 0, start_iter: Natural = 0) -> None:
        self.weight = weight
        self.start_epoch = start_epoch
        self.start_iter = start_iter
        self._active = False
        self._added = False
        self._handle: Any = None

    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the terms by their keys, such as ``'loss_repulsion'``, differentiable in the parameters.

        Args:
            model: The model without wrappers. The call comes in every training iteration once the terms have started, in
                full precision (autocast is off).
        """
        raise NotImplementedError(f'{type(self).__name__} must define loss(model)')

    def check(self, model: nn.Module) -> None:
        """Raise an error, before the first iteration, if the terms cannot be computed for ``model``."""

    def before_train(self, runner: Runner) -> None:
        """Begin to listen to the model's forward."""
        if self.start_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self).__name__} would never reach start_epoch={self.start_epoch}: the training loop counts iterations '
                'only; pass start_epoch=0 and start_iter=...'
            )
        self.check(unwrap(runner.model))
        self._stop()  # an interrupted training has left without after_train
        self._handle = unwrap(runner.model).register_forward_hook(self._add, with_kwargs=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Decide whether the terms have started."""
        self._active = runner.epoch >= self.start_epoch and runner.iter >= self.start_iter
        self._added = False

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Make sure that the terms were added."""
        if self._active and not self._added:
            raise RuntimeError(
                f"{type(self).__name__} adds its terms where the model's forward(..., mode='loss') returns a dictionary, and "
                f'{type(unwrap(runner.model)).__name__} trained without it'
            )
        self._active = False

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._active = False

    def _add(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> dict[str, Any] | None:
        mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
        if not self._active or mode != 'loss' or not isinstance(losses, dict):
            return None
        device = next(model.parameters()).device.type
        with torch.autocast(device, enabled=False):
            terms = {key: self.weight * term for key, term in self.loss(model).items()}
        if wrong := sorted(key for key in terms if not key.startswith('loss') or key in losses):
            raise ValueError(
                f'{type(self).__name__} needs keys that begin with loss and are not among {sorted(losses)}, got {wrong}'
            )
        self._added = True
        return {**losses, **terms}
