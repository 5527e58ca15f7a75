"""A second classifier on an inner map, which only learns beside the first."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from mmext.arguments import Cfg, NonNegative
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['AuxiliaryClsHead']


@MODELS.register_module()
class AuxiliaryClsHead(BaseModule):
    r"""Deep supervision of a classifier (the training of OverLoCK, and of many before it): an inner map predicts as well.

    .. math:: L = L_\mathrm{head} + \lambda\, L_\mathrm{auxiliary}

    ::

        backbone ── inner map ── pool ── auxiliary head ── loss_auxiliary   (in training alone)
              └──── last map ─── pool ── head ──────────── loss, predictions

    Both heads are mmpretrain's own. Predictions and scores are those of ``head``, and folding leaves it alone.

    Args:
        head: Config of the head on the last map.
        auxiliary: Config of the head on the map that comes ``from_index``-th.
        weight: :math:`\lambda`, 0.4 in OverLoCK.
        from_index: Which of the maps the auxiliary head reads.
        init_cfg: As in mmengine.

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: In training, if the backbone returns no map beside the last.

    Example:
        >>> linear = dict(type='mmpretrain.LinearClsHead', num_classes=3)
        >>> head = AuxiliaryClsHead(head=dict(linear, in_channels=8), auxiliary=dict(linear, in_channels=4))
        >>> head([torch.randn(2, 4), torch.randn(2, 8)]).shape
        torch.Size([2, 3])
    """

    example = dict(
        head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=8),
        auxiliary=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=4),
    )

    def __init__(
        self,
        head: Cfg,
        auxiliary: Cfg,
        weight: NonNegative = 0.4,
        from_index: int = 0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.head: Any = build_from_host(dict(head), type(self).__name__)
        self.auxiliary: Any = build_from_host(dict(auxiliary), type(self).__name__)
        self.weight = weight
        self.from_index = from_index

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Return what the head makes of the last map before its last layer."""
        return self.head.pre_logits(feats)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores of the head, (N, num_classes)."""
        return self.head(feats)

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of the head, and the weighted one of the auxiliary head as ``loss_auxiliary``."""
        if self.from_index not in range(-len(feats), len(feats) - 1) or self.from_index == -1:
            raise ValueError(
                f'AuxiliaryClsHead reads map {self.from_index} beside the last one, and {len(feats)} came; let the backbone '
                'return both, by out_indices or return_overview'
            )
        losses = self.head.loss(feats, data_samples, **kwargs)
        others = self.auxiliary.loss((feats[self.from_index],), data_samples, **kwargs)
        return {**losses, 'loss_auxiliary': self.weight * others['loss']}

    def predict(self, feats: Sequence[Tensor], data_samples: list | None = None) -> list:
        """Return the data samples with the predictions of the head."""
        return self.head.predict(feats, data_samples)

    def fold(self) -> Any:
        """Return the head alone."""
        return copy.deepcopy(self.head).train(self.training)

    @staticmethod
    def deployed_cfg(cfg: Mapping[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the head alone."""
        return dict(cfg['head'])
