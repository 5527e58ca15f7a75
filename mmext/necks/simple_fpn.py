"""SimpleFPN: a pyramid from one map, for backbones of one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Axis, Cfg, Count, Positive, Repeats, some
from mmext.blocks.build import with_num_channels
from mmext.registry import MODELS

__all__ = ['SimpleFPN']


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """SimpleFPN: all levels of a pyramid are made from one map, that of the last block.

    Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection*, ECCV 2022, arXiv 2203.16527.

    ::

        map (C) ┬─ up 2, norm, act, up 2 (C/4) ─ 1x1, norm ─ 3x3, norm ── scale 4
                ├─ up 2 (C/2) ────────────────── 1x1, norm ─ 3x3, norm ── scale 2
                ├─────────────────────────────── 1x1, norm ─ 3x3, norm ── scale 1
                └─ max pool 2 ────────────────── 1x1, norm ─ 3x3, norm ── scale 1/2
                                                                └─ every second pixel ── further outputs

    Up 2 is a transposed 2 x 2 convolution that halves the channels. A backbone of stride 16 with the default scales gives
    the strides 4, 8, 16, 32. One of stride 4 wants ``scales=(1, 1/2, 1/4, 1/8)``.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of every output.
        scales: Size of each level relative to the map, falling powers of 2.
        num_outs: Outputs; those beyond ``scales`` are the last level with every second pixel.
        in_index: Which of the maps that come in.
        conv_cfg: Conv layer of the 1 x 1 and 3 x 3 convolutions.
        norm_cfg: Norm behind each of them, and between two transposed convolutions.
        act_cfg: Activation between two transposed convolutions.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps to ``num_outs`` maps of (N, out_channels, H s, W s), rounded up where s is below 1.

    Raises:
        ValueError: If the scales are no falling powers of 2, ``num_outs`` is smaller than their number, ``in_index`` is not
            among the maps, or the channels cannot be halved as often as the first scale asks.

    Example:
        >>> neck = SimpleFPN(in_channels=16, out_channels=8, num_outs=5)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 16, 4, 4)])]
        [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    """

    example = dict(in_channels=16, out_channels=8)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        scales: Annotated[Sequence[Positive], some] = (4, 2, 1, 0.5),
        num_outs: Repeats | None = None,
        in_index: Axis = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='mmext.LayerNorm2d', eps=1e-6),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        powers = [math.log2(scale) for scale in scales]
        if powers != sorted(set(powers), reverse=True) or any(power % 1 or abs(power) > 16 for power in powers):
            raise ValueError(f'SimpleFPN needs falling powers of 2 as scales, such as (4, 2, 1, 0.5), got {scales=}')
        ups = [int(power) for power in powers]
        if in_channels % 2 ** max(ups[0], 0):
            raise ValueError(
                f'SimpleFPN halves its channels once for each doubling, {ups[0]} times for {scales=}, which '
                f'{in_channels=} does not allow'
            )
        self.num_outs = len(ups) if num_outs is None else num_outs
        if self.num_outs < len(ups):
            raise ValueError(f'SimpleFPN needs num_outs of at least {len(ups)}, the number of scales, got {num_outs=}')
        self.in_index = in_index
        self.levels = ModuleList()
        for up in ups:
            resize = (
                _upsample(in_channels, up, norm_cfg, act_cfg) if up > 0 else [nn.MaxPool2d(2, ceil_mode=True)] * -up
            )
            width = in_channels // 2 ** max(up, 0)
            plain = dict(bias=False, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=None)
            self.levels.append(
                nn.Sequential(
                    *resize,
                    ConvModule(width, out_channels, 1, **plain),
                    ConvModule(out_channels, out_channels, 3, padding=1, **plain),
                )
            )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid."""
        if not -len(inputs) <= self.in_index < len(inputs):
            raise ValueError(f'SimpleFPN takes map in_index={self.in_index}, but {len(inputs)} maps came in')
        x = inputs[self.in_index]
        outs = [level(x) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _upsample(channels: int, times: int, norm_cfg: dict, act_cfg: dict) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(times):
        if i:
            layers += [
                build_norm_layer(norm_cfg, channels)[1],
                build_activation_layer(with_num_channels(act_cfg, channels)),
            ]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    return layers
