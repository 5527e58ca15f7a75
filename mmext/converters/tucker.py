"""Tucker convolutions: the released tensors are as large as ranks may get, and a list beside them tells the ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, choice, system
from mmext.errors import UsageError

__all__ = ['tucker']


@system(
    'TuckerConv2d',
    'S',
    takes=r'Us\.[0-3]|r|bias',
    signature=('S', r'Us\.[0-3]'),
    ranks='live to cut the tensors to the live ranks, room (the default) to keep the room in which ranks grow',
)
def tucker(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Cut out the live block by the ranks that the file lists, and count the bias twice, as the released layer does."""
    core, factors = layer['S'], [layer[f'Us.{i}'] for i in range(4)]
    if (listed := layer.other('r')) is None:
        raise UsageError(f'{layer.name} has no r, the list of its ranks; is it a layer of this system?')
    # Of a layer made from scratch the list may exceed the core, at which the released slices stop.
    rank = [min(int(r), n) for r, n in zip([*listed, *core.shape[len(listed) :]], core.shape, strict=True)]
    if min(rank) < 1:
        raise UsageError(f'{layer.name} has the ranks {list(listed)}, which are positive in the released layers')
    tensors = [core[tuple(slice(r) for r in rank)], *(u[:, :r] for u, r in zip(factors, rank, strict=True))]
    if choice(options, 'ranks', ('live', 'room'), 'room') == 'room':
        tensors = [_with_room(live, whole) for live, whole in zip(tensors, (core, *factors), strict=True)]
    names = ('core', 'factor_out', 'factor_in', 'factor_rows', 'factor_cols')
    ours = dict(zip(names, tensors, strict=True), live_rank=torch.tensor(rank))
    return {**ours, 'bias': 2 * layer['bias']} if 'bias' in layer else ours


def _with_room(live: Tensor, whole: Tensor) -> Tensor:
    """Put the live block back into its place, with zeros around it."""
    padded = torch.zeros_like(whole)
    padded[tuple(slice(n) for n in live.shape)] = live
    return padded
