"""RDNet: a DenseNet with blocks of today's kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.registry import MODELS

__all__ = ['RDNet']


class _DenseBlock(Recomputed):
    """New features from all features of the stage: (N, C, H, W) to (N, growth, H, W)."""

    def __init__(
        self,
        channels: int,
        growth: int,
        gated: bool,
        drop_path_rate: float,
        with_cp: bool,
        conv_cfg: dict | None,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__(with_cp)
        hidden = 8 * (channels * 4 // 8)
        self.depthwise = build_conv_layer(conv_cfg, channels, channels, 7, padding=3, groups=channels)
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.project = nn.Conv2d(hidden, growth, 1)
        self.gate = nn.Conv2d(growth, growth, 1) if gated else None
        self.gamma = nn.Parameter(torch.full((growth,), 1e-6))
        self.drop_path = DropPath(drop_path_rate)

    def compute(self, x: Tensor) -> Tensor:
        new = self.project(self.act(self.expand(self.norm(self.depthwise(x)))))
        if self.gate is not None:
            new = new * F.hardsigmoid(self.gate(new.mean((2, 3), keepdim=True)))
        return self.drop_path(new * self.gamma.view(-1, 1, 1))


@MODELS.register_module()
class RDNet(Backbone):
    """RDNet: dense concatenation with ConvNeXt-like blocks, three a stage, and a 1x1 transition between stages.

    Kim, Heo, Han, *DenseNets Reloaded: Paradigm Shift Beyond ResNets and ViTs*, ECCV 2024, arXiv 2403.19588.

    A block sees all features of its stage, (C): depthwise 7 x 7, norm, 1 x 1 to 4 C, GELU, 1 x 1 to the growth, in later
    stages a gate (effective squeeze and excitation), and a learned scale. Its output is concatenated, not added. Between
    stages stand a norm and a convolution to half of the channels, with stride 2 where the size falls.

    Args:
        arch: ``'T'``, ``'S'``, ``'B'``, ``'L'``, or ``dict(channels=, growths=, halvings=)``: the width of the stem, the
            growth of each stage, and the stages that begin with stride 2.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n scales.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        pooled_norm: For classification: the last output is the mean over its positions, normalized, (N, C, 1, 1).
        out_norm: Norm of each returned map. The released detectors use ``dict(type='GN', num_groups=1)``.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer in the place of the depthwise 7 x 7.
        norm_cfg: Norm of the blocks, the stem and the transitions.
        act_cfg: Activation of the blocks.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes down.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Example:
        >>> net = RDNet(arch=dict(channels=8, growths=(8, 8), halvings=(1,)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 32, 32))]
        [(1, 32, 8, 8), (1, 40, 4, 4)]
    """

    example = dict(arch=dict(channels=8, growths=(8, 8, 8), halvings=(1, 2)), out_indices=(0, 1, 2))

    #: Widths, growths and halvings are the authors'.
    arch_zoo = {
        'T': dict(channels=64, growths=(64, 104, *[128] * 4, 224), halvings=(1, 2, 6)),
        'S': dict(channels=72, growths=(64, 128, *[128] * 7, *[240] * 2), halvings=(1, 2, 9)),
        'B': dict(channels=120, growths=(96, 128, *[168] * 7, *[336] * 2), halvings=(1, 2, 9)),
        'L': dict(channels=144, growths=(128, 192, *[256] * 8, *[360] * 2), halvings=(1, 2, 10)),
    }

    @staticmethod
    def arch_laws(channels: Count, growths: Sequence[Count], halvings: Sequence[int]) -> None:
        """State the laws of an architecture."""
        stages = len(growths)
        if not growths or list(halvings) != sorted(set(halvings) & set(range(1, stages))):
            raise ValueError(
                f'RDNet needs growths, and ascending halvings from 1 to {stages - 1}, the stages after the first, got '
                f'{growths=}, {halvings=}'
            )

    blocks_per_stage = 3
    first_gated_stage = 2

    def __init__(
        self,
        arch: str | Mapping = 'T',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        pooled_norm: bool = False,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='mmext.LayerNorm2d', eps=1e-6),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        channels, growths, halvings = (self.architecture(arch)[k] for k in ('channels', 'growths', 'halvings'))
        super().__init__(out_indices, len(halvings) + 1, frozen_stages, norm_eval, init_cfg)
        # A scale is the stages from one halving to the next.
        ends = [*halvings, len(growths)][: self.num_scales]
        self.bounds = list(pairwise([0, *ends]))
        number = len(growths) * self.blocks_per_stage
        rates = iter(self.drop_rates(drop_path_rate, number))
        common: dict[str, Any] = dict(with_cp=with_cp, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)

        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 4, 4), build_norm_layer(norm_cfg, channels)[1])
        self.transitions, self.stages, widths = ModuleList(), ModuleList(), []
        for index, growth in enumerate(growths[: ends[-1]]):
            if index:
                before, channels = channels, 8 * (channels // 2 // 8)
                step = 2 if index in halvings else 1
                self.transitions.append(
                    nn.Sequential(build_norm_layer(norm_cfg, before)[1], nn.Conv2d(before, channels, step, step))
                )
            else:
                self.transitions.append(nn.Identity())
            blocks = ModuleList()
            for _ in range(self.blocks_per_stage):
                gated = index >= self.first_gated_stage
                blocks.append(_DenseBlock(channels, growth, gated, next(rates), **common))
                channels += growth
            self.stages.append(blocks)
            widths.append(channels)
        last = [widths[self.bounds[i][1] - 1] for i in self.out_indices]
        norm = nn.LayerNorm(last[-1]) if pooled_norm else None
        self.set_outputs(last, [4 * 2**i for i in self.out_indices], out_norm, norm)
        self.finish()

    @torch.no_grad()
    def draw(self) -> None:
        for module in self.modules():
            if type(module) is nn.Conv2d:
                nn.init.kaiming_normal_(module.weight)

    def parts(self) -> list[list[nn.Module]]:
        scales = ([*self.transitions[a:b], *self.stages[a:b]] for a, b in self.bounds)
        return [[self.stem], *scales]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, 3, H, W), to the maps of ``out_indices``."""
        outs: list[Tensor] = []
        x = self.stem(x)
        for number, (start, end) in enumerate(self.bounds):
            for transition, blocks in zip(self.transitions[start:end], self.stages[start:end], strict=True):
                x = transition(x)
                for block in blocks:
                    x = torch.cat([x, block(x)], 1)
            if number in self.out_indices:
                outs.append(x)
        return self.outputs(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        number = len(self.stages) + 2
        name, _, rest = param_name[len(prefix) :].partition('.')
        if not param_name.startswith(prefix) or name not in ('stem', 'stages', 'transitions'):
            return number - 1, number
        return (0 if name == 'stem' else 1 + int(rest.partition('.')[0])), number
