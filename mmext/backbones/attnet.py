"""AttNet: attentive convolutions and gated channel mixers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.evolution.at_conv import ATConv2d
from mmext.registry import MODELS

__all__ = ['AttNet']


class _RootMeanSquare(nn.Module):
    """Divide by the root of the mean square over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.weight.view(-1, 1, 1)


class _GatedMixer(nn.Module):
    """Two halves of a wide map: one is convolved and activated, and scales the other."""

    def __init__(self, channels: int, hidden: int, normed: bool, conv_cfg: dict | None, act_cfg: dict) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * hidden, 1)
        self.depthwise = build_conv_layer(conv_cfg, hidden, hidden, 3, padding=1, groups=hidden)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.norm = _RootMeanSquare(hidden) if normed else nn.Identity()
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, 1)
        return self.project(self.norm(self.act(self.depthwise(gate)) * value))


class _Block(nn.Module):
    """Norm, mixer, scale, add; first over positions, then over channels."""

    def __init__(
        self, token: nn.Module, channel: nn.Module, width: int, scale: float | None, rate: float, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.mixers: Any = nn.ModuleList([token, channel])
        self.norms: Any = nn.ModuleList(build_norm_layer(norm_cfg, width)[1] for _ in range(2))
        self.scales = (
            nn.ParameterList() if scale is None else nn.ParameterList(torch.full((width,), scale) for _ in '01')
        )
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(2):
            y = self.mixers[number](self.norms[number](x))
            x = x + self.drop_path(y * self.scales[number].view(-1, 1, 1) if len(self.scales) else y)
        return x


@MODELS.register_module()
class AttNet(StagedBackbone):
    """AttNet: every image makes a depthwise kernel for each channel, and a gated layer mixes the channels.

    *Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency*, 2025,
    arXiv 2510.20092.

    A block adds to its input :class:`mmext.ATConv2d` of its norm, then a gated mixer of its norm. That is 1 x 1 to 2 h, of
    which one half passes a depthwise 3 x 3 and an activation and is multiplied with the other, and 1 x 1 back. h is two
    thirds of r C.

    Args:
        arch: ``'XXS'``, ``'XS'``, ``'S'``, ``'T1'``, ``'T2'``, ``'T3'``, ``'T4'``, or ``dict(depths=, channels=, ratios=,
            gate_norm=, scaled=, kernel_size=)``: per stage the number of blocks, their channels and r, whether there is a norm
            in the gated mixer, whether mixers have a learned scale, and the size of the kernels.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of both mixers of the last block; it rises linearly from 0 at the first.
        layer_scale: Start of the learned scales, where the architecture has them.
        pooled_norm: For classification: the last output is the mean over its positions, normalized, (N, C, 1, 1).
        out_norm: Norm of each returned map.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem, of the transitions and of the depthwise kernels in the mixers.
        norm_cfg: Norm of the blocks; the stem and the transitions have batch norm.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Example:
        >>> net = AttNet(dict(depths=(1, 1), channels=(8, 16), ratios=(4, 4)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(depths=(1, 2, 1), channels=(8, 8, 16), ratios=(4, 4, 4)), out_indices=(0, 1, 2)
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'XXS': dict(depths=(2, 2, 4, 2), channels=(32, 64, 128, 240), gate_norm=False, scaled=False),
        'XS': dict(depths=(2, 2, 7, 2), channels=(40, 80, 160, 320), gate_norm=False),
        'S': dict(depths=(2, 3, 10, 3), channels=(40, 80, 160, 320), gate_norm=False, scaled=False),
        'T1': dict(depths=(2, 3, 12, 3), channels=(48, 96, 224, 384)),
        'T2': dict(depths=(3, 3, 16, 3), channels=(64, 128, 288, 512)),
        'T3': dict(depths=(4, 4, 26, 4), channels=(72, 144, 320, 576)),
        'T4': dict(depths=(5, 5, 28, 5), channels=(96, 192, 384, 768)),
    }

    def __init__(
        self,
        arch: str | Mapping = 'T2',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        layer_scale: Positive = 1e-6,
        pooled_norm: bool = False,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='mmext.LayerNorm2d', eps=1e-6),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        kind, size = self.arch, self.arch['kernel_size']

        def halve(before: int, after: int) -> list[nn.Module]:
            return [build_conv_layer(conv_cfg, before, after, 3, 2, padding=1, bias=False), nn.BatchNorm2d(after)]

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width = self.channels[stage]
            token = ATConv2d(
                width, width, size, padding=size // 2, act_cfg=with_num_channels(act_cfg, width) or act_cfg
            )
            hidden = max(2 * int(width * kind['ratios'][stage]) // 3, 1)
            channel = _GatedMixer(width, hidden, kind['gate_norm'], conv_cfg, act_cfg)
            return _Block(token, channel, width, float(layer_scale) if kind['scaled'] else None, rate, norm_cfg)

        width, half = self.channels[0], max(self.channels[0] // 2, 1)
        act = build_activation_layer(with_num_channels(act_cfg, half))
        self.stem = nn.Sequential(*halve(in_channels, half), act, *halve(half, width))
        self.build_stages(lambda before, after: nn.Sequential(*halve(before, after)), block, drop_path_rate)
        self.set_staged_outputs(out_norm, nn.LayerNorm(self.channels[-1]) if pooled_norm else None)
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        ratios: Sequence[Positive] = (8, 8, 4, 4),
        gate_norm: bool = True,
        scaled: bool = True,
        kernel_size: OddSize = 3,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, ratios=ratios)

    def draw(self) -> None:
        """Draw kernels from a truncated normal distribution of width 0.02; biases are zero."""
        self.draw_kernels(ATConv2d)
