"""What is measured of a signal: the interface of measurement operators, and the two simplest of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Few
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS

__all__ = ['DownsamplingOperator', 'Field', 'IdentityOperator', 'LossKind', 'MeasurementOperator']

#: What a network represents: a function of positions, (..., d) to (..., C).
Field = Callable[..., Tensor]
LossKind = Literal['mse', 'l1', 'bce']


class MeasurementOperator(nn.Module):
    r"""The operator A of an inverse problem :math:`y = A x + n`, in which a coordinate network represents x.

    An image here is (H, W, C), as the networks return it. A subclass defines :meth:`forward`, differentiable, and
    a classical reconstruction, if there is one, in :meth:`baseline`. Its precomputed tables are not saved.

    One that does more than a function of the image on a grid defines :meth:`predict`, :meth:`reconstruct` and
    :meth:`statistics_pass` instead. They get the represented function itself, as ``field``. Such an operator need not be
    linear, and may have parameters of its own. They are trained with those of the network.

    Args:
        noise: Standard deviation of the Gaussian noise that :meth:`measure` adds, as a share of the largest absolute value
            of the clean measurement; of a complex one that of the complex noise, both parts together.
        seed: Of the noise, and of whatever else is drawn.
        loss: Distance to the measurement: ``'mse'``, ``'l1'``, or ``'bce'``, binary cross entropy of logits. With the last
            one the field holds logits, and the reconstruction is their sigmoid.

    Raises:
        ValueError: If ``noise`` is negative, or ``loss`` is ``'bce'`` where not every position is measured by itself.
    """

    #: Coordinates that the network must take, None for any number.
    in_features: int | None = None
    #: Whether x is complex; the network then has a real and an imaginary part for each channel.
    complex_image = False
    #: Whether every position is measured by itself, so that a part of the positions can be trained on.
    pointwise = False
    #: Whether :meth:`measure` simulates what is measured from a true image on a grid; otherwise the data set brings it.
    simulates = True

    def __init__(self, noise: float = 0.0, seed: int = 0, loss: LossKind = 'mse') -> None:
        super().__init__()
        if noise < 0:
            raise ValueError(f'{type(self).__name__} needs a standard deviation noise >= 0, got {noise=}')
        if loss == 'bce' and not self.pointwise:
            raise ValueError(
                f"{type(self).__name__} measures several positions together, which have no cross entropy, got loss='bce'; "
                "pass loss='mse' or 'l1'"
            )
        self.noise = noise
        self.seed = seed
        self.loss_kind = loss

    def coordinates(self, coords: Tensor) -> Tensor:
        """Return the positions at which the network is evaluated to predict the measurement; by default all, (H, W, d)."""
        return coords

    def forward(self, image: Tensor) -> Tensor:
        """Return A x for the image at :meth:`coordinates`."""
        raise NotImplementedError(f'{type(self).__name__} must define forward(image)')

    def predict(self, field: Field, coords: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the prediction of the measurement, and penalties to train besides, by names with ``loss`` in them.

        Args:
            field: The represented function.
            coords: The coordinates of the item, as the data set gives them.
        """
        image = field(self.coordinates(coords))
        # Sums over thousands of pixels; not in the half precision of autocast.
        with full_precision(coords):
            return self(at_least_float32(image)), {}

    def loss(self, prediction: Tensor, measurement: Tensor) -> dict[str, Tensor]:
        """Return the distance between what :meth:`predict` returns and what was measured, the squared one in decibels, too.

        Raises:
            ValueError: If they differ in shape, or one of them is complex.
        """
        if prediction.shape != measurement.shape:
            raise ValueError(
                f'SignalModel predicts a measurement of shape {tuple(prediction.shape)}, but {tuple(measurement.shape)} was '
                'measured; the channels are out_features of the network, the rest is decided by the operator and the size'
            )
        if prediction.is_complex() != measurement.is_complex():
            kinds = ('complex', 'real') if prediction.is_complex() else ('real', 'complex')
            raise ValueError(
                f'SignalModel predicts a {kinds[0]} measurement with {type(self).__name__}, but a {kinds[1]} one was '
                'measured; use the operator that it was measured with, and save the values as they are'
            )
        prediction = at_least_float32(prediction)
        if self.loss_kind == 'bce':
            return {'loss': F.binary_cross_entropy_with_logits(prediction, measurement)}
        difference = prediction - measurement
        if self.loss_kind == 'l1':
            return {'loss': difference.abs().mean()}
        if difference.is_complex():
            difference = torch.view_as_real(difference) * 2**0.5  # the mean is over half as many numbers
        loss = difference.square().mean()
        # Only what is called a loss is trained; the log rounds a loss to four digits, of which a good fit leaves none.
        return {'loss': loss, 'fit_dB': -10 * loss.detach().log10()}

    def reconstruct(self, field: Field, coords: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction at the coordinates of an item as ``prediction``, and other maps beside it by name."""
        image = field(coords)
        return {'prediction': at_least_float32(image).sigmoid() if self.loss_kind == 'bce' else image}

    def statistics_pass(self, field: Field, coords: Tensor) -> None:
        """Evaluate the field once at positions that are distributed as in training, for norms that measure them."""
        field(self.coordinates(coords))

    def solid(self, field: Field, points: Tensor, cell: float) -> Tensor:
        """Return what of the field is a shape: a function of points (N, 3), positive inside and zero on the surface, (N,).

        Args:
            field: The represented function.
            points: Where.
            cell: The distance of neighboring points where the surface is looked for.

        Raises:
            ValueError: If the field is none.
        """
        raise ValueError(
            f'{type(self).__name__} measures no shape, so that there is no surface to export; use a config of '
            'mmext.PointOperator, or one with a renderer'
        )

    def colors(self, field: Field, points: Tensor, normals: Tensor) -> Tensor | None:
        """Return the colors of points on the surface, seen against their normals, (N, 3) each; None if it has none."""
        return None

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
        """Return what is known of the image before it is reconstructed, as a picture (C, H, W) in [0, 1].

        Raises:
            ValueError: If what was measured is no picture.
        """
        image = self.baseline(measurement, size)
        image = measurement if image is None else image
        if image.ndim != 3:
            raise ValueError(
                f'{type(self).__name__} has no picture to describe the signal by, got a measurement of shape '
                f'{tuple(measurement.shape)}; train with mmext.SignalHook on a data set that has overview()'
            )
        return (image.abs() if image.is_complex() else image).clamp(0, 1).movedim(-1, 0)

    def picture(self, measurement: Tensor, size: tuple[int, int]) -> tuple[str, Tensor] | None:
        """Return a name and a picture (h, w) or (h, w, C) in [0, 1] that show what was measured, None if nothing does."""
        if measurement.ndim != 3 or measurement.is_complex():
            return None
        low, high = measurement.aminmax()
        return 'measurement', (measurement - low) / (high - low).clamp_min(1e-12)

    def extra_repr(self) -> str:
        return f'noise={self.noise}, seed={self.seed}, loss={self.loss_kind!r}'


@MODELS.register_module()
class IdentityOperator(MeasurementOperator):
    """Every pixel is measured: fitting a picture, and with noise removing it (ours).

    Args:
        noise: See :class:`mmext.inr.MeasurementOperator`.
        seed: See :class:`mmext.inr.MeasurementOperator`.
        loss: See :class:`mmext.inr.MeasurementOperator`.

    Example:
        >>> IdentityOperator()(torch.rand(4, 6, 1)).shape
        torch.Size([4, 6, 1])
    """

    pointwise = True

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
        loss: See :class:`mmext.inr.MeasurementOperator`.

    Shape:
        (H, W, C) to (H / f, W / f, C).

    Raises:
        ValueError: If ``factor`` is below 1, ``points`` is unknown, or the image is not made of whole blocks.

    Example:
        >>> DownsamplingOperator(factor=2).measure(torch.rand(4, 6, 1)).shape
        torch.Size([2, 3, 1])
    """

    def __init__(
        self,
        factor: Few = 4,
        points: Literal['centers', 'all'] = 'centers',
        noise: float = 0.0,
        seed: int = 0,
        loss: LossKind = 'mse',
    ) -> None:
        super().__init__(noise, seed, loss)
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
