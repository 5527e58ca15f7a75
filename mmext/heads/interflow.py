"""Interflow: every stage of a classifier predicts, and a learned weight per stage sums the predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, NonNegative, Repeats, some
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['InterflowHead', 'PyramidLinearHead']


class _PyramidHead(BaseModule):
    """What the two heads share: pooling all stages, and mmpretrain's own losses and predictions.

    Those are reached by composition: to ``mmpretrain.ClsHead`` the input already is the score. It has no parameters.
    """

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        num_classes: Count,
        pool_size: Repeats = 1,
        loss: Cfg | None = None,
        topk: Count | tuple[Count, ...] = (1,),
        cal_acc: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or {'type': 'Normal', 'layer': 'Linear', 'std': 0.01})
        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.pooled_channels = [channels * pool_size**2 for channels in self.in_channels]
        # The scope is spelt out: the default scope of the run may be another host's, which has a loss of this name too.
        loss = loss or {'type': 'mmpretrain.CrossEntropyLoss'}
        cls_head = {'type': 'mmpretrain.ClsHead', 'loss': loss, 'topk': topk, 'cal_acc': cal_acc}
        self.cls_head: Any = build_from_host(cls_head, type(self).__name__)

    def pool(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Pool each stage to a vector (N, C_i * pool_size ** 2); vectors (N, C_i) of a pooling neck pass through."""
        poolable = self.pool_size == 1 or all(f.ndim == 4 for f in feats)
        if not poolable or tuple(f.shape[1] for f in feats) != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} needs one map per stage with in_channels={self.in_channels} channels, got shapes '
                f"{[tuple(f.shape) for f in feats]}; make in_channels and the backbone's out_indices agree"
            )
        return [f if f.ndim == 2 else F.adaptive_avg_pool2d(f, self.pool_size).flatten(1) for f in feats]

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the pooled vectors of all stages, concatenated."""
        return torch.cat(self.pool(feats), dim=1)

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, as mmpretrain's heads do."""
        return self.cls_head.loss((self(feats),), data_samples, **kwargs)

    def predict(self, feats: Sequence[Tensor], data_samples: list | None = None) -> list:
        """Return the data samples with predictions, as mmpretrain's heads do."""
        return self.cls_head.predict((self(feats),), data_samples)


@MODELS.register_module()
class PyramidLinearHead(_PyramidHead):
    """One linear layer on the pooled maps of several stages; what Interflow folds into.

    Args:
        in_channels: Width of each stage.
        num_classes: Number of classes.
        pool_size: Side of the grid to which each map is averaged.
        loss: Config of the loss; mmpretrain's cross-entropy by default.
        topk: Which top-k accuracies to log with ``cal_acc``.
        cal_acc: Whether to log the training accuracy.
        init_cfg: As in every OpenMMLab module; linear weights start as N(0, 0.01) by default.

    Shape:
        Maps (N, C_i, H_i, W_i) or vectors (N, C_i) to (N, num_classes).

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: In ``forward``, if number or width of the maps is not that of ``in_channels``.

    Example:
        >>> head = PyramidLinearHead(in_channels=(4, 8), num_classes=3)
        >>> head([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]).shape
        torch.Size([2, 3])
    """

    example = dict(in_channels=(4, 8), num_classes=3)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fc = nn.Linear(sum(self.pooled_channels), self.num_classes)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores, (N, num_classes)."""
        return self.fc(self.pre_logits(feats))


@MODELS.register_module()
class InterflowHead(_PyramidHead):
    r"""Interflow: every stage predicts, and learned weights sum the predictions.

    Cai, *Interflow: Aggregating Multi-layer Feature Mappings with Attention Mechanism*, 2021, arXiv 2106.14073. Each of
    the n stages predicts by itself, and one scalar per stage, shared by all classes and images, weighs the predictions:

    .. math:: y_i = A_i\, \mathrm{pool}_s(F_i) + b_i, \qquad y = \sum_i w_i y_i + c

    Hard attention fixes the :math:`w_i`; soft attention learns them. The paper's 1 x n convolution over the stacked
    predictions is this sum. Train and test form are one; :meth:`fold` merges the branches into one linear layer. While
    training, the learned weights are logged as ``interflow_w0``, ``interflow_w1``, ...

    Our reading, no code being public: a branch is one linear layer, on globally pooled maps; weights are unconstrained,
    start as 1/n, and have no :math:`c`; the only loss is on :math:`y`. Each is an argument.

    Args:
        in_channels: Width of each stage, shallowest first.
        num_classes: Number of classes.
        attention: ``'soft'`` or ``'hard'``.
        hard_weights: The n weights of hard attention; without them ``init`` sets them.
        normalize: ``'softmax'`` makes the learned weights positive with sum 1.
        bias: Whether to learn :math:`c`. It shifts all classes alike and so has no effect under softmax.
        init: Start of the weights: ``'mean'`` (1/n), ``'last'`` (1 for the deepest stage, 0 for the others: the plain
            network), ``'default'`` (that of a convolution in PyTorch).
        aux_loss_weight: Weight of an additional loss on each branch's own prediction, logged as ``loss_branch0``, ...
        **kwargs: ``pool_size``, ``loss``, ``topk``, ``cal_acc`` and ``init_cfg`` of :class:`PyramidLinearHead`.

    Shape:
        n maps (N, C_i, H_i, W_i) or vectors (N, C_i) to (N, num_classes).

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: If an option is unknown or contradicts another; in ``forward``, if number or width of the maps is not
            that of ``in_channels``.

    Example:
        >>> head = InterflowHead(in_channels=(4, 8), num_classes=3)
        >>> head([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]).shape
        torch.Size([2, 3])
    """

    example = dict(in_channels=(4, 8), num_classes=3)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        num_classes: Count,
        attention: str = 'soft',
        hard_weights: Sequence[float] | None = None,
        normalize: str | None = None,
        bias: bool = False,
        init: str = 'mean',
        aux_loss_weight: NonNegative = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, num_classes, **kwargs)
        if attention not in ('soft', 'hard') or normalize not in (None, 'softmax'):
            raise ValueError(
                "InterflowHead needs attention 'soft' or 'hard' and normalize None or 'softmax', "
                f'got {attention=}, {normalize=}'
            )
        if attention == 'hard' and (normalize or bias):
            raise ValueError(
                f'InterflowHead: hard attention learns nothing that {normalize=}, {bias=} could act on; use soft attention'
            )
        if hard_weights is not None and (attention != 'hard' or len(hard_weights) != len(self.in_channels)):
            raise ValueError(
                f"InterflowHead: hard_weights need attention='hard' and one number per stage, got {attention=}, "
                f'{hard_weights=} for {len(self.in_channels)} stages'
            )
        if init == 'last' and normalize:
            raise ValueError(
                "InterflowHead: init='last' is out of reach of a softmax, which has no zeros; use normalize=None"
            )
        self.attention = attention
        self.normalize = normalize
        self.aux_loss_weight = aux_loss_weight
        self.fcs = nn.ModuleList(nn.Linear(channels, num_classes) for channels in self.pooled_channels)
        start = self._start(init) if hard_weights is None else torch.tensor(hard_weights, dtype=torch.float32)
        if attention == 'hard':
            self.register_buffer('weight', start)
        else:
            self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    def _start(self, init: str) -> Tensor:
        n = len(self.in_channels)
        if init == 'mean':
            return torch.full((n,), 1 / n)
        if init == 'last':
            return torch.eye(n)[-1]
        if init == 'default':
            return torch.empty(n).uniform_(-(n**-0.5), n**-0.5)
        raise ValueError(f"InterflowHead needs init 'mean', 'last' or 'default', got {init=}")

    @property
    def branch_weights(self) -> Tensor:
        """The weights as they are applied, (n,)."""
        return self.weight.softmax(0) if self.normalize else self.weight

    def branch_logits(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Return each stage's own prediction, (N, num_classes)."""
        return [fc(x) for fc, x in zip(self.fcs, self.pool(feats), strict=True)]

    def fuse(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum of the predictions, (N, num_classes)."""
        fused = (torch.stack(tuple(logits), dim=-1) * self.branch_weights).sum(-1)
        return fused if self.bias is None else fused + self.bias

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the fused scores, (N, num_classes)."""
        return self.fuse(self.branch_logits(feats))

    def loss(self, feats: Sequence[Tensor], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, and the learned branch weights for the log."""
        logits = self.branch_logits(feats)
        losses = self.cls_head.loss((self.fuse(logits),), data_samples, **kwargs)
        if self.aux_loss_weight:
            for i, branch in enumerate(logits):
                own = self.cls_head.loss((branch,), data_samples, **kwargs)['loss']
                losses[f'loss_branch{i}'] = self.aux_loss_weight * own
        if self.attention == 'soft':
            losses.update({f'interflow_w{i}': w for i, w in enumerate(self.branch_weights.detach())})
        return losses

    @torch.no_grad()
    def fold(self) -> PyramidLinearHead:
        """Return the head with one linear layer that computes the same."""
        folded = PyramidLinearHead(self.in_channels, self.num_classes, self.pool_size)
        folded.cls_head = copy.deepcopy(self.cls_head)
        weights = self.branch_weights
        kernel = torch.cat([w * fc.weight for w, fc in zip(weights, self.fcs, strict=True)], dim=1)
        bias = sum(w * fc.bias for w, fc in zip(weights, self.fcs, strict=True))
        folded.to(kernel)
        folded.fc.weight.copy_(kernel)
        folded.fc.bias.copy_(bias if self.bias is None else bias + self.bias)
        return folded.train(self.training)

    def extra_repr(self) -> str:
        return f'attention={self.attention!r}, normalize={self.normalize!r}, pool_size={self.pool_size}'
