"""PointKptAssigner: targets of the key points of objects, on every level of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from mmext.arguments import above, below
from mmext.registry import TASK_UTILS

__all__ = ['KeyPointTargets', 'PointKptAssigner', 'gaussian_radius']


class KeyPointTargets(NamedTuple):
    """What the points of one image learn: scores (P, classes), offsets in strides (P, 2), and which are positive, (P,)."""

    scores: Tensor
    offsets: Tensor
    positive: Tensor


@TASK_UTILS.register_module()
class PointKptAssigner:
    r"""Every object has one positive point on every level, the nearest to its key point, and a Gaussian around it.

    Chi, Wei, Hu, *RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder*,
    NeurIPS 2020, arXiv 2010.15831.

    .. math:: s(p) = \exp\left(-\frac{|p - p^+|^2}{2 \sigma^2}\right), \qquad \sigma = \frac{2 r + 1}{6}

    r is the radius in pixels within which two corners may move, so that the box overlaps the true one by ``gaussian_iou``.
    A point takes the score of the object for which it is highest, in the column of that object's class. A positive point
    also learns the way to that object's key point.

    Args:
        gaussian_iou: The overlap from which the width of the Gaussians follows.

    Example:
        >>> level = torch.tensor([[4.0, 4.0, 8.0], [12.0, 4.0, 8.0]])  # x, y, stride
        >>> box = torch.tensor([[10.0, 2.0, 30.0, 22.0]])
        >>> targets = PointKptAssigner().assign([level], box[:, :2], box, torch.tensor([1]), num_classes=3)
        >>> targets.positive.tolist(), targets.offsets[1].tolist()
        ([False, True], [-0.25, -0.25])
    """

    def __init__(self, gaussian_iou: Annotated[float, above(0), below(1)] = 0.7) -> None:
        self.gaussian_iou = gaussian_iou

    def assign(
        self, points: Sequence[Tensor], gt_points: Tensor, gt_bboxes: Tensor, gt_labels: Tensor, num_classes: int
    ) -> KeyPointTargets:
        """Return the targets of one image, whose points are those of all levels one after the other.

        Args:
            points: For each level (P_l, 3), x and y in pixels and the stride.
            gt_points: Key points of the objects, (G, 2).
            gt_bboxes: Their boxes, (G, 4), from which the widths follow.
            gt_labels: Their classes, (G,).
            num_classes: Number of classes.
        """
        everywhere = torch.cat(list(points))
        scores = everywhere.new_zeros(len(everywhere), num_classes)
        offsets = everywhere.new_zeros(len(everywhere), 2)
        positive = torch.zeros(len(everywhere), dtype=torch.bool, device=everywhere.device)
        if not len(gt_points) or not len(everywhere):
            return KeyPointTargets(scores, offsets, positive)
        sides = (gt_bboxes[:, 2:] - gt_bboxes[:, :2]).clamp(min=0)
        sigma = (2 * gaussian_radius(sides[:, 1], sides[:, 0], self.gaussian_iou) + 1) / 6
        of_levels, first = [], 0
        for level in points:
            apart = level[:, None, :2] - gt_points
            nearest = apart.square().sum(2).argmin(0)
            apart = level[:, None, :2] - level[nearest, :2]
            of_levels.append((-apart.square().sum(2) / (2 * sigma.square())).exp())
            positive[first + nearest] = True
            first += len(level)
        highest, whose = torch.cat(of_levels).max(1)
        scores[torch.arange(len(scores), device=scores.device), gt_labels[whose]] = highest.to(scores)
        way = (gt_points[whose] - everywhere[:, :2]) / everywhere[:, 2:]
        return KeyPointTargets(scores, torch.where(positive[:, None], way.to(offsets), offsets), positive)


def gaussian_radius(height: Tensor, width: Tensor, overlap: float) -> Tensor:
    """Return how far the corners of boxes may move, so that the moved box still overlaps the box by ``overlap``.

    Both corners move inwards, outwards, or both the same way; the least of the three counts. As of CornerNet.
    """
    total, area = height + width, height * width
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap), -1),
        (4.0, 2 * total, area * (1 - overlap), -1),
        (4.0 * overlap, -2 * overlap * total, area * (overlap - 1), 1),
    )
    roots = [(b + sign * (b.square() - 4 * a * c).clamp(min=0).sqrt()) / (2 * a) for a, b, c, sign in cases]
    return torch.stack(roots).amin(0)
