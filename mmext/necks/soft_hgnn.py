"""SoftHGFusionNeck: all levels of a pyramid meet at one of them, exchange information by hyperedges, and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats, some
from mmext.registry import MODELS

__all__ = ['SoftHGFusion', 'SoftHGFusionNeck']


class Bottleneck(nn.Module):
    """Two 3 x 3 convolutions and the input."""

    def __init__(self, channels: int, **both: Any) -> None:
        super().__init__()
        self.cv1, self.cv2 = (ConvModule(channels, channels, 3, padding=1, **both) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class CrossStage(nn.Module):
    """Half of the channels through two bottlenecks, half beside them."""

    def __init__(self, channels: int, **both: Any) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.cv1, self.cv2 = (ConvModule(channels, half, 1, **both) for _ in range(2))
        self.cv3 = ConvModule(2 * half, channels, 1, **both)
        self.m = nn.Sequential(*(Bottleneck(half, **both) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SoftHGFusion(nn.Module):
    """F2SoftHG: maps are brought to the size of one, joined, and mixed by two hypergraphs beside convolutions.

    Args:
        in_channels: Channels of each map.
        channels: Channels of the result, even.
        level: The map whose size is taken.
        num_blocks: Blocks of convolutions.
        mixer: Config of the hypergraphs, without ``in_channels``.
        norm_cfg: Norm of the convolutions.
        act_cfg: Their activation.

    Shape:
        A sequence of maps to one of the size of map ``level``. Names are those of the released code.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        level: int,
        num_blocks: int,
        mixer: Cfg,
        norm_cfg: Cfg,
        act_cfg: Cfg,
    ) -> None:
        super().__init__()
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.level, half = level, channels // 2
        self.fuse = ConvModule(sum(in_channels), channels, 1, **both)
        self.cv1 = ConvModule(channels, 3 * half, 1, **both)
        self.cv2 = ConvModule((4 + num_blocks) * half, channels, 1, **both)
        self.m = ModuleList(CrossStage(half, **both) for _ in range(num_blocks))
        self.mixers = ModuleList(MODELS.build({**mixer, 'in_channels': half}) for _ in range(2))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join and mix the maps."""
        size = maps[self.level]
        joined = torch.cat([resized(x, size, self.level - i) for i, x in enumerate(maps)], 1)
        first, second, third = self.cv1(self.fuse(joined)).chunk(3, 1)
        chain = [third]
        for block in self.m:
            chain.append(block(chain[-1]))
        mixed = [mixer(second) for mixer in self.mixers]
        return self.cv2(torch.cat((first, mixed[0], *chain, mixed[1]), 1))


def resized(x: Tensor, like: Tensor, down: int) -> Tensor:
    """Return ``x`` at the size of ``like``, ``down`` levels above it: means of 2 x 2 going up, nearest pixels going down."""
    for _ in range(down):
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, like.shape[2:])


@MODELS.register_module()
class SoftHGFusionNeck(BaseModule):
    """SoftHGNN's neck: the levels are fused at one of them, mixed by hypergraphs, and given back, each at its size and width.

    Lei et al., *SoftHGNN: Soft Hypergraph Neural Networks for General Visual Recognition*, IJCV 2026, arXiv 2505.15325.

    ::

        level i-1 ─ mean 2x2 ─┐                        ┌─ up 2 ─────┐
        level i   ────────────┼ cat ─ 1x1 ─ 1x1, 3c ── F ───────────┼ cat with its level ─ 1x1 ── outputs as the inputs
        level i+1 ─ nearest ──┘             │          ├─ mean 2x2 ─┘
                                            ├─ c ───────────────────────────┐
                                            ├─ c ─ hypergraph 1, hypergraph 2 ┼ cat ─ 1x1 ── F
                                            └─ c ─ blocks of 3x3 ───────────┘

    Maps keep sizes and widths, so it stands before or behind any pyramid: ``neck=[dict(type='mmext.SoftHGFusionNeck', ...),
    dict(type='FPN', ...)]``.

    Args:
        in_channels: Channels of each map that comes in.
        out_channels: Channels of F, even. By default those of the level at which the maps meet.
        levels: Which of the maps take part; the others pass unchanged. By default all.
        meet: The place among ``levels`` where they meet. By default the one in the middle.
        num_blocks: Blocks of convolutions beside the hypergraphs.
        mixer: Config of a hypergraph, ``dict(type='mmext.SoftHGNN')`` or ``dict(type='mmext.SoftHGNNSeS')``.
        norm_cfg: Norm of the convolutions.
        act_cfg: Their activation.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps to a tuple of maps of the same shapes. Sizes of neighbors may be halves rounded up or down.

    Raises:
        ValueError: If ``levels`` are not ascending numbers of maps, ``meet`` is none of them, the channels of F are odd, or
            another number of maps comes in.

    Example:
        >>> neck = SoftHGFusionNeck([8, 16, 32])
        >>> [tuple(y.shape) for y in neck([torch.randn(1, 8, 13, 9), torch.randn(1, 16, 7, 5), torch.randn(1, 32, 4, 3)])]
        [(1, 8, 13, 9), (1, 16, 7, 5), (1, 32, 4, 3)]
    """

    example = dict(in_channels=(16, 16, 32))

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count | None = None,
        levels: Annotated[Sequence[Natural], some] | None = None,
        meet: Natural | None = None,
        num_blocks: Repeats = 1,
        mixer: Cfg = dict(type='mmext.SoftHGNN', num_hyperedges=8, num_heads=8),  # noqa: B006
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels, number = tuple(in_channels), len(in_channels)
        self.levels = tuple(range(number)) if levels is None else tuple(levels)
        if list(self.levels) != sorted(set(self.levels)) or self.levels[-1] >= number:
            raise ValueError(
                f'SoftHGFusionNeck needs ascending levels below {number}, the number of maps, got {levels=}'
            )
        meet = len(self.levels) // 2 if meet is None else meet
        if meet >= len(self.levels):
            raise ValueError(f'SoftHGFusionNeck needs meet below {len(self.levels)}, the number of levels, got {meet=}')
        widths = [in_channels[i] for i in self.levels]
        width = widths[meet] if out_channels is None else out_channels
        if width % 2:
            raise ValueError(
                f'SoftHGFusionNeck splits the fused map into halves and needs even channels, got {width}; set out_channels'
            )
        self.meet = meet
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.fusion = SoftHGFusion(widths, width, meet, num_blocks, mixer, norm_cfg, act_cfg)
        self.align = ModuleList(nn.Identity() if c == width else ConvModule(width, c, 1, **both) for c in widths)
        self.merge = ModuleList(ConvModule(2 * c, c, 1, **both) for c in widths)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse the levels and give them back."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'SoftHGFusionNeck was built for {len(self.in_channels)} maps, got {len(inputs)}')
        used = [inputs[i] for i in self.levels]
        fused = self.fusion(used)
        outs = list(inputs)
        for place, (level, x) in enumerate(zip(self.levels, used, strict=True)):
            back = self.align[place](resized(fused, x, place - self.meet))
            outs[level] = self.merge[place](torch.cat((x, back), 1))
        return tuple(outs)
