"""LSNet: large kernels look, small kernels that they predict aggregate."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.blocks.squeeze_excite import SqueezeExcite
from mmext.convs.repso import RepSO2d
from mmext.evolution.ls_conv import LSConv2d
from mmext.numerics import attend
from mmext.registry import MODELS

__all__ = ['LSNet']

_KEY = 16


def _layer(
    before: int,
    after: int,
    kernel_size: int = 1,
    *,
    norm_cfg: dict,
    act_cfg: dict | None = None,
    conv_cfg: dict | None = None,
    **kwargs: Any,
) -> nn.Sequential:
    """Return a convolution that keeps the size but for its stride, a norm, and an activation where one is given."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers['conv'] = build_conv_layer(
        conv_cfg, before, after, kernel_size, padding=kernel_size // 2, bias=False, **kwargs
    )
    layers['norm'] = build_norm_layer(norm_cfg, after)[1]
    if act_cfg is not None:
        layers['act'] = build_activation_layer(with_num_channels(act_cfg, after))
    return nn.Sequential(layers)


class _Depthwise(RepSO2d):
    """3x3 and 1x1 depthwise convolutions with a norm each, and the input: all three fold into one convolution."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__(
            channels, channels, 3, padding=1, groups=channels, bias=False, branches=('kxk', '1x1'), norm_cfg=norm_cfg
        )

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x if self.training else y

    def generate_kernel(self) -> Tensor:
        kernel = super().generate_kernel()
        return kernel + F.pad(torch.ones_like(kernel[..., :1, :1]), (1, 1, 1, 1))


class _Attention(BaseModule):
    """Attention of all pixels to all, with 16 channels for each key and a bias for each distance.

    The biases are learned for a map of ``side`` x ``side`` pixels. For another map the whole matrix is resized, as the
    released detectors do. A table of another side is resized when it is loaded.
    """

    def __init__(self, channels: int, heads: int, side: int, norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.values = heads * int(channels / (_KEY * heads) * _KEY)
        keys = heads * _KEY
        self.splits = (keys, keys, self.values)
        self.qkv = _layer(channels, 2 * keys + self.values, norm_cfg=norm_cfg)
        self.spread = _layer(keys, keys, 3, groups=keys, norm_cfg=norm_cfg)
        self.biases = nn.Parameter(torch.zeros(heads, side * side))
        self.act = build_activation_layer(with_num_channels(act_cfg, self.values))
        self.project = _layer(self.values, channels, norm_cfg=norm_cfg)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        table = state_dict.get(f'{prefix}biases')
        if table is not None and table.ndim == 2 and table.shape != self.biases.shape:
            side = math.isqrt(table.shape[1])
            if table.shape == (self.heads, side * side):
                grid = F.interpolate(
                    table.unflatten(1, (side, side))[None].float(), (self.side, self.side), mode='bicubic'
                )
                state_dict[f'{prefix}biases'] = grid[0].flatten(1).to(table.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def bias(self, pixels: int) -> Tensor:
        """Return the biases between all pixels, (heads, pixels, pixels)."""
        places = torch.arange(self.side, device=self.biases.device)
        apart = (places[:, None] - places).abs()
        index = self.side * apart[:, None, :, None] + apart[None, :, None, :]
        bias = self.biases[:, index.flatten(2).flatten(0, 1)]
        if pixels != self.side**2:
            bias = F.interpolate(bias[None], (pixels, pixels), mode='bicubic')[0]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split(self.splits, 1)
        query, key, value = (
            y.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for y in (self.spread(query), key, value)
        )
        bias = self.bias(query.shape[2]).to(query.dtype)[None]
        mixed = attend(query, key, value, bias)
        return x + self.project(self.act(mixed.transpose(2, 3).reshape(x.shape[0], self.values, *x.shape[2:])))


class _Block(Recomputed):
    """A mixer, which alternates, and a feed-forward part with its shortcut."""

    def __init__(self, channels: int, mixer: nn.Module, with_cp: bool, norm_cfg: dict, act_cfg: dict) -> None:
        super().__init__(with_cp)
        self.mixer = mixer
        self.expand = _layer(channels, 2 * channels, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.project = _layer(2 * channels, channels, norm_cfg=norm_cfg)

    def compute(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        return x + self.project(self.expand(x))


@MODELS.register_module()
class LSNet(Backbone):
    """LSNet: blocks of re-parameterized 3x3 and large-small convolutions in turn, with attention in the last stage.

    Wang et al., *LSNet: See Large, Focus Small*, CVPR 2025, arXiv 2503.23135.

    Three strided convolutions lead to stride 8. Between stages stand a depthwise 3x3 with stride 2 and a 1x1. Even blocks of a
    stage mix by depthwise 3x3 and 1x1 convolutions and a channel gate, odd ones by an LSConv, in the last stage by attention.
    A feed-forward part twice as wide follows.

    Args:
        arch: ``'T'``, ``'S'``, ``'B'``, or ``dict(depths=, channels=, heads=)``: blocks and width of each stage, and heads of
            the attention. A stage may have no block.
        in_channels: Channels of the image.
        bias_side: Side of the map that the attention's biases are learned for, 4 for images of 224 pixels. The released
            detectors have 14.
        out_indices: Stages whose maps are returned, of strides 8, 16, 32, 64.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training, as the authors' detectors do.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem and between the stages.
        norm_cfg: Norm everywhere. The folding branches need batch norms.
        act_cfg: Activation everywhere.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Sizes are rounded up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or 8 does not divide a width.

    Example:
        >>> arch = dict(depths=(0, 2, 2), channels=(16, 24, 32), heads=2)
        >>> [tuple(x.shape) for x in LSNet(arch, out_indices=(1, 2)).eval()(torch.randn(2, 3, 65, 65))]
        [(2, 24, 5, 5), (2, 32, 3, 3)]
    """

    example = dict(arch=dict(depths=(1, 2, 2), channels=(16, 24, 32), heads=2), out_indices=(0, 1, 2))

    arch_zoo = {
        'T': dict(depths=(0, 2, 8, 10), channels=(64, 128, 256, 384), heads=4),
        'S': dict(depths=(1, 2, 8, 10), channels=(96, 192, 320, 448), heads=4),
        'B': dict(depths=(4, 6, 8, 10), channels=(128, 256, 384, 512), heads=4),
    }

    @staticmethod
    def arch_laws(depths: Sequence[Natural], channels: Sequence[Count], heads: Repeats) -> None:
        """State the laws of an architecture."""
        if not depths or len(depths) != len(channels) or any(c % 8 for c in channels) or max(depths) > 4096:
            raise ValueError(
                f'LSNet needs one depth per stage, and one width that is a multiple of 8, got {depths=}, {channels=}'
            )
        if channels[-1] < heads:
            raise ValueError(f'LSNet needs a last stage at least as wide as its {heads=}, got {channels=}')

    def __init__(
        self,
        arch: str | Mapping = 'T',
        in_channels: Count = 3,
        bias_side: Repeats = 4,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        depths, channels, heads = (self.architecture(arch)[key] for key in ('depths', 'channels', 'heads'))
        super().__init__(out_indices, len(depths), frozen_stages, norm_eval, init_cfg)
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        plain: dict[str, Any] = dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg)
        width = channels[0]
        self.stem = Sequential(
            _layer(in_channels, width // 4, 3, stride=2, act_cfg=act_cfg, **plain),
            _layer(width // 4, width // 2, 3, stride=2, act_cfg=act_cfg, **plain),
            _layer(width // 2, width, 3, stride=2, **plain),
        )
        self.stages = ModuleList()
        for stage in range(self.num_scales):
            before, width = width, channels[stage]
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if stage:
                halve = _layer(before, before, 3, stride=2, groups=before, **plain)
                layers['shrink'] = nn.Sequential(halve, _layer(before, width, **plain))
            blocks = []
            for i in range(depths[stage]):
                if i % 2 == 0:
                    # A quarter of the channels, rounded to a multiple of 8.
                    gate = SqueezeExcite(width, max(8, int(width / 4 + 4) // 8 * 8), act_cfg)
                    mixer: nn.Module = Sequential(_Depthwise(width, norm_cfg), gate)
                elif stage == len(depths) - 1:
                    mixer = _Attention(width, heads, bias_side, **both)
                else:
                    mixer = LSConv2d(width, width, 3, padding=1, bias=False, **both)
                blocks.append(_Block(width, mixer, with_cp, **both))
            layers['blocks'] = Sequential(*blocks)
            self.stages.append(Sequential(layers))
        self.set_outputs([channels[i] for i in self.out_indices], [8 * 2**i for i in self.out_indices])
        self.finish()

    def draw(self) -> None:
        """Let feed-forward parts and attention start as their shortcuts; the rest starts as torch draws it."""
        for module in self.modules():
            if isinstance(module, (_Block, _Attention)):
                norm = module.project.get_submodule('norm')
                if getattr(norm, 'weight', None) is not None:
                    nn.init.zeros_(norm.get_parameter('weight'))
