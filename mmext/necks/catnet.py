"""CATNet's necks: a pyramid whose levels all see each other, and context within each level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats, some
from mmext.blocks.catnet import ContextAggregation
from mmext.necks._levels import check_maps, max_pool_to, upsample_to, used_levels
from mmext.registry import MODELS

__all__ = ['SCP', 'DenseFPN']


@MODELS.register_module()
class DenseFPN(BaseModule):
    r"""Dense feature pyramid: every level is fused with all coarser ones, then with all finer results, several times.

    Liu, Li, Hu, et al., *Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images*,
    TNNLS 2024, arXiv 2111.11057.

    ::

        map i ── 1x1 ── L_i          L_k of all coarser k ── up ── weighed by a softmax ──┐
                         ├────────────────────────────────────────────────────────────── + ── ReLU ── B ── T_i
                         │           T_j of all finer j ── max pool ── weighed by a softmax ──┐
                         └──── + T_i ──────────────────────────────────────────────────────── + ── ReLU ── B ── U_i
        U_i is the L_i of the next stack, and after the last one the output
        further levels: 3x3 with stride 2 of the L before, once, in front of all stacks

    B is a bottleneck: 1x1, 3x3 and 1x1 convolutions, each with a norm. The weights of a level are shared by all stacks. A
    single source has the weight 1. Up is bilinear. The names of the tensors are the authors'.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels of every output.
        num_outs: Outputs.
        start_level: The first map that is used.
        end_level: The last map that is used, -1 for the last of all. It is counted as mmdet does: the authors' code counts
            one more.
        stack_times: How often the levels are fused; the authors' detectors do it five times.
        reduction: A bottleneck has ``out_channels / reduction`` channels inside.
        conv_cfg: Type of the convolutions.
        norm_cfg: Norm behind each of them.
        act_cfg: Activation behind each of them. The authors have none beside the ReLU in front of B.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps to ``num_outs`` maps. Sizes need not halve exactly.

    Raises:
        ValueError: If the levels do not fit each other, or other maps come in than ``in_channels`` names.

    Example:
        >>> neck = DenseFPN([8, 16], 8, num_outs=3, stack_times=2)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 8, 9, 6), torch.randn(1, 16, 5, 3)])]
        [(9, 6), (5, 3), (3, 2)]
    """

    example = dict(in_channels=(8, 16), out_channels=8, num_outs=4, stack_times=2)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count,
        num_outs: Repeats,
        start_level: Natural = 0,
        end_level: int = -1,
        *,
        stack_times: Repeats = 1,
        reduction: Count = 2,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = dict(type='Caffe2Xavier', layer='Conv2d'),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg)
        self.used = used_levels('DenseFPN', in_channels, num_outs, start_level, end_level)
        self.in_channels, self.out_channels, self.num_outs = list(in_channels), out_channels, num_outs
        both = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        hidden = max(out_channels // reduction, 1)

        def bottleneck() -> nn.Sequential:
            widths = pairwise((out_channels, hidden, hidden, out_channels))
            sizes = (1, 3, 1)
            return nn.Sequential(
                *(ConvModule(a, b, size, padding=size // 2, **both) for (a, b), size in zip(widths, sizes, strict=True))
            )

        # Lists of torch: those of mmengine would let ConvModule draw its weights anew, after init_cfg.
        self.lateral_convs = nn.ModuleList(ConvModule(in_channels[i], out_channels, 1, **both) for i in self.used)
        self.extra_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, stride=2, padding=1, **both)
            for _ in range(num_outs - len(self.used))
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(bottleneck() for _ in range(2 * num_outs)) for _ in range(stack_times)
        )
        self.top_down_atts = nn.ParameterList(torch.ones(length) for length in range(num_outs - 1, 1, -1))
        self.bottom_up_atts = nn.ParameterList(torch.ones(length) for length in range(2, num_outs))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid, from fine to coarse."""
        check_maps('DenseFPN', self.in_channels, inputs)
        maps = [conv(inputs[i]) for i, conv in zip(self.used, self.lateral_convs, strict=True)]
        for conv in self.extra_convs:
            maps.append(conv(maps[-1]))
        sizes = [x.shape[2:] for x in maps]
        # By the number of their sources; there is one vector for each number from two on.
        down = {len(att): att.softmax(0) for att in self.top_down_atts}
        up = {len(att): att.softmax(0) for att in self.bottom_up_atts}
        for stage in self.stages:
            blocks = list(stage.children())
            tops = []
            for i, own in enumerate(maps):
                coarser = [upsample_to(x, sizes[i]) for x in reversed(maps[i + 1 :])]
                tops.append(blocks[i](F.relu(_weighed(own, coarser, down))))
            outs = []
            for i, own in enumerate(maps):
                finer = [max_pool_to(x, sizes[i]) for x in tops[:i]]
                outs.append(blocks[self.num_outs + i](F.relu(_weighed(own + tops[i], finer, up))))
            maps = outs
        return tuple(maps)


def _weighed(x: Tensor, sources: Sequence[Tensor], weights: dict[int, Tensor]) -> Tensor:
    """Add the weighed sources to ``x``."""
    if len(sources) < 2:
        return sum(sources, x)
    for source, weight in zip(sources, weights[len(sources)], strict=True):
        x = x + weight * source
    return x


@MODELS.register_module()
class SCP(BaseModule):
    """Spatial context pyramid: within each level, every pixel gets context from all pixels.

    Liu, Li, Hu, et al., *Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images*,
    TNNLS 2024, arXiv 2111.11057.

    ::

        level i ─┬─ 1x1 ── softmax over the pixels ──┐
                 ├─ 1x1 ─────────────────────────── sum ── 1x1 ──┐
                 ├─ 1x1 ── sigmoid ───────────────────────────── x ──┐
                 └────────────────────────────────────────────────── + ── output i

    It stands behind any pyramid: ``neck=[dict(type='FPN', ...), dict(type='mmext.SCP', in_channels=256)]``. At the start it
    changes nothing, see :class:`ContextAggregation`. Each level has its own block. The names of the tensors are the authors'.

    Args:
        in_channels: Channels of every level: one number, or one for each.
        num_outs: Levels, incoming and outgoing; the authors call them ``num_levels``.
        reduction: See :class:`ContextAggregation`.
        conv_cfg: Type of the convolutions.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps (N, C_i, H_i, W_i) to a tuple of the same shapes.

    Raises:
        ValueError: If the numbers of levels differ, or other maps come in than ``in_channels`` names.

    Example:
        >>> neck = SCP(in_channels=8, num_outs=2)
        >>> [tuple(y.shape) for y in neck([torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)])]
        [(1, 8, 4, 4), (1, 8, 2, 2)]
    """

    example = dict(in_channels=8, num_outs=3)

    def __init__(
        self,
        in_channels: Count | Annotated[Sequence[Count], some],
        num_outs: Repeats = 5,
        reduction: Count = 1,
        conv_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        widths = [in_channels] * num_outs if isinstance(in_channels, int) else list(in_channels)
        if len(widths) != num_outs:
            raise ValueError(
                f'SCP needs one of in_channels for each of num_outs={num_outs} levels, got {in_channels=}; set num_outs'
            )
        self.in_channels, self.num_outs = widths, num_outs
        self.blocks = ModuleList(ContextAggregation(width, reduction, conv_cfg) for width in widths)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Add the context to each level."""
        check_maps('SCP', self.in_channels, inputs)
        return tuple(block(x) for block, x in zip(self.blocks, inputs, strict=True))
