"""FFNet: networks in which a feed-forward layer with depthwise convolutions takes the place of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.convs.reparam import ReparamConv2d, bn_affine, foldable_norm
from mmext.registry import MODELS

__all__ = ['FFNet']


class _Normed(nn.Sequential):
    """A convolution without bias, and a norm."""

    def __init__(self, conv: nn.Module, channels: int, norm_cfg: dict) -> None:
        super().__init__(conv, build_norm_layer(norm_cfg, channels)[1])


class _NormedShortcut(nn.Module):
    """The input plus a 1 x 1 convolution of its norm; both are one convolution in eval mode."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        norm = foldable_norm(norm_cfg, channels, 'FFNet', self.conv.weight)
        assert norm is not None
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Return the convolution that computes the same in eval mode."""
        scale, shift = bn_affine(self.norm)
        kernel = self.conv.weight.flatten(1)
        plain = nn.Conv2d(len(kernel), len(kernel), 1).to(kernel)
        plain.weight.copy_((kernel * scale + torch.eye(len(kernel)).to(kernel))[..., None, None])
        if plain.bias is not None:
            plain.bias.copy_(kernel @ shift)
        return plain.train(self.training)


class _Residual(nn.Module):
    """The input plus layers, with a learned scale or without one."""

    def __init__(self, layers: Mapping[str, nn.Module], channels: int, scale: float | None, rate: float) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.names = tuple(layers)
        self.scale = None if scale is None else nn.Parameter(torch.full((channels, 1, 1), float(scale)))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.names:
            y = self.get_submodule(name)(y)
        return x + self.drop_path(y if self.scale is None else y * self.scale)


@MODELS.register_module()
class FFNet(StagedBackbone):
    """FFNet: attention is replaced by 1 x 1, depthwise, activation, depthwise, in the shape of a feed-forward layer.

    Yun et al., *MetaMixer Is All You Need*, 2024, arXiv 2406.02021.

    A block adds to its input, one after the other, a token mixer (1 x 1, norm, depthwise, activation, depthwise) and a channel
    mixer (depthwise, norm, 1 x 1 to r C, activation, 1 x 1). Kernels of 7 are trained beside kernels of 3 and fold. A
    transition is such a kernel with stride 2 and two outputs for each input channel, and a 1 x 1 convolution of its norm.

    Args:
        arch: ``'1'``, ``'2'``, ``'3'``, ``'4'``, ``'seg'``, or ``dict(depths=, channels=, ratio=, token_kernels=,
            channel_kernels=, scaled=, stem_channels=, strips=)``: per stage the number of blocks, their channels and kernel
            sizes, r, whether mixers have a learned scale, and the width inside of the stem. ``strips`` is the form for
            segmentation: a stem of four convolutions, transitions of two, and a row and a column beside each token kernel.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of both mixers of the last block; it rises linearly from 0 at the first.
        layer_scale: Start of the learned scales, where the architecture has them.
        out_norm: Norm of each returned map: ``dict(type='BN')`` for the authors' classifiers,
            ``dict(type='mmext.LayerNorm2d', eps=1e-6)`` for their detectors.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem and of the depthwise kernels other than 7.
        norm_cfg: Batch norm of the convolutions.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other; if the channels do not double from
            stage to stage, except with ``strips``; or if ``norm_cfg`` is no batch norm.

    Example:
        >>> arch = dict(depths=(1, 1), channels=(8, 16), token_kernels=(3, 7), channel_kernels=(7, 3))
        >>> net = FFNet(arch, out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(
            depths=(1, 2, 1), channels=(8, 16, 32), token_kernels=(3, 7, 7), channel_kernels=(7, 3, 3), scaled=True
        ),
        out_indices=(0, 1, 2),
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        '1': dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640), channel_kernels=(3, 3, 3, 3)),
        '2': dict(depths=(3, 3, 15, 3), channels=(88, 176, 352, 704)),
        '3': dict(depths=(4, 4, 22, 5), channels=(96, 192, 384, 768), scaled=True),
        '4': dict(depths=(4, 4, 27, 3), channels=(128, 256, 512, 1024), scaled=True),
        'seg': dict(
            depths=(3, 4, 18, 5),
            channels=(96, 192, 384, 768),
            ratio=4,
            token_kernels=(3, 3, 9, 9),
            channel_kernels=(3, 3, 3, 3),
            scaled=True,
            strips=True,
        ),
    }

    def __init__(
        self,
        arch: str | Mapping = '1',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        layer_scale: Positive = 1e-6,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        kind = self.arch
        scale = layer_scale if kind['scaled'] else None

        def conv(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
            layer = build_conv_layer(
                conv_cfg, before, after, size, stride, padding=size // 2, groups=groups, bias=False
            )
            return _Normed(layer, after, norm_cfg)

        def act(channels: int) -> nn.Module:
            return build_activation_layer(with_num_channels(act_cfg, channels))

        def reparam(before: int, after: int, size: int, branches: Sequence[str], stride: int = 1) -> nn.Module:
            geometry = dict(stride=stride, padding=size // 2, groups=before, bias=False)
            return ReparamConv2d(before, after, size, branches=branches, norm_cfg=norm_cfg, **geometry)

        def token(width: int, size: int) -> nn.Module:
            if kind['strips']:
                smaller = (f'{size - 4}x{size - 4}',) if size > 3 else ()
                return reparam(width, width, size, ('kxk', *smaller, '1xk', 'kx1'))
            if size == 7:
                return reparam(width, width, 7, ('kxk', '3x3'))
            return build_conv_layer(conv_cfg, width, width, size, padding=size // 2, groups=width)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width, size, first = self.channels[stage], kind['token_kernels'][stage], kind['channel_kernels'][stage]
            hidden = int(width * kind['ratio'])
            mix = dict(mix=conv(width, width, 1), key=token(width, size), act=act(width), value=token(width, size))
            local = (
                reparam(width, width, 7, ('kxk', '3x3'))
                if first == 7 and not kind['strips']
                else conv(width, width, first, groups=width)
            )
            wide = dict(local=local, expand=nn.Conv2d(width, hidden, 1), act=act(hidden))
            wide['project'] = nn.Conv2d(hidden, width, 1)
            return nn.Sequential(_Residual(mix, width, scale, rate), _Residual(wide, width, scale, rate))

        def shrink(before: int, after: int) -> nn.Module:
            if kind['strips']:
                return nn.Sequential(conv(before, 2 * after, 3, 2), act(2 * after), conv(2 * after, after, 1))
            return nn.Sequential(
                reparam(before, after, 7, ('kxk', '3x3'), 2),
                _NormedShortcut(after, norm_cfg),
            )

        inner, width = kind['stem_channels'], self.channels[0]
        first = [conv(in_channels, inner, 3, 2), act(inner)]
        if kind['strips']:
            first += [conv(inner, inner, 3), act(inner), conv(inner, width, 3), conv(width, width, 3, 2)]
        else:
            first += [conv(inner, width, 3, 2)]
        self.stem = nn.Sequential(*first)
        self.build_stages(shrink, block, drop_path_rate)
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        ratio: Positive = 3,
        token_kernels: Sequence[OddSize] = (3, 3, 7, 7),
        channel_kernels: Sequence[OddSize] = (7, 7, 7, 7),
        scaled: bool = False,
        stem_channels: Count = 64,
        strips: bool = False,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, token_kernels=token_kernels, channel_kernels=channel_kernels)
        if not strips and any(b % a for a, b in pairwise(channels)):
            raise ValueError(
                f'FFNet needs the channels of each stage to be a multiple of those before, got {channels=}'
            )

    def draw(self) -> None:
        """Draw kernels from a truncated normal distribution of width 0.02; biases are zero."""
        self.draw_kernels(ReparamConv2d)
