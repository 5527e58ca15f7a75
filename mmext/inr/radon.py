"""Computed tomography: the Radon transform as one sparse product."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmext.arguments import Few
from mmext.inr.base import at_least_float32
from mmext.inr.operators import MeasurementOperator
from mmext.registry import MODELS

__all__ = ['RadonOperator']


@MODELS.register_module()
class RadonOperator(MeasurementOperator):
    r"""Computed tomography: the Radon transform, equal to scikit-image's, as one sparse product (ours).

    Radon, *Über die Bestimmung von Funktionen durch ihre Integralwerte längs gewisser Mannigfaltigkeiten*, 1917; discretized
    as scikit-image's ``radon`` with ``circle=True``, which it equals up to rounding. At the angle t detector x sees

    .. math::
        p_t(x) = \sum_{y=0}^{n-1} I(x', y'), \qquad
        x' = (x - c) \cos t + (y - c) \sin t + c, \quad
        y' = -(x - c) \sin t + (y - c) \cos t + c, \quad c = \lfloor n / 2 \rfloor

    with I the image, interpolated bilinearly in columns and rows and zero outside. These are weights of pixels that do not
    depend on the image: they are summed once into a sparse matrix, which is kept with its transpose, for the backward pass.
    Both together take about 32 bytes per view and pixel in float32, 200 MB for 100 views of 256 x 256.

    The object is meant to lie inside of the inscribed circle. What lies outside is not set to zero: as in scikit-image, the
    corners count in the views that see them. So a network is still told that they are black, and a picture that is not
    black there can be measured, but no view sums to all of it, and filtered back-projection gets it wrong.

    Args:
        views: Number of angles, spread evenly over 180 degrees, of which the last is left out: it is the first one mirrored.
        angles: The angles themselves instead, in degrees.
        normalize: Divide by n, so that measurements, losses and with them learning rates do not grow with the size.
        noise: See :class:`mmext.inr.MeasurementOperator`.
        seed: See :class:`mmext.inr.MeasurementOperator`.

    Shape:
        (n, n, C) to (views, n, C), at least in float32. scikit-image's sinogram is (n, views).

    Raises:
        ValueError: If there is no angle, or the image is not square.

    Example:
        >>> RadonOperator(views=10)(torch.rand(16, 16, 1)).shape
        torch.Size([10, 16, 1])
    """

    def __init__(
        self,
        views: Few = 100,
        angles: Sequence[float] | None = None,
        normalize: bool = True,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(noise, seed)
        self.angles = tuple(180 * k / views for k in range(views)) if angles is None else tuple(map(float, angles))
        if not self.angles:
            raise ValueError(f'RadonOperator needs one view at least, got {views=}, {angles=}')
        self.normalize = normalize

    def forward(self, image: Tensor) -> Tensor:
        """Return the sinogram."""
        side = self._square(image.shape[:2])
        image = at_least_float32(image)
        sinogram = torch.ops.mmext.radon(image, self.angles)
        return sinogram / side if self.normalize else sinogram

    @torch.no_grad()
    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the filtered back-projection with a ramp filter.

        Raises:
            ImportError: If scikit-image is missing.
            ValueError: If the measurement is not one of an image of that size.
        """
        try:
            from skimage.transform import iradon
        except ImportError as error:
            raise ImportError(
                f'filtered back-projection needs scikit-image ({error}); pip install scikit-image'
            ) from error
        side = self._square(size)
        if measurement.shape[:2] != (len(self.angles), side):
            raise ValueError(
                f'RadonOperator measures ({len(self.angles)}, {side}, C) of an image of {side} x {side}, got '
                f'{tuple(measurement.shape)}; set views or angles, and size, to those of the measurement'
            )
        sinogram = measurement.detach().to('cpu', torch.float64) * (side if self.normalize else 1)
        channels = [torch.from_numpy(iradon(s.T.numpy(), self.angles, circle=True)) for s in sinogram.unbind(-1)]
        return torch.stack(channels, -1).to(measurement)

    def _square(self, size: Sequence[int]) -> int:
        height, width = size
        if height != width:
            side = min(height, width)
            raise ValueError(
                f'RadonOperator turns the image about its center and needs a square one, got {height} x {width}; set '
                f'size=({side}, {side})'
            )
        return height

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor] | None:
        """Return the sinogram, a row for each view."""
        shown = super().picture(measurement, size)
        return shown and ('sinogram', shown[1])

    def extra_repr(self) -> str:
        return f'views={len(self.angles)}, normalize={self.normalize}, {super().extra_repr()}'


# --- the transform and its transpose as operators, so that compilers need not look into sparse matrices ------------------


@torch.library.custom_op('mmext::radon', mutates_args=(), schema='(Tensor image, float[] angles) -> Tensor')
def _radon(image: Tensor, angles: Sequence[float]) -> Tensor:
    side, _, channels = image.shape
    matrix, _ = _matrices(side, tuple(angles), image.dtype, image.device)
    return _product(matrix, image.reshape(-1, channels)).view(len(angles), side, channels)


@torch.library.custom_op(
    'mmext::radon_transposed', mutates_args=(), schema='(Tensor sinogram, float[] angles) -> Tensor'
)
def _radon_transposed(sinogram: Tensor, angles: Sequence[float]) -> Tensor:
    _, side, channels = sinogram.shape
    _, transposed = _matrices(side, tuple(angles), sinogram.dtype, sinogram.device)
    return _product(transposed, sinogram.reshape(-1, channels)).view(side, side, channels)


@_radon.register_fake
def _(image: Tensor, angles: Sequence[float]) -> Tensor:
    return image.new_empty(len(angles), *image.shape[1:])


@_radon_transposed.register_fake
def _(sinogram: Tensor, angles: Sequence[float]) -> Tensor:
    return sinogram.new_empty(sinogram.shape[1], *sinogram.shape[1:])


def _save(ctx: Any, inputs: tuple[Tensor, Sequence[float]], output: Tensor) -> None:
    ctx.angles = inputs[1]


def _radon_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.mmext.radon_transposed(grad, ctx.angles), None


def _radon_transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.mmext.radon(grad, ctx.angles), None


_radon.register_autograd(_radon_backward, setup_context=_save)
_radon_transposed.register_autograd(_radon_transposed_backward, setup_context=_save)


def _product(matrix: Tensor, columns: Tensor) -> Tensor:
    # With a vector the product is faster than with a matrix of one column.
    return (matrix @ columns[:, 0])[:, None] if columns.shape[1] == 1 else matrix @ columns


# --- the matrix ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
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
