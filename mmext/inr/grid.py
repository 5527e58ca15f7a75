"""The positions at which a signal is sampled."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['coordinate_grid']


def coordinate_grid(*size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """Return the coordinates of a regular grid, (*size, len(size)), in the order of its axes.

    Every axis runs from -1 to 1, both ends included, whatever its length: for a picture (H, W), entry ``[i, j]`` is
    ``(row, column)``. The released image fitting code divides both axes by H - 1, which is the same for square pictures.
    """
    axes = [torch.linspace(-1, 1, n, dtype=dtype, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
