"""SWNet: UniRepLKNet with shift-wise convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from torch import nn

from mmext.arguments import Count, Few, OddSize, Repeats, at_least, below
from mmext.backbones.staged import one_entry_per_stage
from mmext.backbones.unireplknet import UniRepLKNet
from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.registry import MODELS

__all__ = ['SWNet']


@MODELS.register_module()
class SWNet(UniRepLKNet):
    """SWNet: a network whose kernels of 51 x 51 are made of shifted 3 x 3 kernels.

    Li et al., *ShiftwiseConv: Small Convolutional Kernel with Large Kernel Effect*, CVPR 2025, arXiv 2401.12736.

    It is :class:`mmext.UniRepLKNet` with :class:`mmext.ShiftwiseConv2d` as the depthwise convolution of every block.

    Args:
        arch: ``'T'``, ``'S'``, ``'B'``, ``'L'``, or ``dict(depths=, channels=, kernels=, small_kernel=, ghost_ratio=, n_path=,
            n_rep=)``: per stage the number of blocks, their channels and kernel size, and arguments of the convolution.
        **kwargs: Those of :class:`mmext.UniRepLKNet`.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Each strided convolution rounds sizes up.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Kernels of S, B and L are those of T, which is our choice: only T's are published. The released code leaves the channels
    of each convolution in another order, which its next layers undo. Here they keep theirs.

    Example:
        >>> net = SWNet(dict(depths=(1, 1), channels=(8, 16), kernels=(7, 7)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(depths=(1, 2, 1), channels=(8, 8, 16), kernels=(9, 7, 7)), out_indices=(0, 1, 2)
    )

    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'T': dict(depths=(3, 3, 18, 3), channels=(80, 160, 320, 640)),
        'S': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
        'B': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
        'L': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
    }
    drawn = (ShiftwiseConv2d,)

    def __init__(self, arch: str | Mapping = 'T', **kwargs: Any) -> None:
        super().__init__(arch, **kwargs)

    @staticmethod
    def arch_laws(  # type: ignore[override]
        depths: Sequence[Few],
        channels: Sequence[Count],
        kernels: Sequence[OddSize] = (51, 49, 47, 13),
        small_kernel: OddSize = 3,
        ghost_ratio: Annotated[float, at_least(0), below(1)] = 0.23,
        n_path: Repeats = 2,
        n_rep: Repeats = 4,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, kernels=kernels)

    def mixer(self, stage: int, index: int, conv_cfg: dict | None, norm_cfg: dict) -> nn.Module:
        width, size = self.channels[stage], self.arch['kernels'][stage]
        own = {name: self.arch[name] for name in ('small_kernel', 'ghost_ratio', 'n_path', 'n_rep')}
        return ShiftwiseConv2d(
            width, width, size, padding=size // 2, groups=width, bias=False, norm_cfg=norm_cfg, **own
        )
