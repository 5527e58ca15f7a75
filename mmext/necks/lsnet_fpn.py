"""LSNetFPN: a feature pyramid with levels finer than the backbone's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats, at_most, some
from mmext.registry import MODELS

__all__ = ['LSNetFPN']


@MODELS.register_module()
class LSNetFPN(BaseModule):
    """FPN with transposed convolutions that make levels finer than the backbone's finest.

    Wang et al., *LSNet: See Large, Focus Small*, CVPR 2025, arXiv 2503.23135.

    ::

        ┌─ up 2 (2x2 transposed) ──────── 3x3 ── output 0, stride 4
        │
        map 0 ── 1x1 ── + ─────────────── 3x3 ── output 1, stride 8
                        ↑ nearest
        map 1 ── 1x1 ── + ─────────────── 3x3 ── output 2, stride 16
                        ...                   └─ every second pixel, or 3x3 with stride 2 ── further outputs

    The transposed convolution reads the sum at the finest level. Each further one reads the one before.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels of every output.
        num_outs: Outputs, the finer ones among them.
        num_extra_trans_convs: How many finer levels are made.
        start_level: The first map that is used.
        add_extra_convs: What further levels are made of: ``'on_input'``, the last map, ``'on_lateral'``, ``'on_output'``, by
            3x3 convolutions with stride 2. False takes every second pixel of the last output.
        conv_cfg: Conv layer of the 1x1 and 3x3 convolutions.
        norm_cfg: Norm behind each convolution.
        act_cfg: Activation behind each convolution.
        init_cfg: As in mmengine; by default Xavier uniform, as the authors'.

    Shape:
        A sequence of maps to ``num_outs`` maps. A finer level is twice the size of the level below it.

    Raises:
        ValueError: If ``num_outs`` is smaller than the number of levels, ``start_level`` is no map, or another number of maps
            comes in.

    Example:
        >>> neck = LSNetFPN([8, 16], 8, num_outs=4)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 8, 6, 6), torch.randn(1, 16, 3, 3)])]
        [(12, 12), (6, 6), (3, 3), (2, 2)]
    """

    example = dict(in_channels=(8, 16), out_channels=8, num_outs=4)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count,
        num_outs: Repeats,
        num_extra_trans_convs: Annotated[Natural, at_most(16)] = 1,
        start_level: Natural = 0,
        add_extra_convs: Literal[False, 'on_input', 'on_lateral', 'on_output'] = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        init_cfg: dict | list | None = dict(type='Xavier', layer=['Conv2d', 'ConvTranspose2d'], distribution='uniform'),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg)
        if start_level >= len(in_channels):
            raise ValueError(f'LSNetFPN needs a start_level below {len(in_channels)}, the maps, got {start_level}')
        used = in_channels[start_level:]
        further = num_outs - len(used) - num_extra_trans_convs
        if further < 0:
            raise ValueError(
                f'LSNetFPN needs num_outs of at least {len(used) + num_extra_trans_convs}, its {len(used)} levels and '
                f'{num_extra_trans_convs} finer ones, got {num_outs}'
            )
        self.in_channels, self.start_level, self.num_outs = list(in_channels), start_level, num_outs
        self.further, self.add_extra_convs = further, add_extra_convs
        both = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)

        def output(channels: int, stride: int = 1) -> ConvModule:
            return ConvModule(channels, out_channels, 3, stride=stride, padding=1, **both)

        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1, **both) for c in used)
        self.fpn_convs = nn.ModuleList(output(out_channels) for _ in used)
        for i in range(further if add_extra_convs else 0):
            self.fpn_convs.append(output(used[-1] if not i and add_extra_convs == 'on_input' else out_channels, 2))
        self.extra_trans_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 2, stride=2, **{**both, 'conv_cfg': dict(type='deconv')})
            for _ in range(num_extra_trans_convs)
        )
        self.extra_fpn_convs = nn.ModuleList(output(out_channels) for _ in range(num_extra_trans_convs))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid, from fine to coarse."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'LSNetFPN was built for {len(self.in_channels)} maps, got {len(inputs)}')
        sums = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level :], strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], sums[i - 1].shape[2:])
        finer = [sums[0]]
        for conv in self.extra_trans_convs:
            finer.insert(0, conv(finer[0]))
        # Zip leaves out the last, which is the finest of the sums. The authors name these from fine to coarse.
        outs = [conv(x) for conv, x in zip(self.extra_fpn_convs, finer, strict=False)]
        outs += [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=False)]
        sources = {'on_input': inputs[-1], 'on_lateral': sums[-1], 'on_output': outs[-1]}
        last = sources.get(self.add_extra_convs or 'on_output', outs[-1])
        for i in range(self.further):
            last = self.fpn_convs[len(sums) + i](last) if self.add_extra_convs else F.max_pool2d(last, 1, stride=2)
            outs.append(last)
        return tuple(outs)
