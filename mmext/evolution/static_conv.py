"""The plain convolution as an operator of the family: a kernel that depends on nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import ImageKernel
from mmext.registry import MODELS

__all__ = ['StaticConv2d']


@MODELS.register_module()
class StaticConv2d(EvolutionOperator2d):
    r"""The constant Evolution Function: ``nn.Conv2d``, dense, grouped or depthwise.

    Cai, *Evolution: A Unified Formula for Feature Operators from a High-level Perspective*, 2023, arXiv 2305.14409.

    .. math:: E(p)_{n,o,c} = W_{o,c,n}

    State dict and result are those of ``nn.Conv2d``. It is here as the first row of the paper's table, to be compared with
    the others in one network.

    Args:
        *args: Those of ``nn.Conv2d``.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` is (Co, Ci/groups, kh, kw).

    Raises:
        ValueError: If ``nn.Conv2d`` refuses the arguments.

    Example:
        >>> layer = StaticConv2d(8, 16, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = False, True, False
    mixes_channels = True
    keeps_kernel = True
    refuses_weight = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def evolution_kernel(self, x: Tensor) -> ImageKernel:
        return ImageKernel(weight=self.weight, positions=self.positions, groups=self.groups)

    def fold(self) -> nn.Conv2d:
        """Return the plain layer, with the same parameters."""
        return self.as_plain(self.weight, self.bias)
