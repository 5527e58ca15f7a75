"""EMOv2: inverted residual blocks whose expansion is a pair of window attentions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive, Repeats
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.numerics import attend
from mmext.registry import MODELS

__all__ = ['EMOv2']

BATCH, LAYER = dict(type='BN', eps=1e-6), dict(type='mmext.LayerNorm2d', eps=1e-6)


class _WindowAttention(nn.Module):
    """Attention within windows of neighbors plus attention within windows of pixels far apart, with the same q, k and v."""

    def __init__(self, channels: int, hidden: int, head_channels: int, window: int | None, act_cfg: dict) -> None:
        super().__init__()
        self.heads, self.window = channels // head_channels, window
        self.query_key = nn.Conv2d(channels, 2 * channels, 1)
        self.value = nn.Conv2d(channels, hidden, 1)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        sides = (height, width) if self.window is None else (self.window, self.window)
        if height % sides[0] or width % sides[1]:  # F.pad copies also where it adds nothing
            x = F.pad(x, (0, -width % sides[1], 0, -height % sides[0]))
        query, key = self.query_key(x).chunk(2, 1)
        value = self.act(self.value(x))
        y = self._attend(query, key, value, sides, far=False)
        # Where one window covers the map, both are the same.
        y = 2 * y if tuple(x.shape[-2:]) == sides else y + self._attend(query, key, value, sides, far=True)
        return y[..., :height, :width]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, sides: tuple[int, int], far: bool) -> Tensor:
        """Attend within windows: contiguous ones, or of pixels with the same place modulo the number of windows."""
        batch, channels, height, width = value.shape
        rows, columns = height // sides[0], width // sides[1]
        split = (sides[0], rows, sides[1], columns) if far else (rows, sides[0], columns, sides[1])
        outer, inner = ((3, 5), (2, 4)) if far else ((2, 4), (3, 5))

        def windows(x: Tensor) -> Tensor:
            x = x.reshape(batch, -1, *split).permute(0, *outer, *inner, 1)
            return x.reshape(batch * rows * columns, sides[0] * sides[1], self.heads, -1).transpose(1, 2)

        y = attend(windows(query), windows(key), windows(value))
        y = y.transpose(1, 2).reshape(batch, rows, columns, *sides, channels)
        y = y.permute(0, 5, 3, 1, 4, 2) if far else y.permute(0, 5, 1, 3, 2, 4)
        return y.reshape(batch, channels, height, width)


class _Block(Recomputed):
    """Norm, expand, depthwise with norm and activation, 1 x 1, scale; with shortcuts where the shape stays."""

    def __init__(
        self,
        expand: nn.Module,
        norm: nn.Module,
        local: nn.Module,
        project: nn.Module,
        gamma: nn.Parameter | None,
        keeps: bool,
        drop_path_rate: float,
        with_cp: bool,
    ) -> None:
        super().__init__(with_cp)
        self.norm, self.expand, self.local, self.project = norm, expand, local, project
        self.gamma, self.keeps = gamma, keeps
        self.drop_path = DropPath(drop_path_rate)

    def compute(self, x: Tensor) -> Tensor:
        y = self.expand(self.norm(x))
        y = self.project(y + self.local(y) if self.keeps else self.local(y))
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(y) if self.keeps else y


@MODELS.register_module()
class EMOv2(StagedBackbone):
    """EMOv2: one inverted residual block for convolution and attention, in which two window attentions expand the channels.

    Zhang et al., *EMOv2: Pushing 5M Vision Model Frontier*, 2024, arXiv 2412.06674.

    A block is norm, expansion to r C, a depthwise convolution with norm and activation added to its input, and 1 x 1 back with
    a learned scale. The expansion is 1 x 1 and activation, or in later stages attention. That is attention within windows
    plus attention within windows of pixels far apart, with shared queries, keys and values. The first block of a stage halves
    the map, expands by 2 r, and has no shortcut.

    Args:
        arch: ``'1M'``, ``'2M'``, ``'5M'``, ``'20M'``, ``'50M'``, or ``dict(depths=, channels=, ratios=, head_channels=,
            attention=, kernel_size=)``: per stage the number of blocks, their channels, r, channels of a head, and whether
            blocks attend.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        window_size: Side of a window, None for the whole map. It has no weights: 7 for classifiers at 224, 8 at 256 and 512,
            10 for the released detectors and segmentors.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        layer_scale: Start of the learned scales.
        scales_first: Whether the first block of each stage has a learned scale, too, as released. With its start of 1e-6 and
            no shortcut, all outputs are about 1e-6 at the start.
        out_norm: Norm of each returned map. The authors' classifiers use ``dict(type='mmext.LayerNorm2d', eps=1e-6)``.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem and of the depthwise convolutions.
        norm_cfg: Norm; by default batch norm, and layer norm at the beginning of blocks in stages that attend.
        act_cfg: Activation; by default SiLU, and GELU in the expansion of stages that attend.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up. Windows beyond the border see
        zeros, which take part in the attention, as released.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or heads do not divide the
            channels of a stage that attends.

    Example:
        >>> arch = dict(depths=(1, 2), channels=(8, 16), ratios=(2, 2), head_channels=(8, 8), attention=(False, True))
        >>> [tuple(x.shape) for x in EMOv2(arch, out_indices=(0, 1))(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(
            depths=(1, 2, 2),
            channels=(8, 16, 16),
            ratios=(2, 2, 2),
            head_channels=(8,) * 3,
            attention=(False, True, True),
        ),
        out_indices=(0, 1, 2),
        layer_scale=0.1,
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        '1M': dict(
            depths=(2, 2, 8, 3), channels=(32, 48, 80, 180), ratios=(2, 2.5, 3, 3.5), head_channels=(16, 16, 20, 20)
        ),
        '2M': dict(
            depths=(3, 3, 9, 3), channels=(32, 48, 120, 200), ratios=(2, 2.5, 3, 3.5), head_channels=(16, 16, 20, 20)
        ),
        '5M': dict(
            depths=(3, 3, 9, 3), channels=(48, 72, 160, 288), ratios=(2, 3, 4, 4), head_channels=(16, 24, 32, 32)
        ),
        '20M': dict(
            depths=(3, 3, 13, 3), channels=(64, 128, 320, 448), ratios=(2, 3, 4, 4), head_channels=(16, 32, 32, 32)
        ),
        '50M': dict(
            depths=(5, 8, 20, 7), channels=(64, 128, 384, 512), ratios=(2, 3, 4, 4), head_channels=(16, 32, 32, 32)
        ),
    }

    def __init__(
        self,
        arch: str | Mapping = '5M',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        window_size: Repeats | None = 7,
        drop_path_rate: DropRate = 0.0,
        layer_scale: Positive = 1e-6,
        scales_first: bool = True,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        kind, size = self.arch, self.arch['kernel_size']

        def normed(layer: nn.Module, channels: int) -> nn.Sequential:
            """Return a convolution with norm and SiLU."""
            act = build_activation_layer(with_num_channels(act_cfg or dict(type='SiLU'), channels))
            return nn.Sequential(layer, build_norm_layer(norm_cfg or BATCH, channels)[1], act)

        def depthwise(channels: int, side: int, stride: int) -> nn.Module:
            geometry = dict(padding=side // 2, groups=channels, bias=False)
            return build_conv_layer(conv_cfg, channels, channels, side, stride, **geometry)

        def block(stage: int, index: int, rate: float, before: int) -> nn.Module:
            first, attends = index == 0, kind['attention'][stage]
            after = self.channels[stage]
            hidden = int(before * kind['ratios'][stage] * (2 if first else 1))
            act = act_cfg or dict(type='GELU' if attends else 'SiLU')
            if attends and not first:
                expand: nn.Module = _WindowAttention(before, hidden, kind['head_channels'][stage], window_size, act)
            else:
                expand = nn.Sequential(
                    nn.Conv2d(before, hidden, 1), build_activation_layer(with_num_channels(act, hidden))
                )
            scaled = scales_first or not first
            return _Block(
                expand,
                build_norm_layer(norm_cfg or (LAYER if attends else BATCH), before)[1],
                normed(depthwise(hidden, size, 2 if first else 1), hidden),
                nn.Conv2d(hidden, after, 1, bias=False),
                nn.Parameter(torch.full((after,), float(layer_scale))) if scaled else None,
                not first,
                rate,
                with_cp,
            )

        before = max(self.channels[0] // 2, 1)
        self.stem = nn.Sequential(
            normed(build_conv_layer(conv_cfg, in_channels, before, 3, 2, padding=1), before),
            normed(depthwise(before, 3, 1), before),
            nn.Conv2d(before, before, 1, bias=False),
        )
        rates = iter(self.drop_rates(drop_path_rate, sum(kind['depths'])))
        self.stages = nn.ModuleList()
        for stage in range(self.num_scales):
            blocks = []
            for index in range(kind['depths'][stage]):
                blocks.append(block(stage, index, next(rates), before))
                before = self.channels[stage]
            self.stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(  # type: ignore[override]
        depths: Sequence[Few],
        channels: Sequence[Count],
        ratios: Sequence[Positive],
        head_channels: Sequence[Count],
        attention: Sequence[bool] = (False, False, True, True),
        kernel_size: OddSize = 5,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, ratios=ratios, head_channels=head_channels, attention=attention)
        for width, ratio, head, attends in zip(channels, ratios, head_channels, attention, strict=True):
            if attends and (width % head or int(width * ratio) % (width // head)):
                raise ValueError(
                    f'EMOv2 needs heads that divide the channels and the expanded channels, got {head} channels a head for '
                    f'{width} and {int(width * ratio)}'
                )

    def draw(self) -> None:
        """Start as torch does."""
        self.reset_kernels()
