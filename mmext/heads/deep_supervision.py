"""Deep supervision: companions at inner maps predict too, and only training hears of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, NonNegative, at_most, checked, some
from mmext.contracts import shown_by
from mmext.errors import UsageError
from mmext.hosts import build_from_host
from mmext.registry import MODELS
from mmext.wrapping import build_wrapped, specialized, unspecialized, unwrapped, wraps_model

__all__ = [
    'ClsCompanion',
    'DenseCompanion',
    'OneVsRestHingeLoss',
    'deep_supervision_cls_head',
    'deep_supervision_detector',
]


#: A number of a map.
Index = Annotated[Natural, at_most(63)]


class _Companion(BaseModule):
    """What companions share: the map they see, and the term they add."""

    def __init__(self, in_index: Index, in_channels: Count, weight: NonNegative, gamma: NonNegative) -> None:
        super().__init__()
        self.in_index, self.in_channels, self.weight, self.gamma = in_index, in_channels, weight, gamma
        #: Set by mmext.CompanionWeightHook.
        self.companion_scale = 1.0

    def map_of(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the map that the companion sees."""
        shapes = [tuple(f.shape) for f in feats]
        if self.in_index >= len(feats) or shapes[self.in_index][1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} needs a map with in_channels={self.in_channels} channels at in_index='
                f'{self.in_index}, got maps of shapes {shapes}; let backbone=dict(out_indices=...) return that stage'
            )
        return feats[self.in_index]

    def term(self, loss: Tensor) -> Tensor:
        """Return what joins the losses of the model."""
        return self.weight * self.companion_scale * (loss - self.gamma).relu()

    def extra_repr(self) -> str:
        return f'in_index={self.in_index}, weight={self.weight}, gamma={self.gamma}'


@MODELS.register_module()
class OneVsRestHingeLoss(nn.Module):
    r"""The squared hinge of the margins between the right class and each other one.

    Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185.

    .. math:: L = \sum_{k \ne y} \max(0,\ 1 - (s_y - s_k))^2

    Args:
        loss_weight: Its factor.

    Shape:
        Scores (N, K) and labels (N,) to the mean over the images.

    Example:
        >>> OneVsRestHingeLoss()(torch.tensor([[2.0, 0.0, 1.5]]), torch.tensor([0]))
        tensor(0.2500)
    """

    def __init__(self, loss_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, cls_score: Tensor, label: Tensor, avg_factor: float | None = None, **kwargs: Any) -> Tensor:
        """Return the loss."""
        margin = (1 - cls_score.gather(1, label[:, None]) + cls_score).relu().square()
        others = margin.scatter(1, label[:, None], 0.0)
        return self.loss_weight * others.sum() / (avg_factor or len(label))


@MODELS.register_module()
class ClsCompanion(_Companion):
    """A companion that classifies the image by the mean of a map.

    Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185.

    Args:
        in_index: Which of the backbone's maps.
        in_channels: Its width.
        num_classes: Number of classes.
        weight: How much the companion counts. 0.3 is our choice.
        gamma: A loss below it adds nothing.
        head: Config of a head of mmpretrain that takes vectors; a linear one by default.

    Raises:
        ValueError: In ``loss``, if there is no such map.

    Example:
        >>> companion = ClsCompanion(in_index=0, in_channels=8, num_classes=3)
    """

    example = dict(in_index=0, in_channels=8, num_classes=3)

    def __init__(
        self,
        in_index: Index,
        in_channels: Count,
        num_classes: Count,
        weight: NonNegative = 0.3,
        gamma: NonNegative = 0.0,
        head: Cfg | None = None,
    ) -> None:
        super().__init__(in_index, in_channels, weight, gamma)
        sizes = dict(in_channels=in_channels, num_classes=num_classes)
        linear = dict(type='mmpretrain.LinearClsHead', loss=dict(type='mmpretrain.CrossEntropyLoss'))
        self.head: Any = build_from_host({**sizes, **(head or linear)}, 'ClsCompanion')

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores, (N, num_classes)."""
        return self.head((self._pooled(feats),))

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> Tensor:
        """Return the term."""
        return self.term(self.head.loss((self._pooled(feats),), data_samples, **kwargs)['loss'])

    def _pooled(self, feats: Sequence[Tensor]) -> Tensor:
        x = self.map_of(feats)
        return x if x.ndim == 2 else F.adaptive_avg_pool2d(x, 1).flatten(1)


class _SupervisedHead:
    """What a classification head does more with companions; stands before its own class."""

    companions: Any

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of the head, and a term of each companion."""
        losses = super().loss(feats, data_samples, **kwargs)  # type: ignore[misc]
        for i, companion in enumerate(self.companions):
            losses[f'loss_companion{i}'] = companion.loss(feats, data_samples, **kwargs)
        return losses

    def fold(self) -> nn.Module:
        """Return the head alone."""
        return unspecialized(self, _SupervisedHead, 'companions')  # type: ignore[arg-type]


@MODELS.register_module(name='DeepSupervisionClsHead')
@shown_by(
    head='mmpretrain.LinearClsHead',
    in_channels=8,
    num_classes=3,
    companions=[dict(in_index=0, in_channels=8)],
)
@partial(checked, owner='DeepSupervisionClsHead')
def deep_supervision_cls_head(
    head: str | Cfg, companions: Annotated[Sequence[dict], some], **head_args: Any
) -> nn.Module:
    r"""Any head of mmpretrain, with companions that classify the image by inner maps.

    Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185.

    ::

        image ── stage ──┬── stage ──┬── stage ── neck ── head ── loss ──────────────┐
                         └─ companion└─ companion ── weight * max(0, loss - gamma) ──┴── training only

    .. math:: L = L_{out} + \sum_m \alpha_m \max(0,\ L_m - \gamma_m)

    It is the host's own class with its state-dict keys, and ``companions`` beside them. Prediction and export know none of
    it, and folding leaves the head alone. :class:`mmext.CompanionWeightHook` lets the weights fade. As a diff::

        backbone=dict(out_indices=(1, 2, 3))
        head=dict(type='mmext.DeepSupervisionClsHead', head='LinearClsHead', companions=[dict(in_index=0, in_channels=512)])

    Args:
        head: The type of the head, or its config.
        companions: Arguments of a :class:`ClsCompanion` each; ``num_classes`` is the head's unless said.
        **head_args: Arguments of the head.

    Returns:
        The head.

    Raises:
        ValueError: In training, if a companion's map is not there.
        ImportError: If the scope of ``head`` is that of a package that is not installed.

    Example:
        >>> companions = [dict(in_index=0, in_channels=64)]
        >>> head = dict(type='mmext.DeepSupervisionClsHead', head='LinearClsHead', companions=companions)
    """
    cfg = {**head_args, **({'type': head} if isinstance(head, str) else head)}
    built = build_from_host(cfg, 'DeepSupervisionClsHead')
    if not callable(getattr(built, 'loss', None)) or not callable(getattr(built, 'predict', None)):
        raise UsageError(
            f'DeepSupervisionClsHead needs a head of mmpretrain with loss() and predict(), such as LinearClsHead, got '
            f'{type(built).__name__}'
        )
    defaults = {k: cfg[k] for k in ('num_classes',) if k in cfg}
    built.companions = nn.ModuleList(ClsCompanion(**{**defaults, **companion}) for companion in companions)
    return specialized(built, _SupervisedHead)


def _head_alone(cfg: Mapping[str, Any], fuse_bn: bool) -> dict[str, Any]:
    own = {k: v for k, v in cfg.items() if k not in ('type', 'head', 'companions')}
    head = cfg['head']
    return {**own, **({'type': head} if isinstance(head, str) else head)}


deep_supervision_cls_head.deployed_cfg = _head_alone


@MODELS.register_module()
class DenseCompanion(_Companion):
    """A companion that says of each place of a map which class its box has.

    The idea is that of Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185. Its form for detectors is ours. A
    place belongs to the smallest box around its center, and to none outside of all. The loss is the focal loss.

    Args:
        in_index: Which of the backbone's maps.
        in_channels: Its width.
        num_classes: Number of classes.
        channels: Width of the 3x3 convolution before the scores.
        weight: How much the companion counts. 0.4 is what mmseg gives to its auxiliary heads.
        gamma: A loss below it adds nothing.

    Shape:
        Maps to scores (N, num_classes, H, W) of its own.

    Raises:
        ValueError: In ``forward``, if there is no such map.

    Example:
        >>> companion = DenseCompanion(in_index=0, in_channels=8, num_classes=3)
        >>> companion([torch.randn(2, 8, 5, 6)]).shape
        torch.Size([2, 3, 5, 6])
    """

    example = dict(in_index=0, in_channels=8, num_classes=3)

    def __init__(
        self,
        in_index: Index,
        in_channels: Count,
        num_classes: Count,
        channels: Count = 64,
        weight: NonNegative = 0.4,
        gamma: NonNegative = 0.0,
    ) -> None:
        super().__init__(in_index, in_channels, weight, gamma)
        self.num_classes = num_classes
        self.hidden, self.scores = nn.Conv2d(in_channels, channels, 3, padding=1), nn.Conv2d(channels, num_classes, 1)
        bias: Any = self.scores.bias
        nn.init.constant_(bias, -4.6)  # a share of 0.01, as the hosts' heads start with the focal loss
        self.criterion: Any = build_from_host(dict(type='mmdet.FocalLoss'), 'DenseCompanion')

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores."""
        return self.scores(self.hidden(self.map_of(feats)).relu())

    def targets(self, size: Sequence[int], image: Sequence[int], sample: Any) -> Tensor:
        """Return the class of each place of a map of this size, (H, W); ``num_classes`` where there is no box."""
        truth = sample.gt_instances
        boxes: Tensor = getattr(truth.bboxes, 'tensor', truth.bboxes)
        found = torch.full(tuple(size), self.num_classes, dtype=torch.long, device=boxes.device)
        y, x = ((torch.arange(n, device=boxes.device) + 0.5) * whole / n for n, whole in zip(size, image, strict=True))
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for k in area.argsort(descending=True).tolist():
            left, top, right, bottom = boxes[k]
            inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
            found[inside] = truth.labels[k]
        return found

    def loss(self, feats: Sequence[Tensor], data_samples: list, image: Sequence[int]) -> Tensor:
        """Return the term; ``image`` is the size of the network's input."""
        scores = self(feats)
        targets = torch.stack([self.targets(scores.shape[2:], image, sample) for sample in data_samples]).flatten()
        boxes = (targets < self.num_classes).sum().clamp(min=1)
        flat = scores.permute(0, 2, 3, 1).reshape(-1, self.num_classes)
        return self.term(self.criterion(flat, targets, avg_factor=boxes))


class _SupervisedDetector:
    """What a detector does more with companions; stands before its own class."""

    companions: Any

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Any]:
        """Return the losses of the detector, and a term of each companion."""
        seen: list[Sequence[Tensor]] = []
        backbone: nn.Module = self.backbone  # type: ignore[attr-defined]
        handle = backbone.register_forward_hook(lambda module, args, maps: seen.append(maps))
        try:
            losses = super().loss(batch_inputs, batch_data_samples)  # type: ignore[misc]
        finally:
            handle.remove()
        for i, companion in enumerate(self.companions):
            losses[f'loss_companion{i}'] = companion.loss(seen[0], batch_data_samples, batch_inputs.shape[2:])
        return losses

    def fold(self) -> nn.Module:
        """Return the detector alone."""
        return unspecialized(self, _SupervisedDetector, 'companions')  # type: ignore[arg-type]


@MODELS.register_module(name='DeepSupervisionDetector')
@wraps_model('companions')
@shown_by(
    model='mmdet.RetinaNet',
    companions=[dict(in_index=0, in_channels=16, num_classes=3)],
    backbone=dict(type='mmext.FalconNet', arch=dict(depths=(1, 1), channels=(16, 16)), out_indices=(0, 1)),
    neck=None,
    bbox_head=dict(
        type='mmdet.RetinaHead',
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(type='mmdet.AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8]),
    ),
)
@partial(checked, owner='DeepSupervisionDetector')
def deep_supervision_detector(model: Any, companions: Annotated[Sequence[dict], some], **model_args: Any) -> nn.Module:
    """Any detector of mmdet, with companions at the backbone's maps that say the class of each place.

    The idea is that of Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185. Its form for detectors is ours.

    ::

        image ── stage ──┬── stage ──┬── stage ──┬── neck ── heads ── losses ────────────┐
                         └───────────┴───────────┴── companions ── weight * loss ────────┴── training only

    It is the host's own class with its state-dict keys, and ``companions`` beside them. As a diff on a stock config::

        model=dict(type='mmext.DeepSupervisionDetector', model='RetinaNet', companions=[dict(in_index=2, in_channels=1024)])

    Args:
        model: The type of the detector, or its config.
        companions: Arguments of a :class:`DenseCompanion` each.
        **model_args: Arguments of the detector.

    Returns:
        The detector.

    Raises:
        ValueError: If ``model`` is no detector with a backbone; in training, if a companion's map is not there.

    Example:
        >>> companions = [dict(in_index=2, in_channels=1024, num_classes=80)]
        >>> model = dict(type='mmext.DeepSupervisionDetector', model='mmdet.RetinaNet', companions=companions)
    """
    built = build_wrapped(model, model_args, 'DeepSupervisionDetector')
    if not isinstance(getattr(built, 'backbone', None), nn.Module) or not callable(getattr(built, 'loss', None)):
        raise UsageError(
            f'DeepSupervisionDetector needs a detector of mmdet with backbone and loss(), such as RetinaNet, got '
            f'{type(built).__name__}'
        )
    built.companions = nn.ModuleList(DenseCompanion(**companion) for companion in companions)
    return specialized(built, _SupervisedDetector)


def _detector_alone(cfg: Mapping[str, Any], fuse_bn: bool) -> Any:
    return unwrapped(cfg)


deep_supervision_detector.deployed_cfg = _detector_alone
