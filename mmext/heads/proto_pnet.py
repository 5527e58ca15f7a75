"""ProtoPNet: a classifier that says which patch of which training image a part of the image looks like."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, NonNegative, Repeats
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['ProtoPNetHead']


@MODELS.register_module()
class ProtoPNetHead(BaseModule):
    r"""Every class has prototypes; the nearest patch to each of them votes.

    Chen et al., *This Looks Like That: Deep Learning for Interpretable Image Recognition*, NeurIPS 2019, arXiv 1806.10574.

    ::

        map ── add-on 1x1 ── patches z ── squared distance to each prototype ── smallest over places ── similarity ── linear
                                                                                     d                 log((d + 1)/(d + e))

    .. math::
        L = L_{CE} + 0.8\, \overline{\min_{\text{own}} d} - 0.08\, \overline{\min_{\text{others}} d}
            + 10^{-4} \sum_{\text{others}} |w|

    :class:`mmext.PrototypePushHook` trains it in stages, and makes each prototype a patch of a training image. ``source``
    holds which: number of the image, row and column in the map. ``tools/visualization/prototypes.py`` draws both.

    Args:
        num_classes: Number of classes.
        in_channels: Width of the map.
        prototypes_per_class: m; prototypes of one class follow each other.
        channels: Width of a prototype.
        add_on: ``'bottleneck'`` halves the width down to ``channels``, ``'regular'`` takes two convolutions.
        similarity: ``'log'`` as above, or ``'linear'``: the negative distance.
        cluster_weight: Pulls a patch of each image to a prototype of its class.
        separation_weight: Pushes patches from prototypes of other classes.
        sparsity_weight: Of the votes for other classes.
        loss: Config of the loss; mmpretrain's cross-entropy by default.
        topk: Which top-k accuracies to log with ``cal_acc``.
        cal_acc: Whether to log the training accuracy.
        init_cfg: As in every OpenMMLab module; Kaiming's by default.

    Shape:
        Maps, of which the last (N, in_channels, H, W) is used, to scores (N, num_classes).

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: In ``forward``, if the last map is none of that width.

    Example:
        >>> head = ProtoPNetHead(num_classes=3, in_channels=8, prototypes_per_class=2, channels=4)
        >>> head([torch.randn(2, 8, 6, 6)]).shape
        torch.Size([2, 3])
    """

    example = dict(num_classes=3, in_channels=8, prototypes_per_class=2, channels=4)
    epsilon = 1e-4

    prototype_class: Tensor
    kept: Tensor
    source: Tensor

    def __init__(
        self,
        num_classes: Count,
        in_channels: Count,
        prototypes_per_class: Repeats = 10,
        channels: Count = 128,
        add_on: Literal['bottleneck', 'regular'] = 'bottleneck',
        similarity: Literal['log', 'linear'] = 'log',
        cluster_weight: NonNegative = 0.8,
        separation_weight: NonNegative = 0.08,
        sparsity_weight: NonNegative = 1e-4,
        loss: Cfg | None = None,
        topk: Count | tuple[Count, ...] = (1,),
        cal_acc: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d', mode='fan_out', bias=0))
        self.num_classes, self.in_channels, self.similarity = num_classes, in_channels, similarity
        self.weights = (cluster_weight, separation_weight, sparsity_weight)
        number = num_classes * prototypes_per_class
        self.add_on = _add_on(in_channels, channels, add_on == 'bottleneck')
        self.prototypes = nn.Parameter(torch.rand(number, channels))
        self.last = nn.Linear(number, num_classes, bias=False)
        self.register_buffer('prototype_class', torch.arange(number) // prototypes_per_class)
        self.register_buffer('kept', torch.ones(number, dtype=torch.bool))
        self.register_buffer('source', torch.full((number, 3), -1))
        own = F.one_hot(self.prototype_class, num_classes).T
        self.last.weight.data.copy_(1.5 * own - 0.5)
        loss = loss or dict(type='mmpretrain.CrossEntropyLoss')
        cls_head = dict(type='mmpretrain.ClsHead', loss=loss, topk=topk, cal_acc=cal_acc)
        self.cls_head: Any = build_from_host(cls_head, type(self).__name__)

    def patches(self, feats: Sequence[Tensor]) -> Tensor:
        """Return what is compared with the prototypes, (N, channels, H, W), from 0 to 1."""
        x = feats[-1]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'ProtoPNetHead needs a last map (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}; set neck=None, '
                'and in_channels to the width of the backbone'
            )
        return self.add_on(x)

    def distances(self, patches: Tensor) -> Tensor:
        """Return the squared distance of each patch from each prototype, (N, prototypes, H, W)."""
        with torch.autocast(patches.device.type, enabled=False):
            z = patches if patches.dtype == torch.float64 else patches.float()
            cross = F.conv2d(z, self.prototypes[:, :, None, None])
            norms = self.prototypes.square().sum(1)[:, None, None]
            return (z.square().sum(1, keepdim=True) - 2 * cross + norms).relu()

    def similarity_of(self, distance: Tensor) -> Tensor:
        """Return how similar what is at a squared distance is."""
        return -distance if self.similarity == 'linear' else ((distance + 1) / (distance + self.epsilon)).log()

    def nearest(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the smallest squared distance over all places, (N, prototypes)."""
        return self.distances(self.patches(feats)).flatten(2).amin(2)

    def scores(self, nearest: Tensor) -> Tensor:
        """Return the scores that the prototypes give."""
        return self.last(self.similarity_of(nearest) * self.kept)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores, (N, num_classes)."""
        return self.scores(self.nearest(feats))

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of a batch: cross-entropy, and the three terms of the prototypes."""
        nearest = self.nearest(feats)
        losses = self.cls_head.loss((self.scores(nearest),), data_samples, **kwargs)
        labels = torch.stack([_label(sample) for sample in data_samples]).to(nearest.device)
        own = (labels[:, None] == self.prototype_class) & self.kept
        others = (labels[:, None] != self.prototype_class) & self.kept
        cluster, separation, sparsity = self.weights
        foreign = F.one_hot(self.prototype_class, self.num_classes).T == 0
        return {
            **losses,
            'loss_cluster': cluster * _mean_of_least(nearest, own),
            'loss_separation': -separation * _mean_of_least(nearest, others),
            'loss_sparsity': sparsity * (self.last.weight * foreign).abs().sum(),
        }

    def predict(self, feats: Sequence[Tensor], data_samples: list | None = None) -> list:
        """Return the data samples with predictions, as mmpretrain's heads do."""
        return self.cls_head.predict((self(feats),), data_samples)

    @torch.no_grad()
    def push(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> Tensor:
        """Make each prototype the nearest patch of the images of its class.

        Args:
            batches: Maps and labels of all training images, in their order.

        Returns:
            How far each prototype moved, (prototypes,); 0 for one whose class has no image.
        """
        best = self.prototypes.new_full((len(self.prototypes),), torch.inf)
        found, source = self.prototypes.clone(), self.source.clone()
        seen = 0
        for feats, labels in batches:
            z = self.patches(feats)
            distance = self.distances(z).masked_fill(
                (labels[:, None] != self.prototype_class)[:, :, None, None], torch.inf
            )
            least, place = distance.transpose(0, 1).flatten(1).min(1)
            image, row, column = _unravel(place, (len(z), *z.shape[2:]))
            better = least < best
            found[better] = z[image, :, row, column][better].to(found)
            source[better] = torch.stack([image + seen, row, column], 1)[better]
            best = torch.where(better, least.to(best), best)
            seen += len(z)
        moved = (found - self.prototypes).norm(dim=1)
        self.prototypes.copy_(found)
        self.source.copy_(source)
        return moved

    @torch.no_grad()
    def prune(
        self, batches: Iterable[tuple[Sequence[Tensor], Tensor]], nearest: int = 6, threshold: int = 3
    ) -> list[int]:
        """Take the vote from prototypes that many other classes come near to.

        Args:
            batches: Maps and labels of all training images.
            nearest: How many images, by their nearest patch, are looked at.
            threshold: A prototype stays if so many of them are of its class.

        Returns:
            The numbers of the prototypes that were pruned now.
        """
        pairs = [(self.nearest(feats), labels) for feats, labels in batches]
        distances, labels = torch.cat([d for d, _ in pairs]), torch.cat([y for _, y in pairs])
        closest = distances.topk(min(nearest, len(labels)), 0, largest=False)[1]
        stays = (labels[closest] == self.prototype_class).sum(0) >= threshold
        pruned = self.kept & ~stays
        self.kept &= stays
        self.last.weight[:, ~self.kept] = 0
        return pruned.nonzero().flatten().tolist()

    def extra_repr(self) -> str:
        return f'prototypes={len(self.prototypes)}, similarity={self.similarity!r}'


def _add_on(before: int, after: int, bottleneck: bool) -> nn.Sequential:
    """Return 1x1 convolutions with ReLU between them and a sigmoid at the end."""
    widths = [before]
    if bottleneck:
        while True:
            widths += [max(after, widths[-1] // 2)] * 2
            if widths[-1] == after:
                break
    else:
        widths += [after, after]
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Conv2d(one, other, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def _label(sample: Any) -> Tensor:
    """Return the class of a sample; where batch augmentation has mixed two, the larger one."""
    return sample.gt_score.argmax() if 'gt_score' in sample else sample.gt_label.flatten()[0]


def _mean_of_least(distance: Tensor, which: Tensor) -> Tensor:
    """Return the mean over images of the least distance among some prototypes; an image without any adds nothing."""
    least = distance.masked_fill(~which, torch.inf).amin(1)
    return torch.where(which.any(1), least, 0.0).mean()


def _unravel(place: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    _, height, width = shape
    return place // (height * width), place // width % height, place % width
