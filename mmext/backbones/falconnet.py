"""FalconNet: the LightNet architecture, into which any light block is put by config."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor

from mmext.arguments import Cfg, Count, DropRate, Repeats
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.light_block import LIGHT_BLOCKS
from mmext.registry import MODELS

__all__ = ['FalconNet']


class _Stem(BaseModule):
    """Four convolutions to stride 4: k x k with stride 2, depthwise, pointwise, depthwise with stride 2.

    (N, 3, H, W) to (N, C, ceil(H/4), ceil(W/4)). The shortcut spans the middle two, where the shapes match.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        shortcut: bool,
        conv_cfg: dict | None,
        norm_cfg: dict,
        act_cfg: dict | None,
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        both = dict(norm_cfg=norm_cfg, act_cfg=with_num_channels(act_cfg, channels))
        spatial = dict(kernel_size=3, padding=1, conv_cfg=conv_cfg, **both)
        self.conv = ConvModule(in_channels, channels, stride=2, **spatial)
        self.depthwise = ConvModule(channels, channels, groups=channels, **spatial)
        self.pointwise = ConvModule(channels, channels, 1, **both)
        self.subsample = ConvModule(channels, channels, stride=2, groups=channels, **spatial)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.pointwise(self.depthwise(x))
        return self.subsample(x + y if self.shortcut else y)


@MODELS.register_module()
class FalconNet(Backbone):
    """Light-weight backbone: LightNet with a pluggable block, by default the Meta Light Block with RepSO and RefCO.

    Cai and Shen, *FalconNet: Factorization for the Light-weight ConvNets*, 2023, arXiv 2306.06365.

    LightNet is a stem to stride 4 and stages of equal blocks; between the stages a 2x2 convolution with stride 2 and one
    group per input channel halves the size and widens the maps. Every stride lives in the stem or between stages, so any
    block that keeps its shape fits. Depths, widths, the stem's sequence and the subsampling are the paper's; the stem's
    width and the place of its shortcut, the expansion, RepSO's branches, RefCO's groups and the head's width are our
    reading, each an argument. No accuracy or size published for the paper's network is claimed for this one.

    Args:
        arch: ``'base'`` or ``dict(depths=..., channels=...)`` with one number per stage. Each width is a multiple of the one
            before.
        block: What the stages are made of: a config, a name of ``mmext.blocks.LIGHT_BLOCKS`` (e.g. ``'mobilenet_v2'``), or
            one of these per stage. A block takes ``channels``, ``drop_path_rate``, ``with_cp``, ``conv_cfg``,
            ``norm_cfg`` and ``act_cfg``, and keeps the shape of its input.
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, negative ones counted from the last. Stages after the last of them are
            not built, so that every parameter gets a gradient.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        head_channels: Width of a 1x1 convolution on top of the last stage's map, 1280 for the classifier of the paper's
            kind; None, as detection and segmentation want it, leaves it out.
        stem_shortcut: Whether the stem has its shortcut.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        out_norm: Norm of each returned map, behind the head where there is one.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the stem's k x k convolutions and of every spatial operator that is a plain ``Conv2d``, e.g.
            ``dict(type='mmext.RefConv2d')``, which turns a network trained with
            ``block=dict(type='mmext.MetaLightBlock', spatial=dict(type='Conv2d'))`` into its refocusing stage. 1x1 and
            subsampling convolutions, and operators with a name of their own, stay what they are.
        norm_cfg: Norm everywhere.
        act_cfg: Activation everywhere; ``num_channels`` is filled in where it takes it (``mmext.LENI``).
        init_cfg: As everywhere in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Sizes are rounded up, as the hosts' backbones do: H_0 = ceil(H/4),
        H_i = ceil(H_(i-1)/2). The subsampling fills an odd size with a row or column of zeros, which is ours.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Strides of the returned maps.

    Raises:
        ValueError: If ``arch``, ``out_indices``, ``frozen_stages``, ``block`` or ``head_channels`` contradict each other.

    Example:
        >>> net = FalconNet(out_indices=(2, 3))
        >>> [tuple(x.shape) for x in net(torch.randn(2, 3, 64, 64))]
        [(2, 128, 4, 4), (2, 256, 2, 2)]
    """

    example = dict(arch=dict(depths=(1, 2, 1), channels=(16, 32, 64)), out_indices=(0, 1, 2))

    #: By name; the widths and depths of 'base' are the paper's.
    arch_zoo = {'base': dict(depths=(3, 3, 9, 3), channels=(32, 64, 128, 256))}

    @staticmethod
    def arch_laws(depths: Sequence[Repeats], channels: Sequence[Count]) -> None:
        """State the laws of an architecture."""
        if not depths or len(depths) != len(channels):
            raise ValueError(f'FalconNet needs one positive depth and one width per stage, got {depths=}, {channels=}')
        if any(b % a for a, b in pairwise(channels)):
            raise ValueError(f'FalconNet needs each width to be a multiple of the one before, got {channels=}')

    def __init__(
        self,
        arch: str | dict = 'base',
        block: str | Cfg | Sequence[str | Cfg] = dict(type='mmext.MetaLightBlock'),  # noqa: B006
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        head_channels: Count | None = None,
        stem_shortcut: bool = True,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        depths, channels = (self.architecture(arch)[key] for key in ('depths', 'channels'))
        super().__init__(out_indices, len(depths), frozen_stages, norm_eval, init_cfg)
        blocks = _resolve_blocks(block, len(depths))
        num_stages = self.num_scales
        if head_channels is not None and num_stages < len(depths):
            raise ValueError(
                f'FalconNet puts head_channels={head_channels} on the last stage, which {out_indices=} does '
                'not return; add it to out_indices or drop head_channels'
            )

        self.stem = _Stem(in_channels, channels[0], stem_shortcut, conv_cfg, norm_cfg, act_cfg)
        rates = iter(self.drop_rates(drop_path_rate, sum(depths)))
        common = dict(with_cp=with_cp, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.stages = ModuleList()
        for i in range(num_stages):
            stage = OrderedDict()
            if i:
                before, here = channels[i - 1 : i + 1]
                # A row and a column of zeros behind the map: no window reaches them unless the size is odd.
                behind = dict(padding=(0, 1, 0, 1), padding_mode='zero')
                stage['subsample'] = ConvModule(
                    before, here, 2, stride=2, groups=before, norm_cfg=norm_cfg, act_cfg=None, **behind
                )
            stage['blocks'] = Sequential(
                *(
                    MODELS.build({**common, **blocks[i], 'channels': channels[i], 'drop_path_rate': next(rates)})
                    for _ in range(depths[i])
                )
            )
            self.stages.append(Sequential(stage))
        self.head = None
        widths = [channels[i] for i in self.out_indices]
        if head_channels is not None:
            self.head = ConvModule(
                channels[-1], head_channels, 1, norm_cfg=norm_cfg, act_cfg=with_num_channels(act_cfg, head_channels)
            )
            widths[-1] = head_channels
        self.set_outputs(widths, [4 * 2**i for i in self.out_indices], out_norm)
        self.finish()

    def outputs(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        *outs, last = maps
        return super().outputs((*outs, last if self.head is None else self.head(last)))


def _resolve_blocks(block: str | dict | Sequence[str | dict], num_stages: int) -> list[dict]:
    blocks = [block] * num_stages if isinstance(block, (str, dict)) else list(block)
    if len(blocks) != num_stages:
        raise ValueError(f'FalconNet needs one block or one per stage, got {len(blocks)} for {num_stages} stages')
    unknown = [b for b in blocks if isinstance(b, str) and b not in LIGHT_BLOCKS]
    if unknown:
        raise ValueError(f'FalconNet knows the blocks {sorted(LIGHT_BLOCKS)}, got {unknown[0]!r}; or pass a config')
    return [LIGHT_BLOCKS[b] if isinstance(b, str) else b for b in blocks]
