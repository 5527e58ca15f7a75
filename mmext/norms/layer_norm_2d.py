"""Layer normalization over the channels of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, Positive
from mmext.registry import MODELS

__all__ = ['LayerNorm2d']


@MODELS.register_module()
class LayerNorm2d(nn.LayerNorm):
    r"""Layer normalization over the channels of a map, at every position by itself.

    Ba, Kiros, Hinton, *Layer Normalization*, 2016, arXiv 1607.06450.

    .. math:: y_{c} = \gamma_c \frac{x_c - \mu}{\sqrt{v + \epsilon}} + \beta_c

    with the mean and the variance of the channels at that position. It is torch's ``nn.LayerNorm`` with the channels in axis
    1, so that ``norm_cfg`` can name it where a host has none for maps.

    Args:
        num_features: C.
        eps: Added to the variance. mmcv's ``build_norm_layer`` passes 1e-5 where a ``norm_cfg`` does not say it.

    Shape:
        (N, C, H, W) to the same.

    Example:
        >>> LayerNorm2d(8)(torch.randn(2, 8, 4, 4)).mean(1).abs().max() < 1e-5
        tensor(True)
    """

    example = dict(num_features=8)
    _abbr_ = 'ln'

    def __init__(self, num_features: Count, eps: Positive = 1e-6) -> None:
        super().__init__(num_features, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, (N, C, H, W)."""
        rows = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return rows.permute(0, 3, 1, 2)
