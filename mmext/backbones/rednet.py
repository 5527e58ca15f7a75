"""RedNet: a ResNet whose spatial convolutions are involutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule, build_activation_layer
from mmengine.model import ModuleList, Sequential
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats
from mmext.backbones.base import Backbone
from mmext.blocks.build import accepts, with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.registry import MODELS, require

__all__ = ['RedNet']


class _Bottleneck(Recomputed):
    """1x1 to a quarter of the channels, an operator of 7x7 that may stride, 1x1 back, and a shortcut around them."""

    def __init__(
        self,
        before: int,
        after: int,
        stride: int,
        operator: dict,
        with_cp: bool,
        conv_cfg: dict | None,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__(with_cp)
        middle = after // 4
        plain: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.reduce = ConvModule(before, middle, 1, act_cfg=with_num_channels(act_cfg, middle), **plain)
        self.spatial = _spatial(middle, 7, stride, operator, norm_cfg, act_cfg)
        self.expand = ConvModule(middle, after, 1, act_cfg=None, **plain)
        self.shortcut = None
        if stride > 1 or before != after:
            self.shortcut = ConvModule(before, after, 1, stride=stride, act_cfg=None, **plain)
        self.act = build_activation_layer(with_num_channels(act_cfg, after))

    def compute(self, x: Tensor) -> Tensor:
        y = self.expand(self.spatial(self.reduce(x)))
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


@MODELS.register_module()
class RedNet(Backbone):
    """RedNet: a ResNet with an involution in the place of each 3x3 convolution.

    Li et al., *Involution: Inverting the Inherence of Convolution for Visual Recognition*, CVPR 2021, arXiv 2103.06255.

    The stem is a 3x3 convolution with stride 2, a 3x3 involution, a 3x3 convolution and a max pool. A bottleneck is a 1x1
    convolution to a quarter of the channels, a 7x7 involution, and a 1x1 convolution back, each with a norm. The first
    involution of the later stages has stride 2.

    Args:
        arch: 26, 38, 50, 101, 152, or ``dict(depths=, channels=)`` with one number per stage.
        in_channels: Channels of the image.
        stem_channels: Width of the stem.
        operator: What stands for the 3x3 convolutions of a ResNet: any layer with the arguments of ``nn.Conv2d``.
        out_indices: Stages whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        zero_init_residual: Whether the last norm of each bottleneck starts at zero, as the authors' does.
        with_cp: Whether bottlenecks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the other convolutions.
        norm_cfg: Norm everywhere, inside of the operator too.
        act_cfg: Activation everywhere, inside of the operator too.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Sizes are rounded up, also where the authors' code fails.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other.

    Example:
        >>> net = RedNet(arch=dict(depths=(1, 1), channels=(64, 128)), stem_channels=32, out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(2, 3, 33, 33))]
        [(2, 64, 9, 9), (2, 128, 5, 5)]
    """

    example = dict(arch=dict(depths=(1, 2, 1), channels=(64, 128, 256)), stem_channels=32, out_indices=(0, 1, 2))

    arch_zoo = {
        depth: dict(depths=depths, channels=(256, 512, 1024, 2048))
        for depth, depths in {
            26: (1, 2, 4, 1),
            38: (2, 3, 5, 2),
            50: (3, 4, 6, 3),
            101: (3, 4, 23, 3),
            152: (3, 8, 36, 3),
        }.items()
    }

    @staticmethod
    def arch_laws(depths: Sequence[Repeats], channels: Sequence[Count]) -> None:
        """State the laws of an architecture."""
        if not depths or len(depths) != len(channels) or any(c % 4 for c in channels):
            raise ValueError(
                f'RedNet needs one depth per stage, and one width that is a multiple of 4, got {depths=}, {channels=}'
            )

    def __init__(
        self,
        arch: int | str | Mapping = 50,
        in_channels: Count = 3,
        stem_channels: Count = 64,
        operator: Cfg = dict(type='mmext.Involution2d'),  # noqa: B006
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        zero_init_residual: bool = True,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        depths, channels = (self.architecture(arch)[key] for key in ('depths', 'channels'))
        super().__init__(out_indices, len(depths), frozen_stages, norm_eval, init_cfg)
        self.zero_init_residual = zero_init_residual
        half, acts = max(stem_channels // 2, 1), dict(act_cfg=with_num_channels(act_cfg, max(stem_channels // 2, 1)))
        plain: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.stem = Sequential(
            ConvModule(in_channels, half, 3, stride=2, padding=1, **acts, **plain),
            _spatial(half, 3, 1, operator, norm_cfg, act_cfg),
            ConvModule(half, stem_channels, 3, padding=1, act_cfg=with_num_channels(act_cfg, stem_channels), **plain),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stages, before = ModuleList(), stem_channels
        common: dict[str, Any] = dict(operator=operator, with_cp=with_cp, act_cfg=act_cfg, **plain)
        for stage in range(self.num_scales):
            blocks = []
            for i in range(depths[stage]):
                blocks.append(_Bottleneck(before, channels[stage], 2 if stage and not i else 1, **common))
                before = channels[stage]
            self.stages.append(Sequential(OrderedDict(blocks=Sequential(*blocks))))
        self.set_outputs([channels[i] for i in self.out_indices], [4 * 2**i for i in self.out_indices])
        self.finish()

    def draw(self) -> None:
        """Let each bottleneck start as its shortcut; the convolutions are drawn where they are made."""
        for module in self.modules():
            if self.zero_init_residual and isinstance(module, _Bottleneck) and hasattr(module.expand.norm, 'weight'):
                nn.init.zeros_(module.expand.norm.weight)


def _spatial(channels: int, size: int, stride: int, operator: dict, norm_cfg: dict, act_cfg: dict) -> ConvModule:
    """Return the operator with a norm and an activation behind it; it is told the norm and the activation for its inside."""
    cls = require(operator)
    inside = {key: cfg for key, cfg in (('norm_cfg', norm_cfg), ('act_cfg', act_cfg)) if accepts(cls, key)}
    return ConvModule(
        channels,
        channels,
        size,
        stride=stride,
        padding=size // 2,
        conv_cfg={**inside, **operator},
        norm_cfg=norm_cfg,
        act_cfg=with_num_channels(act_cfg, channels),
    )
