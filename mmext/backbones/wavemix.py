"""WaveMix: a network of one scale that mixes positions by wavelet transforms."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Repeats, at_least, at_most
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.haar_dwt import HaarDWT2d
from mmext.blocks.recomputed import Recomputed
from mmext.registry import MODELS

__all__ = ['WaveMix']

Levels = Annotated[int, at_least(1), at_most(8)]


class _Block(Recomputed):
    """Transform a quarter of the channels; from the coarsest level on mix channels and enlarge; add."""

    def __init__(
        self, channels: int, levels: int, ratio: int, dropout: float, with_cp: bool, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__(with_cp)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.transform = HaarDWT2d(levels)
        hidden = ratio * channels
        self.levels: Any = nn.ModuleList()
        for level in range(levels):
            before = channels if level == levels - 1 else channels + channels // 2
            after = channels if level == 0 or levels == 1 else channels // 2
            self.levels.append(
                nn.Sequential(
                    OrderedDict(
                        expand=nn.Conv2d(before, hidden, 1),
                        act=build_activation_layer(with_num_channels(act_cfg, hidden)),
                        dropout=nn.Dropout(dropout),
                        project=nn.Conv2d(hidden, channels, 1),
                        enlarge=nn.ConvTranspose2d(channels, after, 4, 2, 1),
                        norm=build_norm_layer(norm_cfg, after)[1],
                    )
                )
            )

    def compute(self, x: Tensor) -> Tensor:
        maps = self.transform(self.reduce(x))
        sizes = [x.shape[-2:], *(m.shape[-2:] for m in maps[:-1])]
        y = None
        for layers, new, (height, width) in reversed(list(zip(self.levels, maps, sizes, strict=True))):
            y = layers(new if y is None else torch.cat([new, y], 1))[..., :height, :width]
        return x if y is None else x + y


@MODELS.register_module()
class WaveMix(Backbone):
    """WaveMix: one scale, in whose blocks a Haar transform shrinks the map and transposed convolutions enlarge it again.

    Jeevan, Viswanathan, Anandu, Sethi, *WaveMix: A Resource-efficient Neural Network for Image Analysis*, 2022,
    arXiv 2205.14375.

    ::

        map (C) ─ 1x1 (C/4) ─ Haar ┬─ level 1 (C) ─────────────────────┬─ mix, up 2 ─ + map
                                   └─ level 2 (C) ─ mix, up 2 (C/2) ───┘

    Mix is 1 x 1 to r C, activation, dropout, 1 x 1 to C, and up 2 a transposed convolution of 4 x 4 with a norm behind it.
    All maps have one stride. :class:`mmext.SimpleFPN` makes a pyramid of the last.

    Args:
        arch: ``'lite'``, ``'192-L2'``, ``'192-L3'``, ``'256-L3'``, ``'256-L4'``, or ``dict(depth=, channels=, levels=, ratio=,
            strided=)``: number of blocks, C, levels of the transform, r, and the stem: two convolutions of stride 2, or two of
            stride 1 and one of 4 x 4 with stride 4.
        in_channels: Channels of the image.
        out_indices: Blocks whose maps are returned, all of stride 4.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n blocks.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        dropout: Between both 1 x 1 convolutions of each level.
        out_norm: Norm of each returned map.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem.
        norm_cfg: Norm of the blocks and the stem.
        act_cfg: Activation of the blocks and the stem.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C, H / 4, W / 4), rounded down, or up with ``strided``. Sides need not be multiples of
        what the transform halves; then the map gets zeros behind it, and what is enlarged is cut. That is ours.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or C is no multiple of 4.

    Example:
        >>> net = WaveMix(dict(depth=2, channels=8, levels=2), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 32, 32))]
        [(1, 8, 8, 8), (1, 8, 8, 8)]
    """

    example: Mapping[str, Any] = dict(arch=dict(depth=3, channels=8, levels=2), out_indices=(0, 1, 2), dropout=0.0)

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'lite': dict(depth=16, channels=192, levels=1),
        '192-L2': dict(depth=16, channels=192, levels=2),
        '192-L3': dict(depth=16, channels=192, levels=3),
        '256-L3': dict(depth=16, channels=256, levels=3),
        '256-L4': dict(depth=16, channels=256, levels=4, strided=True),
    }

    def __init__(
        self,
        arch: str | Mapping = '192-L3',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (-1,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        dropout: DropRate = 0.5,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        whole = self.architecture(arch)
        width, levels, ratio = whole['channels'], whole['levels'], whole['ratio']
        super().__init__(out_indices, whole['depth'], frozen_stages, norm_eval, init_cfg)

        def conv(before: int, after: int, size: int, stride: int) -> nn.Module:
            return build_conv_layer(conv_cfg, before, after, size, stride, padding=size % 2)

        if whole['strided']:
            self.stem = nn.Sequential(conv(in_channels, width // 2, 3, 2), conv(width // 2, width, 3, 2))
        else:
            act = build_activation_layer(with_num_channels(act_cfg, width))
            self.stem = nn.Sequential(
                conv(in_channels, width // 4, 3, 1),
                conv(width // 4, width // 2, 3, 1),
                conv(width // 2, width, 4, 4),
                act,
                build_norm_layer(norm_cfg, width)[1],
            )
        self.stages = nn.ModuleList()
        for _ in range(self.num_scales):
            block = _Block(width, levels, ratio, dropout, with_cp, norm_cfg, act_cfg)
            self.stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(block))))
        number = len(self.out_indices)
        self.set_outputs([width] * number, [4] * number, out_norm)
        self.finish()

    @staticmethod
    def arch_laws(
        depth: Repeats, channels: Count, levels: Levels = 1, ratio: Repeats = 2, strided: bool = False
    ) -> None:
        """State the laws of an architecture and its defaults."""
        if channels % 4:
            raise ValueError(f'WaveMix transforms a quarter of its channels, got {channels=}; take a multiple of 4')

    def draw(self) -> None:
        """Start as torch does."""
        self.reset_kernels()
