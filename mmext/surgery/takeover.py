"""How much of a layer its successor takes over, measured."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ['distance', 'verdict']

#: Relative distances of outputs: up to the first a layer takes its predecessor's weights exactly, up to the second nearly.
EXACT, NEAR = 1e-4, 0.5


def distance(old: nn.Module, new: nn.Module, shape: tuple[int, ...] | None = None) -> float:
    r"""Return how far ``new`` computes from ``old`` once it has loaded the state of ``old``.

    This is :math:`\lVert y_{new} - y_{old} \rVert / \lVert y_{old} \rVert` on noise, in eval mode. It is what a checkpoint of
    the plain model leads to. Neither layer is changed.

    Args:
        old: The layer that was replaced.
        new: What stands in its place.
        shape: Of the input; by default the smallest map that a kernel of ``old`` fits on.

    Returns:
        The distance, infinite where ``new`` cannot load the state or returns another shape.
    """
    before, after = copy.deepcopy(old), copy.deepcopy(new)
    before.eval()
    after.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            after.load_state_dict(before.state_dict(), strict=False)
            like = next(iter(before.state_dict().values()), next(after.parameters(), torch.empty(0)))
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape or _smallest(old), generator=generator).to(like.device, torch.float32)
            x = x.to(like) if like.is_floating_point() else x
            a, b = before(x).double(), after(x).double()
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return float('inf')
    if a.shape != b.shape:
        return float('inf')
    return float((a - b).norm() / a.norm().clamp_min(torch.finfo(a.dtype).tiny))


def verdict(error: float) -> str:
    """Return ``'exact'``, ``'near (0.12)'`` or ``'none'``."""
    return 'exact' if error <= EXACT else f'near ({error:.2g})' if error <= NEAR else 'none'


def _smallest(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        size = [d * (k - 1) + 1 + s for k, d, s in zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)]
        return (2, layer.in_channels, *size)
    return (2, getattr(layer, 'num_features', getattr(layer, 'num_channels', 8)), 8, 8)
