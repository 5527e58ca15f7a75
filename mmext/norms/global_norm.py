"""Global normalization: one mean and one variance for all positions and channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.norms.position_norm import PositionNorm
from mmext.registry import MODELS

__all__ = ['GlobalNorm']


@MODELS.register_module()
class GlobalNorm(PositionNorm):
    r"""Global normalization: one mean and one variance for all positions and channels.

    Cai, Zhu, Shen, Wang, Cao, *Towards the Spectral bias Alleviation by Normalizations in Coordinate Networks*, 2024,
    arXiv 2407.17834.

    .. math:: y_{ij} = \gamma_j \frac{x_{ij} - \mu}{\sqrt{v + \epsilon}} + \beta_j

    with the mean :math:`\mu` and the variance :math:`v` over all N positions and C channels of the forward pass.

    Args:
        num_features: C.
        eps: :math:`\epsilon`.
        divisor: ``'official'`` divides the sum of squares by NC - 1, as the released code does; ``'exact'`` by NC, so that
            the output has variance one (ours).
        channel_dim: Where the channels are: -1 for lists and grids of positions, 1 for maps (N, C, H, W).

    Shape:
        Any with C entries along ``channel_dim``; the output has the same.

    Raises:
        ValueError: If ``divisor`` is unknown.

    Example:
        >>> round(float(GlobalNorm(8)(5 + torch.randn(100, 8)).mean().abs()), 3)
        0.0
    """

    example = dict(num_features=8)

    statistics = ('mean', 'var')
    _abbr_ = 'global_norm'

    def measure(self, rows: Tensor) -> tuple[Tensor, ...]:
        var, mean = torch.var_mean(rows, (0, 1), unbiased=self.divisor == 'official')
        return mean, var

    def normalize(self, rows: Tensor, *statistics: Tensor) -> Tensor:
        mean, var = statistics
        scale = self.weight.to(rows.dtype) * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias.to(rows.dtype), rows - mean, scale)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Return the map that the norm is while its statistics are frozen, None otherwise."""
        if not self.frozen:
            return None
        mean, var = (self.get_buffer(name) for name in self.statistics)
        scale = self.weight * (var + self.eps).rsqrt()
        return scale, self.bias - mean * scale

    def normalize_itself(self, rows: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            # No exporter knows batch norm with statistics of the batch.
            return self.normalize(rows, *self.measure(rows))
        # A batch norm of one channel, whose derivative is one fused kernel; it divides by the number of entries.
        share = (rows.numel() - 1) / rows.numel() if self.divisor == 'official' else 1.0
        normed = F.batch_norm(rows.reshape(1, 1, -1), None, None, training=True, eps=self.eps * share).view_as(rows)
        return torch.addcmul(self.bias.to(rows.dtype), normed, self.weight.to(rows.dtype) * share**0.5)
