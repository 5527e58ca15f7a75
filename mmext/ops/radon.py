"""The Radon transform as one sparse product, and its transpose; see :class:`mmext.RadonOperator` for the formula."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmext.numerics import at_least_float32, cached_constants
from mmext.ops._operator import operator

__all__ = ['radon_transform']


def radon_transform(image: Tensor, angles: Sequence[float]) -> Tensor:
    """Sum a square image along parallel rays at several angles.

    Args:
        image: (n, n, C).
        angles: In degrees.

    Returns:
        (angles, n, C), at least in float32.

    Raises:
        ValueError: If the image is not square, or there is no angle.
    """
    return _radon(at_least_float32(image), [float(angle) for angle in angles])


def _check(name: str, tensor: Tensor, angles: Sequence[float], first: int | None) -> None:
    if tensor.ndim != 3 or not angles or tensor.shape[0] != (tensor.shape[1] if first is None else first):
        law = '(n, n, C)' if first is None else f'({first}, n, C)'
        raise ValueError(
            f'{name} needs {law} and one angle at least, got {list(tensor.shape)} and {len(angles)} angles'
        )


def _run(image: Tensor, angles: Sequence[float]) -> Tensor:
    _check('radon', image, angles, None)
    side, _, channels = image.shape
    matrix, _ = _matrices(side, tuple(angles), image.dtype, image.device)
    return _product(matrix, image.reshape(-1, channels)).view(len(angles), side, channels)


def _run_transposed(sinogram: Tensor, angles: Sequence[float]) -> Tensor:
    _check('radon_transposed', sinogram, angles, len(angles))
    _, side, channels = sinogram.shape
    _, transposed = _matrices(side, tuple(angles), sinogram.dtype, sinogram.device)
    return _product(transposed, sinogram.reshape(-1, channels)).view(side, side, channels)


def _fake(image: Tensor, angles: Sequence[float]) -> Tensor:
    _check('radon', image, angles, None)
    return image.new_empty(len(angles), *image.shape[1:])


def _fake_transposed(sinogram: Tensor, angles: Sequence[float]) -> Tensor:
    _check('radon_transposed', sinogram, angles, len(angles))
    return sinogram.new_empty(sinogram.shape[1], *sinogram.shape[1:])


def _save(ctx: Any, inputs: tuple[Tensor, Sequence[float]], output: Tensor) -> None:
    ctx.angles = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _radon_transposed(grad, ctx.angles), None


def _backward_transposed(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _radon(grad, ctx.angles), None


def _tangent(op: Callable, ctx: Any, tangent: Tensor | None, _: None) -> Tensor | None:
    return None if tangent is None else op(tangent, ctx.angles)


def _by_channels(op: Callable, axes: Sequence[int], tensor: Tensor, angles: Sequence[float]) -> tuple[Tensor, int]:
    """The rule of ``vmap``: further channels."""
    stacked = tensor.movedim(axes[0], 2)
    return op(stacked.flatten(2), angles).unflatten(2, stacked.shape[2:]), 2


_radon = operator(
    'radon(Tensor image, float[] angles) -> Tensor', _run, _fake, _save, _backward, _tangent, _by_channels
)
_radon_transposed = operator(
    'radon_transposed(Tensor sinogram, float[] angles) -> Tensor',
    _run_transposed,
    _fake_transposed,
    _save,
    _backward_transposed,
    _tangent,
    _by_channels,
)


def _product(matrix: Tensor, columns: Tensor) -> Tensor:
    # With a vector the product is faster than with a matrix of one column.
    return (matrix @ columns[:, 0])[:, None] if columns.shape[1] == 1 else matrix @ columns


@cached_constants(maxsize=4)
def _matrices(side: int, angles: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrix of the transform, (views * n, n * n), and its transpose.

    They are kept here and not in the operator: copies of it share them, and none of them is saved.
    """
    counts, pixels, weights = [], [], []
    for angle in angles:
        detector_and_pixel, weight = _view(side, math.radians(angle))
        counts.append(torch.bincount(detector_and_pixel // side**2, minlength=side))
        pixels.append((detector_and_pixel % side**2).int())
        weights.append(weight)
    count, pixel, weight = torch.cat(counts), torch.cat(pixels), torch.cat(weights).to(dtype)
    shape = (len(count), side**2)
    order = torch.sort(pixel, stable=True).indices
    rays = torch.arange(len(count), dtype=torch.int32).repeat_interleave(count)[order]
    matrix = _csr(count, pixel, weight, shape, device)
    return matrix, _csr(torch.bincount(pixel, minlength=side**2), rays, weight[order], shape[::-1], device)


def _view(side: int, angle: float) -> tuple[Tensor, Tensor]:
    """Return what one view sees: sorted keys detector * n^2 + pixel, each once, and the pixels' weights in the sums."""
    center = side // 2
    offset = torch.arange(side, dtype=torch.float64) - center
    detector = torch.arange(side).expand(side, side)
    x = offset * math.cos(angle) + offset[:, None] * math.sin(angle) + center
    y = offset[:, None] * math.cos(angle) - offset * math.sin(angle) + center
    left, top = x.floor(), y.floor()
    keys, weights = [], []
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            weight = row_weight * column_weight
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side) & (weight > 0)
            keys.append((detector * side**2 + (row * side + column).long())[inside])
            weights.append(weight[inside])
    merged, place = torch.cat(keys).unique(return_inverse=True)
    return merged, torch.zeros(len(merged), dtype=torch.float64).index_add_(0, place, torch.cat(weights))


def _csr(count: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return the sparse matrix with ``count`` entries in each row."""
    # Products with 32 bit indices are five times faster.
    index = torch.int32 if len(values) < 2**31 else torch.int64
    starts = torch.cat([count.new_zeros(1), count.cumsum(0)]).to(index)
    with warnings.catch_warnings():
        # That they are in beta, and that nobody checks them.
        warnings.filterwarnings('ignore', message='Sparse')
        return torch.sparse_csr_tensor(starts, columns.to(index), values, shape).to(device)
