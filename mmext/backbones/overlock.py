"""OverLoCK: an overview first, then a closer look with kernels that the overview makes.

The file is long because the network has two kinds of blocks and passes through its last stages twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import ModuleList, Sequential
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, OddSize, Repeats
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.blocks.squeeze_excite import SqueezeExcite
from mmext.convs.dilated_reparam import DilatedReparamConv2d
from mmext.evolution.contmix import ContextMixer
from mmext.norms.layer_norm_2d import LayerNorm2d
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['OverLoCK']

#: What stands beside each large kernel: by spacing, then by size, as the converter counts them.
BRANCHES = {
    5: ('3x3', '3x3@2'),
    7: ('3x3', '5x5', '3x3@2', '3x3@3'),
    9: ('5x5', '7x7', '5x5@2', '3x3@3', '3x3@4'),
    11: ('5x5', '7x7', '5x5@2', '3x3@3', '3x3@4', '3x3@5'),
    13: ('5x5', '7x7', '7x7@2', '3x3@3', '3x3@4', '3x3@5'),
    15: ('5x5', '7x7', '7x7@2', '3x3@3', '3x3@5', '3x3@7'),
    17: ('5x5', '7x7', '9x9@2', '3x3@4', '3x3@5', '3x3@7'),
}
_MLP, _FOCUS_MLP, _REGIONS = 4, 3, 7


class _PlusDepthwise(nn.Module):
    """A depthwise 3x3 convolution beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class _Scale(nn.Module):
    """A factor and an offset for each channel."""

    def __init__(self, channels: int, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), start))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class _ResponseNorm(nn.Module):
    """Global response normalization: channels are told apart by their norm over the map, relative to the mean of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(at_least_float32(x), dim=(2, 3), keepdim=True)
        share = (size / (size.mean(1, keepdim=True) + 1e-6)).to(x.dtype)
        return x * (self.scale * share + 1) + self.shift


def _large(channels: int, size: int, norm_cfg: dict) -> nn.Sequential:
    """Return the large depthwise kernel with those trained beside it, and a norm."""
    kernel = DilatedReparamConv2d(
        channels,
        channels,
        size,
        padding=size // 2,
        groups=channels,
        bias=False,
        branches=BRANCHES[size],
        norm_cfg=norm_cfg,
    )
    return nn.Sequential(OrderedDict(conv=kernel, norm=build_norm_layer(norm_cfg, channels)[1]))


def _feed_forward(channels: int, hidden: int, act_cfg: dict) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        expand=nn.Conv2d(channels, hidden, 1),
        act=build_activation_layer(with_num_channels(act_cfg, hidden)),
        depthwise=_PlusDepthwise(hidden),
        response=_ResponseNorm(hidden),
        project=nn.Conv2d(hidden, channels, 1),
    )


def _layer(
    before: int, after: int, size: int = 1, *, norm_cfg: dict, conv_cfg: dict | None = None, **kwargs: Any
) -> Any:
    """Return a convolution without bias that keeps the size but for its stride, and a norm."""
    conv = build_conv_layer(conv_cfg, before, after, size, padding=size // 2, bias=False, **kwargs)
    return nn.Sequential(OrderedDict(conv=conv, norm=build_norm_layer(norm_cfg, after)[1]))


class _BaseBlock(Recomputed):
    """A depthwise 3x3, then a large kernel, a channel gate and a feed-forward part beside a scaled shortcut."""

    def __init__(
        self, channels: int, size: int, scaled: bool, rate: float, with_cp: bool, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__(with_cp)
        self.depthwise = _PlusDepthwise(channels)
        self.branch = nn.Sequential(
            OrderedDict(
                norm=LayerNorm2d(channels),
                large=_large(channels, size, norm_cfg),
                gate=SqueezeExcite(channels, max(16, channels // 8), act_cfg),
                **_feed_forward(channels, _MLP * channels, act_cfg),
            )
        )
        self.scale = _Scale(channels) if scaled else nn.Identity()
        self.drop_path = DropPath(rate)

    def compute(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        return self.scale(x) + self.drop_path(self.branch(x))


class _FocusBlock(Recomputed):
    """A map and its context, mixed by kernels that the context makes (ContMix).

    ::

        map, context ─ cat ─ 3x3 + ─┬─ LN ─┬─ fuse to C ─┬─ ContMix, 1x1 ─ + ─ gate ─ · ─ 1x1 ─ + ─ 3x3 + ─ LN, MLP ─ + ─ split
                                    │      └─ query, key ┘                 │           │         │                   │
                                    │                     ├─ large kernel ─┘           │         │                   │
                                    │                     └─ 1x1, SiLU ────────────────┘         │                   │
                                    └─ scale ────────────────────────────────────────────────────┘  scale ───────────┘
    """

    def __init__(
        self,
        channels: int,
        context: int,
        size: int,
        heads: int,
        first: bool,
        rate: float,
        with_cp: bool,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__(with_cp)
        both, kernels = channels + context, 2 * heads
        self.widths = (channels, context)
        self.scale_context = None if first else _Scale(context)
        self.scale_overview = None if first else _Scale(context)
        self.depthwise_in, self.norm_in = _PlusDepthwise(both), LayerNorm2d(both)
        self.fuse = nn.Sequential(
            OrderedDict(
                depthwise=nn.Conv2d(both, both, 3, padding=1, groups=both),
                norm=build_norm_layer(norm_cfg, both)[1],
                act=build_activation_layer(with_num_channels(act_cfg, both)),
                project=nn.Conv2d(both, channels, 1),
                response=_ResponseNorm(channels),
            )
        )
        small = min(5, size)
        self.mixer = ContextMixer(
            _layer(channels, channels // 2, norm_cfg=norm_cfg),
            _layer(context, channels // 2, norm_cfg=norm_cfg),
            nn.Conv2d(_REGIONS**2, small**2 + size**2, 1),
            channels,
            (size, size),
            (small, small),
            kernels,
        )
        self.mixed = _layer(channels, channels, norm_cfg=norm_cfg)
        self.large = _large(channels, size, norm_cfg)
        self.channel_gate = SqueezeExcite(channels, max(16, channels // 8), act_cfg)
        self.gate = _layer(channels, channels, norm_cfg=norm_cfg)
        self.project = nn.Sequential(
            OrderedDict(norm=build_norm_layer(norm_cfg, channels)[1], conv=nn.Conv2d(channels, both, 1))
        )
        self.depthwise_out, self.norm_out = _PlusDepthwise(both), LayerNorm2d(both)
        self.mlp = nn.Sequential(_feed_forward(both, _FOCUS_MLP * channels, act_cfg))
        self.scale_in, self.scale_out = _Scale(both), _Scale(both)
        self.drop_path = DropPath(rate)

    def compute(self, x: Tensor, context: Tensor, overview: Tensor) -> tuple[Tensor, ...]:
        """Map (N, C, H, W), (N, Cc, H, W) and the first context to a new map and context."""
        if self.scale_context is not None and self.scale_overview is not None:
            context = self.scale_context(context) + self.scale_overview(overview)
        whole = self.depthwise_in(torch.cat([x, context], 1))
        seen = self.norm_in(whole)
        x = self.fuse(seen)
        y = self.mixed(self.mixer(x, *seen.split(self.widths, 1))) + self.large(x)
        y = self.project(F.silu(self.gate(x)) * self.channel_gate(y))
        whole = self.depthwise_out(self.scale_in(whole) + self.drop_path(y))
        whole = self.scale_out(whole) + self.drop_path(self.mlp(self.norm_out(whole)))
        return whole.split(self.widths, 1)


@MODELS.register_module()
class OverLoCK(Backbone):
    """OverLoCK: an overview of the whole image makes the kernels with which a second pass looks closely.

    Lou and Yu, *OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels*, CVPR 2025,
    arXiv 2502.20087.

    ::

        stem ─ stage 1 ─ stage 2 ─ stage 3 ─┬────────────────────── focus 3 ─ halve ─ focus 4
                                            └─ halve ─ overview ─ 1x1 ─┴─ context ──────┘

    Stages 1 to 3 and the overview are blocks of large kernels, each trained beside smaller ones. Focus blocks mix the map by
    kernels that come from the affinity of every pixel to 49 regions of the context, and renew the context.

    Args:
        arch: ``'XT'``, ``'T'``, ``'S'``, ``'B'``, or ``dict(depths=, focus_depths=, channels=, kernels=, heads=)``: blocks of
            the stages and the overview, of both focus stages, widths, sides of the large kernels, and half of the kernels of
            each focus stage.
        in_channels: Channels of the image.
        dense: Whether each returned map is normalized and the overview is added to the last, for detectors and segmentors.
        return_overview: Whether the overview, with a norm, comes as an additional first map. The authors train a second
            classifier on it, see :class:`DeepSupervisionClsHead`.
        head_channels: For classification: width of a 1x1 convolution with a norm on the last map, 1024 in the released ones.
        out_indices: Stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n scales.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the dense 3x3 convolutions.
        norm_cfg: Norm of convolutions. The folding branches need batch norms.
        act_cfg: Activation everywhere but in gates and the head.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). The last two have a quarter of the last width more. Sizes are rounded
        up. Maps smaller than a kernel are enlarged for it and averaged back.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or if ``head_channels`` or
            ``return_overview`` has no map to stand on.

    Example:
        >>> net = OverLoCK(OverLoCK.example['arch']).eval()
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 65, 65))]
        [(1, 16, 17, 17), (1, 16, 9, 9), (1, 24, 5, 5), (1, 40, 3, 3)]
    """

    example = dict(
        arch=dict(
            depths=(1, 1, 1, 1), focus_depths=(2, 1), channels=(16, 16, 16, 32), kernels=(7, 7, 5, 5), heads=(2, 4)
        )
    )

    _common = dict(kernels=(17, 15, 13, 7))
    arch_zoo = {
        'XT': dict(depths=(2, 2, 3, 2), focus_depths=(6, 2), channels=(56, 112, 256, 336), heads=(4, 6), **_common),
        'T': dict(depths=(4, 4, 6, 2), focus_depths=(12, 2), channels=(64, 128, 256, 512), heads=(4, 8), **_common),
        'S': dict(depths=(6, 6, 8, 3), focus_depths=(16, 3), channels=(64, 128, 320, 512), heads=(8, 16), **_common),
        'B': dict(depths=(8, 8, 10, 4), focus_depths=(20, 4), channels=(80, 160, 384, 576), heads=(6, 9), **_common),
    }

    @staticmethod
    def arch_laws(
        depths: tuple[Repeats, Repeats, Repeats, Repeats],
        focus_depths: tuple[Repeats, Repeats],
        channels: tuple[Count, Count, Count, Count],
        kernels: tuple[OddSize, OddSize, OddSize, OddSize],
        heads: tuple[Repeats, Repeats],
    ) -> None:
        """State the laws of an architecture."""
        if not set(kernels) <= set(BRANCHES):
            raise ValueError(f'OverLoCK has branches for kernels of {sorted(BRANCHES)}, got {kernels=}')
        if channels[3] % 4 or any(c % (4 * h) for c, h in zip(channels[2:], heads, strict=True)):
            raise ValueError(
                f'OverLoCK needs a last width that is a multiple of 4, and the last two multiples of 4 * heads, got '
                f'{channels=}, {heads=}'
            )

    def __init__(
        self,
        arch: str | Mapping = 'T',
        in_channels: Count = 3,
        dense: bool = True,
        return_overview: bool = False,
        head_channels: Count | None = None,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        whole = self.architecture(arch)
        depths, focus_depths, channels, kernels, heads = whole.values()
        super().__init__(out_indices, 4, frozen_stages, norm_eval, init_cfg)
        if head_channels is not None and self.num_scales < 4:
            raise ValueError(
                f'OverLoCK puts head_channels={head_channels} on the last stage, which {out_indices=} does not return; add '
                'it to out_indices or drop head_channels'
            )
        if return_overview and self.num_scales < 3:
            raise ValueError(
                f'OverLoCK takes its overview from the third stage, which {out_indices=} does not need; add 2 or 3 to it or '
                'drop return_overview'
            )
        plain: dict[str, Any] = dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg)
        common: dict[str, Any] = dict(with_cp=with_cp, norm_cfg=norm_cfg, act_cfg=act_cfg)
        rates = iter(self.drop_rates(drop_path_rate, sum(depths) + sum(focus_depths)))
        base_rates = [[next(rates) for _ in range(depth)] for depth in depths]
        focus_rates = [[next(rates) for _ in range(depth)] for depth in focus_depths]

        def stage(index: int, shrink: nn.Module | None, normalized: bool = False) -> Sequential:
            blocks = [
                _BaseBlock(channels[index], kernels[index], index > 1, rate, **common) for rate in base_rates[index]
            ]
            layers: dict[str, nn.Module] = {} if shrink is None else dict(shrink=shrink)
            layers['blocks'] = Sequential(*blocks)
            if normalized:
                layers['norm'] = LayerNorm2d(channels[index])
            return Sequential(OrderedDict(layers))

        def halve(index: int) -> Any:
            return _layer(channels[index - 1], channels[index], 3, stride=2, **plain)

        half = max(channels[0] // 2, 1)
        widths, strides = (in_channels, half, half, channels[0], channels[0]), (2, 1, 2, 1)
        stem = []
        for i, stride in enumerate(strides):
            act = build_activation_layer(with_num_channels(act_cfg, widths[i + 1])) if i < 3 else nn.Identity()
            stem.append(nn.Sequential(*_layer(widths[i], widths[i + 1], 3, stride=stride, **plain), act))
        self.stem = Sequential(*stem)
        others = [stage(i, halve(i), dense and i == 1) for i in range(1, min(self.num_scales, 3))]
        self.stages = ModuleList([stage(0, None), *others])
        context = channels[3] // 4
        self.overview = self.to_context = self.shrink_map = self.shrink_context = self.overview_out = None
        self.focus = ModuleList()
        if self.num_scales > 2:
            self.overview = stage(3, halve(3))
            self.to_context = nn.Conv2d(channels[3], context, 1)
        for i in range(self.num_scales - 2):
            if i:
                self.shrink_map = halve(3)
                self.shrink_context = _layer(context, context, 3, stride=2, **plain)
            width, size = channels[2 + i], kernels[2 + i]
            self.focus.append(
                ModuleList(
                    _FocusBlock(width, context, size, heads[i], not i and not j, rate, **common)
                    for j, rate in enumerate(focus_rates[i])
                )
            )
        out_widths = [channels[i] + (context if i > 1 else 0) for i in range(4)]
        if dense and self.num_scales > 3:
            self.overview_out = nn.Sequential(
                LayerNorm2d(channels[3]), nn.Conv2d(channels[3], out_widths[3], 1), _Scale(out_widths[3], 1e-5)
            )
        self.overview_norm = build_norm_layer(norm_cfg, channels[3])[1] if return_overview else None
        # By scale: the released detectors have all of them, and go on from the normalized map of the second.
        self.norms = nn.ModuleDict({str(i): LayerNorm2d(out_widths[i]) for i in self.out_indices if dense and i != 1})
        self.set_outputs([out_widths[i] for i in self.out_indices], [4 * 2**i for i in self.out_indices])
        self.head = None
        if head_channels is not None:
            self.head = ConvModule(out_widths[3], head_channels, 1, norm_cfg=norm_cfg, act_cfg=dict(type='SiLU'))
            self.out_channels = (*self.out_channels[:-1], head_channels)
        if return_overview:
            self.out_channels, self.out_strides = (channels[3], *self.out_channels), (32, *self.out_strides)
        self.finish()

    @torch.no_grad()
    def draw(self) -> None:
        """Draw the kernels from a normal distribution of 0.02 that is cut; tables of relative positions are zero."""
        self.draw_kernels(DilatedReparamConv2d)
        for module in self.modules():
            if isinstance(module, ContextMixer):
                nn.init.zeros_(module.small_bias)
                nn.init.zeros_(module.large_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, C, H, W), to the maps of ``out_indices``, after the overview where it is asked for."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        overview = None
        if self.overview is not None and self.to_context is not None:
            overview = self.overview(maps[2])
            small = self.to_context(overview)
            pair, maps[2] = self._look(0, maps[2], F.interpolate(small, maps[2].shape[2:], mode='bilinear'))
            if self.shrink_map is not None and self.shrink_context is not None:
                maps.append(self._look(1, self.shrink_map(pair[0]), self.shrink_context(pair[1]), small)[1])
        outs = [self.norms[str(i)](maps[i]) if str(i) in self.norms else maps[i] for i in self.out_indices]
        if self.overview_out is not None:
            outs[-1] = outs[-1] + self.overview_out(overview)
        if self.head is not None:
            outs[-1] = self.head(outs[-1])
        if self.overview_norm is not None:
            outs.insert(0, self.overview_norm(overview))
        return tuple(outs)

    def _look(
        self, stage: int, x: Tensor, context: Tensor, overview: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Go through the blocks of a focus stage; return map and context, and both in one."""
        overview = context if overview is None else overview
        for block in self.focus[stage]:
            x, context = block(x, context, overview)
        return (x, context), torch.cat([x, context], 1)

    def parts(self) -> list[list[nn.Module]]:
        parts: list[list[nn.Module]] = [[self.stem], *([stage] for stage in self.stages)]
        if self.overview is not None and self.to_context is not None:
            parts[3] += [self.overview, self.to_context, self.focus[0]]
        if self.shrink_map is not None and self.shrink_context is not None:
            parts.append([self.shrink_map, self.shrink_context, self.focus[1]])
        return parts

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        # In the order in which the image passes them: stages, overview, focus.
        depths = [len(stage.blocks) for stage in self.stages]
        if self.overview is not None:
            depths += [len(self.overview.blocks), *(len(blocks) for blocks in self.focus)]
        number = sum(depths) + 2
        parts = param_name[len(prefix) :].split('.')
        if not param_name.startswith(prefix):
            return number - 1, number
        if parts[0] == 'stem':
            return 0, number
        if parts[0] == 'stages':
            place = int(parts[1])
            block = {'shrink': 0, 'norm': depths[place] - 1}.get(parts[2], -1)
            block = int(parts[3]) if block < 0 else block
        elif parts[0] in ('overview', 'to_context'):
            last = 0 if parts[0] == 'overview' else depths[3] - 1
            place, block = 3, int(parts[2]) if parts[1] == 'blocks' else last
        elif parts[0] in ('focus', 'shrink_map', 'shrink_context'):
            place, block = (4 + int(parts[1]), int(parts[2])) if parts[0] == 'focus' else (5, 0)
        else:
            return number - 1, number
        return 1 + sum(depths[:place]) + block, number
