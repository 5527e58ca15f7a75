"""The Fourier transform of which a mask is measured, and its adjoint; see :class:`mmext.MaskedFourierOperator`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmext.numerics import at_least_float32, cached_constants
from mmext.ops._operator import operator

__all__ = ['frequency_mask', 'masked_fourier', 'masked_fourier_adjoint']


def masked_fourier(image: Tensor, pattern: str, options: Sequence[float], seed: int) -> Tensor:
    """Return the measured frequencies of the orthonormal discrete Fourier transform.

    Args:
        image: (H, W, ...), real or complex.
        pattern: ``'gaussian'``, ``'cartesian'`` or ``'radial'``.
        options: Of the pattern: (fraction), (acceleration, center_fraction) or (spokes).
        seed: Of the mask.

    Returns:
        (m, ...), complex, at least in 32 bit precision; m is the number of frequencies in the mask.

    Raises:
        ValueError: If the mask is empty.
    """
    return _masked_fourier(at_least_float32(image), pattern, list(options), seed)


def masked_fourier_adjoint(
    measurement: Tensor, size: Sequence[int], pattern: str, options: Sequence[float], seed: int
) -> Tensor:
    """Return the complex image, (H, W, ...), of which all frequencies are zero that are not measured.

    Args:
        measurement: (m, ...), complex.
        size: (H, W).
        pattern: See :func:`masked_fourier`; so are the other arguments.
        options: See there.
        seed: See there.

    Raises:
        ValueError: If the measurement is not one of an image of that size.
    """
    return _adjoint(measurement, *size, pattern, list(options), seed)


def frequency_mask(pattern: str, options: Sequence[float], seed: int, height: int, width: int) -> Tensor:
    """Return the mask in the order of ``fft2``; it is drawn with the frequency zero in the middle."""
    # Drawn on the CPU: a seed means the same mask on all devices.
    generator = torch.Generator('cpu').manual_seed(seed)
    centered = torch.zeros(height, width, dtype=torch.bool)
    _PATTERNS[pattern](centered, generator, *options)
    return torch.fft.ifftshift(centered)


def _measured(size: Sequence[int], mask: tuple, device: torch.device | str = 'cpu') -> Tensor:
    """Return the places of the measured frequencies in the flattened spectrum."""
    pattern, options, seed = mask
    height, width = size
    # A compiler's size becomes a number here, as the mask and with it the size of the result depend on it.
    return _places(pattern, tuple(options), int(seed), int(height), int(width), torch.device(device))


@cached_constants(maxsize=8)
def _places(
    pattern: str, options: tuple[float, ...], seed: int, height: int, width: int, device: torch.device
) -> Tensor:
    places = frequency_mask(pattern, options, seed, height, width).flatten().nonzero()[:, 0]
    if not len(places):
        raise ValueError(
            f'MaskedFourierOperator measures no frequency of an image of {height} x {width} with mask={pattern!r}, '
            f'{options=} and {seed=}; raise the fraction'
        )
    return places.to(device)


def _run(image: Tensor, *mask: Any) -> Tensor:
    # MKL in torch 2.5 refuses what repeats in memory, as the gradient of a sum does.
    spectrum = torch.fft.fft2(image.contiguous(), dim=(0, 1), norm='ortho')
    return spectrum.flatten(0, 1).index_select(0, _measured(image.shape[:2], mask, image.device))


def _run_adjoint(measurement: Tensor, height: int, width: int, *mask: Any) -> Tensor:
    places = _measured((height, width), mask, measurement.device)
    _check(measurement, places)
    spectrum = measurement.new_zeros(height * width, *measurement.shape[1:])
    spectrum = spectrum.index_copy(0, places, measurement).unflatten(0, (height, width))
    return torch.fft.ifft2(spectrum, dim=(0, 1), norm='ortho').contiguous()


def _fake(image: Tensor, *mask: Any) -> Tensor:
    return image.new_empty(len(_measured(image.shape[:2], mask)), *image.shape[2:], dtype=image.dtype.to_complex())


def _fake_adjoint(measurement: Tensor, height: int, width: int, *mask: Any) -> Tensor:
    _check(measurement, _measured((height, width), mask))
    return measurement.new_empty(height, width, *measurement.shape[1:])


def _check(measurement: Tensor, places: Tensor) -> None:
    if not measurement.is_complex() or len(measurement) != len(places):
        raise ValueError(
            f'masked_fourier_adjoint needs {len(places)} complex measurements, got {list(measurement.shape)} of '
            f'{measurement.dtype}'
        )


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    image, *ctx.mask = inputs
    ctx.size, ctx.is_complex = image.shape[:2], image.is_complex()


def _save_adjoint(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, *ctx.mask = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple:
    image = _adjoint(grad, *ctx.size, *ctx.mask)
    return image if ctx.is_complex else image.real, None, None, None


def _backward_adjoint(ctx: Any, grad: Tensor) -> tuple:
    _, _, *mask = ctx.mask
    return _masked_fourier(grad, *mask), None, None, None, None, None


def _tangent(op: Callable, ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
    return None if tangent is None else op(tangent, *ctx.mask)


def _by_channels(op: Callable, axes: Sequence[Any], image: Tensor, *mask: Any) -> tuple[Tensor, int]:
    """The rule of ``vmap``: further channels."""
    return op(image.movedim(axes[0], 2), *mask), 1


def _by_channels_adjoint(op: Callable, axes: Sequence[Any], measurement: Tensor, *mask: Any) -> tuple[Tensor, int]:
    return op(measurement.movedim(axes[0], 1), *mask), 2


_MASK = 'str pattern, float[] options, int seed'
_masked_fourier = operator(
    f'masked_fourier(Tensor image, {_MASK}) -> Tensor', _run, _fake, _save, _backward, _tangent, _by_channels
)
_adjoint = operator(
    f'masked_fourier_adjoint(Tensor measurement, SymInt height, SymInt width, {_MASK}) -> Tensor',
    _run_adjoint,
    _fake_adjoint,
    _save_adjoint,
    _backward_adjoint,
    _tangent,
    _by_channels_adjoint,
)


def _multiply_adds(image: Sequence[int]) -> int:
    """Count those of a fast transform of n pixels: 2.5 n log2(n) for every channel, as is the custom."""
    height, width, *_ = image
    return round(2.5 * math.prod(image) * math.log2(max(height * width, 1)))


@register_flop_formula(torch.ops.mmext.masked_fourier)
def _flops(image: list[int], *args: Any, out_shape: list[int] | None = None, **_: Any) -> int:
    return 2 * _multiply_adds(image)


@register_flop_formula(torch.ops.mmext.masked_fourier_adjoint)
def _adjoint_flops(measurement: list[int], *args: Any, out_shape: list[int], **_: Any) -> int:
    return 2 * _multiply_adds(out_shape)


complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(
    {
        'mmext::masked_fourier': lambda i, o: _multiply_adds(get_shape(i[0])),
        'mmext::masked_fourier_adjoint': lambda i, o: _multiply_adds(get_shape(o[0])),
    }
)


def _gaussian(mask: Tensor, generator: torch.Generator, fraction: float) -> None:
    size = torch.tensor(mask.shape)
    draws = torch.randn(max(1, round(mask.numel() * fraction)), 2, generator=generator, dtype=torch.float64)
    places = (draws * (2 * size).sqrt() + size // 2).floor().long()
    rows, columns = places[((places >= 0) & (places < size)).all(1)].unbind(1)
    mask[rows, columns] = True


def _cartesian(mask: Tensor, generator: torch.Generator, acceleration: float, center_fraction: float) -> None:
    width = mask.shape[1]
    center = max(1, round(width * center_fraction))
    start = width // 2 - center // 2
    others = torch.cat([torch.arange(start), torch.arange(start + center, width)])
    more = max(0, round(width / acceleration) - center)
    mask[:, start : start + center] = True
    mask[:, others[torch.randperm(len(others), generator=generator)[:more]]] = True


def _radial(mask: Tensor, generator: torch.Generator, spokes: float) -> None:
    height, width = mask.shape
    reach = max(height, width) // 2
    angle = torch.arange(spokes, dtype=torch.float64)[:, None] * math.pi / spokes
    radius = torch.arange(-reach, reach + 1, dtype=torch.float64) / max(reach, 1)
    rows = (radius * angle.sin() * (height // 2)).round().long() + height // 2
    columns = (radius * angle.cos() * (width // 2)).round().long() + width // 2
    # The last frequency of an even axis is the first one too.
    mask[rows % height, columns % width] = True


_PATTERNS: dict[str, Callable[..., None]] = {'gaussian': _gaussian, 'cartesian': _cartesian, 'radial': _radial}
