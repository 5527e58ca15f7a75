"""What is measured of a signal: the interface of measurement operators, and the two simplest of them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Few
from mmext.registry import MODELS

__all__ = ['DownsamplingOperator', 'IdentityOperator', 'MeasurementOperator']


class MeasurementOperator(nn.Module):
    r"""The operator A of an inverse problem :math:`y = A x + n`, in which a coordinate network represents x.

    An image here is (H, W, C), as the networks return it. A subclass defines :meth:`forward`, linear and differentiable, and
    a classical reconstruction, if there is one, in :meth:`baseline`. It has no parameters, and its precomputed tables are
    not saved.

    Args:
        noise: Standard deviation of the Gaussian noise that :meth:`measure` adds, as a share of the largest absolute value
            of the clean measurement; of a complex one that of the complex noise, both parts together.
        seed: Of the noise, and of whatever else is drawn.

    Raises:
        ValueError: If ``noise`` is negative.
    """

    #: Whether x is complex; the network then has a real and an imaginary part for each channel.
    complex_image = False

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if noise < 0:
            raise ValueError(f'{type(self).__name__} needs a standard deviation noise >= 0, got {noise=}')
        self.noise = noise
        self.seed = seed

    def coordinates(self, coords: Tensor) -> Tensor:
        """Return the positions at which the network is evaluated to predict the measurement; by default all, (H, W, d)."""
        return coords

    def forward(self, image: Tensor) -> Tensor:
        """Return A x for the image at :meth:`coordinates`."""
        raise NotImplementedError(f'{type(self).__name__} must define forward(image)')

    @torch.no_grad()
    def measure(self, image: Tensor) -> Tensor:
        """Simulate the measurement of a true image, noise included: the same for the same seed."""
        return self.with_noise(self.clean(image))

    def clean(self, image: Tensor) -> Tensor:
        """Return what is measured of a true image without noise."""
        return self(image)

    def with_noise(self, clean: Tensor) -> Tensor:
        """Add noise to a measurement."""
        if not self.noise or not clean.numel():
            return clean
        # Drawn on the CPU: a generator belongs to a device, and a seed means the same numbers on all of them.
        generator = torch.Generator('cpu').manual_seed(self.seed)
        drawn = torch.randn(clean.shape, generator=generator, dtype=torch.promote_types(clean.dtype, torch.float32))
        return clean + drawn.to(clean) * (self.noise * clean.abs().max())

    @torch.no_grad()
    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Return the classical reconstruction of an image of ``size`` (H, W) as (H, W, C), None if there is none."""
        return None

    def preview(self, measurement: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what is known of the image before it is reconstructed, as a picture (C, H, W) in [0, 1]."""
        image = self.baseline(measurement, size)
        image = measurement if image is None else image
        return (image.abs() if image.is_complex() else image).clamp(0, 1).movedim(-1, 0)

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor] | None:
        """Return a name and a picture (h, w) or (h, w, C) in [0, 1] that show what was measured, None if nothing does."""
        if measurement.ndim != 3 or measurement.is_complex():
            return None
        low, high = measurement.aminmax()
        return 'measurement', (measurement - low) / (high - low).clamp_min(1e-12)

    def extra_repr(self) -> str:
        return f'noise={self.noise}, seed={self.seed}'


@MODELS.register_module()
class IdentityOperator(MeasurementOperator):
    """Every pixel is measured: fitting a picture, and with noise removing it (ours).

    Args:
        noise: See :class:`mmext.inr.MeasurementOperator`.
        seed: See :class:`mmext.inr.MeasurementOperator`.

    Example:
        >>> IdentityOperator()(torch.rand(4, 6, 1)).shape
        torch.Size([4, 6, 1])
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return ``image``."""
        return image

    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Return the noisy image, or None if there is no noise."""
        return measurement if self.noise else None

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> None:
        """Return None: the measurement is the image, or its baseline."""


@MODELS.register_module()
class DownsamplingOperator(MeasurementOperator):
    r"""Means over blocks of pixels are measured: super-resolution (ours).

    The coordinate network is a function of continuous positions; trained on the coarse pixels, it is evaluated on the finer
    grid. Coarse pixel i stands where its block has its center, :math:`f i + (f - 1) / 2` in fine pixels.

    Args:
        factor: f, the side of a block.
        points: ``'centers'``: the network's value at a block's center is compared with the block's mean; ``'all'``: the mean
            of the network's values in the block is, which is exact, at f squared times the cost.
        noise: See :class:`mmext.inr.MeasurementOperator`.
        seed: See :class:`mmext.inr.MeasurementOperator`.

    Shape:
        (H, W, C) to (H / f, W / f, C).

    Raises:
        ValueError: If ``factor`` is below 1, ``points`` is unknown, or the image is not made of whole blocks.

    Example:
        >>> DownsamplingOperator(factor=2).measure(torch.rand(4, 6, 1)).shape
        torch.Size([2, 3, 1])
    """

    def __init__(
        self, factor: Few = 4, points: Literal['centers', 'all'] = 'centers', noise: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(noise, seed)
        if factor < 1:
            raise ValueError(f'DownsamplingOperator needs a factor of at least 1, got {factor=}')
        self.factor = factor
        self.points = points

    def coordinates(self, coords: Tensor) -> Tensor:
        """Return the blocks' centers, or everything."""
        return self.clean(coords) if self.points == 'centers' else coords

    def forward(self, image: Tensor) -> Tensor:
        """Return what is comparable with the blocks' means."""
        return image if self.points == 'centers' else self.clean(image)

    def clean(self, image: Tensor) -> Tensor:
        """Average over blocks."""
        height, width, channels = image.shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f'DownsamplingOperator with factor={self.factor} needs an image of whole blocks, got {height} x {width}; set '
                f'size to {self._whole(height)}, {self._whole(width)}'
            )
        blocks = image.view(height // self.factor, self.factor, width // self.factor, self.factor, channels)
        return blocks.mean((1, 3))

    def _whole(self, side: int) -> int:
        return max(side - side % self.factor, self.factor)

    def baseline(self, measurement: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Interpolate bicubically."""
        maps = measurement.movedim(-1, 0)[None]
        return F.interpolate(maps, size, mode='bicubic', align_corners=False)[0].movedim(0, -1)

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor]:
        """Return the coarse image."""
        return 'measurement', measurement.clamp(0, 1)

    def extra_repr(self) -> str:
        return f'factor={self.factor}, points={self.points!r}, {super().extra_repr()}'
