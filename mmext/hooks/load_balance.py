"""The load-balancing loss of edges that are chosen sparsely."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from mmext.arguments import Natural, NonNegative
from mmext.blocks.soft_hgnn import LoadBalance
from mmext.hooks.auxiliary_loss import AuxiliaryLossHook
from mmext.registry import HOOKS

__all__ = ['LoadBalanceHook']


@HOOKS.register_module()
class LoadBalanceHook(AuxiliaryLossHook):
    """Adds the load-balancing loss of SoftHGNN's sparse selection to any model's losses, as ``loss_balance``.

    Lei et al., *SoftHGNN: Soft Hypergraph Neural Networks for General Visual Recognition*, IJCV 2026, arXiv 2505.15325.

    It is the sum over all layers. A layer that several maps share counts once for each. See
    :class:`mmext.blocks.soft_hgnn.LoadBalance` for the equation and its gradient.

    Args:
        weight: The factor of the loss. The authors' default is 1, with 0.01 for classification and 0.1 for counting.
        start_epoch: The first epoch, counted from 0, with the loss.
        start_iter: The first iteration with the loss.

    Raises:
        ValueError: If the model has no layer that chooses edges.

    Example:
        >>> custom_hooks = [dict(type='mmext.LoadBalanceHook', weight=0.1)]
    """

    def __init__(self, weight: NonNegative = 1.0, start_epoch: Natural = 0, start_iter: Natural = 0) -> None:
        super().__init__(weight, start_epoch, start_iter)
        self._terms: list[Tensor] = []
        self._listeners: list[Any] = []

    def check(self, model: nn.Module) -> None:
        """Make sure that there is something to balance."""
        if not any(isinstance(module, LoadBalance) for module in model.modules()):
            raise ValueError(
                f'LoadBalanceHook found no mmext.SoftHGNNSeS in {type(model).__name__}; remove it from custom_hooks'
            )

    def before_train(self, runner: Runner) -> None:
        """Begin to listen to the layers, whose losses hang on what they see."""
        super().before_train(runner)
        model = runner.model
        layers = [module for module in model.modules() if isinstance(module, LoadBalance)]
        self._listeners = [layer.register_forward_hook(self._hear) for layer in layers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Forget what the last iteration said."""
        super().before_train_iter(runner, batch_idx, data_batch)
        self._terms.clear()

    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the sum of what the layers said in this forward."""
        terms = [term.float() for term in self._terms]
        self._terms.clear()
        return dict(loss_balance=torch.stack(terms).sum())

    def _hear(self, layer: nn.Module, args: tuple, term: Tensor) -> None:
        if self._active:
            self._terms.append(term)

    def _stop(self) -> None:
        super()._stop()
        for listener in self._listeners:
            listener.remove()
        self._listeners = []
        self._terms.clear()
