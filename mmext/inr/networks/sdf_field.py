"""Fields of signed distance and color, and the perceptron whose zero set is a sphere to begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few, Natural, Positive
from mmext.inr.networks.base import CoordNetwork, build_position_norm
from mmext.norms.position_norm import value_and_gradient
from mmext.registry import MODELS

__all__ = ['SDFMLP', 'SDFField', 'WeightNormLinear']


class WeightNormLinear(nn.Linear):
    r"""A linear map whose rows have a direction and a length: :math:`W_i = g_i v_i / |v_i|`.

    Salimans, Kingma, *Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks*,
    NeurIPS 2016, arXiv 1602.07868. The directions are in ``weight``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.gain = nn.Parameter(torch.empty(out_features, 1))
        self.start_from_weight()

    @torch.no_grad()
    def start_from_weight(self) -> None:
        """Take the lengths of the rows of ``weight``, so that this is the plain map of that weight."""
        self.gain.copy_(self.weight.norm(dim=1, keepdim=True))

    def kernel(self) -> Tensor:
        """Return W."""
        return self.weight * (self.gain / self.weight.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map."""
        return F.linear(x, self.kernel(), self.bias)

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return the plain map."""
        plain = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, self.bias is not None)
        plain = plain.to(self.weight)
        plain.weight.copy_(self.kernel())
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain


@MODELS.register_module()
class SDFMLP(CoordNetwork):
    r"""A perceptron whose first value is near the signed distance from a sphere before it is trained.

    Wang et al., *NeuS: Learning Neural Implicit Surfaces by Volume Rendering for Multi-view Reconstruction*, NeurIPS 2021,
    arXiv 2106.10689, with the start of Atzmon, Lipman, *SAL: Sign Agnostic Learning of Shapes from Raw Data*, CVPR 2020,
    arXiv 1911.10414.

    .. math:: f(x) \approx |x| - r

    Encoded columns but the coordinates themselves start at zero, so that the start is the same with and without encoding.
    With a norm the lengths that this start lives on are lost. Then :math:`|x| - r` is added to an output that starts near
    zero (ours).

    Args:
        in_features: 3.
        out_features: One distance and whatever features the color is to have.
        width: Of the hidden layers.
        depth: Their number.
        skips: Hidden layers that are given the encoded position once more. The layer before is narrower, as in the authors'
            code, and both are divided by :math:`\sqrt 2`.
        encoding: Config of an encoding whose first features are the coordinates, None for these alone.
        radius: r.
        beta: Of the softplus between layers.
        norm_cfg: Norm in each hidden layer, None for none.
        init_cfg: As in mmengine.

    Shape:
        (..., 3) to (..., out_features).

    Raises:
        ValueError: If ``depth`` is below 1, a skip leads to no hidden layer, or the encoding does not start with the
            coordinates.

    Example:
        >>> network = SDFMLP(out_features=9, width=16, depth=2, skips=())
        >>> network(torch.rand(5, 3)).shape
        torch.Size([5, 9])
    """

    example = dict(out_features=4, width=8, depth=2, skips=())

    def __init__(
        self,
        in_features: Count = 3,
        out_features: Count = 257,
        width: Count = 256,
        depth: Few = 8,
        skips: Sequence[Natural] = (4,),
        encoding: Cfg | None = dict(type='mmext.PositionalEncoding', num_octaves=6, base=1.0),  # noqa: B006
        radius: Positive = 0.5,
        beta: Positive = 100.0,
        norm_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, init_cfg)
        if depth < 1:
            raise ValueError(f'SDFMLP needs one hidden layer at least, got {depth=}')
        if wrong := [layer for layer in skips if not 1 <= layer < depth]:
            raise ValueError(
                f'SDFMLP has hidden layers 1 to {depth - 1} to skip to, got {wrong} in skips={tuple(skips)}'
            )
        self.encoding: Any = MODELS.build(
            {'type': 'mmext.IdentityEncoding', 'in_features': in_features, **(encoding or {})}
        )
        probe = torch.linspace(-0.7, 0.9, in_features)
        if self.encoding.in_features != in_features or not torch.equal(self.encoding(probe)[:in_features], probe):
            raise ValueError(
                f'SDFMLP needs an encoding of {in_features} coordinates that starts with them, got '
                f'{type(self.encoding).__name__}; set include_input=True'
            )
        self.skips = frozenset(skips)
        self.radius, self.beta = radius, beta
        encoded = self.encoding.out_features
        if width <= encoded and self.skips:
            raise ValueError(f'SDFMLP with skips needs a width above the {encoded} encoded features, got {width=}')
        self.linears: Any = nn.ModuleList()
        self.norms: Any = nn.ModuleList()
        features = encoded
        for index in range(depth):
            out = width - encoded if index + 1 in self.skips else width
            self.linears.append(nn.Linear(width if index in self.skips else features, out))
            self.norms.append(build_position_norm(norm_cfg, out, -1) if norm_cfg else nn.Identity())
            features = out
        self.head: Any = nn.Linear(features, out_features)
        self.normalized = norm_cfg is not None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for norm in self.norms:
            if hasattr(norm, 'reset_parameters'):
                norm.reset_parameters()
        tail = self.encoding.out_features - self.in_features
        for index, linear in enumerate(self.linears):
            nn.init.normal_(linear.weight, 0.0, (2 / linear.out_features) ** 0.5)
            nn.init.zeros_(linear.bias)
            if tail and (index == 0 or index in self.skips):
                linear.weight[:, -tail:] = 0
        width = self.head.in_features
        if self.normalized:
            self.head.reset_parameters()
            nn.init.normal_(self.head.weight[:1], 0.0, 1e-4)
            nn.init.zeros_(self.head.bias)
        else:
            nn.init.normal_(self.head.weight, (math.pi / width) ** 0.5, 1e-4)
            nn.init.constant_(self.head.bias, -self.radius)
        for linear in (*self.linears, self.head):
            if isinstance(linear, WeightNormLinear):
                linear.start_from_weight()

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network at ``coords``, (..., 3)."""
        points = coords.reshape(-1, self.in_features)
        features = encoded = self.encoding(points).to(self.head.weight.dtype)
        for index, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            if index in self.skips:
                features = torch.cat((features, encoded.to(features)), dim=-1) / 2**0.5
            features = F.softplus(norm(linear(features)), beta=self.beta)
        values = self.head(features)
        if self.normalized:
            sphere = points.square().sum(-1, keepdim=True).add(1e-12).sqrt() - self.radius
            values = torch.cat((values[:, :1] + sphere, values[:, 1:]), dim=-1)
        return values.view(*coords.shape[:-1], self.out_features)


@MODELS.register_module()
class SDFField(CoordNetwork):
    r"""A signed distance with its gradient, and a color that depends on both: what :class:`mmext.SurfaceRenderer` renders.

    Wang et al., *NeuS: Learning Neural Implicit Surfaces by Volume Rendering for Multi-view Reconstruction*, NeurIPS 2021,
    arXiv 2106.10689.

    .. math:: (f, h) = \mathrm{sdf}(x), \qquad c = \mathrm{color}(x, \nabla f(x), h, \gamma(d))

    The gradient is that of each point by itself. Under norms with statistics of a batch the gradient of a sum is not, see
    :func:`mmext.norms.constant_stats`, which is used then.

    Args:
        sdf: Config of a network of 3 coordinates. The first of its values is the distance, negative inside.
        color: Config of a network; its ``in_features`` and ``out_features`` are filled in.
        view_encoding: Config of the encoding of directions; None if the color does not depend on them, so that the field
            takes 3 coordinates.
        weight_norm: Normalize the rows of all linear maps, as NeuS does. It folds away.
        init_cfg: As in mmengine.

    Shape:
        (..., d) to (..., 7): three raw values of color, the distance, and its gradient.

    Example:
        >>> field = SDFField(
        ...     sdf=dict(type='mmext.SDFMLP', out_features=5, width=8, depth=2, skips=()),
        ...     color=dict(type='mmext.CoordMLP', width=8, depth=1),
        ... )
        >>> field(torch.rand(4, 3)).shape
        torch.Size([4, 7])
    """

    example = dict(
        sdf=dict(type='mmext.SDFMLP', out_features=4, width=8, depth=2, skips=()),
        color=dict(type='mmext.CoordMLP', width=6, depth=1),
    )

    def __init__(
        self,
        sdf: Cfg,
        color: Cfg,
        view_encoding: Cfg | None = None,
        weight_norm: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(3 if view_encoding is None else 6, 7, init_cfg)
        # Any, because torch does not tell what attributes a module has.
        self.sdf: Any = MODELS.build(dict(sdf))
        self.view_encoding: Any = None
        if view_encoding is not None:
            self.view_encoding = MODELS.build({'in_features': 3, **view_encoding})
        seen = self.view_encoding.out_features if self.view_encoding is not None else 0
        self.color: Any = MODELS.build(dict(color, in_features=5 + self.sdf.out_features + seen, out_features=3))
        if weight_norm:
            _normalize_weights(self.sdf)
            _normalize_weights(self.color)

    def reset_parameters(self) -> None:
        for part in (self.sdf, self.color, self.view_encoding):
            if hasattr(part, 'reset_parameters'):
                part.reset_parameters()
        for module in self.modules():
            if isinstance(module, WeightNormLinear):
                module.start_from_weight()

    def distance(self, points: Tensor) -> Tensor:
        """Return the signed distance at points, (..., 3) to (...)."""
        return self.sdf(points)[..., 0]

    def forward(self, coords: Tensor, only_distance: bool = False) -> Tensor:
        """Evaluate the field.

        Args:
            coords: (..., d).
            only_distance: Return (..., 1), at a fraction of the cost.
        """
        if only_distance:
            return self.distance(coords[..., :3])[..., None]
        points = coords[..., :3]
        values, gradient = value_and_gradient(self.sdf, points, self.sdf)
        gradient = gradient.to(values)
        parts = [points.detach().to(values), gradient, values[..., 1:]]
        if self.view_encoding is not None:
            parts.append(self.view_encoding(coords[..., 3:]).to(values))
        color = self.color(torch.cat(parts, dim=-1))
        return torch.cat((color, values[..., :1].to(color), gradient.to(color)), dim=-1)

    @staticmethod
    def deployed_cfg(cfg: dict[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the network that :func:`mmext.folding.fold` leaves."""
        return {k: v for k, v in cfg.items() if k != 'weight_norm'}


def _normalize_weights(network: nn.Module) -> None:
    """Put a :class:`WeightNormLinear` in the place of each linear map; what it computes stays."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                linear = WeightNormLinear(child.in_features, child.out_features, child.bias is not None)
                linear.load_state_dict({**linear.state_dict(), **child.state_dict()})
                linear.start_from_weight()
                setattr(parent, name, linear)
