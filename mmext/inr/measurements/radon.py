"""Computed tomography: the Radon transform as one sparse product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmext.arguments import Few
from mmext.inr.measurements.operators import LossKind, MeasurementOperator
from mmext.ops.radon import radon_transform
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
        loss: See :class:`mmext.inr.MeasurementOperator`.

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
        loss: LossKind = 'mse',
    ) -> None:
        super().__init__(noise, seed, loss)
        self.angles = tuple(180 * k / views for k in range(views)) if angles is None else tuple(map(float, angles))
        if not self.angles:
            raise ValueError(f'RadonOperator needs one view at least, got {views=}, {angles=}')
        self.normalize = normalize

    def forward(self, image: Tensor) -> Tensor:
        """Return the sinogram."""
        side = self._square(image.shape[:2])
        sinogram = radon_transform(image, self.angles)
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
