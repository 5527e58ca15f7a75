"""UniRepLKNet: large depthwise kernels, re-parameterized from dilated ones, in a few layers of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive, some
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.blocks.squeeze_excite import SqueezeExcite
from mmext.convs.dilated_reparam import DilatedReparamConv2d
from mmext.norms.layer_norm_2d import LayerNorm2d
from mmext.registry import MODELS

__all__ = ['UniRepLKNet']


class _ResponseNorm(nn.Module):
    """Global response normalization: a channel is raised by how strong it is among the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        strength = x.norm(dim=(2, 3), keepdim=True)
        raised = strength / (strength.mean(1, keepdim=True) + 1e-6)
        gamma, beta = (p.view(-1, 1, 1) for p in (self.gamma, self.beta))
        return torch.addcmul(beta, x, gamma * raised + 1)


class _Block(nn.Module):
    """Mix positions, norm, gate, mix channels with response normalization, norm, scale, add."""

    def __init__(
        self, mixer: nn.Module, channels: int, scale: float, drop_path_rate: float, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__()
        hidden = 4 * channels
        self.mixer = mixer
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.se = SqueezeExcite(channels, max(channels // 4, 1), dict(type='ReLU'))
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.response = _ResponseNorm(hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.project_norm = build_norm_layer(norm_cfg, channels)[1]
        self.gamma = nn.Parameter(torch.full((channels,), float(scale)))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.response(self.act(self.expand(self.se(self.norm(self.mixer(x))))))
        return x + self.drop_path(self.project_norm(self.project(y)) * self.gamma.view(-1, 1, 1))


@MODELS.register_module()
class UniRepLKNet(StagedBackbone):
    """UniRepLKNet: blocks with a 13 x 13 kernel between blocks with a 3 x 3 kernel, gated and response-normalized.

    Ding, Zhang et al., *UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series
    and Image Recognition*, CVPR 2024, arXiv 2311.15599.

    A block is a depthwise convolution, norm, squeeze and excitation, 1 x 1 to 4 C, activation, response normalization, 1 x 1,
    norm, and a learned scale, added to its input. Kernels of 7 and more are :class:`mmext.DilatedReparamConv2d`. The stem is
    two, a transition one convolution of 3 x 3 with stride 2, each with a layer norm.

    Args:
        arch: ``'A'``, ``'F'``, ``'P'``, ``'N'``, ``'T'``, ``'S'``, ``'B'``, ``'L'``, ``'XL'``, or ``dict(depths=, channels=,
            kernels=)``: per stage the number of blocks, their channels, and the kernel sizes that they take in turn.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        layer_scale: Start of the learned scale of each block.
        pooled_norm: For classification: the last output is the mean over its positions, normalized, (N, C, 1, 1).
        out_norm: Norm of each returned map. The released detectors use ``dict(type='mmext.LayerNorm2d', eps=1e-6)``.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem, of the transitions and of the small depthwise kernels.
        norm_cfg: Batch norm of the blocks.
        act_cfg: Activation of the blocks.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or there are no branches for a
            kernel size.

    Example:
        >>> net = UniRepLKNet(dict(depths=(1, 1), channels=(8, 16), kernels=((3,), (7,))), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(depths=(1, 2, 1), channels=(8, 8, 16), kernels=((3,), (7, 3), (5,))), out_indices=(0, 1, 2)
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'A': dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320)),
        'F': dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
        'P': dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
        'N': dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640)),
        'T': dict(depths=(3, 3, 18, 3), channels=(80, 160, 320, 640), kernels=((3,), (13,), (13, 3), (13,))),
        'S': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768), kernels=((3,), (13,), (13, 3, 3), (13,))),
        'B': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024), kernels=((3,), (13,), (13, 3, 3), (13,))),
        'L': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536), kernels=((3,), (13,), (13, 3, 3), (13,))),
        'XL': dict(depths=(3, 3, 27, 3), channels=(256, 512, 1024, 2048), kernels=((3,), (13,), (13, 3, 3), (13,))),
    }
    drawn: tuple[type[nn.Module], ...] = (DilatedReparamConv2d,)

    def __init__(
        self,
        arch: str | Mapping = 'T',
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
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            mixer = self.mixer(stage, index, conv_cfg, norm_cfg)
            return _Block(mixer, self.channels[stage], layer_scale, rate, norm_cfg, act_cfg)

        def halve(before: int, after: int) -> list[nn.Module]:
            return [build_conv_layer(conv_cfg, before, after, 3, 2, padding=1), LayerNorm2d(after)]

        width = self.channels[0]
        act = build_activation_layer(with_num_channels(act_cfg, max(width // 2, 1)))
        self.stem = nn.Sequential(*halve(in_channels, max(width // 2, 1)), act, *halve(max(width // 2, 1), width))
        self.build_stages(lambda before, after: nn.Sequential(*halve(before, after)), block, drop_path_rate)
        self.set_staged_outputs(out_norm, nn.LayerNorm(self.channels[-1], eps=1e-6) if pooled_norm else None)
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        kernels: Sequence[Annotated[Sequence[OddSize], some]] = ((3,), (13,), (13,), (13,)),
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, kernels=kernels)

    def mixer(self, stage: int, index: int, conv_cfg: dict | None, norm_cfg: dict) -> nn.Module:
        """Return the depthwise convolution of a block."""
        width, sizes = self.channels[stage], self.arch['kernels'][stage]
        size = sizes[index % len(sizes)]
        same = dict(padding=size // 2, groups=width, bias=False)
        if size < 7:
            return build_conv_layer(conv_cfg, width, width, size, **same)
        return DilatedReparamConv2d(width, width, size, norm_cfg=norm_cfg, **same)

    def draw(self) -> None:
        """Draw kernels from a truncated normal distribution of width 0.02; biases are zero."""
        self.draw_kernels(*self.drawn)
