"""SPW: the weights of a coordinate network are generated from a description of its signal, and kept as plain weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Pattern, Repeats
from mmext.contracts import DescribesSignal
from mmext.convs.conditioned import standardized
from mmext.inr.networks.base import CoordNetwork
from mmext.inr.networks.semantics import describe_image
from mmext.numerics import full_precision
from mmext.registry import MODELS

__all__ = ['SPW']


@MODELS.register_module()
class SPW(CoordNetwork):
    r"""A coordinate network with semantic priors: its weights are generated from a description of the signal.

    Cai, Shen, *Encoding Semantic Priors into the Weights of Implicit Neural Representation*, 2024, arXiv 2406.04178.

    A semantic network describes the signal by a vector v (:class:`mmext.SemanticEncoder`), from which a weight generation
    network makes the weight of every layer:

    .. math:: h = \mathrm{relu}(A v + a), \qquad \mathrm{vec}(W_l) = B_l h + c_l

    After training :meth:`fold` keeps the :math:`W_l` in a plain network, and nothing else. The two networks and what is
    dropped are the authors'; the form of the second one is our reading. :math:`c_l` is the weight that the plain network has
    of its own, and :math:`B_l` starts as zeros, so that training starts exactly there. v is constant for one signal:
    what SPW changes is how the weights are learnt, not which functions can be. One step of SGD on :math:`(B, c)` without a
    trunk moves W by :math:`1 + \lVert v\rVert^2` times the plain step; so begin with a tenth of the plain learning rate.

    Args:
        network: Config of any coordinate network.
        semantics: Config of the encoder that :meth:`set_signal` uses, by default one without semantics.
        condition_dim: Length of v, the sum of the widths of the encoder's stages.
        trunk_dim: Length of h; None leaves the trunk out, h = v.
        mode: ``'full'``, or ``'lowrank'``: the generated part is :math:`U(h) V(h)^T`, for wide networks.
        rank: Columns of U and V.
        layers: Regular expression of the layers' names whose weights are generated; None for all.
        init_cfg: As in mmengine.

    Shape:
        That of the network.

    Raises:
        ValueError: If ``mode`` is unknown, or no linear layer or convolution matches ``layers``.

    Example:
        >>> network = SPW(network=dict(type='mmext.CoordMLP', width=6, depth=2), trunk_dim=8)
        >>> network(coordinate_grid(4, 6)).shape
        torch.Size([4, 6, 3])
    """

    example = dict(network=dict(type='mmext.CoordMLP', width=6, depth=2), trunk_dim=8)

    condition: Tensor

    def __init__(
        self,
        network: Cfg,
        semantics: Cfg = dict(type='mmext.SemanticEncoder'),  # noqa: B006
        condition_dim: Repeats = 112,
        trunk_dim: Repeats | None = 64,
        mode: Literal['full', 'lowrank'] = 'full',
        rank: Repeats = 4,
        layers: Pattern | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        plain: Any = MODELS.build(dict(network))
        super().__init__(plain.in_features, plain.out_features, init_cfg)
        self.network = plain
        self.semantics = dict(semantics)
        self.mode = mode
        self.rank = rank
        self.register_buffer('condition', torch.zeros(condition_dim))
        self.trunk = nn.Linear(condition_dim, trunk_dim) if trunk_dim is not None else None
        # Subclasses of these layers may compute with something else than their weight.
        found = {n: m.weight for n, m in plain.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
        found = {n: w for n, w in found.items() if layers is None or re.search(layers, n)}
        if not found:
            raise ValueError(
                f'SPW finds no linear layer or convolution that matches {layers=} in {type(plain).__name__}'
            )
        self.names = tuple(found)
        hidden = condition_dim if trunk_dim is None else trunk_dim
        # Any, because torch does not tell what a ModuleList holds.
        self.heads: Any = nn.ModuleList(_Head(hidden, w, rank if mode == 'lowrank' else None) for w in found.values())

    def reset_parameters(self) -> None:
        self.network.reset_parameters()
        if self.trunk is not None:
            self.trunk.reset_parameters()
        for head in self.heads:
            head.reset_parameters()

    @torch.no_grad()
    def set_condition(self, condition: Tensor) -> None:
        """Describe the signal by ``condition``, (condition_dim,); it is standardized over its entries.

        Raises:
            ValueError: If the length is not ``condition_dim``.
        """
        if condition.shape != self.condition.shape:
            raise ValueError(
                f'SPW needs a condition of shape {tuple(self.condition.shape)}, got {tuple(condition.shape)}; set '
                'condition_dim to the sum of the widths of the semantic stages'
            )
        self.condition.copy_(standardized(condition))

    @property
    def awaits_signal(self) -> bool:
        """Whether the signal has not been described yet."""
        inner = isinstance(self.network, DescribesSignal) and self.network.awaits_signal
        return not bool(self.condition.any()) or inner

    def set_signal(self, image: Tensor) -> None:
        """Describe the signal by an image, (C, H, W) or several, in [0, 1], see :func:`mmext.inr.describe_image`."""
        self.set_condition(describe_image(self.semantics, image).to(self.condition))
        if isinstance(self.network, DescribesSignal):
            self.network.set_signal(image)

    def generated_weights(self) -> dict[str, Tensor]:
        """Return the weights that the network computes with, by the names of its parameters."""
        # Under autocast, too, these must be the weights that are kept.
        with full_precision(self.condition):
            hidden = self.condition if self.trunk is None else F.relu(self.trunk(self.condition))
            return {
                f'{name}.weight': self.network.get_submodule(name).weight + head(hidden)
                for name, head in zip(self.names, self.heads, strict=True)
            }

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network with generated weights."""
        return torch.func.functional_call(self.network, self.generated_weights(), (coords,))

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Return the plain network that computes the same."""
        network = copy.deepcopy(self.network)
        for name, weight in self.generated_weights().items():
            network.get_parameter(name).copy_(weight)
        return network.train(self.training)

    @staticmethod
    def deployed_cfg(cfg: Mapping[str, Any], fuse_bn: bool) -> Mapping[str, Any]:
        """Return the config of the network that is left; :mod:`mmext.deploy` has gone through it already."""
        return cfg['network']


class _Head(nn.Module):
    """Generates what is added to one weight, zeros at first."""

    def __init__(self, hidden: int, weight: Tensor, rank: int | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self.rank = rank
        # A complex number is generated as two real ones.
        self.parts = 2 if weight.is_complex() else 1
        rows = self.shape[0]
        columns = weight.numel() // rows * self.parts
        if rank is None:
            # No bias: the weight that this is added to is the constant part.
            self.entries = nn.Linear(hidden, rows * columns, bias=False)
        else:
            self.left = nn.Linear(hidden, rows * rank)
            self.right = nn.Linear(hidden, columns * rank)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.rank is not None:
            self.right.reset_parameters()
        for parameter in (self.entries if self.rank is None else self.left).parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.rank is None:
            generated = self.entries(hidden)
        else:
            generated = self.left(hidden).view(-1, self.rank) @ self.right(hidden).view(-1, self.rank).T
        if self.parts == 2:
            return torch.view_as_complex(generated.reshape(*self.shape, 2))
        return generated.reshape(self.shape)
