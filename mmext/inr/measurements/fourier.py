"""Magnetic resonance imaging: a part of the Fourier transform is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.arguments import Few
from mmext.inr.measurements.operators import LossKind, MeasurementOperator
from mmext.ops.masked_fourier import frequency_mask, masked_fourier, masked_fourier_adjoint
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
        loss: See :class:`mmext.inr.MeasurementOperator`.

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
        loss: LossKind = 'mse',
    ) -> None:
        super().__init__(noise, seed, loss)
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
        return frequency_mask(self.pattern, self._values, self.seed, *size)

    def forward(self, image: Tensor) -> Tensor:
        """Return the measured frequencies."""
        return masked_fourier(image, self.pattern, self._values, self.seed)

    @torch.no_grad()
    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the image whose other frequencies are zero (zero-filled); of a real image the real part.

        Raises:
            ValueError: If the measurement is not one of an image of that size.
        """
        measured = int(self.mask(size).sum())
        if len(measurement) != measured:
            raise ValueError(
                f'MaskedFourierOperator measures {measured} frequencies of an image of {size[0]} x {size[1]}, got '
                f'{len(measurement)}; set the mask, its seed and size to those of the measurement'
            )
        image = masked_fourier_adjoint(measurement, size, self.pattern, self._values, self.seed)
        return image if self.complex_image else image.real

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor]:
        """Return the mask with the frequency zero in its center."""
        mask = self.mask(size).double()
        return f'measured frequencies ({mask.mean():.1%})', torch.fft.fftshift(mask)

    @property
    def _values(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.options)

    def extra_repr(self) -> str:
        options = ', '.join(f'{name}={value:.4g}' for name, value in self.options)
        return f'mask={self.pattern!r}, {options}, complex_image={self.complex_image}, {super().extra_repr()}'
