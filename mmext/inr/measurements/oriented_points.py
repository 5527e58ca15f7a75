"""Points on a surface with its normals: a signed distance without known distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, NonNegative
from mmext.inr.measurements.operators import Field
from mmext.inr.measurements.points import PointOperator
from mmext.norms.position_norm import value_and_gradient
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['OrientedPointOperator']


@MODELS.register_module()
class OrientedPointOperator(PointOperator):
    r"""A signed distance is learned from points of a surface and the normals there, as SIREN does.

    Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, NeurIPS 2020, arXiv 2006.09661.

    .. math:: a\,|f(x)| + b\,(1 - \cos(\nabla f(x), n)) \text{ on the surface}, \qquad c\,e^{-\alpha |f(x)|} \text{ elsewhere},
        \qquad d\,\bigl||\nabla f(x)| - 1\bigr| \text{ everywhere}

    Each term is the mean over all points of a step, as in the authors' code. The gradient is that at each point: statistics of
    norms count as constants, see :func:`mmext.norms.constant_stats` (ours).

    Args:
        on_weight: a.
        normal_weight: b.
        off_weight: c.
        eikonal: d.
        decay: :math:`\alpha`.
        chunk: As :class:`mmext.PointOperator`.

    Shape:
        Points (n, 3) to (n, 4), the value and its gradient. What is measured is (n, 4), too: one and the normal on the
        surface, zeros elsewhere. A :class:`mmext.ShapeDataset` with ``kind='oriented'`` brings that.

    Raises:
        ValueError: If the field returns another number of values, or the measurement has another shape.

    Example:
        >>> operator = OrientedPointOperator()
        >>> points = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.9]])
        >>> found, _ = operator.predict(lambda x: x.norm(dim=-1, keepdim=True) - 0.5, points)
        >>> operator.loss(found, torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]]))['loss_normal'].item()
        0.0
    """

    def __init__(
        self,
        on_weight: NonNegative = 3e3,
        normal_weight: NonNegative = 1e2,
        off_weight: NonNegative = 1e2,
        eikonal: NonNegative = 5e1,
        decay: NonNegative = 1e2,
        chunk: Count = 65536,
    ) -> None:
        super().__init__(kind='sdf', chunk=chunk)
        self.weights = dict(loss_on=on_weight, loss_normal=normal_weight, loss_off=off_weight, loss_eikonal=eikonal)
        self.decay = decay

    def predict(self, field: Field, coords: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the field and its gradient at points, (n, 4), and no penalties."""
        # A field that is a method belongs to a model, whose norms tie the points together.
        owner = getattr(field, '__self__', field)
        values, gradient = value_and_gradient(
            lambda points: at_least_float32(field(points)), coords, owner if isinstance(owner, nn.Module) else None
        )
        if values.shape[-1] != 1:
            raise ValueError(
                f'OrientedPointOperator needs a field of one value, got {values.shape[-1]}; set out_features=1 of the '
                'network'
            )
        return torch.cat((values, gradient), dim=-1), {}

    def loss(self, prediction: Tensor, measurement: Tensor) -> dict[str, Tensor]:
        """Return the four terms for what :meth:`predict` returns and what is known of the points, (n, 4) both."""
        if prediction.shape != measurement.shape:
            raise ValueError(
                f'OrientedPointOperator compares values and gradients {tuple(prediction.shape)} with a measurement of shape '
                f"{tuple(measurement.shape)}; train on mmext.ShapeDataset(kind='oriented')"
            )
        on = measurement[..., 0].to(prediction)
        distance, gradient = prediction[..., 0].abs(), prediction[..., 1:]
        normal = measurement[..., 1:].to(prediction)
        terms = dict(
            loss_on=on * distance,
            loss_normal=on * (1 - F.cosine_similarity(gradient, normal, dim=-1)),
            loss_off=(1 - on) * torch.exp(-self.decay * distance),
            loss_eikonal=(gradient.norm(dim=-1) - 1).abs(),
        )
        return {name: self.weights[name] * term.mean() for name, term in terms.items()}

    def extra_repr(self) -> str:
        return ', '.join(f'{name[5:]}={weight:g}' for name, weight in self.weights.items()) + f', decay={self.decay:g}'
