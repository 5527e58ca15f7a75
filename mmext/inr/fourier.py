"""Magnetic resonance imaging: a part of the Fourier transform is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mmext.arguments import Few
from mmext.inr.operators import MeasurementOperator
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['MaskedFourierOperator']


@MODELS.register_module()
class MaskedFourierOperator(MeasurementOperator):
    r"""Magnetic resonance imaging: a part of the Fourier transform, :math:`y = M F x`, by three masks.

    F is the orthonormal discrete Fourier transform and M picks the frequencies that one of three patterns measures (ours;
    the first is the two-dimensional form of the one in Tancik et al., *Fourier Features Let Networks Learn High Frequency
    Functions in Low Dimensional Domains*, NeurIPS 2020, arXiv 2006.10739):

    - ``'gaussian'``: :math:`H W \cdot \mathrm{fraction}` draws from a normal distribution about the frequency zero, with
      variance 2 H along the rows' axis and 2 W along the columns', rounded down; draws beyond the last frequency are lost,
      and frequencies that are drawn twice count once;
    - ``'cartesian'``: whole columns, 1 / acceleration of all, those of the low frequencies all and the rest at random;
    - ``'radial'``: spokes through the frequency zero, evenly spread over 180 degrees, with one sample per step of length one.

    Only the values at measured frequencies are returned, so that a mean over them is a mean over what is measured.

    Args:
        mask: The name of the pattern.
        fraction: Of ``'gaussian'``: draws per frequency, in (0, 1]; the mask holds fewer because of repetitions, about 12 %
            of a 256 x 256 image by default (20 000 draws).
        acceleration: Of ``'cartesian'``: the share of columns that is left out is 1 - 1 / acceleration.
        center_fraction: Of ``'cartesian'``: columns that are always measured, as a share of all, at least one; by default
            0.32 / acceleration, 8 % at 4x and 4 % at 8x.
        spokes: Of ``'radial'``: their number.
        complex_image: Whether the image is complex; :meth:`baseline` is then, too, and :class:`mmext.SignalModel` takes two
            values per channel from its network. :meth:`forward` transforms whatever comes.
        noise: See :class:`mmext.inr.MeasurementOperator`.
        seed: Of the noise, and of the mask.

    Shape:
        (H, W, C), real or complex, to (m, C), complex, at least in 32 bit precision; m is the number of frequencies in the
        mask, which are in the order of ``torch.fft.fft2``.

    Raises:
        ValueError: If the pattern is unknown, an argument of it is out of range, or it measures nothing of a tiny image.

    Example:
        >>> MaskedFourierOperator().measure(torch.rand(16, 16, 1)).is_complex()
        True
    """

    def __init__(
        self,
        mask: str = 'gaussian',
        fraction: float = 20_000 / 256**2,
        acceleration: float = 4,
        center_fraction: float | None = None,
        spokes: Few = 40,
        complex_image: bool = False,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(noise, seed)
        if not 0 < fraction <= 1:
            raise ValueError(f'MaskedFourierOperator needs a fraction of draws in (0, 1], got {fraction=}')
        if acceleration < 1:
            raise ValueError(f'MaskedFourierOperator needs an acceleration of at least 1, got {acceleration=}')
        center_fraction = 0.32 / acceleration if center_fraction is None else center_fraction
        if not 0 <= center_fraction <= 1 / acceleration:
            raise ValueError(
                f'MaskedFourierOperator measures {1 / acceleration:.3g} of the columns at {acceleration=} and needs a '
                f'center_fraction between 0 and that, got {center_fraction=}'
            )
        if spokes < 1:
            raise ValueError(f'MaskedFourierOperator needs one spoke at least, got {spokes=}')
        options: dict[str, dict[str, float]] = {
            'gaussian': dict(fraction=fraction),
            'cartesian': dict(acceleration=acceleration, center_fraction=center_fraction),
            'radial': dict(spokes=spokes),
        }
        if mask not in options:
            raise ValueError(f"MaskedFourierOperator knows the masks 'gaussian', 'cartesian' and 'radial', got {mask=}")
        self.pattern = mask
        self.options = tuple((name, float(value)) for name, value in options[mask].items())
        self.complex_image = complex_image

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Return which frequencies of an image of ``size`` are measured, as booleans (H, W) in the order of ``fft2``.

        For a picture with the frequency zero in the middle use ``torch.fft.fftshift``.
        """
        return _mask(self.pattern, self.options, self.seed, *size)

    def forward(self, image: Tensor) -> Tensor:
        """Return the measured frequencies."""
        image = at_least_float32(image)
        spectrum = torch.fft.fft2(image, dim=(0, 1), norm='ortho')
        return spectrum.flatten(0, 1).index_select(0, self._measured(image.shape[:2], image.device))

    @torch.no_grad()
    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the image whose other frequencies are zero (zero-filled); of a real image the real part.

        Raises:
            ValueError: If the measurement is not one of an image of that size.
        """
        measured = self._measured(size, measurement.device)
        if len(measurement) != len(measured):
            raise ValueError(
                f'MaskedFourierOperator measures {len(measured)} frequencies of an image of {size[0]} x {size[1]}, got '
                f'{len(measurement)}; set the mask, its seed and size to those of the measurement'
            )
        spectrum = measurement.new_zeros(size[0] * size[1], *measurement.shape[1:])
        spectrum = spectrum.index_copy(0, measured, measurement).unflatten(0, tuple(size))
        image = torch.fft.ifft2(spectrum, dim=(0, 1), norm='ortho')
        return image if self.complex_image else image.real

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor]:
        """Return the mask with the frequency zero in its center."""
        mask = self.mask(size).double()
        return f'measured frequencies ({mask.mean():.1%})', torch.fft.fftshift(mask)

    def _measured(self, size: tuple[int, ...], device: torch.device) -> Tensor:
        # A compiler that has seen other sizes or seeds takes these for variables, which cannot be part of a constant. What is
        # printed is one.
        height, width, seed = [int(f'{n}') for n in (*size, self.seed)]
        return _measured(self.pattern, self.options, seed, height, width, device)

    def extra_repr(self) -> str:
        options = ', '.join(f'{name}={value:.4g}' for name, value in self.options)
        return f'mask={self.pattern!r}, {options}, complex_image={self.complex_image}, {super().extra_repr()}'


# The compiler takes the positions as a constant, which spares it the drawing of them.
@torch.compiler.assume_constant_result
def _measured(
    pattern: str, options: tuple[tuple[str, float], ...], seed: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Return the places of the measured frequencies in the flattened spectrum."""
    return _places(pattern, options, seed, height, width, device)


# Kept here and not in the operator: copies of it share them, and none of them is saved.
@lru_cache(maxsize=8)
def _places(
    pattern: str, options: tuple[tuple[str, float], ...], seed: int, height: int, width: int, device: torch.device
) -> Tensor:
    # What is made in inference mode could not be used in training after it.
    with torch.inference_mode(False):
        places = _mask(pattern, options, seed, height, width).flatten().nonzero()[:, 0]
        if not len(places):
            raise ValueError(
                f'MaskedFourierOperator measures no frequency of an image of {height} x {width} with mask={pattern!r}, '
                f'{dict(options)} and {seed=}; raise the fraction'
            )
        return places.to(device)


def _mask(pattern: str, options: tuple[tuple[str, float], ...], seed: int, height: int, width: int) -> Tensor:
    """Return the mask in the order of ``fft2``; it is drawn with the frequency zero in the middle."""
    # Drawn on the CPU: a seed means the same mask on all devices.
    generator = torch.Generator('cpu').manual_seed(seed)
    centered = torch.zeros(height, width, dtype=torch.bool)
    _PATTERNS[pattern](centered, generator, **dict(options))
    return torch.fft.ifftshift(centered)


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
