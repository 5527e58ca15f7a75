"""RCNet: a pyramid in one pass from fine to coarse, and a network that shifts channels across all of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Repeats, at_least, some
from mmext.necks._levels import check_maps, max_pool_half, max_pool_to, upsample_to, used_levels
from mmext.registry import MODELS

__all__ = ['RCFPN', 'CrossScaleShift', 'FusionNode', 'RevFP']

#: The order in which the channel groups look at the other levels.
SHIFTS = (1, -1, 2, -2)
XAVIER = dict(type='Xavier', layer='Conv2d', distribution='uniform')


class FusionNode(BaseModule):
    r"""Weigh the map of a level with the next coarser one, and then with the next finer output.

    With :math:`g_i` the mean of :math:`x_i` over the pixels, P their number, and F a convolution of the activated map:

    .. math:: A = P \,\mathrm{softmax}_P\big(\tau C^{-1/2}\, K * [x_1, x_2]\big), \qquad
              u = w x_1 + (1 - w)\, A \odot x_2, \quad w = \sigma(W [g_1, g_2])

    .. math:: y = F_2\big(w' F_1(u) + (1 - w') x_3\big), \quad w' = \sigma(W' [\overline{F_1(u)}, g_3])

    A node of two inputs returns :math:`F_2(u)`. At the start all gates are 1/2 and A is 1.

    Args:
        channels: C of all maps.
        inputs: Two or three.
        reweigh: Whether the pixels of :math:`x_2` are weighed by A; it is for a coarser map, not for a finer one.
        norm_cfg: Norm behind the convolutions of F.
        conv_cfg: Their type.
    """

    def __init__(self, channels: int, inputs: int, reweigh: bool, norm_cfg: dict | None, conv_cfg: dict | None) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2 * channels, 1, 1) for _ in range(inputs - 1))
        self.spatial = nn.Conv2d(2 * channels, 1, 3, padding=1) if reweigh else None
        if reweigh:
            self.temperature = nn.Parameter(torch.ones(1))
        plain: dict[str, Any] = dict(padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, inplace=False)
        order = ('act', 'conv', 'norm')
        self.pre_fusion = ConvModule(channels, channels, 3, order=order, **plain) if inputs == 3 else None
        self.post_fusion = ConvModule(channels, channels, 3, order=order, **plain)
        self.init_weights()

    def init_weights(self) -> None:
        """Let every gate start open by half, and deformable convolutions as they start themselves."""
        for conv in [*self.gates, *([] if self.spatial is None else [self.spatial])]:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        for block in filter(None, (self.pre_fusion, self.post_fusion)):
            if hasattr(block.conv, 'init_weights'):
                block.conv.init_weights()

    def forward(self, own: Tensor, other: Tensor, finer: Tensor | None = None) -> Tensor:
        """Fuse maps of one size."""
        mean = self._mean(other)
        if self.spatial is not None:
            logits = self.temperature * own.shape[1] ** -0.5 * self.spatial(torch.cat([own, other], 1))
            share = logits.flatten(2).softmax(-1) * (own.shape[2] * own.shape[3])
            other = share.view_as(logits) * other
        fused = self._weighed(0, own, self._mean(own), other, mean)
        if finer is not None:
            fused = _convolved(self.pre_fusion, fused)
            fused = self._weighed(1, fused, self._mean(fused), finer, self._mean(finer))
        return _convolved(self.post_fusion, fused)

    @staticmethod
    def _mean(x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    def _weighed(self, gate: int, x: Tensor, x_mean: Tensor, y: Tensor, y_mean: Tensor) -> Tensor:
        weight = self.gates[gate](torch.cat([x_mean, y_mean], 1)).sigmoid()
        return weight * x + (1 - weight) * y


def _convolved(block: Any, x: Tensor) -> Tensor:
    """Run a block; mmcv's deformable convolutions know no bfloat16, so under its autocast they run in full precision."""
    kind = x.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    if not half or not hasattr(block.conv, 'conv_offset'):
        return block(x)
    with torch.autocast(kind, enabled=False):
        return block(x.float())


def _check_convolution(owner: str, cfg: dict | None, channels: int) -> None:
    if cfg is None or 'DCN' not in str(cfg['type']):
        return
    try:
        import mmcv.ops  # noqa: F401  (registers the deformable convolutions)
    except ImportError as error:
        raise ImportError(
            f'{owner} convolves by {cfg["type"]} of mmcv.ops, which this mmcv was built without; install an mmcv with ops '
            '(MMCV_WITH_OPS=1; mmcv-lite has none), or set out_conv_cfg=None for plain convolutions'
        ) from error
    if channels % cfg.get('deform_groups', 1):
        raise ValueError(
            f'{owner} needs out_channels that deform_groups divides, got {channels} and out_conv_cfg={cfg}'
        )


@MODELS.register_module()
class RevFP(BaseModule):
    """Reverse feature pyramid: every level is fused with the next coarser map, then with the next finer output.

    Zong, Cao, Leng, *RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection*, ACM MM 2021,
    arXiv 2110.12130.

    ::

        map 0 ── 1x1 ── c0 ───────────────── node 0 ── output 0
                         c1 ── up ─────────────↑          │ max pool
        map 1 ── 1x1 ── c1 ───────────────── node 1 ←─────┘
                         c2 ── up ─────────────↑  └────── output 1 ── max pool ── node 2 ...
        map 2 ── 1x1 ── c2 ─ ...
                         └── 1x1, max pool ── c3 ── ...   (further levels)
        the last node has no coarser map: it weighs its own map with the output before it

    A node is :class:`FusionNode`. Up is bilinear, to the exact size. Further levels have half the size, rounded up.

    Args:
        in_channels: Channels of the maps.
        out_channels: Channels of every output.
        num_outs: Outputs, two at least. The authors' code has five.
        start_level: The first map that is used.
        end_level: The last map that is used, -1 for the last of all.
        norm_cfg: Norm behind each convolution. The authors train with BN at four images per GPU, or with GN.
        out_conv_cfg: Type of the 3x3 convolutions of the nodes; None is plain, and needs no operator of mmcv.
        init_cfg: As in mmengine. Gates start at 1/2, and deformable convolutions as they do by themselves.

    Shape:
        A sequence of maps to ``num_outs`` maps. Sizes need not halve exactly.

    Raises:
        ValueError: If the levels do not fit each other, ``deform_groups`` does not divide ``out_channels``, or other maps
            come in than ``in_channels`` names.
        ImportError: If ``out_conv_cfg`` is deformable and mmcv has no operators.

    Example:
        >>> neck = RevFP([8, 16], 8, num_outs=3, out_conv_cfg=None)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 8, 9, 6), torch.randn(1, 16, 5, 3)])]
        [(9, 6), (5, 3), (3, 2)]
    """

    example = dict(in_channels=(8, 16), out_channels=16, num_outs=3, out_conv_cfg=None)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count,
        num_outs: Annotated[Repeats, at_least(2)],
        start_level: Natural = 0,
        end_level: int = -1,
        *,
        norm_cfg: Cfg | None = None,
        out_conv_cfg: Cfg | None = dict(type='DCNv2', deform_groups=2),  # noqa: B006
        init_cfg: dict | list[dict] | None = XAVIER,
    ) -> None:
        super().__init__(init_cfg)
        owner = type(self).__name__
        self.used = used_levels(owner, in_channels, num_outs, start_level, end_level)
        _check_convolution(owner, out_conv_cfg, out_channels)
        self.in_channels, self.out_channels, self.num_outs = list(in_channels), out_channels, num_outs

        def lateral(width: int) -> ConvModule:
            return ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)

        # Lists of torch: those of mmengine would let ConvModule draw its weights anew, after init_cfg.
        self.lateral_convs = nn.ModuleList(lateral(in_channels[i]) for i in self.used)
        self.extra_convs = nn.ModuleList(lateral(out_channels) for _ in range(num_outs - len(self.used)))
        last = num_outs - 1
        self.nodes = ModuleList(
            FusionNode(out_channels, 2 if i in (0, last) else 3, i != last, norm_cfg, out_conv_cfg)
            for i in range(num_outs)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid, from fine to coarse."""
        check_maps(type(self).__name__, self.in_channels, inputs)
        maps = [conv(inputs[i]) for i, conv in zip(self.used, self.lateral_convs, strict=True)]
        for conv in self.extra_convs:
            maps.append(max_pool_half(conv(maps[-1])))
        outs: list[Tensor] = []
        for i, (node, own) in enumerate(zip(self.nodes, maps, strict=True)):
            coarser = [upsample_to(x, own.shape[2:]) for x in maps[i + 1 : i + 2]]
            finer = [_pooled(x, own) for x in outs[-1:]]
            outs.append(node(own, *coarser, *finer))
        return tuple(outs)


def _pooled(x: Tensor, like: Tensor) -> Tensor:
    """Pool to the size of the next level: over windows of two where the level is half, rounded up."""
    halves = all((size + 1) // 2 == half for size, half in zip(x.shape[2:], like.shape[2:], strict=True))
    return max_pool_half(x) if halves else max_pool_to(x, like.shape[2:])


class _Context(nn.Module):
    """A vector from the mean of all positions, weighed by a softmax over them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = nn.Conv2d(channels, 1, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        share = self.logits(x).flatten(2).softmax(-1)
        return self.project((x.flatten(2) @ share.transpose(1, 2).to(x.dtype)).unsqueeze(-1))


@MODELS.register_module()
class CrossScaleShift(BaseModule):
    r"""Shift channels across all levels of a pyramid, and add what pixels and levels have in common.

    Zong, Cao, Leng, *RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection*, ACM MM 2021,
    arXiv 2110.12130.

    ::

        level 0 ─ max pool ┐
        level 1 ───────────┤ at the size of level 1        ┌─ 1x1, norm, ReLU, 1x1 ─ + ── M_l
        level 2 ─ up ──────┤── X_l ── [groups of l+1, l-1, l+2, l-2; X_l] ──────────  ↑ X_l
        ...                ┘
        M_l + context of the pixels + context of the levels ── back to the size of level l ── + ── output l
                                                                                   level l ───↑

    Levels are counted in a circle. A group has ``1 / shift_ratio`` of the channels. A context is a projected mean: over
    the pixels of the mean level, or over the levels of the mean pixel, weighed by a softmax. Every level has convolutions
    of its own. Back is bilinear for level 0 and a max pool for the others.

    Args:
        in_channels: Channels of every level: one number, or equal numbers, one for each.
        num_outs: Levels, incoming and outgoing, two at least.
        shift_ratio: One channel of so many moves to each of four levels.
        norm_cfg: Norm between the two 1x1 convolutions.
        init_cfg: As in mmengine.

    Shape:
        A sequence of ``num_outs`` maps (N, C, H_l, W_l), finest first, to a tuple of the same shapes.

    Raises:
        ValueError: If the widths differ, ``shift_ratio`` does not divide them, or other maps come in.

    Example:
        >>> neck = CrossScaleShift(in_channels=16, num_outs=3)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 16, n, n) for n in (8, 4, 2)])]
        [(8, 8), (4, 4), (2, 2)]
    """

    example = dict(in_channels=16, num_outs=3)

    def __init__(
        self,
        in_channels: Count | Annotated[Sequence[Count], some],
        num_outs: Annotated[Repeats, at_least(2)],
        shift_ratio: Count = 16,
        norm_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = XAVIER,
    ) -> None:
        super().__init__(init_cfg)
        widths = [in_channels] * num_outs if isinstance(in_channels, int) else list(in_channels)
        channels = widths[0]
        if widths != [channels] * num_outs or channels % shift_ratio:
            raise ValueError(
                f'CrossScaleShift needs one width for all num_outs={num_outs} levels that shift_ratio={shift_ratio} divides, '
                f'got {in_channels=}; put a pyramid in front: neck=[dict(type="FPN", ...), dict(type="mmext.CrossScaleShift")]'
            )
        self.in_channels, self.out_channels, self.num_outs = widths, channels, num_outs
        self.part = channels // shift_ratio
        self.mixes = nn.ModuleList(
            nn.Sequential(
                ConvModule(channels + len(SHIFTS) * self.part, channels, 1, norm_cfg=norm_cfg, inplace=False),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(num_outs)
        )
        self.pixels, self.levels = _Context(channels), _Context(channels)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels with what the others add."""
        check_maps('CrossScaleShift', self.in_channels, inputs)
        middle = inputs[1]
        maps = [max_pool_to(inputs[0], middle.shape[2:]), *(upsample_to(x, middle.shape[2:]) for x in inputs[1:])]
        mixed = [x + mix(s) for x, mix, s in zip(maps, self.mixes, self.shifted(maps), strict=True)]
        mean = sum(mixed[1:], mixed[0]) / len(mixed)
        means = torch.stack([x.mean((2, 3)) for x in mixed], 2).unsqueeze(-1)
        common = self.pixels(mean) + self.levels(means)
        first, *others = [x + common for x in mixed]
        back = [
            upsample_to(first, inputs[0].shape[2:]),
            *(max_pool_to(o, x.shape[2:]) for o, x in zip(others, inputs[1:], strict=True)),
        ]
        return tuple(x + y for x, y in zip(inputs, back, strict=True))

    def shifted(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return for each level the channel groups of the levels around it, and behind them all of its own channels."""
        count, part = len(maps), self.part
        groups = [(step, slice(i * part, (i + 1) * part)) for i, step in enumerate(SHIFTS)]
        return [
            torch.cat([*(maps[(level + step) % count][:, group] for step, group in groups), maps[level]], 1)
            for level in range(count)
        ]


@MODELS.register_module()
class RCFPN(RevFP):
    """RCNet's neck: the reverse pyramid, and behind it the cross-scale shift.

    Zong, Cao, Leng, *RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection*, ACM MM 2021,
    arXiv 2110.12130.

    ::

        maps ── 1x1 ── RevFP: node 0 ── node 1 ── node 2 ── ...      fine to coarse, one pass
                             │          │          │
                       CrossScaleShift: all levels at the size of level 1, channels shifted, contexts added
                             │          │          │
                       output 0   output 1   output 2   ...

    In the place of FPN: ``neck=dict(_delete_=True, type='mmext.RCFPN', in_channels=[256, 512, 1024, 2048], ...)``.

    Args:
        *args: Those of :class:`RevFP`.
        shift_ratio: See :class:`CrossScaleShift`.
        **kwargs: Those of :class:`RevFP`.

    Shape:
        As :class:`RevFP`.

    Raises:
        ValueError: As :class:`RevFP` and :class:`CrossScaleShift`.
        ImportError: As :class:`RevFP`.

    Example:
        >>> neck = RCFPN([8, 16], 16, num_outs=3, out_conv_cfg=None)
        >>> [tuple(y.shape[2:]) for y in neck([torch.randn(1, 8, 9, 6), torch.randn(1, 16, 5, 3)])]
        [(9, 6), (5, 3), (3, 2)]
    """

    def __init__(self, *args: Any, norm_cfg: Cfg | None = None, shift_ratio: Count = 16, **kwargs: Any) -> None:
        super().__init__(*args, norm_cfg=norm_cfg, **kwargs)
        self.shift = CrossScaleShift(self.out_channels, self.num_outs, shift_ratio, norm_cfg)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the pyramid, from fine to coarse, and shift."""
        return self.shift(super().forward(inputs))
