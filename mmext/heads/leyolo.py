"""LeYOLODNiNHead: the light detection head of LeYOLO, on mmdet's assigner, losses and predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
from mmengine.model import BaseModule, ModuleList
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Positive, at_least, checked, some
from mmext.blocks.inverted_block import conv_norm_act
from mmext.contracts import shown_by
from mmext.hosts import build_from_host, derived, require_host
from mmext.registry import MODELS

__all__ = ['leyolo_dnin_head']

#: The weights with which the authors add up their losses.
_LOSSES = dict(
    loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=0.5),
    loss_bbox=dict(type='mmdet.CIoULoss', loss_weight=7.5),
    loss_dfl=dict(type='mmdet.DistributionFocalLoss', loss_weight=1.5),
)


class _LeYOLODNiNHead(BaseModule):
    """The head; its base is mmdet's ``BaseDenseHead``, whose predictions it has."""

    loss_cls: Any
    loss_bbox: Any
    loss_dfl: Any
    predict_by_feat: Any

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        strides: Sequence[int],
        reg_max: int,
        image_size: float,
        times_batch: bool,
        parts: dict[str, Any],
        losses: dict[str, dict],
        train_cfg: Any,
        test_cfg: Any,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg)
        from mmdet.registry import TASK_UTILS

        self.num_classes = self.cls_out_channels = num_classes
        self.in_channels, self.strides = tuple(in_channels), tuple(strides)
        self.reg_max, self.image_size, self.times_batch = reg_max, image_size, times_batch
        self.use_sigmoid_cls, self.num_base_priors = True, 1
        self.train_cfg, self.test_cfg = train_cfg or {}, test_cfg
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.prior_generator = TASK_UTILS.build(dict(type='MlvlPointGenerator', strides=list(strides), offset=0.5))
            self.bbox_coder = TASK_UTILS.build(dict(type='DistancePointBBoxCoder'))
            assigner = self.train_cfg.get('assigner')
            self.assigner = None if assigner is None else TASK_UTILS.build(assigner)
        for name, loss in losses.items():
            setattr(self, name, build_from_host(loss, 'LeYOLODNiNHead'))
        widths = max(in_channels[0], min(num_classes, 100)), max(in_channels[0] // 4, 4 * reg_max, 16)
        self.cls_branches, self.reg_branches = (
            ModuleList(_branch(channels, width, outs, parts) for channels in in_channels)
            for width, outs in zip(widths, (num_classes, 4 * reg_max), strict=True)
        )
        self.register_buffer('bins', torch.arange(reg_max, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self._draw_biases()

    def _draw_biases(self) -> None:
        """Let the first predictions be 5 objects in an image, with distances of some strides."""
        for scores, distances, stride in zip(self.cls_branches, self.reg_branches, self.strides, strict=True):
            nn.init.constant_(scores[-1].bias, math.log(5 / self.num_classes / (self.image_size / stride) ** 2))
            nn.init.ones_(distances[-1].bias)

    def init_weights(self) -> None:
        """Draw the biases; convolutions keep torch's start."""
        super().init_weights()
        if not self.init_cfg:
            self._draw_biases()

    def branches(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits of classes, (N, num_classes, H_l, W_l), and of distances, (N, 4 reg_max, H_l, W_l)."""
        if len(feats) != len(self.strides):
            raise ValueError(
                f'LeYOLODNiNHead has strides for {len(self.strides)} levels, got {len(feats)} maps; make in_channels, strides '
                "and the neck's outputs agree"
            )
        return tuple(  # type: ignore[return-value]
            [branch(x) for branch, x in zip(kind, feats, strict=True)]
            for kind in (self.cls_branches, self.reg_branches)
        )

    def _expected(self, logits: Tensor) -> Tensor:
        """Return the distances to left, top, right and bottom in strides, (N, 4, H, W)."""
        shape = (logits.shape[0], 4, self.reg_max, *logits.shape[2:])
        return (logits.reshape(shape).softmax(2) * self.bins).sum(2)

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits of classes, (N, num_classes, H_l, W_l), and distances in pixels, (N, 4, H_l, W_l), level by level."""
        scores, logits = self.branches(feats)
        return scores, [self._expected(x) * stride for x, stride in zip(logits, self.strides, strict=True)]

    def loss(self, x: Sequence[Tensor], batch_data_samples: list) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        from mmdet.models.utils import unpack_gt_instances

        truth, ignored, metas = unpack_gt_instances(batch_data_samples)
        return self.loss_by_feat(*self.branches(x), truth, metas, ignored)

    def loss_and_predict(
        self, x: Sequence[Tensor], batch_data_samples: list, proposal_cfg: Any = None
    ) -> tuple[dict[str, Tensor], list]:
        """Return the losses of a batch and its predictions."""
        metas = [sample.metainfo for sample in batch_data_samples]
        found = self.predict_by_feat(*self(x), batch_img_metas=metas, cfg=proposal_cfg)
        return self.loss(x, batch_data_samples), found

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        distances: Sequence[Tensor],
        batch_gt_instances: list,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of logits of classes and of distances; see :meth:`branches`."""
        from mmdet.utils import reduce_mean

        if self.assigner is None:
            raise ValueError(
                "LeYOLODNiNHead needs train_cfg=dict(assigner=dict(type='TaskAlignedAssigner', topk=10), alpha=0.5, beta=6) "
                f'to train, got {self.train_cfg}'
            )
        sizes = [x.shape[2:] for x in cls_scores]
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True)
        centers, strides = torch.cat(levels)[:, :2], torch.cat(levels)[:, 2:3]
        expected = [self._expected(x) for x in distances]
        scores, logits, sides = (
            torch.cat([x.float().flatten(2) for x in maps], 2).transpose(1, 2)
            for maps in (cls_scores, distances, expected)
        )
        sides = sides * strides
        boxes = torch.cat([centers - sides[..., :2], centers + sides[..., 2:]], -1)
        priors = torch.cat([centers - strides / 2, centers + strides / 2], 1)

        targets, chosen, qualities, true_boxes = torch.zeros_like(scores), [], [], []
        for i, truth in enumerate(batch_gt_instances):
            positive, gt, quality = self._assign(priors, boxes[i], scores[i], truth)
            targets[i, positive, truth.labels[gt]] = quality
            chosen.append(positive + i * len(priors))
            qualities.append(quality)
            true_boxes.append(truth.bboxes[gt].to(boxes))
        index, quality, true = torch.cat(chosen), torch.cat(qualities), torch.cat(true_boxes)
        total = reduce_mean(quality.sum()).clamp(min=1)

        place = index % len(priors)
        center, stride = centers[place], strides[place]
        wanted = torch.cat([center - true[:, :2], true[:, 2:] - center], 1) / stride
        wanted = wanted.clamp(0, self.reg_max - 1 - 0.01).flatten()
        bins = logits.flatten(0, 1)[index].reshape(-1, self.reg_max)
        each = quality[:, None].expand(-1, 4).flatten()
        losses = dict(
            loss_cls=self.loss_cls(scores.flatten(0, 1), targets.flatten(0, 1), avg_factor=total),
            loss_bbox=self.loss_bbox(boxes.flatten(0, 1)[index], true, weight=quality, avg_factor=total),
            loss_dfl=self.loss_dfl(bins, wanted, weight=each, avg_factor=4 * total),
        )
        times = len(batch_gt_instances) if self.times_batch else 1
        return {name: value * times for name, value in losses.items()}

    @torch.no_grad()
    def _assign(self, priors: Tensor, boxes: Tensor, scores: Tensor, truth: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return which places are positive, for which object each, and how good their predictions are.

        The best of an object has the quality of its overlap, the others less in the proportion of their alignment.
        """
        from mmengine.structures import InstanceData

        predicted = InstanceData(priors=priors, bboxes=boxes, scores=scores.sigmoid())
        powers = {name: self.train_cfg[name] for name in ('alpha', 'beta') if name in self.train_cfg}
        result = self.assigner.assign(predicted, truth, None, **powers)  # type: ignore[union-attr]
        (positive,) = torch.where(result.gt_inds > 0)
        gt = result.gt_inds[positive] - 1
        alignment, overlap = result.assign_metrics[positive], result.max_overlaps[positive]
        highest = [x.new_zeros(len(truth)).scatter_reduce(0, gt, x, 'amax')[gt] for x in (alignment, overlap)]
        return positive, gt, alignment / (highest[0] + 1e-9) * highest[1]


def _branch(channels: int, width: int, outs: int, parts: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        conv_norm_act(channels, width, 1, bias=False, **parts),
        conv_norm_act(width, width, 3, groups=width, bias=False, **parts),
        conv_norm_act(width, width, 3, groups=width, bias=False, **parts),
        nn.Conv2d(width, outs, 1),
    )


@MODELS.register_module(name='LeYOLODNiNHead')
@shown_by(num_classes=3, in_channels=(8, 8, 16))
@partial(checked, owner='LeYOLODNiNHead')
def leyolo_dnin_head(
    num_classes: Count,
    in_channels: Annotated[Sequence[Count], some],
    strides: Annotated[Sequence[Count], some] = (8, 16, 32),
    reg_max: Annotated[Count, at_least(2)] = 16,
    image_size: Positive = 640,
    times_batch: bool = True,
    conv_cfg: Cfg | None = None,
    norm_cfg: Cfg = dict(type='BN', eps=1e-3, momentum=0.03),  # noqa: B006
    act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
    loss_cls: Cfg | None = None,
    loss_bbox: Cfg | None = None,
    loss_dfl: Cfg | None = None,
    train_cfg: dict | None = None,
    test_cfg: dict | None = None,
    init_cfg: dict | list[dict] | None = None,
) -> nn.Module:
    """LeYOLO's head: 1 x 1 to few channels, depthwise 3 x 3 twice, 1 x 1; classes and distances apart, each level its own.

    Hollard et al., *LeYOLO, New Scalable and Efficient CNN Architecture for Object Detection*, 2024, arXiv 2406.14239.

    ::

        level ─┬─ 1x1 ── dw 3x3 ── dw 3x3 ── 1x1 ── num_classes logits
               └─ 1x1 ── dw 3x3 ── dw 3x3 ── 1x1 ── 4 x reg_max logits ── softmax, mean ── 4 distances

    A distance is the mean of 0, 1, ..., reg_max - 1 strides under the softmax. Training is that of YOLOv8 out of mmdet's
    parts: its ``TaskAlignedAssigner``, binary cross-entropy of all classes, CIoU and distribution focal loss. The target of
    a class is the alignment of the prediction, scaled so that the best of each object has its overlap. mmdet's assigner
    looks for the best places in the whole image, and drops those outside of the object afterwards. The authors' looks
    inside only.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of each level.
        strides: Stride of each level.
        reg_max: Number of bins of a distance.
        image_size: Side of the images in pixels, from which the start of the class biases follows.
        times_batch: Whether losses are multiplied by the images of the batch, as by the authors, whose learning rates go
            with it. With False they are means, as in other heads of mmdet.
        conv_cfg: Conv layer of all convolutions but the last ones.
        norm_cfg: Norm behind each of them.
        act_cfg: Activation.
        loss_cls: Loss of the classes; by default mmdet's cross-entropy with weight 0.5.
        loss_bbox: Loss of the boxes; CIoU with weight 7.5.
        loss_dfl: Loss of the distances' bins; distribution focal loss with weight 1.5.
        train_cfg: ``dict(assigner=dict(type='TaskAlignedAssigner', topk=10), alpha=0.5, beta=6)``.
        test_cfg: As of mmdet's dense heads.
        init_cfg: As in mmengine.

    Returns:
        A dense head of mmdet. Its ``forward`` gives logits of classes and distances in pixels, a list of levels each.

    Raises:
        ImportError: If mmdet is not installed.
        ValueError: If ``in_channels`` and ``strides`` have different lengths; in ``forward``, if another number of maps comes
            in; in ``loss``, if ``train_cfg`` names no assigner.

    Example:
        >>> head = leyolo_dnin_head(num_classes=3, in_channels=(8, 16), strides=(8, 16))
        >>> scores, distances = head([torch.randn(1, 8, 4, 5), torch.randn(1, 16, 2, 3)])
        >>> [tuple(x.shape) for x in distances]
        [(1, 4, 4, 5), (1, 4, 2, 3)]
    """
    require_host('mmdet', 'LeYOLODNiNHead derives from mmdet.BaseDenseHead')
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    if len(in_channels) != len(strides):
        raise ValueError(
            f'LeYOLODNiNHead needs a stride for each level, got {len(in_channels)} in_channels and {len(strides)} strides'
        )
    given = dict(loss_cls=loss_cls, loss_bbox=loss_bbox, loss_dfl=loss_dfl)
    return derived(_LeYOLODNiNHead, BaseDenseHead)(
        num_classes,
        in_channels,
        strides,
        reg_max,
        image_size,
        times_batch,
        dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg),
        {name: given[name] or loss for name, loss in _LOSSES.items()},
        train_cfg,
        test_cfg,
        init_cfg,
    )
