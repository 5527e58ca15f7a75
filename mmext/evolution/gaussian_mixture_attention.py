"""Attention whose logits are multiplied by a mixture of Gaussians of the distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Repeats
from mmext.evolution.token_attention import TokenAttention
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS

__all__ = ['GaussianMixtureAttention']

# Keeps a Gaussian of width zero from dividing by zero, as in the released code.
EPSILON = 1e-5


@MODELS.register_module()
class GaussianMixtureAttention(TokenAttention):
    r"""Self-attention with a Gaussian mixture mask.

    Li and others, *RetNet Viewed through Convolution*, arXiv 2309.05375.

    .. math:: A = \mathrm{softmax}(M \odot q k^\top / \sqrt{d}), \qquad
        M_{ij} = \sum_n \alpha_n \exp(-d_{ij}^2 / 2 (\sigma_n^2 + \epsilon))

    :math:`d_{ij}` is the distance of two tokens on the grid. Every head has its own :math:`\alpha` and :math:`\sigma`. The
    mask multiplies the logits, so a plain additive bias cannot express it. The released code raises
    :math:`\exp(-d^2 / 2)` to a power, which is zero in float32 from a distance of 14 on. Here the exponents are multiplied.

    Extra tokens (ours): they have no place, so the mask is one in their rows and columns.

    Args:
        *args: Those of :class:`mmext.evolution.token_attention.TokenAttention`.
        num_kernels: Gaussians of a head.
        **kwargs: Those of the base.

    Shape:
        Input and output are (B, N, embed_dims). ``sigma`` and ``alpha`` are (num_kernels, heads, 1, 1).

    Raises:
        ValueError: As the base does.

    Example:
        >>> GaussianMixtureAttention(16, 4)(torch.randn(2, 25, 16)).shape
        torch.Size([2, 25, 16])
    """

    def __init__(self, *args: Any, num_kernels: Repeats = 5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigma = nn.Parameter(torch.empty(num_kernels, self.num_heads, 1, 1))
        self.alpha = nn.Parameter(torch.empty(num_kernels, self.num_heads, 1, 1))
        self.init_weights()

    def init_weights(self) -> None:
        super().init_weights()
        for linear in (self.qkv, self.proj):
            nn.init.xavier_normal_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.sigma, 10, 10)
        nn.init.normal_(self.alpha, std=2)

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Return M for the tokens of a grid, (heads, rows * columns, rows * columns)."""
        with full_precision(self.sigma):
            rate = 0.5 / (at_least_float32(self.sigma) ** 2 + EPSILON)
            axes = []
            for n in size:
                place = torch.arange(n, device=rate.device, dtype=rate.dtype)
                axes.append((-rate * (place - place[:, None]) ** 2).exp())
            return torch.einsum('nhyi,nhxj->hyxij', self.alpha * axes[0], axes[1]).flatten(3).flatten(1, 2)

    def attention(self, q: Tensor, k: Tensor, size: tuple[int, int]) -> Tensor:
        with full_precision(q):
            extra = self.num_extra_tokens
            mask = nn.functional.pad(self.mask(size), (extra, 0, extra, 0), value=1.0)
            logits = at_least_float32(q) @ at_least_float32(k).mT * q.shape[-1] ** -0.5
            return (mask.to(logits.dtype) * logits).softmax(-1).to(q.dtype)
