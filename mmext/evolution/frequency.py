"""Bands of the frequencies of an image, which every pixel weighs, and runs of those of a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.numerics import at_least_float32, cached_constants, full_precision

__all__ = ['FrequencyBands', 'gated', 'inverse_rfft2', 'runs']


class FrequencyBands(nn.Module):
    r"""FDConv's frequency band modulation: an image is split into bands, and each is multiplied by a map of its own.

    .. math:: y = \sum_j m_j \odot (l_{j-1} - l_j) + l_J, \qquad m_j = 2\, \mathrm{sigmoid}(A_j * x), \qquad l_0 = x

    :math:`l_j` keeps the frequencies below :math:`0.5 / k_j` per pixel on both axes. With maps of one it is the identity.

    Args:
        weights: The convolutions A, one for each band.
        divisors: The numbers k, ascending.
        mask_size: The released layer makes its masks for a map of 64 x 64 and resizes them, so bands are approximate at
            other sizes. None makes them for the map's own size.
    """

    def __init__(self, weights: nn.ModuleList, divisors: Sequence[int], mask_size: int | None) -> None:
        super().__init__()
        self.weights = weights
        self.divisors, self.mask_size = tuple(divisors), mask_size

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the bands of ``x``, (B, C, H, W)."""
        maps = [2 * conv(x).sigmoid() for conv in self.weights]
        with full_precision(x):
            below = at_least_float32(x)
            out = torch.zeros_like(below)
            for low, weight in zip(self.low(below), maps, strict=True):
                weight = weight.to(low.dtype).repeat_interleave(x.shape[1] // weight.shape[1], 1)
                out, below = out + weight * (below - low), low
            return (out + below).to(x.dtype)

    def low(self, x: Tensor) -> Iterator[Tensor]:
        """Yield ``x`` below each limit, in turn."""
        size = int(x.shape[2]), int(x.shape[3])
        masks = [_masks(size, divisor, self.mask_size) for divisor in self.divisors]
        if _by_products(x):
            for rows, columns in masks:
                by_row, beside_rows = _filter(rows / size[0], size[0])
                by_column, beside_columns = _filter(columns * _twice(size[1]) / size[1], size[1])
                # The inverse transform of real images drops what a mask that is not symmetric makes imaginary.
                yield by_row.to(x) @ x @ by_column.to(x) + beside_rows.to(x) @ x @ beside_columns.to(x)
            return
        spectrum = torch.fft.rfft2(x)
        for rows, columns in masks:
            yield torch.fft.irfft2(spectrum * (rows[:, None] * columns).to(x), s=size)


def inverse_rfft2(spectrum: Tensor, width: int) -> Tensor:
    """Return the real image of half a spectrum, (..., rows, width // 2 + 1, 2) to (..., rows, width)."""
    if not _by_products(spectrum):
        return torch.fft.irfft2(torch.view_as_complex(spectrum), s=(spectrum.shape[-3], width))
    real, imaginary = spectrum.unbind(-1)
    height = int(spectrum.shape[-3])
    cosine, sine = (wave.to(real) / height for wave in _waves(height, height))
    whole, beside = ((wave * (_twice(width) / width)[:, None]).to(real) for wave in _waves(width // 2 + 1, width))
    return (cosine @ real - sine @ imaginary) @ whole - (sine @ real + cosine @ imaginary) @ beside


def _by_products(x: Tensor) -> bool:
    """Whether transforms are products with constants: ONNX has no other, and libraries refuse empty batches."""
    return torch.onnx.is_in_onnx_export() or x.shape[0] == 0


def _waves(frequencies: int, size: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (frequencies, size)."""
    angle = torch.arange(frequencies, dtype=torch.float64)[:, None] * torch.arange(size) * (2 * math.pi / size)
    return angle.cos(), angle.sin()


def _twice(width: int) -> Tensor:
    """Return how often each frequency of half a spectrum stands in the whole one."""
    times = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    times[0] = 1
    times[-1] = 1 if width % 2 == 0 else 2
    return times


def _filter(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the convolution with the sum of weighted cosines, and of sines, as (size, size) matrices; the second is odd."""
    cosine, sine = _waves(len(weight), size)
    weight = weight.double()[:, None]
    even = cosine.T @ (weight * cosine) + sine.T @ (weight * sine)
    return even, sine.T @ (weight * cosine) - cosine.T @ (weight * sine)


@cached_constants(256)
def _masks(size: tuple[int, int], divisor: int, mask_size: int | None) -> tuple[Tensor, Tensor]:
    """Return which frequencies of rows and of columns, as ``rfft2`` orders them, are below the limit."""
    height, width = (mask_size, mask_size) if mask_size else size
    axes = []
    for frequencies, n in ((torch.fft.fftfreq(height), size[0]), (torch.fft.rfftfreq(width), size[1] // 2 + 1)):
        mask = (frequencies.abs() < 0.5 / divisor + 1e-8).double()
        axes.append(F.interpolate(mask[None, None], n)[0, 0])
    return axes[0], axes[1]


def gated(logits: Tensor, act: str) -> Tensor:
    """Return factors around one: 2 sigmoid, or 1 + tanh."""
    return 2 * logits.sigmoid() if act == 'sigmoid' else 1 + logits.tanh()


@cached_constants(256)
def runs(rows: int, columns: int, number: int, device: str) -> Tensor:
    """Return which of ``number`` runs each cell of the half spectrum belongs to, by its frequency, (cells,).

    Equal frequencies keep their order, so that a checkpoint means the same everywhere.
    """
    axes = torch.fft.fftfreq(rows, dtype=torch.float32), torch.fft.rfftfreq(columns, dtype=torch.float32)
    frequency = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).norm(dim=-1).flatten()
    order = frequency.argsort(stable=True)
    run = torch.empty_like(order)
    for number_of_run, cells in enumerate(order.tensor_split(number)):
        run[cells] = number_of_run
    return run.to(device)
