"""LeYOLO: a light backbone of inverted bottlenecks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few, OddSize
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.inverted_block import InvertedBlock, conv_norm_act
from mmext.registry import MODELS

__all__ = ['LeYOLO']


class _ChainedPooling(nn.Module):
    """Half the channels, and what three max pools in a row make of them, mixed by a 1 x 1 convolution."""

    def __init__(self, channels: int, size: int, **parts: Any) -> None:
        super().__init__()
        self.size, half = size, max(channels // 2, 1)
        self.reduce = conv_norm_act(channels, half, 1, bias=False, **parts)
        self.mix = conv_norm_act(4 * half, channels, 1, bias=False, **parts)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], self.size, 1, self.size // 2))
        return self.mix(torch.cat(maps, 1))


@MODELS.register_module()
class LeYOLO(StagedBackbone):
    """LeYOLO: inverted bottlenecks, narrow where maps are large, and chained max pooling at the end.

    Hollard et al., *LeYOLO, New Scalable and Efficient CNN Architecture for Object Detection*, 2024, arXiv 2406.14239.

    A block is 1 x 1 to the hidden width, depthwise k x k, and 1 x 1 back without activation. The first block of a stage has
    stride 2, and that of the first stage no 1 x 1 to the hidden width. Every convolution of a block has a bias and a norm.

    Args:
        arch: ``'nano'``, ``'small'``, ``'medium'``, ``'large'``, or ``dict(depths=, channels=, hidden=, first_hidden=,
            kernels=)``: per stage the number of blocks, their channels, hidden widths, that of the first block, and kernel
            sizes. ``'large'`` is ``'medium'``, which the authors run on larger images.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        pool_size: Side of the chained max pools behind the last stage of all. None leaves them out, as the authors do for
            classification.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of all convolutions.
        norm_cfg: Norm behind each convolution.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Example:
        >>> net = LeYOLO('nano')
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 64, 65))]
        [(1, 32, 8, 9), (1, 64, 4, 5), (1, 96, 2, 3)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(
            depths=(1, 2, 2), channels=(8, 8, 16), hidden=(8, 16, 24), first_hidden=(8, 16, 16), kernels=(3, 3, 5)
        ),
        out_indices=(0, 1, 2),
    )

    #: As published. The authors multiply the widths of nano by 1.33 and round them up to multiples of 8.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'nano': dict(
            depths=(1, 2, 5, 4), channels=(16, 32, 64, 96), hidden=(16, 96, 192, 576), first_hidden=(16, 96, 96, 576)
        ),
        'small': dict(
            depths=(1, 2, 5, 4),
            channels=(24, 48, 88, 128),
            hidden=(24, 128, 256, 768),
            first_hidden=(24, 128, 128, 768),
        ),
        'medium': dict(
            depths=(1, 3, 6, 5),
            channels=(24, 48, 88, 128),
            hidden=(24, 128, 256, 768),
            first_hidden=(24, 128, 128, 768),
        ),
        'large': dict(
            depths=(1, 3, 6, 5),
            channels=(24, 48, 88, 128),
            hidden=(24, 128, 256, 768),
            first_hidden=(24, 128, 128, 768),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping = 'nano',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        pool_size: OddSize | None = 5,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN', eps=1e-3, momentum=0.03),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        kind, widths = self.arch, self.channels
        parts: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            before = widths[max(stage - 1, 0)] if index == 0 else widths[stage]
            hidden = kind['hidden'][stage] if index else kind['first_hidden'][stage]
            first = stage == index == 0
            return InvertedBlock(
                before,
                widths[stage],
                None if first else hidden,
                kind['kernels'][stage],
                1 if index else 2,
                **parts,
            )

        self.stem = nn.Sequential(
            conv_norm_act(in_channels, widths[0], 3, 2, **parts), conv_norm_act(widths[0], widths[0], 1, **parts)
        )
        self.build_stages(None, block)
        if pool_size is not None and self.num_scales == len(kind['depths']):
            self.stages[-1].blocks.append(_ChainedPooling(widths[-1], pool_size, **parts))
        self.set_staged_outputs()
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        hidden: Sequence[Count] = (),
        first_hidden: Sequence[Count] = (),
        kernels: Sequence[OddSize] = (3, 3, 5, 5),
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, hidden=hidden, first_hidden=first_hidden, kernels=kernels)
