"""PfNet: ResNets and vision transformers some of whose layers are max pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, Positive, Repeats
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.attention import MapAttention
from mmext.blocks.build import with_num_channels
from mmext.registry import MODELS

__all__ = ['PfNet']

LAYER = dict(type='mmext.LayerNorm2d', eps=1e-6)


class _Bottleneck(nn.Module):
    """1 x 1 to a quarter of the channels, what mixes positions, 1 x 1 back, and a shortcut around them."""

    def __init__(
        self,
        reduce: nn.Module,
        spatial: nn.Module,
        expand: nn.Module,
        shortcut: nn.Module | None,
        act: nn.Module,
        rate: float,
    ) -> None:
        super().__init__()
        self.reduce, self.spatial, self.expand, self.shortcut, self.act = reduce, spatial, expand, shortcut, act
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.expand(self.spatial(self.reduce(x))))
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


class _DilatedPool(nn.Module):
    """The largest of 3 x 3 pixels that are ``dilation`` apart; torch's own pool takes no padding that large."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.dilation,) * 4, value=-torch.inf)
        return F.max_pool2d(x, 3, 1, dilation=self.dilation)


class _Embedding(nn.Module):
    """Patches, and a learned map of positions added to them, in the size of the image."""

    def __init__(self, patches: nn.Module, channels: int, side: int) -> None:
        super().__init__()
        self.patches = patches
        self.position = nn.Parameter(torch.empty(1, channels, side, side))

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Ask for no decay of the positions, as the authors do."""
        return dict(position=dict(decay_mult=0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        position: Tensor = self.position
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, x.shape[2:], mode='bicubic', align_corners=False)
        return x + position


class _Transformer(nn.Module):
    """Mix positions, then channels; each mixer sees a norm of the map and is added."""

    def __init__(self, token: nn.Module, channel: nn.Module, norms: Sequence[nn.Module], rate: float) -> None:
        super().__init__()
        self.token, self.channel = token, channel
        self.norms: Any = nn.ModuleList(norms)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.token(self.norms[0](x)))
        return x + self.drop_path(self.channel(self.norms[1](x)))


@MODELS.register_module()
class PfNet(StagedBackbone):
    """PfNet: a ResNet or a vision transformer in which layers without parameters mix positions.

    Han et al., *Learning Features with Parameter-Free Layers*, ICLR 2022, arXiv 2202.02777.

    In a ResNet a max pool of 3 x 3 stands in the place of each 3 x 3 convolution (``'max'``). With ``'hybrid'``, blocks that
    halve the map keep theirs, behind an average pool. In a vision transformer every second attention layer is 1 x 1 to 3 C,
    GELU, max pool, GELU, 1 x 1. It starts with attention after each halving. PiT halves by a depthwise 3 x 3.

    Args:
        arch: ``'R50-max'``, ``'R50-hybrid'``, ``'ViT-Ti-max'``, ``'ViT-S-max'``, ``'ViT-B-max'``, ``'PiT-Ti-max'``,
            ``'PiT-S-max'``, ``'PiT-B-max'``, or ``dict(depths=, channels=, kind=, stem_channels=, heads=, patch_size=,
            patch_stride=, std=)``. Per stage: blocks, channels and, for transformers, heads. Then ``'max'``, ``'hybrid'`` or
            ``'transformer'``, the width of a ResNet's stem, side and distance of the patches, and the standard deviation that
            linear layers are drawn with, None for torch's start. A stage of a transformer that has the channels of the one
            before has its size, too.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, None for all. Strides are 4, 8, 16, 32 of a ResNet, four times 16 of ViT,
            8, 16, 32 of PiT, and 7, 14, 28 of PiT-B.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        img_size: Side of the image for which positions are learned. For others they are resized.
        output_stride: Of a ResNet's last map. Stages that would exceed it keep the size, and dilate convolutions and pools.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        out_norm: Norm of each returned map. The authors' transformers use ``dict(type='mmext.LayerNorm2d', eps=1e-6)``.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem and of all kernels larger than 1 x 1.
        norm_cfg: Norm; by default batch norm in ResNets, and layer norm in transformers.
        act_cfg: Activation; by default ReLU in ResNets, and GELU in transformers.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). A ResNet rounds sizes up. A patch lies whole in the image, and PiT
        rounds up after it. The image needs not be square.

    Raises:
        ValueError: If ``arch``, ``out_indices``, ``frozen_stages`` or ``output_stride`` contradict each other, or heads do not
            divide the channels.

    The released R50-hybrid fails where a map has an odd side, and the transformers need square ones. Both are mended here.
    Its pools ignore the dilation, and here they have it.

    Example:
        >>> net = PfNet(dict(depths=(1, 1), channels=(16, 32), kind='hybrid', stem_channels=8))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 16, 9, 9), (1, 32, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(depths=(1, 2, 1), channels=(16, 32, 32), kind='hybrid', stem_channels=8)
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{
            f'R50-{kind}': dict(depths=(3, 4, 6, 3), channels=(256, 512, 1024, 2048), kind=kind)
            for kind in ('max', 'hybrid')
        },
        **{
            f'ViT-{name}-max': dict(
                depths=(3, 3, 3, 3),
                channels=(64 * heads,) * 4,
                kind='transformer',
                heads=(heads,) * 4,
                patch_stride=16,
                std=0.02,
            )
            for name, heads in dict(Ti=3, S=6, B=12).items()
        },
        'PiT-Ti-max': dict(depths=(2, 6, 4), channels=(64, 128, 256), kind='transformer', heads=(2, 4, 8)),
        'PiT-S-max': dict(depths=(2, 6, 4), channels=(144, 288, 576), kind='transformer', heads=(3, 6, 12)),
        'PiT-B-max': dict(
            depths=(3, 6, 4),
            channels=(256, 512, 1024),
            kind='transformer',
            heads=(4, 8, 16),
            patch_size=14,
            patch_stride=7,
        ),
    }

    def __init__(
        self,
        arch: str | Mapping = 'R50-hybrid',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        img_size: Repeats = 224,
        output_stride: Literal[8, 16, 32] = 32,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        if out_indices is None:
            out_indices = range(len(self.architecture(arch)['depths']))
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        transforms = self.arch['kind'] == 'transformer'
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg or (LAYER if transforms else dict(type='BN'))
        self.act_cfg = act_cfg or dict(type='GELU' if transforms else 'ReLU')
        if transforms:
            if output_stride != 32:
                raise ValueError(f'PfNet dilates ResNets alone, got {output_stride=} for {arch=}; leave it out')
            strides = self._build_transformer(in_channels, img_size, drop_path_rate)
        else:
            strides = self._build_resnet(in_channels, output_stride, drop_path_rate)
        channels = [self.channels[i] for i in self.out_indices]
        self.set_outputs(channels, [strides[i] for i in self.out_indices], out_norm)
        self.finish()

    @staticmethod
    def arch_laws(  # type: ignore[override]
        depths: Sequence[Few],
        channels: Sequence[Count],
        kind: Literal['max', 'hybrid', 'transformer'],
        stem_channels: Count = 64,
        heads: Sequence[Count] | None = None,
        patch_size: Repeats = 16,
        patch_stride: Repeats = 8,
        std: Positive | None = None,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        if kind == 'transformer':
            one_entry_per_stage(depths, channels=channels, heads=heads or ())
            if any(width % number for width, number in zip(channels, heads or (), strict=True)):
                raise ValueError(f'PfNet needs heads that divide the channels, got {heads} for {tuple(channels)}')
            if any(after % before for before, after in pairwise(channels)):
                raise ValueError(
                    f'PfNet needs channels of which each divides the next, because it halves maps by depthwise '
                    f'convolutions, got {tuple(channels)}'
                )
        else:
            one_entry_per_stage(depths, channels=channels)
            if any(width % 4 for width in channels):
                raise ValueError(f'PfNet needs channels that are multiples of 4, got {tuple(channels)}')

    def _act(self, channels: int) -> nn.Module:
        return build_activation_layer(with_num_channels(self.act_cfg, channels))

    def _norm(self, channels: int) -> nn.Module:
        return build_norm_layer(self.norm_cfg, channels)[1]

    def _conv(self, before: int, after: int, size: int, *geometry: int, **more: Any) -> nn.Module:
        cfg = None if size == 1 else self.conv_cfg
        return build_conv_layer(cfg, before, after, size, *geometry, **more)

    def _normed(self, before: int, after: int, size: int = 1, *geometry: int) -> list[nn.Module]:
        return [self._conv(before, after, size, *geometry, bias=False), self._norm(after)]

    def _build_resnet(self, in_channels: int, output_stride: int, rate: float) -> list[int]:
        """Build stem and stages, and return their strides."""
        stem, convolves = self.arch['stem_channels'], self.arch['kind'] == 'hybrid'
        self.stem = nn.Sequential(*self._normed(in_channels, stem, 7, 2, 3), self._act(stem), nn.MaxPool2d(3, 2, 1))
        strides, dilations = [4], [1]
        for _ in range(1, self.num_scales):
            halves = strides[-1] < output_stride
            strides.append(strides[-1] * (2 if halves else 1))
            dilations.append(dilations[-1] * (1 if halves else 2))

        def block(stage: int, index: int, rate: float) -> nn.Module:
            after, first, dilation = self.channels[stage], index == 0, dilations[stage]
            before = after if index else (stem, *self.channels)[stage]
            stride = strides[stage] // strides[stage - 1] if stage and first else 1
            quarter = after // 4
            if convolves and stage and first:
                # It rounds up as the strided shortcut does; beyond the border there is nothing to average.
                pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
                conv = self._normed(quarter, quarter, 3, 1, dilation, dilation)
                spatial: nn.Module = nn.Sequential(pool, nn.Sequential(*conv, self._act(quarter)))
            else:
                spatial = nn.MaxPool2d(3, stride, 1) if dilation == 1 else _DilatedPool(dilation)
            shortcut = None
            if stride > 1 or before != after:
                shortcut = nn.Sequential(*self._normed(before, after, 1, stride))
            reduce = nn.Sequential(*self._normed(before, quarter), self._act(quarter))
            return _Bottleneck(
                reduce, spatial, nn.Sequential(*self._normed(quarter, after)), shortcut, self._act(after), rate
            )

        self.build_stages(lambda before, after: nn.Identity(), block, rate)
        return strides

    def _build_transformer(self, in_channels: int, img_size: int, rate: float) -> list[int]:
        """Build patches and stages, and return their strides."""
        size, stride, width = self.arch['patch_size'], self.arch['patch_stride'], self.channels[0]
        side = max((img_size - size) // stride + 1, 1)
        self.stem = _Embedding(self._conv(in_channels, width, size, stride), width, side)
        strides, number = [stride], 0
        for before, after in pairwise(self.channels):
            strides.append(strides[-1] * (1 if after == before else 2))

        def shrink(before: int, after: int) -> nn.Module:
            if before == after:
                return nn.Identity()
            return self._conv(before, after, 3, 2, 1, groups=before)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            nonlocal number
            width = self.channels[stage]
            halved = stage > 0 and strides[stage] != strides[stage - 1]
            number = 0 if index == 0 and halved else number
            if number % 2:
                token: nn.Module = nn.Sequential(
                    nn.Conv2d(width, 3 * width, 1),
                    self._act(3 * width),
                    nn.MaxPool2d(3, 1, 1),
                    self._act(3 * width),
                    nn.Conv2d(3 * width, width, 1),
                )
            else:
                token = MapAttention(width, self.arch['heads'][stage])
            number += 1
            channel = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1), self._act(4 * width), nn.Conv2d(4 * width, width, 1)
            )
            return _Transformer(token, channel, [self._norm(width) for _ in range(2)], rate)

        self.build_stages(shrink, block, rate)
        return strides

    @torch.no_grad()
    def draw(self) -> None:
        """Draw positions, and linear layers where the architecture says how; all else starts as torch's."""
        self.reset_kernels()
        if isinstance(self.stem, _Embedding):
            nn.init.trunc_normal_(self.stem.position, std=0.02)
        if self.arch['std'] is None:
            return
        for module in self.stages.modules():
            if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.kernel_size == (1, 1)):
                nn.init.trunc_normal_(module.weight, std=self.arch['std'])
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
