"""PIIP: an image pyramid whose large images go through small networks, and which exchange features all the way.

The file is long because branches, groups, sums and scales each have laws that users meet as sentences.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Law, Natural, NonNegative, Positive, Repeats, at_most, check, some
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.piip import Exchange
from mmext.blocks.stepwise import Branch, NetworkBranch, Size, ViTBranch, draw_layers
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['PIIP']


_two_to_four = Law('with two to four entries', lambda value: 2 <= len(value) <= 4)


def _vit(dims: int, heads: int, rate: float, depth: int = 12, window: int = 14) -> dict[str, Any]:
    return dict(depth=depth, embed_dims=dims, num_heads=heads, window_size=window, drop_path_rate=rate)


class _Merge(nn.Module):
    """The sum of all branches at the size of the last, each behind convolutions and with a learned weight.

    Args:
        widths: Channels of the branches.
        deep: Whether each has two convolutions; otherwise all but the first have one, and the first has none.
        cfgs: Of the convolutions.
    """

    def __init__(self, widths: Sequence[int], deep: bool, cfgs: Mapping[str, Any]) -> None:
        super().__init__()
        width = widths[0]
        conv: dict[str, Any] = dict(kernel_size=3, padding=1, bias=False, **cfgs)
        self.branches = ModuleList()
        for i, before in enumerate(widths):
            layers = [ConvModule(before, width, **conv)] if deep or i else []
            if deep:
                layers.append(ConvModule(width, width, **conv))
            elif not i:
                norm, act = cfgs['norm_cfg'], cfgs['act_cfg']
                layers += [build_norm_layer(norm, width)[1], build_activation_layer(act)]
            self.branches.append(nn.Sequential(*layers))
        self.weights = nn.Parameter(torch.ones(len(widths)))

    def draw(self) -> None:
        """Start as a plain sum."""
        draw_layers(self)
        nn.init.ones_(self.weights)

    def forward(self, tokens: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """Return the map."""
        maps = []
        for x, size, branch in zip(tokens, sizes, self.branches, strict=True):
            y = branch(x.transpose(1, 2).unflatten(2, size))
            if size != sizes[-1]:
                y = F.interpolate(y, sizes[-1], mode='bilinear', align_corners=False)
            maps.append(y)
        return sum(y * weight for y, weight in zip(maps, self.weights, strict=True))


@MODELS.register_module()
class PIIP(Backbone):
    """PIIP: the largest network sees the smallest image, the smallest the largest, and neighbors exchange features.

    Zhu et al., *Parameter-Inverted Image Pyramid Networks*, NeurIPS 2024, arXiv 2406.04330.

    ::

        image x 0.3 ── large ViT ─ blocks ─┬─ blocks ─┬─ ... ─ 3x3 x 2 ─ resize ─┐
                                           ⇅          ⇅                          │
        image x 0.6 ── middle ViT ─ blocks ┼─ blocks ─┼─ ... ─ 3x3 x 2 ─ resize ─┼ weighted sum ─┬─ up 4 ── stride 4
                                           ⇅          ⇅                          │               ├─ up 2 ── stride 8
        image ──────── small ViT ─ blocks ─┴─ blocks ─┴─ ... ─ 3x3 x 2 ──────────┘               ├───────── stride 16
                                                                                                 └─ pool 2  stride 32

    At each arrow both branches take from what the other was before, by deformable attention and a feed-forward layer. The pair
    of the largest images comes first. All exchanges start as the identity.

    Any image size works: patches that the image does not fill are padded, and outputs are cut to the image's size.

    Args:
        arch: ``'TSB'``, ``'SBL'`` or ``'TSBL'`` for plain vision transformers, the names of the authors, or
            ``dict(branches=(...), interactions=12, sizes=(...))``. ``branches`` are two to four, the largest network first.
            Each is a config of a backbone, of mmext or a host, whose blocks are a series, or without ``type`` the arguments of
            :class:`mmext.blocks.stepwise.ViTBranch`. In either, ``groups`` lists how many blocks come before each exchange.
            ``interactions`` is the number of exchanges.
        sizes: Side of the image of each branch; only their ratios to the last count. By default those of the architecture.
        window_size: Side of the windows of branches without ``type``, in the place of their own; 0 for none.
        in_channels: Channels of the image.
        attention: ``'deform'``, or ``'dense'`` for attention to all tokens of the other branch.
        num_heads: Heads of it.
        num_points: Places that a head of the deformable attention looks at.
        value_ratio: Channels of its values, relative to the branch's.
        ffn_ratio: Channels inside of the feed-forward layer, relative to the branch's; 0 for none.
        interaction_drop_path: Drop probability of that layer.
        project: Whether features are mapped to the channels of the branch that takes them, before its norm.
        out_groups: Exchanges behind which branches are merged, beside the last; each gives a scale. By default the last sum
            gives four scales where the last branch has one stride, and otherwise each of its scales has a sum of its own.
        out_indices: Scales whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 what stands before the blocks of all branches, n also the blocks of as many
            quarters of the groups, or parts as there are scales. Exchanges and sums always learn.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        with_cp: Whether blocks and exchanges recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of the sums.
        norm_cfg: Norm of the sums and of the up-scaling.
        act_cfg: Activation of the sums.
        init_cfg: As in mmengine.

    Shape:
        (N, C, H, W) to a tuple of maps with the channels of the first branch. Strides follow from the last branch's.

    Raises:
        ValueError: If there are not two to four branches, sizes that do not rise with them, more exchanges than blocks, or
            heads that do not divide the channels; or if ``out_indices`` or ``frozen_stages`` lie outside of the scales.
        ImportError: If mmcv has no operators and ``attention`` is ``'deform'``; or if a host is not installed.

    Example:
        >>> small = dict(depth=2, embed_dims=16, num_heads=2)
        >>> arch = dict(branches=(dict(small, embed_dims=32), small), interactions=2, sizes=(32, 64))
        >>> net = PIIP(arch, num_heads=4, norm_cfg=dict(type='GN', num_groups=4))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(
            branches=(
                dict(depth=5, embed_dims=16, num_heads=2, pretrain_size=32),
                dict(depth=4, embed_dims=8, num_heads=2, window_size=3, pretrain_size=32),
            ),
            interactions=4,
            sizes=(32, 64),
        ),
        num_heads=4,
        interaction_drop_path=0.0,
        norm_cfg=dict(type='GN', num_groups=4),
    )

    #: Image sizes are those of one of the published detectors of each name.
    arch_zoo: ClassVar[Mapping[Any, Mapping[str, Any]]] = {
        'TSB': dict(branches=(_vit(768, 12, 0.15), _vit(384, 6, 0.05), _vit(192, 3, 0.05)), sizes=(448, 896, 1568)),
        'SBL': dict(
            branches=(_vit(1024, 16, 0.4, 24, 28), _vit(768, 12, 0.15, 12, 28), _vit(384, 6, 0.05, 12, 28)),
            sizes=(672, 896, 1568),
        ),
        'TSBL': dict(
            branches=(
                _vit(1024, 16, 0.4, 24, 28),
                _vit(768, 12, 0.15, 12, 28),
                _vit(384, 6, 0.05, 12, 28),
                _vit(192, 3, 0.05, 12, 28),
            ),
            sizes=(448, 672, 896, 1344),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping = 'TSB',
        sizes: Annotated[Sequence[Repeats], some] | None = None,
        window_size: Annotated[Natural, at_most(2**12)] | None = None,
        in_channels: Count = 3,
        attention: Literal['deform', 'dense'] = 'deform',
        num_heads: Repeats = 16,
        num_points: Annotated[Repeats, at_most(64)] = 4,
        value_ratio: Annotated[Positive, at_most(16)] = 0.5,
        ffn_ratio: Annotated[NonNegative, at_most(16)] = 0.25,
        interaction_drop_path: DropRate = 0.4,
        project: bool = True,
        out_groups: Sequence[Natural] | None = None,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type='GN', num_groups=32),  # noqa: B006
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        whole = self.architecture(arch)
        number, sides = whole['interactions'], tuple(sizes or whole['sizes'])
        if len(sides) != len(whole['branches']) or list(sides) != sorted(sides):
            raise ValueError(
                f'PIIP needs one of sizes for each of its {len(whole["branches"])} branches, rising from the largest network '
                f'to the smallest, got sizes={sides}'
            )
        branches = [_branch(dict(cfg), in_channels, window_size) for cfg in whole['branches']]
        for i, (branch, cfg) in enumerate(zip(branches, whole['branches'], strict=True), 1):
            branch.deal(cfg.get('groups'), number, f'branch {i}', with_cp)
        strides = branches[-1].strides
        flat = len(set(strides)) == 1
        taps = _taps(out_groups, strides)
        super().__init__(out_indices, len(taps), frozen_stages, norm_eval, init_cfg)
        self.sizes, self.number = sides, taps[self.out_indices[-1]] + 1
        for branch in branches:
            branch.keep(self.number)
        self.branches = ModuleList(branches)
        how: dict[str, Any] = dict(
            kind=attention,
            num_heads=num_heads,
            num_points=num_points,
            value_ratio=value_ratio,
            ffn_ratio=ffn_ratio,
            drop_path=interaction_drop_path,
            with_cp=with_cp,
        )
        self.exchanges = ModuleList(
            ModuleList(Exchange(a.widths[g], b.widths[g], project, **how) for a, b in pairwise(branches))
            for g in range(self.number)
        )
        self.taps = tuple(taps[i] for i in self.out_indices)
        self.merges = nn.ModuleDict()
        for g in sorted(set(self.taps)):
            widths = [branch.widths[g] for branch in branches]
            act = with_num_channels(act_cfg, widths[0])
            cfgs = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act)
            self.merges[str(g)] = _Merge(widths, flat and out_groups is None, cfgs)
        ups = [(2, 1, 0, -1)[i] if flat else 0 for i in self.out_indices]
        channels = [branches[0].widths[g] for g in self.taps]
        self.scales = nn.ModuleDict(
            {str(i): _scale(up, c, norm_cfg) for i, up, c in zip(self.out_indices, ups, channels, strict=True)}
        )
        self.set_outputs(channels, [round(strides[g] / 2**up) for g, up in zip(self.taps, ups, strict=True)])
        self._depths = self._depths_of_steps()
        self.finish()

    @staticmethod
    def arch_laws(
        branches: Annotated[Sequence[dict], _two_to_four],
        sizes: Annotated[Sequence[Repeats], some],
        interactions: Repeats = 12,
    ) -> None:
        """State the laws of an architecture."""

    def _depths_of_steps(self) -> dict[str, int]:
        """Return the depth of each block by its name; blocks of a group are spread over the longest of its branches."""
        names = {id(module): name for name, module in self.named_modules()}
        depths, offset = {}, 0
        self._ends = [0]
        for g in range(self.number):
            longest = max(len(branch.ranges[g]) for branch in self.branches)
            for branch in self.branches:
                steps, here = branch.steps, branch.ranges[g]
                for j, step in enumerate(here, 1):
                    depths[names[id(steps[step])]] = offset + ceil(j * longest / len(here))
            offset += longest
            self._ends.append(offset)
        return depths

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, for a layer-wise learning rate.

        What stands before the blocks is 0. Blocks follow group by group, those of the branches beside each other. Exchanges,
        sums and everything outside of the backbone come last.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: What the names of this backbone's parameters start with, e.g. ``'backbone.'``.
        """
        number = self._ends[-1] + 2
        name = param_name[len(prefix) :]
        if not param_name.startswith(prefix) or not name.startswith('branches.'):
            return number - 1, number
        parts = name.split('.')
        found = (self._depths.get('.'.join(parts[:i])) for i in range(len(parts), 0, -1))
        return next((depth for depth in found if depth is not None), 0), number

    def draw(self) -> None:
        """Draw the branches without a checkpoint; exchanges start as the identity, and sums without weights."""
        for branch in self.branches:
            if isinstance(branch, ViTBranch) and not branch.init_cfg:
                branch.draw()
        for exchange in (one for group in self.exchanges for one in group):
            exchange.draw()
        merge: Any
        for merge in self.merges.values():
            merge.draw()
        draw_layers(self.scales)

    def freeze(self) -> None:
        """Freeze what stands before the blocks, and the blocks of the first groups."""
        if self.frozen_stages < 0:
            return
        last = self._ends[self.number * self.frozen_stages // self.num_scales]
        for name, parameter in self.named_parameters():
            if self.get_layer_depth(name)[0] <= last:
                parameter.requires_grad_(False)
        for module in self.branches.modules():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                module.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, C, H, W), to the maps of ``out_indices``."""
        height, width = int(x.shape[2]), int(x.shape[3])
        tokens: list[Tensor] = []
        sizes: list[Size] = []
        for branch, side in zip(self.branches, self.sizes, strict=True):
            share = side / self.sizes[-1]
            small = (max(int(height * share), 1), max(int(width * share), 1))
            image = x if share == 1 else F.interpolate(x, small, mode='bilinear', align_corners=False)
            found, size = branch.begin(image)
            tokens.append(found)
            sizes.append(size)
        sums = {}
        for g, exchanges in enumerate(self.exchanges):
            for i, branch in enumerate(self.branches):
                tokens[i], sizes[i] = branch.advance(g, tokens[i], sizes[i])
            for i in reversed(range(len(exchanges))):
                tokens[i : i + 2] = exchanges[i](tokens[i], sizes[i], tokens[i + 1], sizes[i + 1])
            if g in self.taps:
                sums[g] = self.merges[str(g)](tokens, sizes)
        outs = [scale(sums[g]) for g, scale in zip(self.taps, self.scales.values(), strict=True)]
        return self.outputs(
            [y[..., : -(-height // s), : -(-width // s)] for y, s in zip(outs, self.out_strides, strict=True)]
        )


def _branch(cfg: dict[str, Any], in_channels: int, window_size: int | None) -> Branch:
    """Build a branch from its config."""
    cfg.pop('groups', None)
    if 'type' in cfg:
        return NetworkBranch(build_from_host(cfg, 'PIIP'))
    known = set(inspect.signature(ViTBranch).parameters) - {'in_channels'}
    if unknown := sorted(set(cfg) - known):
        raise ValueError(f'PIIP takes {sorted(known)} for a branch without type, got {unknown} as well')
    if window_size is not None:
        cfg['window_size'] = window_size
    check('PIIP', ViTBranch.__init__, (None,), cfg)
    return ViTBranch(in_channels, **cfg)


def _taps(out_groups: Sequence[int] | None, strides: Sequence[int]) -> list[int]:
    """Return the groups behind which the scales are taken."""
    number, flat = len(strides), len(set(strides)) == 1
    if flat and strides[0] % 4:
        raise ValueError(
            f'PIIP enlarges the last map by 4, so patch_size of the last branch must be a multiple, got {strides[0]}'
        )
    if out_groups is None:
        return [number - 1] * 4 if flat else [g for g in range(number) if strides[g + 1 : g + 2] != strides[g : g + 1]]
    taps = [*out_groups, number - 1]
    if taps != sorted(set(taps)) or (flat and len(taps) != 4):
        raise ValueError(
            f'PIIP needs ascending out_groups below {number - 1}, the last of its exchanges'
            + (', and three of them where the last branch has one stride' if flat else '')
            + f', got {out_groups=}'
        )
    return taps


def _scale(up: int, channels: int, norm_cfg: dict) -> nn.Module:
    """Return what makes a map larger by 2 ** up."""
    if up < 1:
        return nn.MaxPool2d(2, ceil_mode=True) if up else nn.Identity()
    layers: list[nn.Module] = [nn.ConvTranspose2d(channels, channels, 2, 2)]
    if up == 2:
        layers += [build_norm_layer(norm_cfg, channels)[1], nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, 2)]
    return nn.Sequential(*layers)
