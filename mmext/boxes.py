"""A detector as a function from images to boxes, with non-maximum suppression inside, and its ONNX file.

The hosts filter, sort and suppress image by image, with lengths that depend on the data. Here the same is done for a whole
batch with lengths that depend on the shapes alone, so that it can be traced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.errors import reason
from mmext.export import RefusalError, onnxruntime_with_onnx, read_onnx, trace_onnx, unfinished

__all__ = ['Boxes', 'Detections', 'disagreement', 'export_boxes', 'predictions_of']


class Boxes(NamedTuple):
    """Boxes of a batch, (N, K, 4) as x1, y1, x2, y2 in pixels, scores and labels, (N, K); rows of no box have label -1."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detections(nn.Module):
    """A detector of mmdet as a function from images to :class:`Boxes`, after the host's own test settings.

    It serves one-stage detectors whose head predicts as the host's base class does (RetinaNet, FCOS, ATSS, RTMDet and more),
    and two-stage ones with an RPN and one box head (Faster R-CNN).

    Args:
        model: The detector, in eval mode.

    Raises:
        RuntimeError: If it is of another kind, or suppresses boxes by other means than plain NMS.

    Example:
        >>> Detections(nn.Identity())
        Traceback (most recent call last):
        RuntimeError: boxes inside a file are for detectors of mmdet, and Identity is none; export its tensor mode
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        _refuse_other_detectors(model)

    def forward(self, images: Tensor) -> Boxes:
        """Detect in ``images``, (N, 3, H, W), preprocessed."""
        size = torch._shape_as_tensor(images)[2:].to(images)
        limits = torch.stack([size[1], size[0], size[1], size[0]])
        features = self.model.extract_feat(images)
        if hasattr(self.model, 'bbox_head'):
            head = self.model.bbox_head
            boxes, scores, labels, _ = _candidates(head, head(features), limits, head.test_cfg)
            return _suppressed(boxes, scores, labels, labels, limits, head.test_cfg)
        head = self.model.rpn_head
        boxes, scores, _, levels = _candidates(head, head(features), limits, head.test_cfg)
        proposals = _suppressed(boxes, scores, levels, levels, limits, head.test_cfg)
        return self._second_stage(features, proposals, limits)

    def _second_stage(self, features: Sequence[Tensor], proposals: Boxes, limits: Tensor) -> Boxes:
        roi_head, cfg = self.model.roi_head, self.model.roi_head.test_cfg
        head, count = roi_head.bbox_head, proposals.boxes.shape[1]
        image = torch.arange(proposals.boxes.shape[0]).to(limits)[:, None, None].expand(-1, count, 1)
        rois = torch.cat([image, proposals.boxes], 2).reshape(-1, 5)
        pooled = _pooled(roi_head.bbox_roi_extractor, features, rois)
        if roi_head.with_shared_head:
            pooled = roi_head.shared_head(pooled)
        logits, deltas = head(pooled)
        classes = head.num_classes
        scores = logits.softmax(-1)[:, :-1].reshape(-1, count * classes)
        kinds = 1 if head.reg_class_agnostic else classes
        priors = rois[:, None, 1:].expand(-1, kinds, 4).reshape(-1, 4)
        boxes = head.bbox_coder.decode(priors, deltas.reshape(-1, 4)).reshape(-1, kinds, 4).expand(-1, classes, 4)
        boxes = _clipped(boxes.reshape(-1, count * classes, 4), limits)
        there = (proposals.labels >= 0)[:, :, None].expand(-1, count, classes).reshape(-1, count * classes)
        scores = torch.where((scores > cfg.score_thr) & there, scores, -torch.ones_like(scores))
        labels = torch.arange(classes).repeat(count).expand_as(scores)
        return _suppressed(boxes, scores, labels, labels, limits, cfg)


def _refuse_other_detectors(model: Any) -> None:
    """Refuse what :class:`Detections` would compute otherwise than its host.

    Raises:
        RuntimeError: In one sentence.
    """
    name = type(model).__name__
    if not hasattr(model, 'extract_feat') or not any(hasattr(model, part) for part in ('bbox_head', 'roi_head')):
        raise RuntimeError(
            f'boxes inside a file are for detectors of mmdet, and {name} is none; export its tensor mode'
        )
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        roi_head = model.roi_head
        usual = hasattr(getattr(roi_head, 'bbox_roi_extractor', None), 'map_roi_levels')
        if not usual or getattr(roi_head, 'with_mask', False) or hasattr(roi_head, 'num_stages'):
            raise RuntimeError(
                f'boxes inside a file are for two-stage detectors with one box head and no masks, not for the '
                f'{type(roi_head).__name__} of {name}; export its tensor mode'
            )
        cfgs = [model.rpn_head.test_cfg, roi_head.test_cfg]
    else:
        head: Any = getattr(model, 'bbox_head', None)
        methods = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        if head is None or any(getattr(type(head), m, None) is not getattr(BaseDenseHead, m) for m in methods):
            raise RuntimeError(
                f'boxes inside a file are for detectors that predict as the base class of the host does, not for {name} with '
                f'its {type(head).__name__}; export its tensor mode'
            )
        cfgs = [head.test_cfg]
    kinds = [cfg.get('nms', {}).get('type', 'nms') for cfg in cfgs]
    if wrong := [kind for kind in kinds if getattr(kind, '__name__', kind) != 'nms']:
        raise RuntimeError(f"boxes inside a file are for nms=dict(type='nms'), and {name} uses {wrong[0]}")


def _candidates(
    head: Any, outs: Sequence[Any], limits: Tensor, cfg: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, scores (-1 where there is none), labels and levels of the best ``nms_pre`` of each level."""
    logits, deltas, *factors = outs
    sizes = [level.shape[-2:] for level in logits]
    priors = head.prior_generator.grid_priors(sizes, dtype=logits[0].dtype, device=logits[0].device)
    found: list[list[Tensor]] = [[], [], [], []]
    classes, most = head.cls_out_channels, cfg.get('nms_pre', -1)
    for number, (logit, delta, prior) in enumerate(zip(logits, deltas, priors, strict=True)):
        batch = logit.shape[0]
        score = logit.permute(0, 2, 3, 1).reshape(batch, -1, classes)
        score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[..., :-1]
        columns = score.shape[2]
        delta = delta.permute(0, 2, 3, 1).reshape(-1, head.bbox_coder.encode_size)
        box = head.bbox_coder.decode(prior.expand(batch, *prior.shape).reshape(-1, prior.shape[-1]), delta)
        box = _clipped(box.reshape(batch, -1, 4), limits)
        factor = (
            factors[0][number].permute(0, 2, 3, 1).reshape(batch, -1).sigmoid()
            if factors
            else torch.ones_like(score[..., 0])
        )
        if most > 0:  # as many rows as the best can need, so that their number does not depend on the image
            rows = math.ceil(most / columns)
            score, box = F.pad(score, (0, 0, 0, rows), value=-1.0), F.pad(box, (0, 0, 0, rows))
            factor = F.pad(factor, (0, rows))
            best, index = score.reshape(batch, -1).topk(most)
        else:
            best = score.reshape(batch, -1)
            index = torch.arange(best.shape[1]).expand_as(best)
        row = torch.div(index, columns, rounding_mode='floor')
        box = box.gather(1, row[..., None].expand(-1, -1, 4))
        good = best > max(cfg.get('score_thr', 0), 0)
        if (least := cfg.get('min_bbox_size', -1)) >= 0:
            good = good & (box[..., 2:] - box[..., :2] > least).all(-1)
        score = torch.where(good, best * factor.gather(1, row), -torch.ones_like(best))
        for part, value in zip(found, (box, score, index % columns, torch.full_like(index, number)), strict=True):
            part.append(value)
    boxes, scores, labels, levels = (torch.cat(part, 1) for part in found)
    return boxes, scores, labels, levels


def _clipped(boxes: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def _suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, groups: Tensor, limits: Tensor, cfg: Mapping[str, Any]
) -> Boxes:
    """Return the best ``max_per_img`` boxes that no better one of their group overlaps."""
    nms, count = cfg['nms'], cfg['max_per_img']
    apart = groups.to(boxes) * (0.0 if nms.get('class_agnostic', False) else limits.max() + 1)
    kept = _NMS.apply(boxes + apart[..., None], scores[:, None], float(nms['iou_threshold']))
    flat = kept[:, 0] * scores.shape[1] + kept[:, 2]
    mask = torch.zeros_like(scores).reshape(-1).scatter(0, flat, torch.ones_like(flat).to(scores))
    scores = torch.where(mask.reshape_as(scores) > 0, scores, -torch.ones_like(scores))
    best, index = F.pad(scores, (0, count), value=-1.0).topk(count)
    there = best > 0
    boxes = F.pad(boxes, (0, 0, 0, count)).gather(1, index[..., None].expand(-1, -1, 4))
    labels = F.pad(labels, (0, count)).gather(1, index)
    zeros = torch.zeros_like(best)
    return Boxes(
        torch.where(there[..., None], boxes, zeros[..., None]),
        torch.where(there, best, zeros),
        torch.where(there, labels, -torch.ones_like(labels)),
    )


class _NMS(torch.autograd.Function):
    """ONNX's ``NonMaxSuppression``: boxes (N, K, 4) and scores (N, 1, K) give rows (image, 0, box) of what is kept."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
        from torchvision.ops import nms

        rows = []
        for number, (box, score) in enumerate(zip(boxes, scores[:, 0], strict=True)):
            (there,) = torch.where(score > 0)
            kept = there[nms(box[there], score[there], overlap)]
            rows.append(torch.stack([torch.full_like(kept, number), torch.zeros_like(kept), kept], 1))
        return torch.cat(rows)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, overlap: float) -> Any:
        most = g.op('Constant', value_t=torch.tensor([2**31 - 1], dtype=torch.int64))
        thresholds = [g.op('Constant', value_t=torch.tensor([value], dtype=torch.float32)) for value in (overlap, 0.0)]
        return g.op('NonMaxSuppression', boxes, scores, most, *thresholds)


def _pooled(extractor: Any, features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Pool each box from the level that suits its size; each level is asked for all of them."""
    from torchvision.ops import roi_align

    layers = extractor.roi_layers
    levels = extractor.map_roi_levels(rois, len(layers))
    pooled = None
    for number, (layer, feature) in enumerate(zip(layers, features, strict=False)):
        here = roi_align(
            feature,
            rois,
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        pooled = here if pooled is None else torch.where((levels == number)[:, None, None, None], here, pooled)
    assert pooled is not None
    return pooled


def _threshold_of(model: Any) -> Any:
    """Return the settings that hold the threshold for scores."""
    return (model.bbox_head if hasattr(model, 'bbox_head') else model.roi_head).test_cfg


@contextmanager
def _threshold(model: Any, value: float | None) -> Iterator[None]:
    """Let the detector keep scores above ``value`` instead of its own threshold."""
    cfg = _threshold_of(model)
    own = cfg.get('score_thr', 0)
    try:
        cfg['score_thr'] = own if value is None else value
        yield
    finally:
        cfg['score_thr'] = own


@torch.no_grad()
def predictions_of(model: Any, images: Tensor) -> list[Boxes]:
    """Return what the host itself predicts in each of ``images``, as :class:`Boxes` without an axis of images."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    samples = [DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0))) for _ in images]
    found = [sample.pred_instances for sample in model.predict(images, samples, rescale=False)]
    return [Boxes(f.bboxes, f.scores, f.labels) for f in found]


@torch.no_grad()
def disagreement(expected: Sequence[Boxes], found: Boxes, tolerance: float, size: Sequence[int]) -> float:
    """Return which share of two sets of predictions has no partner in the other.

    Partners have one label, boxes that differ by at most ``tolerance`` of the image and scores by at most ``tolerance``. Where
    two boxes overlap by nearly the threshold, or have nearly one score, rounding decides which of them is kept. So a small
    share is no error between two runtimes.
    """
    lonely = total = 0
    for image, ours in enumerate(expected):
        there = found.labels[image] >= 0
        theirs = Boxes(*(part[image][there] for part in found))
        pairs = (ours.labels[:, None] == theirs.labels) & ((ours.scores[:, None] - theirs.scores).abs() <= tolerance)
        apart = (ours.boxes[:, None] - theirs.boxes).abs().amax(-1) if pairs.numel() else pairs
        pairs = pairs & (apart <= tolerance * max(size))
        total += len(ours.labels) + len(theirs.labels)
        lonely += int((~pairs.any(1)).sum()) + int((~pairs.any(0)).sum())
    return lonely / max(total, 1)


NAMES = ['boxes', 'scores', 'labels']


def export_boxes(
    model: nn.Module,
    inputs: Tensor,
    path: str | PathLike,
    dynamic: bool = False,
    tolerance: float = 1e-3,
    share: float = 0.02,
) -> tuple[float, dict[int, str], str]:
    """Write a detector with boxes and NMS inside as ONNX, and compare it in onnxruntime with the host's own predictions.

    Two things are proved. In torch, :class:`Detections` predicts what the host does, but for a tenth of ``share`` at most. In
    onnxruntime, whose convolutions round otherwise, the file does so but for ``share``. The comparison is made with a
    threshold of 0 for the scores, because noise gives no boxes above a usual one, and the batch, height and width vary. What
    is not equal there becomes fixed.

    Args:
        model: A detector of mmdet in eval mode, on the CPU.
        inputs: Images, (N, 3, H, W), preprocessed.
        path: File to write.
        dynamic: Whether height and width are tried as free axes.
        tolerance: See :func:`disagreement`.
        share: Largest disagreement of the file that counts as equal.

    Returns:
        The largest disagreement, the free axes, and why no more are free.

    Raises:
        RuntimeError: If the detector is of another kind, or no file predicts the same.
    """
    onnxruntime_with_onnx()
    function, refusal, path = Detections(model).eval(), '', Path(path)
    tries = [{0: 'batch', 2: 'height', 3: 'width'}] if dynamic else []
    for axes in (*tries, {0: 'batch'}, {}):
        try:
            with unfinished(path) as partial:
                with _threshold(model, 0.0):
                    _write(function, inputs, axes, partial)
                    error = _prove(function, inputs, axes, partial, tolerance, share)
                _write(function, inputs, axes, partial)
                read_onnx(partial)(inputs)
            return error, axes, refusal
        except Exception as failure:  # exporters and runtimes raise nearly anything
            refusal = str(failure) if isinstance(failure, RefusalError) else reason(failure)
    raise RuntimeError(refusal)


def _write(function: nn.Module, inputs: Tensor, axes: dict[int, str], path: Path) -> None:
    free = {'images': axes, **{name: {0: 'batch'} for name in NAMES if 0 in axes}} if axes else None
    with torch.no_grad():
        trace_onnx(function, inputs, path, free, input_names=['images'], output_names=NAMES)


def _prove(
    function: Detections, inputs: Tensor, axes: dict[int, str], path: Path, tolerance: float, share: float
) -> float:
    run, worst, model = read_onnx(path), 0.0, function.model
    batch, channels, height, width = inputs.shape
    shapes = [(batch, height, width)]
    shapes += [(n, height, width) for n in (1, 3) if n != batch] if 0 in axes else []
    shapes += [(1, height + 32, width), (batch, height, width + 64)] if 2 in axes else []
    for seed, (n, rows, columns) in enumerate(shapes):
        images = torch.randn(n, channels, rows, columns, generator=torch.Generator().manual_seed(seed))
        expected = predictions_of(model, images)
        if not any(len(image.labels) for image in expected):
            raise RefusalError('the model itself finds no box in images of noise, so that nothing can be compared')
        try:
            found = Boxes(*run(images))
        except Exception as failure:
            raise RefusalError(f'it fails on {tuple(images.shape)}, {reason(failure)}') from failure
        with torch.no_grad():
            logic = disagreement(expected, function(images), tolerance, (rows, columns))
        if logic > share / 10:
            raise RefusalError(
                f'on {tuple(images.shape)} {logic:.1%} of the boxes are not those of the host, in torch itself'
            )
        error = disagreement(expected, found, tolerance, (rows, columns))
        if error > share:
            raise RefusalError(f'on {tuple(images.shape)} {error:.1%} of its boxes are not those of the host')
        worst = max(worst, error)
    return worst
