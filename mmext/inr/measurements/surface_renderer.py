"""Pictures of the zero set of a signed distance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, NonNegative, Repeats, Share, at_least, at_most
from mmext.inr.measurements.operators import Field
from mmext.inr.measurements.rays import Jitter, drawn, resample, section_lengths, unit_ball
from mmext.inr.measurements.volume_renderer import Seen, VolumeRenderer
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['SurfaceRenderer', 'crossing_weights', 'section_opacity']

#: As in the authors' code: what keeps a quotient, and a product, away from zero.
_ADDED, _KEPT = 1e-5, 1e-7


def section_opacity(before: Tensor, behind: Tensor, sharpness: Tensor | float) -> Tensor:
    r"""Return the opacity of sections of a ray from the distances at their ends, in [0, 1].

    .. math:: \alpha = \max\Bigl(\frac{\Phi(f_0) - \Phi(f_1)}{\Phi(f_0)}, 0\Bigr), \qquad \Phi(f) = \mathrm{sigmoid}(s f)

    Args:
        before: Signed distance where the section begins.
        behind: The same where it ends.
        sharpness: s, in one over scene units.
    """
    start, end = torch.sigmoid(before * sharpness), torch.sigmoid(behind * sharpness)
    return ((start - end + _ADDED) / (start + _ADDED)).clamp(0, 1)


def crossing_weights(opacity: Tensor) -> Tensor:
    """Return the share of light from each section, from their opacities (..., S)."""
    passed = (1 - opacity + _KEPT).cumprod(-1)
    return opacity * torch.cat((torch.ones_like(passed[..., :1]), passed[..., :-1]), dim=-1)


@MODELS.register_module()
class SurfaceRenderer(VolumeRenderer):
    r"""Pixels are measured, rendered from a signed distance, so that a surface comes out.

    Wang et al., *NeuS: Learning Neural Implicit Surfaces by Volume Rendering for Multi-view Reconstruction*, NeurIPS 2021,
    arXiv 2106.10689.

    A section of a ray is as opaque as :func:`section_opacity` says, with the distances at its ends estimated from that in
    its middle and its slope along the ray. So the weight has its maximum where the distance is zero. The sharpness
    :math:`s = e^{10 v}` is learned, and the width of the surface with it.

    Args:
        samples: Even sections of a ray.
        eval_samples: The same in evaluation, by default as many.
        rounds: Rounds of 16 further samples each, where the surface seems to be, with growing sharpness; NeuS takes 4.
        eikonal: Weight of the mean of :math:`(|\nabla f| - 1)^2`.
        mask_weight: Weight of the cross entropy between opacity and mask, where there is one.
        settle: Steps in which the slope along the ray goes from its softer estimate to the true one.
        sharpness: v to start with.
        background: As the data set has it.
        loss: ``'l1'`` or ``'mse'``, of the colors.
        directions: Whether the field takes directions beside positions.
        skip: In evaluation the whole field is evaluated only where the opacity may be above this. Zero evaluates all.
        chunk: Rays that are evaluated at a time.

    Shape:
        As :class:`mmext.VolumeRenderer`, whose network is a :class:`mmext.SDFField`. A reconstruction has ``normal``
        (H, W, 3), too.

    Raises:
        ValueError: As :class:`mmext.VolumeRenderer`.

    Example:
        >>> renderer = SurfaceRenderer(samples=8)
        >>> sphere = lambda x: torch.cat((0 * x, x.norm(dim=-1, keepdim=True) - 0.5, x / x.norm(dim=-1, keepdim=True)), -1)
        >>> rays = torch.tensor([[0.0, 0.1, 3.0, 0.0, 0.0, -1.0]])
        >>> renderer.predict(sphere, rays)[0].shape
        torch.Size([1, 4])
    """

    example = dict(samples=4)
    field_values = 7

    def __init__(
        self,
        samples: Repeats = 64,
        eval_samples: Repeats | None = None,
        rounds: Annotated[int, at_least(0), at_most(64)] = 0,
        eikonal: NonNegative = 0.1,
        mask_weight: NonNegative = 0.1,
        settle: Annotated[int, at_least(0)] = 0,
        sharpness: float = 0.3,
        background: Share = 1.0,
        loss: Literal['mse', 'l1'] = 'l1',
        directions: bool = False,
        skip: Share = 1e-3,
        chunk: Count = 2048,
    ) -> None:
        super().__init__(
            samples, eval_samples, background=background, loss=loss, directions=directions, skip=skip, chunk=chunk
        )
        self.settle = settle
        self.rounds = rounds
        self.eikonal = eikonal
        self.mask_weight = mask_weight
        self.log_sharpness = nn.Parameter(torch.tensor(float(sharpness)))

    @property
    def sharpness(self) -> Tensor:
        """s."""
        return (10 * self.log_sharpness).exp().clamp(1e-6, 1e6)

    def loss(self, prediction: Tensor, measurement: Tensor) -> dict[str, Tensor]:
        """Return the losses of color and mask, see :meth:`mmext.VolumeRenderer.loss`."""
        losses = super().loss(prediction, measurement)
        if self.mask_weight and measurement.shape[-1] == 4:
            opacity = prediction[..., 3].clamp(1e-3, 1 - 1e-3)
            losses['loss_mask'] = self.mask_weight * F.binary_cross_entropy(opacity, measurement[..., 3].to(opacity))
        return losses

    def solid(self, field: Field, points: Tensor, cell: float) -> Tensor:
        """Return what of the field is a shape: minus the distance, (N,)."""
        return torch.minimum(-at_least_float32(field(points, only_distance=True))[..., 0], 1 - points.norm(dim=-1))

    def _march(self, field: Field, rays: Tensor, samples: int, jitter: Jitter, skip: float = 0.0) -> list[Seen]:
        near, far = unit_ball(rays)
        # One offset for a whole ray, as the authors have it.
        share = drawn(near, (len(near), 1), jitter)
        cells = torch.arange(samples, dtype=near.dtype, device=near.device)
        distances = near[:, None] + (far - near)[:, None] * ((cells + share) / samples)
        with torch.no_grad():
            for number in range(self.rounds):
                distances = self._refine(field, rays, distances, 64.0 * 2**number, jitter)
        return [self.look(field, rays, distances, far, skip=skip)]

    def look(
        self, field: Field, rays: Tensor, distances: Tensor, far: Tensor, skip: float = 0.0, **options: Any
    ) -> Seen:
        """Evaluate the field in the middle of sections, and weigh what is there."""
        lengths = section_lengths(distances, far)
        middle = distances + lengths / 2
        values = self._evaluate_near(field, rays, middle, lengths, skip) if skip else self.evaluate(field, rays, middle)
        color, distance, gradient = values.split((3, 1, 3), dim=-1)
        slope = self._slope((gradient * rays[:, None, 3:6]).sum(-1))
        half = slope * lengths / 2
        opacity = section_opacity(distance[..., 0] - half, distance[..., 0] + half, self.sharpness)
        # Where the field was not evaluated, it is far from the surface. A section without length is none.
        opacity = torch.where((distance[..., 0] < torch.inf) & (lengths > 0), opacity, 0)
        penalties = {}
        if self.training and self.eikonal:
            penalties['loss_eikonal'] = self.eikonal * (gradient.norm(dim=-1) - 1).square().mean()
        return Seen(crossing_weights(opacity), torch.cat((color.sigmoid(), gradient), dim=-1), middle, penalties)

    def _slope(self, cosine: Tensor) -> Tensor:
        """Return how fast the distance falls along a ray, never positive."""
        true = -F.relu(-cosine)
        if not (self.settle and self.training):
            return true
        share = (self.step / self.settle).clamp(max=1)
        return -F.relu(0.5 - 0.5 * cosine) * (1 - share) + true * share

    def _evaluate_near(self, field: Field, rays: Tensor, middle: Tensor, lengths: Tensor, skip: float) -> Tensor:
        """Return the field where a section may be opaque, and infinite distances elsewhere."""
        distance = self._distances(field, rays, middle)
        # The distance changes by no more than the way, up to how well the field is one.
        reach = 0.75 * lengths
        seen = section_opacity(distance + reach, distance - reach, self.sharpness) > skip
        ray, sample = seen.nonzero().unbind(1)
        values = middle.new_zeros(*middle.shape, self.field_values)
        values[..., 3] = torch.inf
        if len(ray):
            values[ray, sample] = self.evaluate(field, rays[ray], middle[ray, sample, None])[:, 0].to(values)
        return values

    def _distances(self, field: Field, rays: Tensor, distances: Tensor) -> Tensor:
        points = rays[:, None, :3] + distances[..., None] * rays[:, None, 3:6]
        return at_least_float32(field(points, only_distance=True))[..., 0]

    def _refine(self, field: Field, rays: Tensor, distances: Tensor, sharpness: float, jitter: Jitter) -> Tensor:
        """Add 16 samples where a surface of this sharpness would be seen."""
        found = self._distances(field, rays, distances)
        lengths = distances.diff(dim=-1)
        slope = found.diff(dim=-1) / lengths.clamp_min(1e-5)
        # The steeper of a section's own slope and that before it, so that thin parts are not passed by.
        slope = torch.minimum(slope, F.pad(slope[:, :-1], (1, 0))).clamp(-1e3, 0)
        middle, half = (found[:, 1:] + found[:, :-1]) / 2, slope * lengths / 2
        weights = crossing_weights(section_opacity(middle - half, middle + half, sharpness))
        extra = resample(distances, weights, 16, jitter, eps=1e-5)
        return torch.cat((distances, extra), dim=-1).sort(-1).values

    def _maps(self, seen: Seen) -> dict[str, Tensor]:
        normal = F.normalize((seen.weights[..., None] * seen.values[..., 3:]).sum(-2), dim=-1)
        maps = super()._maps(seen)
        return {**maps, 'normal': torch.where(maps['opacity'][:, None] > 1e-3, normal, 0)}
