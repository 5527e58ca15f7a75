"""DFPN: DFIR-DETR's pyramid, whose sums stay as large when maps are enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats, at_most, some
from mmext.blocks.dfir_detr import DPSC, FIRC3, norm_preserving_upsample
from mmext.registry import MODELS

__all__ = ['DFPN']


class _EncoderLayer(nn.Module):
    """Self-attention between the pixels of a map, with a code of their positions, and a feed-forward layer."""

    def __init__(self, channels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.norms = ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        placed = tokens + _positions(int(x.shape[2]), int(x.shape[3]), x.shape[1]).to(tokens)
        tokens = self.norms[0](tokens + self.attend(placed, placed, tokens, need_weights=False)[0])
        tokens = self.norms[1](tokens + self.mix(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


def _positions(height: int, width: int, channels: int) -> Tensor:
    """Return sines and cosines of the places of a grid, (height * width, channels)."""
    rates = 10000.0 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    turns = [axis.flatten()[:, None] * rates for axis in (columns, rows)]
    return torch.cat([wave for turn in turns for wave in (turn.sin(), turn.cos())], 1)


@MODELS.register_module()
class DFPN(BaseModule):
    """DFIR-DETR's dynamic feature pyramid: maps are enlarged without growing, and refined in the frequency domain.

    Gao et al., *DFIR-DETR: Frequency Domain Enhancement and Dynamic Feature Aggregation for Cross-Scene Small Object
    Detection*, 2025, arXiv 2512.07078.

    ::

        map n ── 1x1 ── attention ── 1x1 ──┬──────────────────────────────────── cat ── FIRC3 ── output n
                                           │ up 2, shuffle conv                   ↑ 3x3, stride 2
        map i ── 1x1 ───────────────────── cat ── FIRC3 ── 1x1 ──┬────────────── cat ── FIRC3 ── output i
                                                                 │ up 2, shuffle  ↑ 3x3, stride 2
        map 0 ── 1x1 ─────────────────────────────────────────── cat ── FIRC3 ───┴────────────── output 0

    Enlarging repeats pixels and divides them by 4. So what comes from above does not outweigh what is there. The shuffle
    convolution has a second path behind the first, and their channels alternate.

    There is no official code. The order of layers is that of RT-DETR's encoder, which the paper starts from. That is our
    reading.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels of every output, a multiple of 4 and of ``num_heads``.
        num_outs: Outputs; by default one for each map that is used.
        start_level: The first map that is used.
        add_extra_convs: What further levels are made of, by 3 x 3 convolutions with stride 2: ``'on_input'``, the last map, or
            ``'on_output'``. False takes every second pixel of the last output. True is ``'on_input'``, as in FPN.
        num_heads: Heads of the attention on the last map; 0 for none.
        feedforward_channels: Channels inside of its feed-forward layer.
        num_blocks: Least squares in each FIRC3.
        norm_cfg: Norm of the convolutions.
        act_cfg: Their activation.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps to a tuple of ``num_outs`` maps of ``out_channels``.

    Raises:
        ValueError: If the channels do not fit, ``start_level`` is no map, ``num_outs`` is smaller than the number of levels,
            or another number of maps comes in.
        UsageError: In an export to ONNX, which has no Fourier transform here.

    Example:
        >>> neck = DFPN([8, 16, 32], 16, num_outs=4)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 8, 13, 9), torch.randn(1, 16, 7, 5), torch.randn(1, 32, 4, 3)])]
        [(13, 9), (7, 5), (4, 3), (2, 2)]
    """

    example = dict(in_channels=(8, 16), out_channels=8, num_outs=3)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count = 256,
        num_outs: Repeats | None = None,
        start_level: Natural = 0,
        add_extra_convs: Literal[False, True, 'on_input', 'on_output'] = False,
        num_heads: Annotated[Natural, at_most(2**12)] = 8,
        feedforward_channels: Count = 1024,
        num_blocks: Repeats = 3,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if start_level >= len(in_channels):
            raise ValueError(f'DFPN needs a start_level below {len(in_channels)}, the maps, got {start_level=}')
        if out_channels % 4 or (num_heads and out_channels % num_heads):
            raise ValueError(
                f'DFPN needs out_channels that 4 and num_heads divide, got {out_channels=}, {num_heads=}; 0 heads leave the '
                'attention out'
            )
        used = in_channels[start_level:]
        levels = len(used)
        self.num_outs = levels if num_outs is None else num_outs
        if self.num_outs < levels:
            raise ValueError(
                f'DFPN needs num_outs of at least {levels}, the maps from {start_level=} on, got {num_outs=}'
            )
        self.in_channels, self.start_level = tuple(in_channels), start_level
        self.add_extra_convs = 'on_input' if add_extra_convs is True else add_extra_convs
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        cfgs: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)

        def down(channels: int) -> ConvModule:
            return ConvModule(channels, out_channels, 3, stride=2, padding=1, **both)

        def node() -> FIRC3:
            return FIRC3(2 * out_channels, out_channels, num_blocks, **cfgs)

        self.enter = ModuleList(ConvModule(c, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for c in used)
        self.attend = _EncoderLayer(out_channels, num_heads, feedforward_channels) if num_heads else nn.Identity()
        steps = range(levels - 1)
        self.laterals = ModuleList(ConvModule(out_channels, out_channels, 1, **both) for _ in steps)
        self.shuffles = ModuleList(DPSC(out_channels, **cfgs) for _ in steps)
        self.top_down = ModuleList(node() for _ in steps)
        self.downs = ModuleList(down(out_channels) for _ in steps)
        self.bottom_up = ModuleList(node() for _ in steps)
        self.further = ModuleList()
        for i in range(self.num_outs - levels if self.add_extra_convs else 0):
            self.further.append(down(used[-1] if not i and self.add_extra_convs == 'on_input' else out_channels))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid, from fine to coarse."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'DFPN was built for {len(self.in_channels)} maps, got {len(inputs)}')
        maps = [conv(x) for conv, x in zip(self.enter, inputs[self.start_level :], strict=True)]
        maps[-1] = self.attend(maps[-1])
        for i in reversed(range(len(maps) - 1)):
            maps[i + 1] = self.laterals[i](maps[i + 1])
            raised = norm_preserving_upsample(maps[i + 1], (int(maps[i].shape[2]), int(maps[i].shape[3])))
            maps[i] = self.top_down[i](torch.cat((self.shuffles[i](raised), maps[i]), 1))
        outs = [maps[0]]
        for i, x in enumerate(maps[1:]):
            lowered = self.downs[i](outs[-1])
            if lowered.shape[2:] != x.shape[2:]:  # halves that were rounded down
                lowered = F.interpolate(lowered, x.shape[2:])
            outs.append(self.bottom_up[i](torch.cat((lowered, x), 1)))
        last = inputs[-1] if self.add_extra_convs == 'on_input' else outs[-1]
        for i in range(self.num_outs - len(outs)):
            last = self.further[i](last) if self.add_extra_convs else F.max_pool2d(last, 1, stride=2)
            outs.append(last)
        return tuple(outs)
