"""The model that fits a coordinate network to what is measured of one signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmext.arguments import Cfg
from mmext.contracts import DescribesSignal
from mmext.errors import UsageError
from mmext.inr.grid import coordinate_grid
from mmext.inr.measurements.operators import IdentityOperator
from mmext.inr.networks.fresh import choose_for_run, open_frequencies
from mmext.inr.tasks.compression import stored_bits
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS, resolve

__all__ = ['SignalModel']


@MODELS.register_module()
class SignalModel(BaseModel):
    r"""A coordinate network f, trained on a measurement of the one signal that it represents (ours).

    .. math:: \min_\theta \; \frac 1 m \sum_k |(A\,x_\theta - y)_k|^2, \qquad x_\theta(p) = \frac{f_\theta(p) - a}{b - a}

    With A the identity this is image fitting, with the Radon transform CT, with a masked Fourier transform MRI, with block
    means super-resolution. For an operator on complex images the network has two values per channel, real and imaginary part,
    and what is evaluated is the magnitude. The truth serves to simulate y where no measurement is given, and to evaluate;
    training sees y only.

    Args:
        network: Config of a coordinate network.
        operator: Config of A, a :class:`mmext.inr.MeasurementOperator`.
        value_range: a and b, the network's values for black and white; some recipes train on (-1, 1).
        num_points: Train each step on that many positions, drawn at random, instead of all; for large images, and only with
            :class:`mmext.IdentityOperator`.
        data_preprocessor: As in mmengine.
        init_cfg: As in mmengine.

    Shape:
        ``inputs``: the grid (H, W, d) of the whole signal, alone, in a list or as a batch of one. ``data_samples``: one
        ``BaseDataElement`` with ``target`` (H, W, C) in [0, 1], with ``measurement``, or with both, and the metainfo
        ``size``, (H, W). :class:`mmext.SignalDataset` makes them. A simulated measurement is kept for the next step
        under the metainfo ``signal``, if there is one, which must tell signals apart.

    Raises:
        ValueError: If ``num_points`` is combined with another operator or below 1, the range is empty, a complex image gets
            an odd number of values, a batch holds several signals or neither a target nor a measurement, or what was
            measured has another shape or kind than what is predicted.

    Example:
        >>> model = SignalModel(dict(type='mmext.CoordMLP', out_features=1))
        >>> model(model.example_inputs(4, 6)).shape
        torch.Size([1, 4, 6, 1])
    """

    example = dict(network=dict(type='mmext.CoordMLP', width=6, depth=2))

    #: A network of one signal is that of its checkpoint or another one; :class:`mmext.CheckpointGuardHook` asks.
    fits_whole = True

    def __init__(
        self,
        network: Cfg,
        operator: Cfg = dict(type='mmext.IdentityOperator'),  # noqa: B006
        value_range: tuple[float, float] = (0.0, 1.0),
        num_points: int | None = None,
        data_preprocessor: Cfg | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        # Any, because torch does not tell what attributes a module has.
        self.network: Any = MODELS.build(dict(network))
        self.operator: Any = MODELS.build(dict(operator))
        self.value_range = low, high = tuple(value_range)
        self.num_points = num_points
        if low >= high:
            raise ValueError(f'SignalModel needs value_range (a, b) with a < b, got {value_range}')
        if num_points is not None and not isinstance(self.operator, IdentityOperator):
            raise ValueError(
                f'SignalModel trains on num_points={num_points} of the positions only where each is measured by itself, got '
                f'the operator {type(self.operator).__name__}; leave num_points out'
            )
        if num_points is not None and num_points < 1:
            raise ValueError(f'SignalModel needs one position per step at least, got {num_points=}; None takes all')
        values = getattr(self.network, 'out_features', 2)
        if self.operator.complex_image and values % 2:
            raise ValueError(
                f'SignalModel needs a real and an imaginary part per channel of a complex image, got out_features={values} of '
                f'the network; set it to {2 * values}, or complex_image=False of the operator'
            )
        self._signal_checked = False
        self._measured: tuple[Any, Tensor] | None = None

    #: An exported network takes a grid of any size.
    input_name = 'coords'
    input_axes: Mapping[int, str] = {1: 'height', 2: 'width'}
    export_hint = 'a coordinate network is exported without mmext.WaveletActivation and operators on complex images'

    @staticmethod
    def prepare(cfg: Config, read: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """Choose the frequencies that the config leaves open, or take those of a checkpoint."""
        if any(open_frequencies(cfg.model.to_dict())):
            choose_for_run(cfg, None if read is None else read())

    @staticmethod
    def show_predictions(cfg: Config, folder: str) -> None:
        """Let :class:`mmext.SignalPictureHook` write into ``folder``."""
        from mmext.inr.tasks.signal_picture_hook import SignalPictureHook

        pictures = [h for h in cfg.get('custom_hooks') or [] if resolve(h, HOOKS) is SignalPictureHook]
        if not pictures:
            raise UsageError(
                "--show-dir needs dict(type='mmext.SignalPictureHook') in the custom_hooks of a coordinate network; the "
                'config lacks it, start from configs/inr/_base_/runtime.py'
            )
        pictures[0].out_dir = folder

    @staticmethod
    def example_inputs(height: int, width: int) -> Tensor:
        """Return what :meth:`forward` takes for a picture of this size; tools that try a model out ask for it."""
        return coordinate_grid(height, width)[None]

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Evaluate the network.

        Args:
            inputs: The grid.
            data_samples: The sample of the signal.
            mode: ``'tensor'``: the image (H, W, C), with the leading axis of the input if that is a batch; ``'loss'``;
                ``'predict'``: the sample with ``prediction``, and ``baseline`` where the operator has one.
        """
        if mode == 'tensor':
            return self.image(inputs if isinstance(inputs, Tensor) else _only(inputs))
        coords, sample = _only(inputs), _only(data_samples)
        if mode == 'loss':
            return self.loss(coords, sample)
        if mode == 'predict':
            return [self.predict(coords, sample)]
        raise ValueError(f"SignalModel knows the modes 'tensor', 'loss' and 'predict', got {mode!r}")

    def image(self, coords: Tensor) -> Tensor:
        """Return the image at ``coords``, (..., d), as (..., C); complex if the image is."""
        low, high = self.value_range
        values = self.network(coords)
        if (low, high) != (0, 1):
            values = (values - low) / (high - low)
        if not self.operator.complex_image:
            return values
        return torch.view_as_complex(at_least_float32(values).unflatten(-1, (-1, 2)).contiguous())

    def loss(self, coords: Tensor, sample: BaseDataElement) -> dict[str, Tensor]:
        """Return the mean squared distance to the measurement, and the same in decibels."""
        measurement = self.measurement(sample)
        if not self._signal_checked:
            self._signal_checked = True
            if isinstance(self.network, DescribesSignal) and self.network.awaits_signal:
                self.describe(sample)
        # A measurement of another shape is refused below, before anything is drawn from it.
        if self.num_points is not None and measurement.shape[:-1] == coords.shape[:-1]:
            chosen = torch.randint(measurement[..., 0].numel(), (self.num_points,), device=coords.device)
            predicted = self.image(coords.flatten(0, -2)[chosen])
            measurement = measurement.flatten(0, -2)[chosen]
        else:
            predicted = self.image(self.operator.coordinates(coords))
            # Sums over thousands of pixels; not in the half precision of autocast.
            with full_precision(coords):
                predicted = self.operator(at_least_float32(predicted))
        if predicted.shape != measurement.shape:
            raise ValueError(
                f'SignalModel predicts a measurement of shape {tuple(predicted.shape)}, but {tuple(measurement.shape)} was '
                'measured; the channels are out_features of the network, the rest is decided by the operator and the size'
            )
        if predicted.is_complex() != measurement.is_complex():
            kinds = ('complex', 'real') if predicted.is_complex() else ('real', 'complex')
            raise ValueError(
                f'SignalModel predicts a {kinds[0]} measurement with {type(self.operator).__name__}, but a {kinds[1]} one was '
                'measured; use the operator that it was measured with, and save the values as they are'
            )
        difference = at_least_float32(predicted) - measurement
        if difference.is_complex():
            difference = torch.view_as_real(difference) * 2**0.5  # the mean is over half as many numbers
        loss = difference.square().mean()
        # Only what is called a loss is trained; the log rounds a loss to four digits, of which a good fit leaves none.
        return {'loss': loss, 'fit_dB': -10 * loss.detach().log10()}

    @torch.no_grad()
    def predict(self, coords: Tensor, sample: BaseDataElement) -> BaseDataElement:
        """Return the sample with the reconstructed image, beside the operator's own reconstruction."""
        image = self.image(coords)
        result = sample.new()
        result.prediction = image.abs() if image.is_complex() else at_least_float32(image)
        baseline = self.operator.baseline(self.measurement(sample), tuple(sample.size))
        if baseline is not None:
            result.baseline = baseline.abs() if baseline.is_complex() else baseline
        result.set_metainfo(dict(stored_bits=stored_bits(self.network)))
        return result

    def measurement(self, sample: BaseDataElement) -> Tensor:
        """Return what was measured, or simulate it once for each signal."""
        if 'measurement' in sample:
            return sample.measurement
        if 'target' not in sample:
            raise ValueError(
                'SignalModel needs a sample with a measurement, or a target to simulate one from; got neither'
            )
        target = sample.target
        key = (sample.get('signal'), tuple(target.shape), target.device)
        if key[0] is None or self._measured is None or self._measured[0] != key:
            # The first step of a training in mixed precision comes here, too.
            with full_precision(target):
                self._measured = (key, self.operator.measure(target))
        return self._measured[1]

    def describe(self, sample: BaseDataElement) -> None:
        """Show the signal to a network that wants to see it; in an inverse problem its classical reconstruction."""
        if isinstance(self.network, DescribesSignal):
            self.network.set_signal(self.operator.preview(self.measurement(sample), tuple(sample.size)))

    def freeze_stats(self, coords: Tensor) -> SignalModel:
        """Set eval mode with the statistics of the positions that training uses, see :class:`mmext.inr.CoordNetwork`."""
        self.eval()
        self.network.freeze_stats(self.operator.coordinates(coords))
        return self


def _only(batch: Any) -> Any:
    """Return the one item of a batch."""
    if not isinstance(batch, Sequence) and not (isinstance(batch, Tensor) and batch.ndim > 3):
        return batch
    if len(batch) != 1:
        raise ValueError(
            f'SignalModel represents one signal and needs a batch of one, got {len(batch)}; set batch_size=1'
        )
    return batch[0]
