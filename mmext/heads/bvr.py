"""RelationNet++: pixels of a dense head attend to key points of objects, before the head predicts.

The file is longer than others: the head that finds key points and the bridge that uses them are one system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few, Natural, Positive, Repeats, at_least, at_most, checked, some
from mmext.blocks.bvr import Geometry, Relation
from mmext.contracts import shown_by
from mmext.heads.pair_head import REFUSED, Pick
from mmext.hosts import HOSTS, build_from_host, derived, require_host
from mmext.registry import MODELS, TASK_UTILS, require

__all__ = ['KeypointHead', 'bvr_head']

#: Where the key points of a box, (x1, y1, x2, y2), lie.
POINTS = {
    'top_left_corner': lambda boxes: boxes[:, :2],
    'bottom_right_corner': lambda boxes: boxes[:, 2:],
    'center': lambda boxes: (boxes[:, :2] + boxes[:, 2:]) / 2,
}
Kinds = Sequence[Literal['top_left_corner', 'bottom_right_corner', 'center']]
Maps = dict[str, list[Tensor]]


class KeyPoints(NamedTuple):
    """The best key points of a level: scores (N, K), places in pixels (N, K, 2), and the pixels they come from (N, K)."""

    scores: Tensor
    places: Tensor
    pixels: Tensor


@MODELS.register_module()
class KeypointHead(BaseModule):
    """Key points of objects as heat maps: for each class a score, and one offset, at every pixel of every level.

    Chi, Wei, Hu, *RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder*,
    NeurIPS 2020, arXiv 2010.15831.

    ::

        level ── 3x3 convs (shared by all kinds) ─┬─ 3x3 convs of the kind ─┬─ 3x3 convs ── 3x3 ── num_classes scores
                                                  │                         └─ 3x3 convs ── 3x3 ── 2 offsets in strides
                                                  └─ ... of the next kind

    Weights are shared by all levels. The authors' corner pooling, which no configuration of theirs uses, is left out.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the levels.
        feat_channels: Channels inside.
        stacked_convs: Convolutions of each kind.
        shared_stacked_convs: Convolutions before, for all kinds.
        logits_convs: Convolutions before each prediction.
        strides: Stride of each level.
        kinds: Which key points: of ``'top_left_corner'``, ``'bottom_right_corner'``, ``'center'``.
        assigner: What makes the targets.
        loss_cls: Loss of the scores, after the sigmoid.
        loss_offset: Loss of the offsets of positive points.
        conv_cfg: Conv layer of all convolutions but the last.
        norm_cfg: Norm behind them.
        init_cfg: As in mmengine. Without it kernels start as N(0, 0.01), and scores at 0.01.

    Shape:
        A sequence of (N, in_channels, H_l, W_l) to two dicts with a list of levels for each kind:
        (N, num_classes, H_l, W_l) and (N, 2, H_l, W_l).

    Raises:
        ImportError: If mmdet, which has the losses, is not installed.
        ValueError: In ``forward``, if there are not as many maps as strides.

    Example:
        >>> head = KeypointHead(num_classes=3, in_channels=8, feat_channels=8, strides=(8, 16))
        >>> scores, offsets = head([torch.randn(1, 8, 4, 5), torch.randn(1, 8, 2, 3)])
        >>> tuple(scores['center'][1].shape), tuple(offsets['center'][1].shape)
        ((1, 3, 2, 3), (1, 2, 2, 3))
    """

    example: Mapping[str, Any] = dict(num_classes=3, in_channels=8, feat_channels=8)

    def __init__(
        self,
        num_classes: Count,
        in_channels: Count,
        feat_channels: Count = 256,
        stacked_convs: Annotated[Few, at_least(0)] = 2,
        shared_stacked_convs: Annotated[Few, at_least(0)] = 0,
        logits_convs: Annotated[Few, at_least(0)] = 1,
        strides: Annotated[Sequence[Count], some] = (8, 16, 32, 64, 128),
        kinds: Annotated[Kinds, some] = ('top_left_corner', 'bottom_right_corner', 'center'),
        assigner: Cfg = dict(type='mmext.PointKptAssigner'),  # noqa: B006
        loss_cls: Cfg = dict(type='mmdet.GaussianFocalLoss', loss_weight=0.25),  # noqa: B006
        loss_offset: Cfg = dict(type='mmdet.SmoothL1Loss', beta=1.0, loss_weight=1.0),  # noqa: B006
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.strides, self.kinds = num_classes, tuple(strides), tuple(dict.fromkeys(kinds))
        self.assigner: Any = TASK_UTILS.build(dict(assigner))
        self.loss_cls, self.loss_offset = (build_from_host(dict(c), 'KeypointHead') for c in (loss_cls, loss_offset))
        width = feat_channels

        def convs(number: int, before: int, outs: int | None = None) -> nn.ModuleList:
            layers: list[nn.Module] = [
                ConvModule(width if i else before, width, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
                for i in range(number)
            ]
            if outs is not None:
                layers.append(nn.Conv2d(width if number else before, outs, 3, padding=1))
            return nn.ModuleList(layers)

        self.shared_layers = convs(shared_stacked_convs, in_channels)
        after = width if shared_stacked_convs else in_channels
        inner = width if stacked_convs else after
        self.keypoint_layers = nn.ModuleDict({kind: convs(stacked_convs, after) for kind in self.kinds})
        self.keypoint_cls_heads, self.keypoint_offset_heads = (
            nn.ModuleDict({kind: convs(logits_convs, inner, outs) for kind in self.kinds}) for outs in (num_classes, 2)
        )
        self._draw()

    def _draw(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layers in self.keypoint_cls_heads.values():
            nn.init.constant_(layers[-1].bias, bias_init_with_prob(0.01))  # type: ignore[index]

    def init_weights(self) -> None:
        """Draw the start again, or apply ``init_cfg`` where there is one."""
        super().init_weights()
        if not self.init_cfg:
            self._draw()

    def forward(self, feats: Sequence[Tensor]) -> tuple[Maps, Maps]:
        """Return logits of the scores, and offsets in strides."""
        if len(feats) != len(self.strides):
            raise ValueError(
                f"KeypointHead has strides for {len(self.strides)} levels, got {len(feats)} maps; make strides and the neck's "
                'outputs agree'
            )
        scores: Maps = {kind: [] for kind in self.kinds}
        offsets: Maps = {kind: [] for kind in self.kinds}
        for x in feats:
            x = _passed(self.shared_layers, x)
            for kind in self.kinds:
                own = _passed(self.keypoint_layers[kind], x)
                scores[kind].append(_passed(self.keypoint_cls_heads[kind], own))
                offsets[kind].append(_passed(self.keypoint_offset_heads[kind], own))
        return scores, offsets

    def points(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Return the points of each level in pixels, with its stride, (H_l W_l, 3), row by row."""
        found = []
        for x, stride in zip(like, self.strides, strict=True):
            rows, columns = (torch.arange(n, device=x.device) * stride + stride // 2 for n in x.shape[2:])
            y, x_ = torch.meshgrid(rows, columns, indexing='ij')
            found.append(torch.stack([x_, y, torch.full_like(y, stride)], -1).reshape(-1, 3).to(_wide(x)))
        return found

    def key_points(self, scores: Sequence[Tensor], offsets: Sequence[Tensor], number: int) -> list[KeyPoints]:
        """Return the ``number`` best key points of each level, fewer where it has fewer pixels, for one kind.

        Only the highest score of 3 x 3 pixels counts. Gradients pass through the places.
        """
        found = []
        for x, offset, points, stride in zip(scores, offsets, self.points(scores), self.strides, strict=True):
            heat = x.sigmoid()
            heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
            most = min(number, heat.shape[2] * heat.shape[3])
            best, pixels = heat.flatten(2).topk(most, 2)
            best, order = best.flatten(1).topk(most, 1)
            pixels = pixels.flatten(1).gather(1, order)
            way = _gathered(offset.flatten(2).transpose(1, 2), pixels)
            found.append(KeyPoints(best, points[pixels, :2] + way.to(points) * stride, pixels))
        return found

    def loss(self, scores: Maps, offsets: Maps, batch_gt_instances: Sequence[Any]) -> dict[str, Tensor]:
        """Return the losses of all kinds together; an image may have no objects."""
        from mmdet.utils import reduce_mean

        points = self.points(scores[self.kinds[0]])
        targets = [
            self.assigner.assign(
                points, POINTS[kind](truth.bboxes), truth.bboxes, truth.labels, num_classes=self.num_classes
            )
            for kind in self.kinds
            for truth in batch_gt_instances
        ]
        wanted, ways, positive = (torch.stack(part) for part in zip(*targets, strict=True))
        flat = [
            torch.cat([torch.cat([x.flatten(2) for x in maps[kind]], 2) for kind in self.kinds])
            .transpose(1, 2)
            .to(wanted)
            for maps in (scores, offsets)
        ]
        number = reduce_mean(positive.sum().float()).clamp(min=1)
        weight = positive[..., None].expand_as(ways).float()
        return dict(
            loss_point_cls=self.loss_cls(flat[0].sigmoid(), wanted, avg_factor=number),
            loss_point_offset=self.loss_offset(flat[1], ways, weight=weight, avg_factor=number),
        )


def _passed(layers: Any, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _wide(x: Tensor) -> torch.dtype:
    """Return the type for places in pixels: that of ``x``, or single precision where ``x`` has half."""
    return torch.promote_types(x.dtype, torch.float32)


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index``, (N, K), of (N, P, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


class _Tower(nn.ModuleList):
    """The stacked convolutions of a host's head, which the head, going through them, finds done already."""

    def __init__(self, layers: Sequence[nn.Module], index: int) -> None:
        super().__init__(layers)
        self.index = index

    def __iter__(self) -> Any:
        return iter([Pick(self.index)])

    def run(self, x: Tensor) -> Tensor:
        """Pass ``x`` through the convolutions."""
        return _passed(self._modules.values(), x)


class _BVRHead(BaseModule):
    """The bridge; its base is a dense head of mmdet, which predicts from what the bridge gives."""

    cls_convs: Any
    reg_convs: Any
    prior_generator: Any
    feat_channels: int
    in_channels: int
    num_classes: int

    def __init__(self, options: Mapping[str, Any], head_args: Mapping[str, Any]) -> None:
        with DefaultScope.overwrite_default_scope(str(options['scope']) if options['scope'] in HOSTS else None):
            super().__init__(**head_args)
        self.options = options
        for index, name in enumerate(('cls_convs', 'reg_convs')):
            branch = getattr(self, name, None)
            if not isinstance(branch, nn.ModuleList):
                raise ValueError(
                    f'BVRHead needs a head that passes a level through {name}, and {type(self).__name__} has {branch}; take '
                    'RetinaHead, FCOSHead or ATSSHead'
                )
            setattr(self, name, _Tower(list(branch), index))
        channels, heads = self.feat_channels, options['num_heads']
        if channels % heads or channels % 4:
            raise ValueError(
                f'BVRHead needs feat_channels that num_heads and 4 divide, got feat_channels={channels}, num_heads={heads}'
            )
        self.strides_of_levels = tuple(int(pair[0]) for pair in self.prior_generator.strides)
        from_input = options['keypoint_source'] == 'input'
        self.keypoint_head: Any = MODELS.build(
            {
                'type': 'mmext.KeypointHead',
                'num_classes': self.num_classes,
                'in_channels': self.in_channels if from_input else channels,
                'feat_channels': channels,
                'strides': self.strides_of_levels,
                **options['keypoint_head'],
            }
        )
        kinds = {'cls': tuple(options['cls_kinds']), 'reg': tuple(options['reg_kinds'])}
        if unknown := sorted({*kinds['cls'], *kinds['reg']} - set(self.keypoint_head.kinds)):
            raise ValueError(
                f'BVRHead attends to {unknown[0]}, which its key point head does not find; it has {self.keypoint_head.kinds}'
            )

        def geometry() -> Geometry:
            return Geometry(channels, heads, options['base_size'], options['log_scale'])

        def relation(part: str, other: Any) -> Any:
            if not kinds[part]:
                return None
            own: Any = None
            if options['geometry'] and other is not None and options['share_geometry'] == 'all':
                own = other.geometry
            elif options['geometry'] and options['share_geometry']:
                own = geometry()
            elif options['geometry']:
                own = nn.ModuleList(geometry() for _ in kinds[part])
            cat = part == 'reg' and options['cat_positions']
            return Relation(channels, heads, len(kinds[part]), own, options['appearance'], cat)

        self.cls_relation = relation('cls', None)
        self.reg_relation = relation('reg', self.cls_relation)

    def bridge(self, feats: Sequence[Tensor]) -> tuple[list[tuple[Tensor, Tensor]], Maps, Maps]:
        """Return the pairs (cls, reg) from which the host's head predicts, and scores and offsets of the key points."""
        cls, reg = ([tower.run(x) for x in feats] for tower in (self.cls_convs, self.reg_convs))
        source = {'input': feats, 'cls': cls, 'reg': reg}[self.options['keypoint_source']]
        scores, offsets = self.keypoint_head(source)
        found = {
            kind: self.keypoint_head.key_points(scores[kind], offsets[kind], self.options['max_keypoints'])
            for kind in {*self.options['cls_kinds'], *self.options['reg_kinds']}
        }
        if self.cls_relation is not None:
            cls = self._related(self.cls_relation, cls, [found[kind] for kind in self.options['cls_kinds']])
        if self.reg_relation is not None:
            reg = self._related(self.reg_relation, reg, [found[kind] for kind in self.options['reg_kinds']])
        return list(zip(cls, reg, strict=True)), scores, offsets

    def _related(self, relation: Any, maps: list[Tensor], found: list[list[KeyPoints]]) -> list[Tensor]:
        strides = self.strides_of_levels
        features, places = zip(*(self._keys(maps, levels) for levels in found), strict=True)
        units = [s * self.options['scale_factor'] for s in strides]
        units = units if self.options['scale_position'] else units[:1] * len(units)
        return relation(maps, features, places, strides, units)

    def _keys(self, maps: Sequence[Tensor], levels: Sequence[KeyPoints]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features and places of the key points that each level attends to."""
        features, places = [], [level.places for level in levels]
        height, width = maps[0].shape[2:]
        image = places[0].new_tensor([width, height]) * self.strides_of_levels[0]
        for x, level in zip(maps, levels, strict=True):
            if self.options['selection'] == 'index':
                features.append(_gathered(x.flatten(2).transpose(1, 2), level.pixels))
            else:
                grid = (level.places * 2 / image - 1)[:, None].to(x.dtype)
                sampled = F.grid_sample(x, grid, padding_mode='border', align_corners=False)
                features.append(sampled[:, :, 0].transpose(1, 2))
        if most := self.options['cross_level_topk']:
            scores = torch.cat([level.scores for level in levels], 1)
            index = scores.topk(min(most, scores.shape[1]), 1).indices
            features = [_gathered(torch.cat(features, 1), index)] * len(maps)
            places = [_gathered(torch.cat(places, 1), index)] * len(maps)
        return features, places

    def forward(self, x: Sequence[Any]) -> Any:
        """Return what the host's head gives for the levels; pairs that passed the bridge are taken as they are."""
        pairs = self.bridge(x)[0] if isinstance(x[0], Tensor) else x
        return super().forward(pairs)

    def loss(self, x: Sequence[Tensor], batch_data_samples: list) -> dict[str, Any]:
        """Return the losses of the host's head and of the key points."""
        pairs, scores, offsets = self.bridge(x)
        losses = super().loss(pairs, batch_data_samples)
        return {**losses, **self._point_losses(scores, offsets, batch_data_samples)}

    def loss_and_predict(
        self, x: Sequence[Tensor], batch_data_samples: list, proposal_cfg: Any = None
    ) -> tuple[dict[str, Any], list]:
        """Return the losses and the predictions of the host's head, and the losses of the key points."""
        pairs, scores, offsets = self.bridge(x)
        losses, found = super().loss_and_predict(pairs, batch_data_samples, proposal_cfg)
        return {**losses, **self._point_losses(scores, offsets, batch_data_samples)}, found

    def _point_losses(self, scores: Maps, offsets: Maps, samples: list) -> dict[str, Tensor]:
        return self.keypoint_head.loss(scores, offsets, [sample.gt_instances for sample in samples])


@MODELS.register_module(name='BVRHead')
@shown_by(head='mmdet.RetinaHead', in_channels=16, feat_channels=16, num_classes=3, base_size=(8, 8))
@partial(checked, owner='BVRHead')
def bvr_head(
    head: str | Cfg,
    keypoint_head: dict | None = None,
    keypoint_source: Literal['input', 'cls', 'reg'] = 'input',
    cls_kinds: Kinds = ('center',),
    reg_kinds: Kinds = ('top_left_corner', 'bottom_right_corner'),
    max_keypoints: Repeats = 20,
    cross_level_topk: Annotated[Natural, at_most(2**12)] = 50,
    selection: Literal['index', 'interpolation'] = 'index',
    num_heads: Repeats = 8,
    appearance: bool = True,
    geometry: bool = True,
    share_geometry: Literal['kinds', 'all'] | None = 'kinds',
    base_size: tuple[Annotated[Repeats, at_least(2)], Annotated[Repeats, at_least(2)]] = (400, 400),
    log_scale: bool = True,
    scale_position: bool = False,
    scale_factor: Positive = 1.0,
    cat_positions: bool = False,
    **head_args: Any,
) -> nn.Module:
    """A dense head of mmdet whose pixels attend to key points of objects before it predicts.

    Chi, Wei, Hu, *RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder*,
    NeurIPS 2020, arXiv 2010.15831.

    ::

        level ─┬─ cls convs ── F_cls ── attention to centers ─────────── + ── ReLU ── the host's class predictor
               │                        ↑ the 50 best of all levels
               ├─ key point head ── scores, offsets (trained, too)
               │                        ↓ the 50 best of all levels
               └─ reg convs ── F_reg ── attention to both corners ────── + ── ReLU ── the host's box predictor

    It is the host's own class with a bridge in it, so its code, losses and predictions hold, and a stock checkpoint fits.
    As a diff on a stock config::

        bbox_head=dict(type='mmext.BVRHead', head='RetinaHead')

    Args:
        head: The type of the head, or its config, which takes precedence over ``head_args``.
        keypoint_head: Arguments of :class:`KeypointHead` other than those that the head tells.
        keypoint_source: What the key point head reads: the levels, or what comes out of the stacked convolutions.
        cls_kinds: To which kinds of key points class features attend; none leaves them as they are.
        reg_kinds: The same for box features.
        max_keypoints: Candidates of each level and kind.
        cross_level_topk: So many best ones of all levels are the keys of every level. With 0 a level has its own.
        selection: The feature of a key point: of its pixel, or interpolated at its place.
        num_heads: Heads of each attention.
        appearance: Whether products of queries and keys count.
        geometry: Whether the way to a key point counts.
        share_geometry: ``'kinds'``: class features have one function of ways, and box features one. ``'all'``: both have the
            same, as the authors' ATSS. None: each kind has its own.
        base_size: Width and height of the area of ways that are told apart, in units.
        log_scale: Whether the function of ways has a logarithm.
        scale_position: Whether a unit is the stride of the level, and not that of the finest.
        scale_factor: Times so much.
        cat_positions: Whether box features take in the mean way to what they attend to.
        **head_args: Arguments of the head.

    Returns:
        The head, with the modules ``keypoint_head``, ``cls_relation`` and ``reg_relation``, and the further losses
        ``loss_point_cls`` and ``loss_point_offset``.

    Raises:
        ValueError: If the head is no dense head with ``cls_convs`` and ``reg_convs``, ``num_heads`` or 4 do not divide its
            ``feat_channels``, or a kind is not among those of the key point head.
        ImportError: If mmdet is not installed.

    Example:
        >>> args = dict(num_classes=3, in_channels=16, feat_channels=16, base_size=(8, 8))
        >>> head = bvr_head('mmdet.RetinaHead', **args)
        >>> scores, deltas = head([torch.randn(1, 16, s, s) for s in (16, 8, 4, 2, 1)])
        >>> tuple(scores[0].shape)
        (1, 27, 16, 16)
    """
    cfg = {**head_args, **({'type': head} if isinstance(head, str) else head)}
    kind = cfg.pop('type')
    scope = kind.partition('.')[0] if isinstance(kind, str) and '.' in kind else ''
    if scope in HOSTS:
        require_host(scope, f'BVRHead builds {kind}')
    base = require(kind)
    if not isinstance(base, type) or not hasattr(base, 'forward_single') or not hasattr(base, 'loss_by_feat'):
        raise ValueError(f'BVRHead needs a dense head of mmdet, such as RetinaHead, FCOSHead or ATSSHead, got {kind!r}')
    for name in (b.__name__ for b in base.__mro__):
        if name in REFUSED:
            raise ValueError(f'{name} cannot take a pair: it {REFUSED[name]}; take RetinaHead, FCOSHead or ATSSHead')
    options = dict(
        scope=base.__module__.partition('.')[0],
        keypoint_head=dict(keypoint_head or {}),
        keypoint_source=keypoint_source,
        cls_kinds=tuple(cls_kinds),
        reg_kinds=tuple(reg_kinds),
        max_keypoints=max_keypoints,
        cross_level_topk=cross_level_topk,
        selection=selection,
        num_heads=num_heads,
        appearance=appearance,
        geometry=geometry,
        share_geometry=share_geometry,
        base_size=tuple(base_size),
        log_scale=log_scale,
        scale_position=scale_position,
        scale_factor=scale_factor,
        cat_positions=cat_positions,
    )
    return derived(_BVRHead, base)(options, cfg)
