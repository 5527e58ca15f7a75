"""Fields of color and density: networks from positions and directions to what is seen there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few, Repeats
from mmext.inr.networks.base import CoordNetwork
from mmext.registry import MODELS

__all__ = ['FieldPair', 'LearnedFeatures', 'MultiInputMLP', 'RadianceMLP', 'RayEncoding']


@MODELS.register_module()
class RayEncoding(nn.Module):
    """Encoded positions beside encoded directions.

    What NeRF's head and :class:`MultiInputMLP` are given, see there.

    Args:
        position: Config of the encoding of the first three coordinates, None for themselves.
        direction: The same of the last three.
        in_features: 6.

    Raises:
        ValueError: If ``in_features`` is another number.

    Example:
        >>> encoding = RayEncoding(dict(type='mmext.PositionalEncoding', num_octaves=4))
        >>> encoding(torch.zeros(5, 6)).shape[1] == encoding.out_features
        True
    """

    def __init__(self, position: Cfg | None = None, direction: Cfg | None = None, in_features: Count = 6) -> None:
        super().__init__()
        if in_features != 6:
            raise ValueError(f'RayEncoding takes 3 coordinates of a position and 3 of a direction, got {in_features=}')
        self.in_features = 6
        self.position, self.direction = (_encoding(cfg) for cfg in (position, direction))
        self.out_features = self.position.out_features + self.direction.out_features

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        _reset(self.position, self.direction)

    def forward(self, coords: Tensor) -> Tensor:
        """Encode ``coords``, (..., 6)."""
        return torch.cat((self.position(coords[..., :3]), self.direction(coords[..., 3:])), dim=-1)


@MODELS.register_module()
class LearnedFeatures(nn.Module):
    """A linear map and an activation in the place of an encoding.

    It is the first layer of Chng et al., *Gaussian Activated Neural Radiance Fields for High Fidelity Reconstruction and Pose
    Estimation*, ECCV 2022, arXiv 2204.05735, whose features are used a second time further up.

    Args:
        in_features: d, the number of coordinates.
        features: Number of features per position.
        act_cfg: The activation; one that has an argument ``first`` is told that it is.

    Example:
        >>> LearnedFeatures(features=8)(torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: Count = 3,
        features: Count = 256,
        act_cfg: Cfg = dict(type='mmext.GaussianActivation', scale=50**0.5, center=True),  # noqa: B006
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, features
        self.linear = nn.Linear(in_features, features)
        self.activation = build_activation_layer(act_cfg)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.linear.reset_parameters()

    def forward(self, coords: Tensor) -> Tensor:
        """Return the features at ``coords``, (..., d)."""
        return self.activation(self.linear(coords))


@MODELS.register_module()
class RadianceMLP(CoordNetwork):
    r"""The perceptron of NeRF: density from positions, color from features and directions.

    Mildenhall et al., *NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis*, ECCV 2020, arXiv 2003.08934.

    .. math:: (\sigma, h) = \mathrm{trunk}(\gamma(x)), \qquad c = \mathrm{head}(h, \gamma'(d))

    The feature h is linear, as in NeRF's code. Density and color come as raw values; :class:`mmext.VolumeRenderer` makes them
    positive and brings them into [0, 1].

    Args:
        in_features: 6, positions and directions.
        width: Of the layers of the trunk.
        depth: Their number.
        skips: Layers of the trunk that are given the encoded position once more, see :class:`mmext.CoordMLP`.
        view_width: Of the hidden layers of the head.
        view_depth: Their number.
        encoding: Config of the encoding of positions, None for themselves.
        view_encoding: The same of directions.
        act_cfg: Activation of all hidden layers.
        norm_cfg: Norm in all hidden layers, None for none.
        norm_position: See :class:`mmext.CoordMLP`.
        init_cfg: As in mmengine.

    Shape:
        (..., 6) to (..., 4), red, green, blue and density.

    Raises:
        ValueError: If ``in_features`` is not 6, or an argument of the perceptrons is out of range.

    Example:
        >>> RadianceMLP(width=8, depth=2, skips=())(torch.rand(5, 6)).shape
        torch.Size([5, 4])
    """

    example = dict(width=6, depth=2, skips=(1,), view_width=4)

    def __init__(
        self,
        in_features: Count = 6,
        width: Count = 256,
        depth: Few = 8,
        skips: Sequence[int] = (5,),
        view_width: Count = 128,
        view_depth: Repeats = 1,
        encoding: Cfg | None = dict(type='mmext.PositionalEncoding', num_octaves=10),  # noqa: B006
        view_encoding: Cfg | None = dict(type='mmext.PositionalEncoding', num_octaves=4),  # noqa: B006
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        norm_cfg: Cfg | None = None,
        norm_position: Literal['pre', 'post'] = 'pre',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, 4, init_cfg)
        if in_features != 6:
            raise ValueError(
                f'RadianceMLP takes positions and directions, 6 coordinates, got {in_features=}; a mmext.CoordMLP with 3 and '
                'out_features=4 is a field without directions'
            )
        hidden: dict[str, Any] = dict(
            type='mmext.CoordMLP', act_cfg=act_cfg, norm_cfg=norm_cfg, norm_position=norm_position
        )
        # Any, because torch does not tell what attributes a module has.
        self.trunk: Any = MODELS.build(
            dict(
                hidden, in_features=3, out_features=1 + width, width=width, depth=depth, skips=skips, encoding=encoding
            )
        )
        self.view_encoding = _encoding(view_encoding)
        seen = width + self.view_encoding.out_features
        self.head: Any = MODELS.build(
            dict(hidden, in_features=seen, out_features=3, width=view_width, depth=view_depth)
        )

    def reset_parameters(self) -> None:
        _reset(self.trunk, self.view_encoding, self.head)

    def forward(self, coords: Tensor) -> Tensor:
        """Return color and density at ``coords``, (..., 6)."""
        density, features = self.trunk(coords[..., :3]).split((1, self.out_of_trunk), dim=-1)
        color = self.head(torch.cat((features, self.view_encoding(coords[..., 3:]).to(features)), dim=-1))
        return torch.cat((color, density), dim=-1)

    @property
    def out_of_trunk(self) -> int:
        """Number of features that the head is given."""
        return self.trunk.out_features - 1

    @staticmethod
    def deployed_cfg(cfg: dict[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the network that :func:`mmext.folding.fold` leaves where it fuses all norms."""
        return {k: v for k, v in cfg.items() if not fuse_bn or k not in ('norm_cfg', 'norm_position')}


@MODELS.register_module()
class MultiInputMLP(CoordNetwork):
    r"""A perceptron that is given its input in each layer, for scenes of few views.

    Zhu et al., *Is Vanilla MLP in Neural Radiance Field Enough for Few-shot View Synthesis?*, CVPR 2024, arXiv 2403.06092.

    .. math:: h_l = \phi(\mathrm{norm}(W_l [h_{l-1}; e] + b_l)), \quad l \ge 2, \qquad y = W [h_L; e] + b

    with e the encoded input. That input goes into each layer and that color and density are modeled separately is the
    paper's. No code of the authors is known to us. That the output layer has the input, too, that the two networks share
    nothing, and the number of octaves of each are our reading.

    Args:
        in_features: 3, positions, or 6, positions and directions, on which the color alone depends.
        branches: ``'one'``: one perceptron for color and density, of positions only; ``'split'``: two.
        inputs: ``'every'``: into each layer; ``'skip'``: into the first and the middle one, as in NeRF; ``'first'``: into the
            first one only, which is :class:`mmext.CoordMLP`.
        width: Of each hidden layer.
        depth: Number of hidden layers of each branch.
        octaves: Of the positions, for one branch and for the density.
        color_octaves: Of the positions, for the color.
        view_octaves: Of the directions.
        act_cfg: Activation of all hidden layers.
        norm_cfg: Norm in all hidden layers, None for none.
        init_cfg: As in mmengine.

    Shape:
        (..., d) to (..., 4), red, green, blue and density.

    Raises:
        ValueError: If ``in_features`` is neither 3 nor 6, or 6 with one branch.

    Example:
        >>> MultiInputMLP(width=8, depth=2, branches='split', in_features=6)(torch.rand(5, 6)).shape
        torch.Size([5, 4])
    """

    example = dict(width=6, depth=2)

    def __init__(
        self,
        in_features: Count = 3,
        branches: Literal['one', 'split'] = 'one',
        inputs: Literal['every', 'skip', 'first'] = 'every',
        width: Count = 64,
        depth: Repeats = 4,
        octaves: Few = 6,
        color_octaves: Few = 6,
        view_octaves: Few = 4,
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        norm_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, 4, init_cfg)
        if in_features not in (3, 6) or (in_features == 6 and branches == 'one'):
            raise ValueError(
                'MultiInputMLP takes 3 coordinates, or 6 with branches="split", whose density must not depend on the last '
                f'three, got {in_features=} and {branches=}'
            )
        skips = {'every': tuple(range(1, depth + 1)), 'skip': (max(depth // 2, 1),), 'first': ()}[inputs]
        hidden: dict[str, Any] = dict(
            type='mmext.CoordMLP', width=width, depth=depth, skips=skips, act_cfg=act_cfg, norm_cfg=norm_cfg
        )
        position = dict(type='mmext.PositionalEncoding', num_octaves=octaves)
        values = 4 if branches == 'one' else 1
        # Any, because torch does not tell what attributes a module has.
        self.density: Any = MODELS.build(dict(hidden, in_features=3, out_features=values, encoding=position))
        self.color: Any = None
        if branches == 'split':
            encoding: dict[str, Any] = dict(type='mmext.PositionalEncoding', num_octaves=color_octaves)
            if in_features == 6:
                direction = dict(type='mmext.PositionalEncoding', num_octaves=view_octaves)
                encoding = dict(type='mmext.RayEncoding', position=encoding, direction=direction)
            self.color = MODELS.build(dict(hidden, in_features=in_features, out_features=3, encoding=encoding))

    def reset_parameters(self) -> None:
        _reset(self.density, self.color)

    def forward(self, coords: Tensor) -> Tensor:
        """Return color and density at ``coords``, (..., d)."""
        density = self.density(coords[..., :3])
        return density if self.color is None else torch.cat((self.color(coords), density), dim=-1)

    @staticmethod
    def deployed_cfg(cfg: dict[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the network that :func:`mmext.folding.fold` leaves where it fuses all norms."""
        return {k: v for k, v in cfg.items() if not fuse_bn or k != 'norm_cfg'}


@MODELS.register_module()
class FieldPair(CoordNetwork):
    """Two fields of one scene: a coarse one says where to look, a fine one is looked at, as in NeRF.

    Mildenhall et al., *NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis*, ECCV 2020, arXiv 2003.08934.

    Args:
        coarse: Config of a network.
        fine: Config of another one of the same inputs and outputs, by default the same.
        init_cfg: As in mmengine.

    Shape:
        As that of the fine network.

    Raises:
        ValueError: If the two take or return other numbers of values.

    Example:
        >>> pair = FieldPair(dict(type='mmext.CoordMLP', in_features=3, out_features=4, width=8, depth=2))
        >>> pair(torch.rand(5, 3)).shape
        torch.Size([5, 4])
    """

    example = dict(coarse=dict(type='mmext.CoordMLP', in_features=3, out_features=4, width=6, depth=2))

    def __init__(self, coarse: Cfg, fine: Cfg | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        # Any, because torch does not tell what attributes a module has.
        first: Any = MODELS.build(dict(coarse))
        second: Any = MODELS.build(dict(coarse if fine is None else fine))
        super().__init__(first.in_features, first.out_features, init_cfg)
        if (first.in_features, first.out_features) != (second.in_features, second.out_features):
            raise ValueError(
                f'FieldPair needs two networks alike, got {first.in_features} to {first.out_features} values and '
                f'{second.in_features} to {second.out_features}'
            )
        self.coarse, self.fine = first, second

    def reset_parameters(self) -> None:
        _reset(self.coarse, self.fine)

    def forward(self, coords: Tensor, coarse: bool = False) -> Tensor:
        """Evaluate the fine network, or the coarse one."""
        return self.coarse(coords) if coarse else self.fine(coords)


def _encoding(cfg: Any) -> Any:
    return MODELS.build({'type': 'mmext.IdentityEncoding', 'in_features': 3, **(cfg or {})})


def _reset(*parts: Any) -> None:
    for part in parts:
        if hasattr(part, 'reset_parameters'):
            part.reset_parameters()
