"""MONet: products of linear maps, and no activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, Positive
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.registry import MODELS

__all__ = ['MONet']


def shifted(x: Tensor) -> Tensor:
    """Return a map whose quarters of channels moved by one pixel down, up, right and left; the border stays where it was.

    Args:
        x: (N, C, H, W). The first three quarters end at C // 4, C // 2 and 3 C // 4.
    """
    ends = [x.shape[1] * i // 4 for i in range(5)]
    down, up, right, left = x.split([b - a for a, b in pairwise(ends)], 1)
    return torch.cat(
        [
            torch.cat([down[:, :, :1], down[:, :, :-1]], 2),
            torch.cat([up[:, :, 1:], up[:, :, -1:]], 2),
            torch.cat([right[..., :1], right[..., :-1]], 3),
            torch.cat([left[..., 1:], left[..., -1:]], 3),
        ],
        1,
    )


class _MuLayer(nn.Module):
    """The product of two normalized linear maps, added to the first, and a linear map of it."""

    def __init__(self, channels: int, hidden: int, shifts: bool, norm_cfg: dict, act_cfg: dict | None) -> None:
        super().__init__()
        self.shifts = shifts
        narrow = max(hidden // 8, 1)
        self.first = nn.Conv2d(channels, hidden, 1)
        self.narrow = nn.Conv2d(channels, narrow, 1)
        self.second = nn.Conv2d(narrow, hidden, 1)
        self.norms: Any = nn.ModuleList(build_norm_layer(norm_cfg, hidden)[1] for _ in range(2))
        self.alpha = nn.Parameter(torch.ones(1))
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden)) if act_cfg else nn.Identity()
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.narrow(x)
        if self.shifts:
            a, b = shifted(a), shifted(b)
        a, b = self.norms[0](a), self.norms[1](self.second(b))
        return self.project(self.act(a + self.alpha * (a * b)))


class _PolyBlock(nn.Module):
    """A layer that shifts, then one that does not, each added to the map; both see it through the same norm."""

    def __init__(self, channels: int, hidden: int, rate: float, norm_cfg: dict, act_cfg: dict | None) -> None:
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.layers = nn.ModuleList(
            [
                _MuLayer(channels, channels, True, norm_cfg, act_cfg),
                _MuLayer(channels, hidden, False, norm_cfg, act_cfg),
            ]
        )
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.drop_path(layer(self.norm(x)))
        return x


@MODELS.register_module()
class MONet(StagedBackbone):
    r"""MONet: a network without activations, whose layers multiply two linear maps of their input.

    Cheng et al., *Multilinear Operator Networks*, ICLR 2024, arXiv 2401.17992.

    .. math:: y = C\,(a + \alpha\, a \odot b), \qquad a = N(U_1 x), \quad b = N(U_3 U_2 x)

    U_2 has an eighth of the channels of a. A block adds this to its input twice. In the first of the two, quarters of the
    channels of :math:`U_1 x` and :math:`U_2 x` move by a pixel down, up, right and left before the norms. The second has r C
    channels. Both see the map through one and the same norm N.

    Args:
        arch: ``'T'``, ``'S'``, or ``dict(depths=, channels=, ratio=)``: per stage the number of blocks and their channels, and
            r.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of each part of every block, the same for all, as released.
        out_norm: Norm of each returned map. The authors have none.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the transitions.
        norm_cfg: Norm of the blocks.
        act_cfg: Activation after the product, None for none. The authors have it for an ablation.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). The stem rounds sizes down, the transitions round them up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Pixels at the border keep their value where nothing moves in. The public code moves a map into itself: what it computes
    depends on the machine, and on a CPU one row or column is copied over the whole map. That is not offered here.

    Example:
        >>> net = MONet(dict(depths=(1, 1), channels=(8, 16)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 8, 8), (1, 16, 4, 4)]
    """

    example: Mapping[str, Any] = dict(arch=dict(depths=(1, 2, 1), channels=(8, 12, 16), ratio=2), out_indices=(0, 1, 2))

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'T': dict(depths=(4, 8, 12, 10), channels=(64, 128, 192, 192)),
        'S': dict(depths=(4, 6, 12, 14), channels=(128, 192, 256, 384)),
    }

    def __init__(
        self,
        arch: str | Mapping = 'T',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='mmext.LayerNorm2d', eps=1e-6),  # noqa: B006
        act_cfg: Cfg | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width = self.channels[stage]
            hidden = max(int(width * self.arch['ratio']), 1)
            return _PolyBlock(width, hidden, drop_path_rate, norm_cfg, act_cfg)

        width = self.channels[0]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 2, 2), nn.Conv2d(width, width, 2, 2))
        self.build_stages(lambda a, b: build_conv_layer(conv_cfg, a, b, 3, 2, padding=1), block)
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(depths: Sequence[Few], channels: Sequence[Count], ratio: Positive = 3) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels)

    @torch.no_grad()
    def draw(self) -> None:
        """Draw as the authors do: He's kernels in the products, whose biases are one, and LeCun's in the stem."""
        inside = {layer for mu in self.modules() if isinstance(mu, _MuLayer) for layer in mu.children()}
        for module in self.modules():
            if type(module) is not nn.Conv2d:
                continue
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5) if module in inside else _lecun(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for mu in self.modules():
            if isinstance(mu, _MuLayer):
                for layer in (mu.first, mu.narrow, mu.second):
                    nn.init.constant_(layer.bias, 1.0)  # type: ignore[arg-type]


def _lecun(kernel: Tensor) -> None:
    """Draw a kernel of variance one over its inputs, cut at two standard deviations of the normal distribution before."""
    std = kernel[0].numel() ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
