"""InceptionNeXt: ConvNeXt with a depthwise convolution in three branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive, above, at_most
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.convs.inception_dwconv import InceptionDWConv2d
from mmext.registry import MODELS

__all__ = ['InceptionNeXt']


class _MetaNeXtBlock(nn.Module):
    """Mix positions, normalize, mix channels, scale, add."""

    def __init__(
        self, mixer: nn.Module, channels: int, ratio: float, drop_path_rate: float, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mixer = mixer
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.project = nn.Conv2d(hidden, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act(self.expand(self.norm(self.mixer(x)))))
        return x + self.drop_path(y * self.gamma.view(-1, 1, 1))


@MODELS.register_module()
class InceptionNeXt(StagedBackbone):
    """InceptionNeXt: a ConvNeXt whose large depthwise kernel is a square and two bands, on a part of the channels.

    Yu et al., *InceptionNeXt: When Inception Meets ConvNeXt*, CVPR 2024, arXiv 2303.16900.

    A block is :class:`mmext.InceptionDWConv2d`, norm, 1 x 1 to r C, activation, 1 x 1, and a learned scale, added to its
    input. The stem is a convolution of 4 x 4 with stride 4 and a norm. A transition is a norm and one of 2 x 2 with stride 2.
    A classifier of the authors has a hidden layer of 3 C behind the pooling: mmpretrain's ``StackedLinearClsHead``.

    Args:
        arch: ``'atto'``, ``'T'``, ``'S'``, ``'B'``, or ``dict(depths=, channels=, ratios=, band=, branch_ratio=)``: per stage
            the number of blocks, their channels and r, and the arguments of the convolution.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        out_norm: Norm of each returned map.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem; ``mmext.swap_layers`` reaches the others.
        norm_cfg: Norm of the blocks, the stem and the transitions.
        act_cfg: Activation of the blocks.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes down.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Example:
        >>> net = InceptionNeXt(arch=dict(depths=(1, 1), channels=(8, 16), ratios=(4, 4)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 32, 32))]
        [(1, 8, 8, 8), (1, 16, 4, 4)]
    """

    example = dict(arch=dict(depths=(1, 1, 2), channels=(8, 16, 24), ratios=(4, 4, 3)), out_indices=(0, 1, 2))

    #: As published.
    arch_zoo = {
        'atto': dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320), band=9, branch_ratio=0.25),
        'T': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
        'S': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
        'B': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    }

    def __init__(
        self,
        arch: str | Mapping = 'T',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        band, branch_ratio, ratios = self.arch['band'], self.arch['branch_ratio'], self.arch['ratios']

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width = self.channels[stage]
            mixer = InceptionDWConv2d(width, width, band, padding=band // 2, groups=width, branch_ratio=branch_ratio)
            return _MetaNeXtBlock(mixer, width, ratios[stage], rate, norm_cfg, act_cfg)

        def shrink(before: int, after: int) -> nn.Module:
            return nn.Sequential(build_norm_layer(norm_cfg, before)[1], nn.Conv2d(before, after, 2, 2))

        width = self.channels[0]
        self.stem = nn.Sequential(
            build_conv_layer(conv_cfg, in_channels, width, 4, 4), build_norm_layer(norm_cfg, width)[1]
        )
        self.build_stages(shrink, block, drop_path_rate)
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        ratios: Sequence[Positive] = (4, 4, 4, 3),
        band: OddSize = 11,
        branch_ratio: Annotated[float, above(0), at_most(1 / 3)] = 0.125,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, ratios=ratios)

    def draw(self) -> None:
        """Draw kernels from a truncated normal distribution of width 0.02; biases are zero."""
        self.draw_kernels(InceptionDWConv2d)
