"""A norm inside of a component, which says what to do where a batch has no statistics."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ['normalized']


def normalized(x: Tensor, norm: nn.Module | None, owner: str) -> Tensor:
    """Return ``norm(x)``; where a batch has too little for statistics, say in the name of ``owner`` what to do."""
    if norm is None:
        return x
    try:
        return norm(x)
    except ValueError as error:
        if x.numel() > x.shape[1]:
            raise
        raise ValueError(
            f'{owner} has batch norms inside, which need more than one value per channel in training, got a batch of shape '
            f'{tuple(x.shape)}; pass norm_cfg=None or a larger batch'
        ) from error
