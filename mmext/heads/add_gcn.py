"""ADD-GCN: a graph over the labels, which every image draws anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, Share
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['MultiLabelADDGCNHead']


@MODELS.register_module()
class MultiLabelADDGCNHead(BaseModule):
    r"""Labels exchange what they see over a static graph, and over one that depends on the image.

    Ye et al., *Attention-Driven Dynamic Graph Convolutional Network for Multi-Label Image Recognition*, ECCV 2020,
    arXiv 2012.02994.

    ::

        map ──┬── 1x1 ── maps of K classes A ──┬── largest value ─────────────────────────────── score 1 ──┐
              │                                └── sigmoid ──┐                                             ├── mean
              └── 1x1 ── T ──────────────────── T M' = V ────┴── static graph ── dynamic graph ── score 2 ──┘
                                                 (D, K)            V1 = V + f(V)     A_d = s(V1)

    With V of D features per label,

    .. math::
        V_1 = V + \phi(W_s\, \phi(A_s V^T)^T), \quad A_d = \sigma(W_a [\phi(\mathrm{BN}(W_g \bar V_1));\ V_1]), \quad
        Z = \phi(W_d\, \phi(V_1 A_d)) + V, \quad s_2 = w_k \cdot Z_k + b_k

    :math:`\phi` is a leaky ReLU of slope 0.2. The authors compute all K x K scores and mask all but the diagonal. Here only
    the diagonal is computed. Losses and predictions are those of mmpretrain's ``MultiLabelClsHead``.

    Args:
        num_classes: K.
        in_channels: Width of the map.
        channels: D.
        top: How many of the largest values of a class map make score 1, as their mean.
        loss: Config of the loss; mmpretrain's cross-entropy with sigmoids by default.
        thr: Predicted are labels with a score from here on.
        topk: Predicted are so many labels. Give one of the two.
        norm_cfg: Of the norm in the dynamic graph. A batch norm trains with two images at least.
        init_cfg: As in every OpenMMLab module.

    Shape:
        Maps, of which the last (N, in_channels, H, W) is used, to scores (N, num_classes).

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: In ``forward``, if the last map is none of that width.

    Example:
        >>> head = MultiLabelADDGCNHead(num_classes=5, in_channels=8, channels=4)
        >>> head([torch.randn(2, 8, 6, 6)]).shape
        torch.Size([2, 5])
    """

    example = dict(num_classes=3, in_channels=8, channels=8)

    def __init__(
        self,
        num_classes: Count,
        in_channels: Count = 2048,
        channels: Count = 1024,
        top: Repeats = 1,
        loss: Cfg | None = None,
        thr: Share | None = None,
        topk: Count | None = None,
        norm_cfg: Cfg = {'type': 'BN1d'},  # noqa: B006, it is never changed
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.in_channels, self.channels, self.top = num_classes, in_channels, channels, top
        self.class_maps = nn.Conv2d(in_channels, num_classes, 1, bias=False)
        self.transform = nn.Conv2d(in_channels, channels, 1)
        self.static_adjacency = nn.Conv1d(num_classes, num_classes, 1, bias=False)
        self.static_weight = nn.Conv1d(channels, channels, 1)
        self.whole = nn.Conv1d(channels, channels, 1)
        self.whole_norm = build_norm_layer(norm_cfg, channels)[1]
        self.dynamic_adjacency = nn.Conv1d(2 * channels, num_classes, 1)
        self.dynamic_weight = nn.Conv1d(channels, channels, 1)
        self.score = nn.Linear(channels, num_classes)  # row k for label k alone
        loss = loss or dict(type='mmpretrain.CrossEntropyLoss', use_sigmoid=True)
        cls_head = dict(type='mmpretrain.MultiLabelClsHead', loss=loss, thr=thr, topk=topk)
        self.cls_head: Any = build_from_host(cls_head, type(self).__name__)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores, the mean of the two."""
        x = feats[-1]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'MultiLabelADDGCNHead needs a last map (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}; set '
                'neck=None, and in_channels to the width of the backbone'
            )
        maps = self.class_maps(x).flatten(2)
        first = maps.topk(min(self.top, maps.shape[2]), 2)[0].mean(2)
        nodes = self.transform(x).flatten(2) @ maps.sigmoid().transpose(1, 2)
        return (first + self._graph_scores(nodes)) / 2

    def _graph_scores(self, nodes: Tensor) -> Tensor:
        joined = _leaky(self.static_adjacency(nodes.transpose(1, 2)))
        seen = nodes + _leaky(self.static_weight(joined.transpose(1, 2)))
        moved = _leaky(self.dynamic_weight(_leaky(seen @ self.dynamic_graph(seen)))) + nodes
        return torch.einsum('ndk,kd->nk', moved, self.score.weight) + self.score.bias

    def dynamic_graph(self, nodes: Tensor) -> Tensor:
        """Return the adjacency that each image draws, (N, K, K), from its labels' features (N, D, K)."""
        whole = _leaky(self.whole_norm(self.whole(nodes.mean(2, keepdim=True)))).expand_as(nodes)
        return self.dynamic_adjacency(torch.cat([whole, nodes], 1)).sigmoid()

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, as mmpretrain's heads do."""
        return self.cls_head.loss((self(feats),), data_samples, **kwargs)

    def predict(self, feats: Sequence[Tensor], data_samples: list | None = None) -> list:
        """Return the data samples with predictions, as mmpretrain's heads do."""
        return self.cls_head.predict((self(feats),), data_samples)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
