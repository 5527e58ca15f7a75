"""Pictures as sums along rays through a field of color and density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.arguments import Count, NonNegative, Positive, Repeats, Share, at_least, at_most
from mmext.inr.measurements.operators import Field, MeasurementOperator
from mmext.inr.measurements.rays import Jitter, ray_weights, resample, section_lengths, spaced, stratified, unit_ball
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['VolumeRenderer']

#: Where rendering leaves out what is not seen, so many samples of a ray look what is there.
_PROBES = 32


@dataclass
class Seen:
    """What one pass over the samples of some rays gives.

    Args:
        weights: Of the samples, (n, S).
        values: Of the samples, (n, S, C), color first.
        distances: Of the samples, (n, S).
        penalties: Losses that hang on the samples alone.
    """

    weights: Tensor
    values: Tensor
    distances: Tensor
    penalties: dict[str, Tensor]

    def pixels(self, background: float) -> Tensor:
        """Return color over the background and opacity, (n, 4)."""
        opacity = self.weights.sum(-1, keepdim=True)
        color = (self.weights[..., None] * self.values[..., :3]).sum(-2)
        return torch.cat((color + (1 - opacity) * background, opacity), dim=-1)


@MODELS.register_module()
class VolumeRenderer(MeasurementOperator):
    r"""Pixels are measured, sums of emitted and absorbed light along rays: the synthesis of novel views.

    Mildenhall et al., *NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis*, ECCV 2020, arXiv 2003.08934.

    .. math:: C = \sum_k w_k c_k + \Bigl(1 - \sum_k w_k\Bigr) b, \qquad
        w_k = e^{-\sum_{j < k} \sigma_j \delta_j} (1 - e^{-\sigma_k \delta_k})

    The network returns raw values: three of color, which go through a sigmoid, and one of density. The scene lies in the unit
    ball, and rays are sampled where they are inside of it. What a ray does not meet shows the background b.

    Ours are the unit ball, a last section that ends where the ball does, and the proposal by the network itself.

    Args:
        samples: Even samples of a ray in training; with ``resamples`` those that say where to look.
        eval_samples: The same in evaluation, by default as many.
        resamples: Further samples where the first ones have found something; all together are then rendered.
        keep_first: Whether the first samples are rendered with them, as NeRF has it. Without them a step costs less, as with
            the proposals of mip-NeRF 360 (Barron et al., CVPR 2022, arXiv 2111.12077).
        density: How a raw value r becomes a density: ``'softplus'`` of r - 1, ``'relu'``, or ``'exp'``.
        density_scale: Times that.
        background: b, as the data set has it.
        loss: ``'mse'`` or ``'l1'``, of the colors.
        coarse: ``'shared'``: the same network says where to look, without gradient; ``'own'``: the coarse one of a
            :class:`mmext.FieldPair`, which is trained to render, too.
        directions: Whether the network takes directions beside positions, six coordinates.
        anneal: Steps T, start p and middle m. In the first T steps samples are drawn near the point at the share m of the ray,
            from the share p of its length on, as in RegNeRF and :class:`mmext.MultiInputMLP`'s paper.
        noise_density: Standard deviation of noise on the raw density in training.
        background_weight: Times the mean squared opacity of rays whose pixel is known to be background; the second
            regularization of that paper, in our reading.
        last_interval: ``'far'``; ``'inf'`` as in NeRF's code, see :func:`mmext.inr.section_lengths`.
        skip: In evaluation without ``resamples``, samples beyond 32 are left out where those around them are nearly
            transparent, or where less than this share of light comes through. Zero takes all.
        chunk: Rays that are evaluated at a time. It bounds the memory, and changes nothing else.

    Shape:
        Rays (n, 6), origin and unit direction, to (n, 4), color and opacity. A picture (H, W, 6) is reconstructed as
        ``prediction`` (H, W, 3), ``opacity`` and ``depth`` (H, W), the mean distance along the ray where something is.

    Raises:
        ValueError: If it is to simulate a measurement, the field returns another number of values, or ``coarse='own'`` or
            ``keep_first=False`` has no ``resamples``.

    Example:
        >>> renderer = VolumeRenderer(samples=8)
        >>> rays = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0, -1.0]])
        >>> renderer.predict(lambda points: torch.zeros(*points.shape[:-1], 4), rays)[0].shape
        torch.Size([1, 4])
    """

    example = dict(samples=4)
    simulates = False
    #: Values that the field returns at each point.
    field_values = 4
    step: Tensor

    def __init__(
        self,
        samples: Repeats = 64,
        eval_samples: Repeats | None = None,
        resamples: Annotated[int, at_least(0), at_most(2**12)] = 0,
        keep_first: bool = True,
        density: Literal['softplus', 'relu', 'exp'] = 'softplus',
        density_scale: Positive = 10.0,
        background: Share = 1.0,
        loss: Literal['mse', 'l1'] = 'mse',
        coarse: Literal['shared', 'own'] = 'shared',
        directions: bool = False,
        anneal: tuple[Count, Share, Share] | None = None,
        noise_density: NonNegative = 0.0,
        background_weight: NonNegative = 0.0,
        last_interval: Literal['far', 'inf'] = 'far',
        skip: Share = 1e-3,
        chunk: Count = 4096,
    ) -> None:
        super().__init__(loss=loss)
        if coarse == 'own' and not resamples:
            raise ValueError("VolumeRenderer with coarse='own' needs resamples, which the coarse network places, got 0")
        if not keep_first and not resamples:
            raise ValueError('VolumeRenderer with keep_first=False has nothing to render without resamples, got 0')
        self.samples, self.resamples, self.keep_first = samples, resamples, keep_first
        self.eval_samples = samples if eval_samples is None else eval_samples
        self.density, self.density_scale = density, density_scale
        self.background = background
        self.own = coarse == 'own'
        self.directions = directions
        self.in_features = 6 if directions else 3
        self.anneal = anneal
        self.noise_density = noise_density
        self.background_weight = background_weight
        self.last_interval: Literal['far', 'inf'] = last_interval
        self.skip = skip
        self.chunk = chunk
        self.register_buffer('step', torch.zeros((), dtype=torch.long))

    # --- what the frame asks ---------------------------------------------------------------------------------------------

    def measure(self, image: Tensor) -> Tensor:
        """Refuse: what rays measure comes from the data set."""
        raise ValueError(
            f'{type(self).__name__} simulates no measurement; train on mmext.ViewDataset, whose items bring their own'
        )

    def predict(self, field: Field, coords: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what rays (n, 6) see, and penalties.

        It is (n, 4), color and opacity, or (2, n, 4) where a coarse network is trained, too.
        """
        jitter: Jitter = False
        if self.training:
            # Drawn by the number of the step, so that a resumed run goes on as one that never stopped.
            jitter = torch.Generator(coords.device).manual_seed(int(self.step))
        passes = self._march(field, self.world_rays(coords).flatten(0, -2), self.samples, jitter)
        if self.training:
            self.step += 1
        pixels = [seen.pixels(self.background) for seen in passes]
        return pixels[0] if len(pixels) == 1 else torch.stack(pixels), passes[-1].penalties

    def loss(self, prediction: Tensor, measurement: Tensor) -> dict[str, Tensor]:
        """Return the losses of what :meth:`predict` returns, by name.

        Args:
            prediction: (n, 4) or (2, n, 4).
            measurement: Color (n, 3), or color and opacity (n, 4).
        """
        coarse, fine = prediction if prediction.ndim > measurement.ndim else (None, prediction)
        difference = fine[..., :3] - measurement[..., :3]
        losses = {'loss_render': self._distance(difference)}
        if coarse is not None:
            losses['loss_coarse'] = self._distance(coarse[..., :3] - measurement[..., :3])
        if self.background_weight and measurement.shape[-1] == 4:
            empty = (measurement[..., 3] == 0).to(fine)
            share = (empty * fine[..., 3].square()).sum() / empty.sum().clamp_min(1)
            losses['loss_background'] = self.background_weight * share
        # Only what is called a loss is trained; the log rounds a loss to four digits, of which a good fit leaves none.
        losses['fit_dB'] = -10 * difference.detach().square().mean().log10()
        return losses

    def _distance(self, difference: Tensor) -> Tensor:
        return difference.square().mean() if self.loss_kind == 'mse' else difference.abs().mean()

    @torch.no_grad()
    def reconstruct(self, field: Field, coords: Tensor) -> dict[str, Tensor]:
        """Render a picture, whatever its size, some rays at a time."""
        rays = self.world_rays(coords).flatten(0, -2)
        near, far = unit_ball(rays)
        hit = (far > near).nonzero().squeeze(1)
        found: dict[str, Tensor] = {}
        for part in hit.split(self.chunk) if len(hit) else ():
            for name, values in self._maps(
                self._march(field, rays[part], self.eval_samples, False, self.skip)[-1]
            ).items():
                if name not in found:
                    found[name] = values.new_zeros(len(rays), *values.shape[1:])
                found[name][part] = values
        if not found:
            found = dict(prediction=rays.new_zeros(len(rays), 3), opacity=rays.new_zeros(len(rays)))
            found['depth'] = found['opacity'].clone()
        found['prediction'] = found['prediction'] + (1 - found['opacity'])[:, None] * self.background
        return {name: values.unflatten(0, coords.shape[:-1]) for name, values in found.items()}

    def statistics_pass(self, field: Field, coords: Tensor) -> None:
        """Evaluate the field where training does."""
        self._march(field, self.world_rays(coords).flatten(0, -2), self.samples, False)

    def solid(self, field: Field, points: Tensor, cell: float) -> Tensor:
        """Return what of the field is a shape, positive where half of the light is absorbed in a cell, (N,)."""
        values = self._at(field, points, -F.normalize(points, dim=-1))
        # The scene ends where the unit ball does.
        return torch.minimum(self.densities(values) * cell - math.log(2), 1 - points.norm(dim=-1))

    def colors(self, field: Field, points: Tensor, normals: Tensor) -> Tensor:
        """Return the colors of points, seen against their normals, (N, 3)."""
        return self._at(field, points, -normals)[:, :3].sigmoid()

    def _at(self, field: Field, points: Tensor, directions: Tensor) -> Tensor:
        still = torch.zeros_like(points[:, :1])
        return self.evaluate(field, torch.cat((points, directions), dim=-1), still)[:, 0]

    def world_rays(self, coords: Tensor) -> Tensor:
        """Return the rays that an item's coordinates mean, (..., 6)."""
        return coords

    # --- along the rays --------------------------------------------------------------------------------------------------

    def _march(self, field: Field, rays: Tensor, samples: int, jitter: Jitter, skip: float = 0.0) -> list[Seen]:
        """Return what is seen along rays, (n, 6): of the last pass, and of a coarse one before it that is trained."""
        near, far = self.bounds(rays)
        distances = stratified(near, far, samples, jitter)
        if not self.resamples:
            if skip:
                return [self._look_where_needed(field, rays, distances, far, skip)]
            return [self.look(field, rays, distances, far)]
        options = dict(coarse=True) if self.own else {}
        with torch.set_grad_enabled(self.own and torch.is_grad_enabled()):
            first = self.look(field, rays, distances, far, **options)
        extra = resample(spaced(near, far, samples), first.weights, self.resamples, jitter)
        if self.keep_first:
            extra = torch.cat((distances, extra), dim=-1).sort(-1).values
        second = self.look(field, rays, extra, far)
        return [first, second] if self.own else [second]

    def bounds(self, rays: Tensor) -> tuple[Tensor, Tensor]:
        """Return where rays are sampled: in the unit ball, less at the beginning of an annealed training."""
        near, far = unit_ball(rays)
        if self.anneal is not None and self.training:
            steps, start, place = self.anneal
            middle = near + place * (far - near)
            share = start + (1 - start) * (self.step / steps).clamp(max=1)
            near, far = middle + share * (near - middle), middle + share * (far - middle)
        return near, far

    def look(self, field: Field, rays: Tensor, distances: Tensor, far: Tensor, **options: Any) -> Seen:
        """Evaluate the field at distances along rays, (n, S), and weigh what is there."""
        values = self.evaluate(field, rays, distances, **options)
        lengths = section_lengths(distances, far, self.last_interval)
        return Seen(ray_weights(self.densities(values), lengths), values[..., :3].sigmoid(), distances, {})

    def evaluate(self, field: Field, rays: Tensor, distances: Tensor, **options: Any) -> Tensor:
        """Return the raw values of the field, (n, S, C), in full precision."""
        points = rays[:, None, :3] + distances[..., None] * rays[:, None, 3:6]
        if self.directions:
            points = torch.cat((points, rays[:, None, 3:6].expand_as(points)), dim=-1)
        values = at_least_float32(field(points, **options))
        if values.shape[-1] != self.field_values:
            raise ValueError(
                f'{type(self).__name__} needs a field of {self.field_values} values, got {values.shape[-1]}; set out_features '
                'of the network'
            )
        return values

    def densities(self, values: Tensor) -> Tensor:
        """Return densities from raw values, (..., 4) to (...)."""
        raw = values[..., 3]
        if self.noise_density and self.training:
            raw = raw + self.noise_density * torch.randn_like(raw)
        positive = {
            'softplus': lambda r: F.softplus(r - 1),
            'relu': F.relu,
            'exp': lambda r: r.clamp(max=15).exp(),
        }[self.density]
        return self.density_scale * positive(raw)

    def _look_where_needed(self, field: Field, rays: Tensor, distances: Tensor, far: Tensor, skip: float) -> Seen:
        """Do what :meth:`look` does, without the samples that add nothing.

        One of each group of samples is evaluated first. The others are where it, or one of its neighbors, is not transparent,
        unless what lies before has absorbed the light.
        """
        count = distances.shape[-1]
        stride = max(count // _PROBES, 1)
        probes = torch.arange(stride // 2, count, stride, device=distances.device)
        lengths = section_lengths(distances, far, self.last_interval)
        first = self.evaluate(field, rays, distances[:, probes])
        depth = self.densities(first) * lengths[:, probes]
        opaque = F.max_pool1d((-torch.expm1(-depth)).unsqueeze(1), 3, 1, 1).squeeze(1)
        # What comes through to the group before the one in question: the sum over two groups less.
        through = torch.exp(-F.pad((stride * depth).cumsum(-1), (2, 0))[:, :-2])
        wanted = ((opaque > skip) & (through > skip)).repeat_interleave(stride, dim=1)
        wanted = F.pad(wanted, (0, max(count - wanted.shape[1], 0)), value=True)[:, :count].clone()
        wanted[:, probes] = False
        ray, sample = wanted.nonzero().unbind(1)
        values = first.new_zeros(*distances.shape, first.shape[-1])
        densities = first.new_zeros(distances.shape)
        values[:, probes], densities[:, probes] = first, self.densities(first)
        if len(ray):
            rest = self.evaluate(field, rays[ray], distances[ray, sample, None])[:, 0]
            values[ray, sample], densities[ray, sample] = rest, self.densities(rest)
        return Seen(ray_weights(densities, lengths), values[..., :3].sigmoid(), distances, {})

    def _maps(self, seen: Seen) -> dict[str, Tensor]:
        """Return what is known of some rays, without the background."""
        opacity = seen.weights.sum(-1)
        depth = (seen.weights * seen.distances).sum(-1) / opacity.clamp_min(1e-6)
        color = (seen.weights[..., None] * seen.values[..., :3]).sum(-2)
        return dict(prediction=color, opacity=opacity, depth=torch.where(opacity > 1e-3, depth, 0))

    def extra_repr(self) -> str:
        return f'samples={self.samples}, eval_samples={self.eval_samples}, resamples={self.resamples}'
