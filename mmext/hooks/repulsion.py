"""DCLS's loss that keeps the points of a kernel apart."""

from __future__ import annotations

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from mmext.arguments import Natural, NonNegative
from mmext.checkpoints import unwrap
from mmext.convs.dcls import DCLSConv2d
from mmext.hooks.auxiliary_loss import AuxiliaryLossHook
from mmext.registry import HOOKS

__all__ = ['RepulsionHook', 'repulsion']


@HOOKS.register_module()
class RepulsionHook(AuxiliaryLossHook):
    r"""Adds DCLS's repulsive loss to any model's losses, as ``loss_repulsion``.

    Khalfaoui-Hassani, Pellegrini and Masquelier, *Dilated Convolution with Learnable Spacings*, ICLR 2023, arXiv 2112.03740.

    Points that come closer to each other than a pixel repel each other. With the mean over all layers,

    .. math::
        L = \Bigl( \operatorname*{mean}_{\text{layers}} \frac{2}{m (m - 1)\, C_o C_i / g}
            \sum_{\text{kernels}} \sum_{a < b} \max(0,\ 1 - \lVert p_a - p_b \rVert_2) \Bigr)^2

    Positions that several layers share count once.

    Args:
        weight: The factor of the loss.
        start_epoch: The first epoch, counted from 0, with the loss. The released training code waits for 21 epochs.
        start_iter: The first iteration with the loss; for loops that count no epochs, together with ``start_epoch=0``.

    Raises:
        ValueError: If the model has no DCLS layer with two points or more.

    Example:
        >>> custom_hooks = [dict(type='mmext.RepulsionHook')]
    """

    def __init__(self, weight: NonNegative = 1.0, start_epoch: Natural = 21, start_iter: Natural = 0) -> None:
        super().__init__(weight, start_epoch, start_iter)

    def before_train(self, runner: Runner) -> None:
        """Make sure that there is something to keep apart, and begin."""
        model = unwrap(runner.model)
        if not _positions(model):
            raise ValueError(
                f'RepulsionHook found no mmext.DCLSConv2d with two points or more in {type(model).__name__}; remove it from '
                'custom_hooks'
            )
        super().before_train(runner)

    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the squared mean of the layers' repulsions."""
        layers = [repulsion(positions.float()) for positions in _positions(model)]
        return dict(loss_repulsion=torch.stack(layers).mean().square())


def repulsion(positions: Tensor) -> Tensor:
    """Return the mean of max(0, 1 - distance) over all kernels and all pairs of points; (2, Co, Ci/groups, m)."""
    first, second = torch.triu_indices(positions.shape[-1], positions.shape[-1], 1, device=positions.device)
    distance = (positions[..., first] - positions[..., second]).norm(dim=0)
    return (1 - distance).relu().mean()


def _positions(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model.modules() if isinstance(m, DCLSConv2d) and not m.plain and m.kernel_count > 1]
    return list({id(layer.P): layer.P for layer in layers}.values())
