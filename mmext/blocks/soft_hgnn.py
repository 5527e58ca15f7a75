"""SoftHGNN: the pixels of a map exchange information through a few soft hyperedges."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Count, DropRate, Natural, Repeats, at_most
from mmext.registry import MODELS

__all__ = ['LoadBalance', 'SoftHGNN', 'SoftHGNNSeS']


@MODELS.register_module()
class SoftHGNN(BaseModule):
    r"""SoftHGNN: pixels meet in M soft hyperedges, whose prototypes depend on the image.

    Lei et al., *SoftHGNN: Soft Hypergraph Neural Networks for General Visual Recognition*, IJCV 2026, arXiv 2505.15325.

    With the N pixels of a map as the rows of X, d = D / heads, and :math:`P` = prototypes plus an offset that a linear layer
    makes of the mean and the maximum over the pixels,

    .. math:: A = \mathrm{softmax}_{pixels}\Bigl(\operatorname*{mean}_{heads} \frac{(X W_p + b_p) P^T}{\sqrt d}\Bigr), \quad
              E = \mathrm{GELU}(A^T X W_e + b_e), \quad Y = X + g\, \mathrm{GELU}(A E W_n + b_n)

    The mean over heads of their products is the whole product over ``heads``. Matrices of D x D are applied to the M
    prototypes and edges, never to pixels. So it costs 3 N M D products. What the backward pass keeps grows with N as D and M
    do. The result is that of the equation.

    It is a plug-in for any map: in mmdet's and mmpretrain's ``plugins``, behind a stage by :class:`mmext.swap_layers`, or in
    :class:`mmext.SoftHGFusionNeck`.

    Args:
        in_channels: D.
        num_hyperedges: M. The authors' advice is 8, 16 or 32.
        num_heads: Heads, a divisor of D. They tell the scale alone, as shown above.
        dropout: Share of the logits that is set to zero in training.
        norm_dim: ``'pixels'``: each edge spreads one over the pixels. ``'edges'``: each pixel spreads one over the edges,
            which the authors name as another way.
        gate: Whether g is learned, from 1 on, as in the authors' models for counting. Otherwise g is 1.
        init_cfg: As in mmengine.

    Shape:
        A map (N, D, H, W), or tokens (N, L, D), to the same.

    Raises:
        ValueError: If ``num_heads`` does not divide D, or the input has neither three nor four axes.

    Example:
        >>> SoftHGNN(16, num_hyperedges=4)(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    _abbr_ = 'soft_hgnn'
    example = dict(in_channels=16)

    def __init__(
        self,
        in_channels: Count,
        num_hyperedges: Repeats = 16,
        num_heads: Repeats = 4,
        dropout: DropRate = 0.1,
        norm_dim: Literal['pixels', 'edges'] = 'pixels',
        gate: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if in_channels % num_heads:
            raise ValueError(
                f'{type(self).__name__} splits channels into heads of equal width, got {in_channels=}, {num_heads=}; choose '
                'heads that divide the channels'
            )
        self.scale = 1 / math.sqrt(in_channels * num_heads)
        self.num_heads, self.dropout, self.norm_dim = num_heads, dropout, norm_dim
        self.prototypes = nn.Parameter(torch.empty(num_hyperedges, in_channels))
        self.context = nn.Linear(2 * in_channels, num_hyperedges * in_channels)
        self.project, self.edge, self.node = (nn.Linear(in_channels, in_channels) for _ in range(3))
        self.gate = nn.Parameter(torch.ones(())) if gate else None
        nn.init.xavier_uniform_(self.prototypes)

    def init_weights(self) -> None:
        """Draw everything as the constructor does; a host that draws its own linear layers may have changed it."""
        super().init_weights()
        if not self.init_cfg:
            nn.init.xavier_uniform_(self.prototypes)
            for layer in (self.context, self.project, self.edge, self.node):
                layer.reset_parameters()

    def logits(self, x: Tensor) -> Tensor:
        """Return how well each pixel of ``x``, (N, D, L), fits each edge, (N, M, L)."""
        means = torch.cat((x.mean(2), x.amax(2)), 1)
        prototypes = self.prototypes + self.context(means).unflatten(1, self.prototypes.shape)
        shift = prototypes @ self.project.bias
        logits = ((prototypes @ self.project.weight) @ x + shift.unsqueeze(2)) * self.scale
        return F.dropout(logits, self.dropout, self.training)

    def share(self, x: Tensor) -> Tensor:
        """Return the incidence matrix of the pixels of ``x``, (N, D, L), transposed: (N, edges, L)."""
        return self.logits(x).softmax(2 if self.norm_dim == 'pixels' else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Let the pixels exchange information."""
        if x.ndim not in (3, 4):
            raise ValueError(
                f'{type(self).__name__} takes a map (N, C, H, W) or tokens (N, L, C), got {tuple(x.shape)}'
            )
        pixels = x.flatten(2) if x.ndim == 4 else x.transpose(1, 2)
        share = self.share(pixels)
        edges = F.gelu(self.edge(share @ pixels.transpose(1, 2)))
        found = F.linear(edges, self.node.weight).transpose(1, 2) @ share
        found = F.gelu(found + self.node.bias.unsqueeze(1))
        if self.gate is not None:
            found = found * self.gate
        return x + (found.view_as(x) if x.ndim == 4 else found.transpose(1, 2))

    def extra_repr(self) -> str:
        edges, channels = self.prototypes.shape
        return f'{channels}, num_hyperedges={edges}, num_heads={self.num_heads}, norm_dim={self.norm_dim}'


class LoadBalance(nn.Module):
    r"""The loss that lets all dynamic edges be chosen equally often.

    .. math:: L = \operatorname*{mean}_m \Bigl(f_m - \frac{k}{M}\Bigr)^2

    :math:`f_m` is the share of the batch that chose edge m. A choice has no slope, so the released loss trains nothing. Here
    the value is the same. The gradient is that of :math:`k\,\mathrm{softmax}_m(s)` in the place of :math:`f_m`, where s is
    the mean logit of an edge. That is our choice.
    """

    def forward(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of the scores, (N, M), and of the choice, ones and zeros of that shape."""
        top_k = chosen[0].sum()
        soft = top_k * scores.softmax(1)
        share = (chosen + (soft - soft.detach())).mean(0)
        return (share - top_k / scores.shape[1]).square().mean()


@MODELS.register_module()
class SoftHGNNSeS(SoftHGNN):
    """SoftHGNN with sparse selection: of many dynamic edges each image uses the k that fit it best.

    The scores of :class:`SoftHGNN` summed over the pixels choose them. Fixed edges are always used. The others are left out of
    all products, which is what the authors' mask of zeros computes.

    ``balance`` computes :class:`LoadBalance` in training. :class:`mmext.LoadBalanceHook` adds it to the losses of any model::

        custom_hooks = [dict(type='mmext.LoadBalanceHook', weight=1.0)]

    Args:
        in_channels: D.
        num_dynamic: Edges to choose from.
        top_k: k, how many an image uses.
        num_fixed: Edges that are always used.
        num_heads: As in :class:`SoftHGNN`.
        dropout: As there. The choice is made with it.
        norm_dim: As there.
        gate: As there. The released code has one here and does not use it.
        init_cfg: As in mmengine.

    Shape:
        As :class:`SoftHGNN`.

    Raises:
        ValueError: As there, or if k is larger than ``num_dynamic``.

    Example:
        >>> SoftHGNNSeS(16, num_dynamic=8, top_k=2, num_fixed=1)(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    _abbr_ = 'soft_hgnn_ses'
    example = dict(num_dynamic=8, top_k=2, num_fixed=1, num_heads=4)

    def __init__(
        self,
        in_channels: Count,
        num_dynamic: Repeats = 64,
        top_k: Repeats = 16,
        num_fixed: Annotated[Natural, at_most(2**12)] = 8,
        num_heads: Repeats = 8,
        dropout: DropRate = 0.1,
        norm_dim: Literal['pixels', 'edges'] = 'pixels',
        gate: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        if top_k > num_dynamic:
            raise ValueError(
                f'SoftHGNNSeS chooses top_k of num_dynamic edges, got {top_k=}, {num_dynamic=}; lower top_k'
            )
        super().__init__(in_channels, num_fixed + num_dynamic, num_heads, dropout, norm_dim, gate, init_cfg)
        self.num_fixed, self.top_k = num_fixed, top_k
        self.balance = LoadBalance()

    def share(self, x: Tensor) -> Tensor:
        """Return the rows of the incidence matrix that are used, (N, num_fixed + k, L)."""
        logits = self.logits(x)
        scores = logits[:, self.num_fixed :].mean(2)
        best = scores.topk(self.top_k, 1).indices
        if self.training:
            self.balance(scores, torch.zeros_like(scores).scatter(1, best, 1.0))
        share = logits.softmax(2 if self.norm_dim == 'pixels' else 1)
        chosen = share[:, self.num_fixed :].gather(1, best.unsqueeze(2).expand(-1, -1, share.shape[2]))
        return torch.cat((share[:, : self.num_fixed], chosen), 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_fixed={self.num_fixed}, top_k={self.top_k}'
