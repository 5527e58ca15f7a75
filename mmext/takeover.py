"""How much of a layer its successor takes over, measured."""

from __future__ import annotations

import copy
import logging
import math

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

__all__ = ['EXACT', 'distance', 'is_frozen', 'verdict', 'warn_if_lost']

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
        The distance, infinite where ``new`` cannot load the state or returns another shape. NaN where ``old`` has the same
        tensors and cannot compute here, as an operator for a GPU alone.
    """
    before, after = copy.deepcopy(old), copy.deepcopy(new)
    before.eval()
    after.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            kept = after.load_state_dict(before.state_dict(), strict=False)
            like = next(iter(before.state_dict().values()), next(after.parameters(), torch.empty(0)))
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape or _smallest(old), generator=generator).to(like.device, torch.float32)
            x = x.to(like) if like.is_floating_point() else x
            b = after(x.clone()).double()  # an activation may work in place
            try:
                a = before(x).double()
            except (RuntimeError, NotImplementedError):
                return float('inf') if kept.missing_keys or kept.unexpected_keys else float('nan')
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return float('inf')
    if a.shape != b.shape:
        return float('inf')
    return float((a - b).norm() / a.norm().clamp_min(torch.finfo(a.dtype).tiny))


def verdict(error: float) -> str:
    """Return ``'exact'``, ``'near (0.12)'``, ``'none'``, or that nothing could be compared."""
    if math.isnan(error):
        return 'the same tensors (the old layer does not run here)'
    return 'exact' if error <= EXACT else f'near ({error:.2g})' if error <= NEAR else 'none'


def is_frozen(layer: nn.Module) -> bool:
    """Tell whether a layer has parameters and learns none of them."""
    learning = [p.requires_grad for p in layer.parameters()]
    return bool(learning) and not any(learning)


def warn_if_lost(name: str, layer: nn.Conv2d, kernel: Tensor, bias: Tensor | None) -> None:
    """Warn if a layer that does not learn computes otherwise than the plain layer whose kernel it was given."""
    tensors = [*layer.parameters(), *layer.buffers(), kernel]
    if not is_frozen(layer) or kernel.ndim != 4 or any(t.is_meta for t in tensors):
        return
    keys = ('stride', 'padding', 'dilation', 'groups', 'padding_mode')
    geometry = {key: getattr(layer, key) for key in keys}
    try:
        old = nn.Conv2d(
            kernel.shape[1] * layer.groups,
            len(kernel),
            (kernel.shape[2], kernel.shape[3]),
            bias=bias is not None,
            **geometry,
        )
        old = old.to(tensors[0].device, tensors[0].dtype)
        old.load_state_dict({'weight': kernel} if bias is None else {'weight': kernel, 'bias': bias})
        error = distance(old, layer)
    except (RuntimeError, ValueError):  # of another geometry
        error = float('inf')
    if error > EXACT:
        what = 'cannot be compared with' if error == float('inf') else f'are {error:.2g} away (relative) from'
        print_log(
            f'{name or type(layer).__name__}: frozen, and not the layer of the checkpoint: as {type(layer).__name__} its '
            f"outputs {what} those of the checkpoint's; unfreeze it (frozen_stages), leave it out by skip=..., or take a "
            'layer that starts from a kernel exactly',
            'current',
            logging.WARNING,
        )


def _smallest(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        size = [d * (k - 1) + 1 + s for k, d, s in zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)]
        return (2, layer.in_channels, *size)
    return (2, getattr(layer, 'num_features', getattr(layer, 'num_channels', 8)), 8, 8)
