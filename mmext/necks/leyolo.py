"""LeYOLOFPAN: a pyramid down and up again, of inverted bottlenecks and without lateral convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, some
from mmext.blocks.inverted_block import InvertedBlock, conv_norm_act
from mmext.registry import MODELS

__all__ = ['LeYOLOFPAN']


@MODELS.register_module()
class LeYOLOFPAN(BaseModule):
    """FPAN: each node joins two maps and passes inverted bottlenecks; no convolution aligns channels before.

    Hollard et al., *LeYOLO, New Scalable and Efficient CNN Architecture for Object Detection*, 2024, arXiv 2406.14239.

    ::

        map 2 ─────────────┬───────────────────────────── cat ── node ── output 2
                           │ nearest                       ↑ 3x3, stride 2
        map 1 ──────────  cat ── node ──┬──────── cat ── node ────────── output 1
                                        │ nearest  ↑ 3x3, stride 2
        map 0 ───────────────────────  cat ── node ───────────────────── output 0

        node: three inverted bottlenecks, k = 5; at the finest level k = 3, and the first one does not widen its input

    Any number of levels from two on. A node has the channels of its level.

    Args:
        in_channels: Channels of each map.
        out_channels: With a number, a 1x1 convolution brings every output to so many channels (ours). With None outputs have
            the channels of their level.
        num_outs: Number of outputs. Further ones are every second pixel of the last, as in FPN (ours).
        hidden_channels: Hidden width of the blocks of each level; twice the channels by default.
        deep: Four blocks in a node that is neither the finest nor the coarsest. Behind the finest node one further block, with
            the channels of the next level, only serves the way up. So are the authors' medium and large.
        official_taps: Take the outputs where the authors' files of medium and large take them: after the second block of the
            finest node, after the first of the next, and before all of the coarsest. What then feeds nothing is kept as
            frozen parameters, so that these files fit. Only with ``deep``.
        conv_cfg: Conv layer of all convolutions.
        norm_cfg: Norm behind each convolution.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps (N, C_i, H_i, W_i) to a tuple of ``num_outs`` maps. Maps of any sizes are joined, by
        nearest pixels.

    Raises:
        ValueError: If there are fewer than two levels, ``hidden_channels`` or ``num_outs`` do not fit them,
            ``official_taps`` comes without ``deep``, or another number of maps comes in.

    Example:
        >>> neck = LeYOLOFPAN([8, 16, 24])
        >>> [tuple(y.shape) for y in neck([torch.randn(1, c, s, s) for c, s in ((8, 9), (16, 5), (24, 3))])]
        [(1, 8, 9, 9), (1, 16, 5, 5), (1, 24, 3, 3)]
    """

    example = dict(in_channels=(8, 8, 16))

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count | None = None,
        num_outs: Repeats | None = None,
        hidden_channels: Sequence[Count] | None = None,
        deep: bool = False,
        official_taps: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN', eps=1e-3, momentum=0.03),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        widths, levels = tuple(in_channels), len(in_channels)
        hidden = tuple(2 * width for width in widths) if hidden_channels is None else tuple(hidden_channels)
        if levels < 2 or len(hidden) != levels:
            raise ValueError(
                f'LeYOLOFPAN joins levels and needs in_channels of two or more, and as many hidden_channels, got {widths} '
                f'and {hidden}'
            )
        self.num_outs = levels if num_outs is None else num_outs
        if self.num_outs < levels:
            raise ValueError(
                f'LeYOLOFPAN gives an output for each of its {levels} maps and needs num_outs from {levels} on, got {num_outs}'
            )
        if official_taps and not deep:
            raise ValueError('LeYOLOFPAN has official_taps of the deep form only; set deep=True')
        self.in_channels, self.official_taps = widths, official_taps
        parts: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)

        def block(before: int, level: int, expand: bool = True) -> nn.Module:
            return InvertedBlock(before, widths[level], hidden[level] if expand else None, 5 if level else 3, **parts)

        def node(before: int, level: int) -> ModuleList:
            between = 0 < level < levels - 1
            blocks = [block(before, level, expand=level > 0)]
            blocks += [block(widths[level], level) for _ in range(3 if deep and between else 2)]
            return ModuleList(blocks)

        self.top_down = ModuleList(node(widths[i] + widths[i + 1], i) for i in range(levels - 1))
        self.beside = block(widths[0], 1) if deep else nn.Identity()
        before = widths[1] if deep else widths[0]
        self.downsamples = ModuleList()
        self.bottom_up = ModuleList()
        for level in range(1, levels):
            self.downsamples.append(conv_norm_act(before, widths[level], 3, 2, **parts))
            self.bottom_up.append(node(2 * widths[level], level))
            before = widths[level]
        given = widths
        if official_taps:
            self.bottom_up[-1].append(block(widths[-1], levels - 2))
            self.bottom_up[-1].requires_grad_(False)
            given = (*widths[:-1], 2 * widths[-1])
        self.outs = ModuleList(
            nn.Identity() if out_channels is None else conv_norm_act(width, out_channels, 1, **parts) for width in given
        )
        extra = (given[-1],) * (self.num_outs - levels)
        self.out_channels: Any = (*given, *extra) if out_channels is None else out_channels

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Join the maps, down and up again."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'LeYOLOFPAN has in_channels for {len(self.in_channels)} levels, got {len(inputs)} maps; name the channels of '
                'each'
            )
        last = len(inputs) - 1
        joined, x = list(inputs), inputs[last]
        for i in reversed(range(last)):
            x = _joined(x, inputs[i])
            joined[i], x = self._pass(self.top_down[i], x, tap=1 if i == 0 else -1)
        x, outs = self.beside(x), [joined[0]]
        for i in range(1, last + 1):
            x = _joined(self.downsamples[i - 1](x), joined[i])
            if self.official_taps and i == last:
                outs.append(x)  # what follows feeds nothing
            else:
                out, x = self._pass(self.bottom_up[i - 1], x, tap=0)
                outs.append(out)
        outs = [out(x) for out, x in zip(self.outs, outs, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)

    def _pass(self, node: ModuleList, x: Tensor, tap: int) -> tuple[Tensor, Tensor]:
        """Return a node's output, which official files take at ``tap``, and what the next node feeds on."""
        maps = []
        for block in node:
            x = block(x)
            maps.append(x)
        return maps[tap if self.official_taps else -1], x


def _joined(x: Tensor, other: Tensor) -> Tensor:
    """Return both maps as one, in the size of the other."""
    size = other.shape[2:]
    return torch.cat([x if x.shape[2:] == size else F.interpolate(x, size=size), other], 1)
