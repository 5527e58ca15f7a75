"""Distillation: a second classifier learns what a trained teacher says of the image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Positive, Share, checked
from mmext.contracts import shown_by
from mmext.errors import UsageError
from mmext.hosts import build_from_host
from mmext.registry import MODELS
from mmext.wrapping import build_wrapped, specialized, unspecialized, unwrapped, wraps_model

__all__ = ['distilled_classifier']


class _Teacher:
    """A trained classifier that is no part of the model: no checkpoint, optimizer or process group knows of it.

    It is built at the first question, so that prediction does without it. A copy of the model asks one of its own.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = copy.deepcopy(dict(cfg))
        self.net: Any = None

    def __deepcopy__(self, memo: dict) -> _Teacher:
        return _Teacher(self.cfg)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Return what it says of the images that the student sees, (N, classes)."""
        if self.net is None:
            with torch.random.fork_rng(devices=[]):  # a resumed run builds it at another time
                self.net = build_from_host(copy.deepcopy(self.cfg), 'DistilledClassifier')
                self.net.init_weights()
            self.net.eval()
        return self.net.to(images.device)(images, mode='tensor')


def _both(head: Any, feats: Any) -> tuple[Tensor, Tensor]:
    """Return the scores of the two classifiers of a head of LeViT or DeiT."""
    seen = head.pre_logits(feats)
    first, second = seen if isinstance(seen, tuple) else (seen, seen)
    layers = getattr(head, 'layers', head)
    return layers.head(first), layers.head_dist(second)


class _Distilled:
    """What a classifier does more with a teacher; stands before its own class."""

    teacher: _Teacher
    distillation: tuple[float, str, float]

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Return the losses of the first classifier, and that of the second against the teacher."""
        share, mode, heat = self.distillation
        head: Any = self.head  # type: ignore[attr-defined]
        scores, distilled = _both(head, self.extract_feat(inputs))  # type: ignore[attr-defined]
        losses = head._get_loss(scores, data_samples)
        base = losses.pop('loss')
        taught = self.teacher.scores(inputs)
        if taught.shape != distilled.shape:
            raise ValueError(
                f'DistilledClassifier needs a teacher of the same classes, which gives scores {list(distilled.shape)}, got '
                f'{list(taught.shape)}; set num_classes of the teacher'
            )
        taught, distilled = taught.to(torch.float32), distilled.to(torch.float32)
        if mode == 'hard':
            term = F.cross_entropy(distilled, taught.argmax(1))
        else:
            term = F.kl_div(
                (distilled / heat).log_softmax(1), (taught / heat).log_softmax(1), reduction='sum', log_target=True
            )
            term = term * (heat**2 / distilled.numel())
        return dict(loss_cls=(1 - share) * base, loss_distill=share * term, **losses)

    def fold(self) -> nn.Module:
        """Return the classifier alone."""
        return unspecialized(self, _Distilled, 'teacher')  # type: ignore[arg-type]


_SMALL = dict(type='mmext.FalconNet', arch=dict(depths=(1, 1), channels=(8, 16)), out_indices=(1,))
_POOL = dict(type='mmpretrain.GlobalAveragePooling')


@MODELS.register_module(name='DistilledClassifier')
@wraps_model('teacher', 'share', 'mode', 'temperature')
@shown_by(
    model='mmpretrain.ImageClassifier',
    teacher=dict(
        type='mmpretrain.ImageClassifier',
        backbone=_SMALL,
        neck=_POOL,
        head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=16),
    ),
    backbone=_SMALL,
    neck=_POOL,
    head=dict(
        type='mmpretrain.LeViTClsHead', num_classes=3, in_channels=16, loss=dict(type='mmpretrain.CrossEntropyLoss')
    ),
)
@partial(checked, owner='DistilledClassifier')
def distilled_classifier(
    model: Any,
    teacher: Cfg,
    share: Share = 0.5,
    mode: Literal['hard', 'soft'] = 'hard',
    temperature: Positive = 1.0,
    **model_args: Any,
) -> nn.Module:
    r"""Any classifier of mmpretrain with two classifiers in its head: one learns the labels, one what a teacher says.

    Touvron et al., *Training data-efficient image transformers & distillation through attention*, ICML 2021,
    arXiv 2012.12877. LeViT and LSNet are trained so.

    ::

        images ─┬─ student ─┬─ head ────── loss against the labels ────── 1 - share ─┐
                │           └─ head_dist ─ loss against the teacher ───── share ─────┴─ sum
                └─ teacher ───────────────── its best class, or its scores

    .. math:: L = (1 - \alpha)\, L_{labels}(s) + \alpha\, \mathrm{CE}(s',\ \mathrm{argmax}\, t)

    In soft mode the last term is :math:`\tau^2 / NK` times the divergence of the softmax of t from that of s', both at the
    temperature :math:`\tau`. In prediction both classifiers are averaged, as the head does, and no teacher is built. The
    teacher sees the very images of the student, mixed ones too. It is no part of the model and of its checkpoints. As a diff::

        model=dict(type='mmext.DistilledClassifier', model='ImageClassifier', teacher=dict(type=..., init_cfg=...))

    Args:
        model: The type of the classifier, or its config. Its head is a ``LeViTClsHead`` with ``distillation=True``, or a
            ``DeiTClsHead``. mmpretrain trains neither.
        teacher: Config of a trained classifier. ``init_cfg`` or ``pretrained`` says where its weights are.
        share: :math:`\alpha`.
        mode: ``'hard'`` learns the teacher's best class, ``'soft'`` all of its scores.
        temperature: :math:`\tau`.
        **model_args: Arguments of the classifier.

    Returns:
        The classifier.

    Raises:
        ValueError: If the head has no second classifier; in training, if the teacher has other classes.

    Example:
        >>> teacher = dict(type='mmpretrain.TimmClassifier', model_name='regnety_160.deit_in1k', pretrained=True)
        >>> model = dict(type='mmext.DistilledClassifier', model='mmpretrain.ImageClassifier', teacher=teacher)
    """
    built: Any = build_wrapped(model, model_args, 'DistilledClassifier')
    head = getattr(built, 'head', None)
    if not hasattr(getattr(head, 'layers', head), 'head_dist') or not callable(getattr(built, 'extract_feat', None)):
        raise UsageError(
            'DistilledClassifier needs an ImageClassifier whose head has a second classifier, LeViTClsHead with '
            f'distillation=True or DeiTClsHead, got {type(built).__name__} with {type(head).__name__}'
        )
    built.teacher = _Teacher(teacher)
    built.distillation = (share, mode, temperature)
    return specialized(built, _Distilled)


def _student_alone(cfg: Mapping[str, Any], fuse_bn: bool) -> Any:
    return unwrapped(cfg)


distilled_classifier.deployed_cfg = _student_alone
