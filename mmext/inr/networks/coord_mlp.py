"""The multi-layer perceptron over coordinates, with its encodings, activations and norms as parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few
from mmext.blocks.build import accepts
from mmext.contracts import DrawsLinear, IsComplex
from mmext.fusing import fuse_affine, norm_affine
from mmext.inr.networks.base import ComplexNorm, CoordNetwork, build_position_norm
from mmext.registry import MODELS, require

__all__ = ['CoordMLP']


@MODELS.register_module()
class CoordMLP(CoordNetwork):
    r"""A perceptron over coordinates, with encoding, activation and norm by config.

    .. math:: z_0 = \mathrm{encode}(p), \qquad z_l = \phi(\mathrm{norm}(W_l z_{l-1} + b_l)), \qquad y = W z_L + b

    The defaults are the 28 x 10 network of Cai et al., arXiv 2407.17834, which learns high frequencies late; each of a
    positional encoding, a norm (BN, LN, :class:`mmext.GlobalNorm`, :class:`mmext.CrossNorm`) and a periodic activation
    (:class:`mmext.SineActivation`, :class:`mmext.GaussianActivation`, :class:`mmext.WaveletActivation`) lets it learn them
    sooner.

    Args:
        in_features: d, the number of coordinates.
        out_features: Values per position.
        width: Outputs of each hidden layer. A complex activation gets :math:`\lfloor\mathrm{width}/\sqrt 2\rfloor`, one with a
            second layer beside each :math:`\lfloor\mathrm{width}/2\rfloor`.
        depth: Number of hidden layers, the first one included.
        encoding: Config of the encoding, None for the bare coordinates.
        act_cfg: Any registered activation. One with a method ``init_linear`` draws the weights of its layer; behind all
            others they are torch's defaults.
        norm_cfg: Norm in each hidden layer, None for none; ``'BN'`` is batch norm over the positions. Real and imaginary parts
            of complex features are channels of their own.
        norm_position: ``'pre'``: before the activation; ``'post'``: after it.
        norm_last: Also normalize the output. The released batch norm networks have none there; the parameter counts of
            the published results fit networks with one.
        skips: Layers that are given the encoded coordinates once more, behind their features: 1 for the second hidden layer,
            ``depth`` for the output.
        init_cfg: As in mmengine.

    Shape:
        (..., d) to (..., out_features): lists of points, grids, and batches of them; a norm takes all together.

    Raises:
        ValueError: If ``norm_position`` is unknown, ``depth`` is below 1, a skip leads to no layer, the encoding takes another
            number of coordinates, or a norm is to stand before an activation with two inputs.

    Example:
        >>> CoordMLP(out_features=3)(coordinate_grid(4, 6)).shape
        torch.Size([4, 6, 3])
    """

    example = dict(width=6, depth=2)

    def __init__(
        self,
        in_features: Count = 2,
        out_features: Count = 3,
        width: Count = 28,
        depth: Few = 10,
        encoding: dict | None = None,
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        norm_cfg: Cfg | None = None,
        norm_position: Literal['pre', 'post'] = 'pre',
        norm_last: bool = False,
        skips: Sequence[int] = (),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, init_cfg)
        if depth < 1:
            raise ValueError(f'CoordMLP needs one hidden layer at least, got {depth=}')
        if wrong := [layer for layer in skips if not 1 <= layer <= depth]:
            raise ValueError(f'CoordMLP has layers from 1 to {depth=} to skip to, got {wrong} in skips={tuple(skips)}')
        self.norm_position = norm_position
        self.skips = frozenset(skips)
        encoding = {'type': 'mmext.IdentityEncoding', 'in_features': in_features, **(encoding or {})}
        # Any, because torch does not tell what attributes a module has.
        self.encoding: Any = MODELS.build(encoding)
        if self.encoding.in_features != in_features:
            raise ValueError(
                f'CoordMLP has {in_features=} and an encoding of {self.encoding.in_features} coordinates; give the number '
                'to the network only'
            )
        activation = require(act_cfg)
        self.complex_valued = isinstance(activation, IsComplex) and activation.complex_valued
        orthogonal = bool(act_cfg.get('orthogonal', False))
        if orthogonal and norm_cfg is not None and norm_position == 'pre':
            raise ValueError(
                f'CoordMLP has two linear layers before each {activation.__name__}, and a norm for one; pass '
                "norm_position='post'"
            )
        self.width = int(width / (2 if orthogonal else 2**0.5)) if self.complex_valued else width
        if self.width < 1:
            raise ValueError(f'CoordMLP has no feature left of {width=} for {activation.__name__}; set a larger width')

        self.linears: Any = nn.ModuleList()
        # Second layers, which only an activation with two inputs has.
        self.beside: Any = nn.ModuleList()
        self.norms: Any = nn.ModuleList()
        self.activations: Any = nn.ModuleList()
        features = self.encoding.out_features
        for index in range(depth):
            # What enters the first layer is real.
            dtype = torch.cfloat if self.complex_valued and index else None
            features += self.encoding.out_features if index in self.skips else 0
            self.linears.append(nn.Linear(features, self.width, dtype=dtype))
            if orthogonal:
                self.beside.append(nn.Linear(features, self.width, dtype=dtype))
            # What enters the first activation is real, too.
            parts = self.complex_valued and (index > 0 or norm_position == 'post')
            self.norms.append(_norm(norm_cfg, self.width, parts))
            first = dict(first=True) if index == 0 and accepts(activation, 'first') else {}
            self.activations.append(build_activation_layer({**act_cfg, **first}))
            features = self.width
        features += self.encoding.out_features if depth in self.skips else 0
        self.head = nn.Linear(features, out_features, dtype=torch.cfloat if self.complex_valued else None)
        self.last_norm = _norm(norm_cfg if norm_last else None, out_features, self.complex_valued)
        self._init_linears()

    def _init_linears(self) -> None:
        last = self.activations[-1]
        for index, (linear, act) in enumerate(zip([*self.linears, self.head], [*self.activations, last], strict=True)):
            if isinstance(act, DrawsLinear):
                act.init_linear(linear, first=index == 0)
            else:
                linear.reset_parameters()
        for linear in self.beside:
            linear.reset_parameters()

    def reset_parameters(self) -> None:
        for module in (self.encoding, *self.norms, *self.activations, self.last_norm):
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        self._init_linears()

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network at ``coords``, (..., d)."""
        features = encoded = self.encoding(coords.reshape(-1, self.in_features)).to(self.linears[0].weight.dtype)
        for index, (linear, norm, act) in enumerate(zip(self.linears, self.norms, self.activations, strict=True)):
            features = torch.cat((features, encoded.to(features)), dim=-1) if index in self.skips else features
            if self.beside:
                features = norm(act(linear(features), self.beside[index](features)))
                continue
            features = linear(features)
            features = act(norm(features)) if self.norm_position == 'pre' else norm(act(features))
        if len(self.linears) in self.skips:
            features = torch.cat((features, encoded.to(features)), dim=-1)
        values = self.last_norm(self.head(features))
        values = values.real if self.complex_valued else values
        return values.view(*coords.shape[:-1], self.out_features)

    @torch.no_grad()
    def fuse_norms(self) -> None:
        """Fuse the norms that are affine maps in eval mode into the linear maps beside them, for :func:`mmext.folding.fold`.

        These are batch norms, and :class:`mmext.GlobalNorm` with frozen statistics. All others take statistics of what they
        normalize, and stay.
        """
        for index, (norm, following) in enumerate(zip(self.norms, [*self.linears[1:], self.head], strict=True)):
            if (affine := norm_affine(norm)) is None:
                continue
            if self.norm_position == 'pre':
                fuse_affine(self.linears[index], *affine)
            else:
                scale, shift = affine
                # What skips to the following layer stands behind the normalized features.
                weight = following.weight[:, : len(scale)]
                following.bias += (weight @ shift).to(following.bias)
                weight *= scale
            self.norms[index] = nn.Identity()
        if (affine := norm_affine(self.last_norm)) is not None:
            fuse_affine(self.head, *affine)
            self.last_norm = nn.Identity()

    @staticmethod
    def deployed_cfg(cfg: Mapping[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the network that :func:`mmext.folding.fold` leaves where it fuses all norms."""
        return {k: v for k, v in cfg.items() if not fuse_bn or k not in ('norm_cfg', 'norm_position', 'norm_last')}


def _norm(cfg: dict | None, features: int, parts: bool) -> nn.Module:
    """Build the norm behind a layer; ``parts``: of complex features."""
    if not cfg:
        return nn.Identity()
    return ComplexNorm(cfg, features) if parts else build_position_norm(cfg, features, -1)
