"""The model that fits a coordinate network to what is measured of one signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmext.arguments import Cfg
from mmext.contracts import DescribesSignal
from mmext.errors import UsageError
from mmext.inr.grid import coordinate_grid
from mmext.inr.networks.fresh import choose_for_run, open_frequencies
from mmext.inr.tasks.compression import stored_bits
from mmext.inr.tasks.mesh_files import write_mesh
from mmext.inr.tasks.surfaces import extract_mesh
from mmext.norms.position_norm import freeze_stats
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS, resolve

__all__ = ['SignalModel']


@MODELS.register_module()
class SignalModel(BaseModel):
    r"""A coordinate network f, trained on a measurement of the one signal that it represents (ours).

    .. math:: \min_\theta \; \frac 1 m \sum_k |(A\,x_\theta - y)_k|^2, \qquad x_\theta(p) = \frac{f_\theta(p) - a}{b - a}

    With A the identity this is image fitting, with the Radon transform CT, with a masked Fourier transform MRI, with block
    means super-resolution, and with sums along rays view synthesis. For an operator on complex images the network has two
    values per channel, real and imaginary part, and what is evaluated is the magnitude. The truth serves to simulate y where
    no measurement is given, and to evaluate; training sees y only.

    Args:
        network: Config of a coordinate network.
        operator: Config of A, a :class:`mmext.inr.MeasurementOperator`.
        value_range: a and b, the network's values for black and white; some recipes train on (-1, 1).
        num_points: Train each step on that many positions, drawn at random, instead of all; for large images, and only where
            the operator measures each by itself, as :class:`mmext.IdentityOperator` does.
        data_preprocessor: As in mmengine.
        init_cfg: As in mmengine.

    Shape:
        ``inputs``: the grid (H, W, d) of the whole signal, alone, in a list or as a batch of one. ``data_samples``: one
        ``BaseDataElement`` with ``target`` (H, W, C) in [0, 1], with ``measurement``, or with both, and the metainfo
        ``size``, (H, W). :class:`mmext.SignalDataset` makes them. A simulated measurement is kept for the next step
        under the metainfo ``signal``, if there is one, which must tell signals apart.

        A data set that draws points or rays brings their measurement in each item. Grids of volumes, (D, H, W, d), have a
        ``size`` of three numbers.

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
        if num_points is not None and not self.operator.pointwise:
            raise ValueError(
                f'SignalModel trains on num_points={num_points} of the positions only where each is measured by itself, got '
                f'the operator {type(self.operator).__name__}; leave num_points out'
            )
        if num_points is not None and num_points < 1:
            raise ValueError(f'SignalModel needs one position per step at least, got {num_points=}; None takes all')
        taken = getattr(self.network, 'in_features', None)
        if None not in (taken, self.operator.in_features) and taken != self.operator.in_features:
            raise ValueError(
                f'SignalModel with {type(self.operator).__name__} needs a network of {self.operator.in_features} coordinates, '
                f'got in_features={taken}; positions are 3, and directions 3 more'
            )
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

    def example_inputs(self, height: int, width: int) -> Tensor:
        """Return what :meth:`forward` takes for a picture of this size; tools that try a model out ask for it.

        A network of two coordinates gets a grid, any other one random positions in [-1, 1]. Of six coordinates the last
        three are a direction of length one.
        """
        features = self.network.in_features
        if features == 2:
            return coordinate_grid(height, width)[None]
        generator = torch.Generator('cpu').manual_seed(0)
        coords = 2 * torch.rand(1, height, width, features, generator=generator, device='cpu') - 1
        if features == 6:
            coords[..., 3:] = F.normalize(coords[..., 3:], dim=-1)
        return coords

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Evaluate the network.

        Args:
            inputs: The grid, or what the operator takes in its place.
            data_samples: The sample of the signal.
            mode: ``'tensor'``: the image at positions (H, W, d), with the leading axis of the input if that is a batch;
                ``'loss'``; ``'predict'``: the sample with ``prediction``, what else the operator reconstructs, and
                ``baseline`` where the operator has one.
        """
        if mode == 'tensor':
            return self.image(inputs if isinstance(inputs, Tensor) else _only(inputs))
        sample = _only(data_samples)
        coords = _only(inputs, 3 if sample is None else len(sample.get('size', (0, 0))) + 1)
        if mode == 'loss':
            return self.loss(coords, sample)
        if mode == 'predict':
            return [self.predict(coords, sample)]
        raise ValueError(f"SignalModel knows the modes 'tensor', 'loss' and 'predict', got {mode!r}")

    def image(self, coords: Tensor, **options: Any) -> Tensor:
        """Return the image at ``coords``, (..., d), as (..., C); complex if the image is.

        This is the field that operators get. ``options`` are for the network's forward.
        """
        low, high = self.value_range
        values = self.network(coords, **options)
        if (low, high) != (0, 1):
            values = (values - low) / (high - low)
        if not self.operator.complex_image:
            return values
        return torch.view_as_complex(at_least_float32(values).unflatten(-1, (-1, 2)).contiguous())

    def loss(self, coords: Tensor, sample: BaseDataElement) -> dict[str, Tensor]:
        """Return the operator's losses of what it predicts."""
        measurement = self.measurement(sample)
        if not self._signal_checked:
            self._signal_checked = True
            if isinstance(self.network, DescribesSignal) and self.network.awaits_signal:
                self.describe(sample)
        # A measurement of another shape is refused below, before anything is drawn from it.
        if self.num_points is not None and measurement.shape[:-1] == coords.shape[:-1]:
            chosen = torch.randint(measurement[..., 0].numel(), (self.num_points,), device=coords.device)
            coords, measurement = coords.flatten(0, -2)[chosen], measurement.flatten(0, -2)[chosen]
        predicted, penalties = self.operator.predict(self.image, coords)
        losses = {**self.operator.loss(predicted, measurement), **penalties}
        if 'loss' in losses and sum('loss' in name for name in losses) > 1:
            # The runner logs the sum of several under this name.
            losses['loss_fit'] = losses.pop('loss')
        return losses

    @torch.no_grad()
    def predict(self, coords: Tensor, sample: BaseDataElement) -> BaseDataElement:
        """Return the sample with what the operator reconstructs, beside its classical reconstruction."""
        result = sample.new()
        for name, values in self.operator.reconstruct(self.image, coords).items():
            if name in sample:
                # The truth of a map that is reconstructed, such as the depth.
                result.set_field(sample.get(name), f'true_{name}')
            result.set_field(values.abs() if values.is_complex() else at_least_float32(values), name)
        if 'baseline' not in result and ('measurement' in sample or self.operator.simulates):
            baseline = self.operator.baseline(self.measurement(sample), tuple(sample.size))
            if baseline is not None:
                result.baseline = baseline.abs() if baseline.is_complex() else baseline
        if self.operator.simulates:
            # There is a grid whose pixels the network stores.
            result.set_metainfo(dict(stored_bits=stored_bits(self.network)))
        return result

    @torch.no_grad()
    def export_surface(
        self, path: str | Path, resolution: int = 128, level: float = 0.0, color: bool = False
    ) -> tuple[int, int, float]:
        """Write the surface of the represented shape as a mesh in [-1, 1].

        Args:
            path: A ``.ply`` or ``.obj`` file.
            resolution: Points per axis of the grid on which the surface is looked for.
            level: How far above the surface's own level, in values of the field.
            color: Also write colors of the vertices, where the field has them.

        Returns:
            The number of vertices and of faces, and the volume inside.

        Raises:
            ValueError: If the operator measures nothing that has a surface, the network takes no points of three
                coordinates, or colors are wanted that there are not.
        """
        cell, device = 2 / max(resolution - 1, 1), next(self.parameters()).device
        mesh = extract_mesh(partial(self.operator.solid, self.image, cell=cell), resolution, level, device=device)
        colors = None
        if color and len(mesh.faces):
            points, normals = (torch.from_numpy(x).float().to(device) for x in (mesh.vertices, mesh.vertex_normals()))
            colors = self.operator.colors(self.image, points, normals)
            if colors is None:
                raise ValueError(f'{type(self.operator).__name__} knows no colors; leave color out')
        write_mesh(path, mesh, None if colors is None else colors.cpu().numpy())
        return len(mesh.vertices), len(mesh.faces), mesh.volume()

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
        """Set eval mode with the statistics of the positions that training uses, see :class:`mmext.inr.CoordNetwork`.

        Args:
            coords: Coordinates as an item of the training data has them.
        """
        self.eval()
        freeze_stats(self.network, run=partial(self.operator.statistics_pass, self.image, coords))
        return self


def _only(batch: Any, axes: int = 3) -> Any:
    """Return the one item of a batch; a tensor of more than ``axes`` axes, and of three, is a batch."""
    if not isinstance(batch, Sequence) and not (isinstance(batch, Tensor) and batch.ndim > max(axes, 3)):
        return batch
    if len(batch) != 1:
        raise ValueError(
            f'SignalModel represents one signal and needs a batch of one, got {len(batch)}; set batch_size=1'
        )
    return batch[0]
