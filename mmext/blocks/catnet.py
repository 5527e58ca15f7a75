"""Context for every pixel of a map from all of its pixels: the block of CATNet's spatial context pyramid."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, caffe2_xavier_init, constant_init
from torch import Tensor

from mmext.arguments import Cfg, Count
from mmext.registry import MODELS

__all__ = ['ContextAggregation']


@MODELS.register_module()
class ContextAggregation(BaseModule):
    r"""Add one vector, gathered from the whole map, to each pixel as far as that asks for it.

    Liu, Li, Hu, et al., *Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images*,
    TNNLS 2024, arXiv 2111.11057.

    .. math:: y_p = x_p + \sigma(W_a x_p)\, W_m \sum_q \mathrm{softmax}_q(W_k x_q)\, W_v x_q

    :math:`W_m` starts at zero, so a trained model computes as before. It is a neck's part, a plug-in of a backbone, and a
    block for rules with ``after``. The names of the tensors are the authors'.

    Args:
        in_channels: C.
        reduction: The vector has C / reduction channels before :math:`W_m`.
        conv_cfg: Type of the 1x1 convolutions.

    Shape:
        (N, C, H, W) to the same.

    Example:
        >>> block, x = ContextAggregation(8), torch.randn(1, 8, 5, 4)
        >>> torch.equal(block(x), x)
        True
    """

    example = dict(in_channels=8)

    def __init__(self, in_channels: Count, reduction: Count = 1, conv_cfg: Cfg | None = None) -> None:
        super().__init__()
        hidden = max(in_channels // reduction, 1)
        self.a, self.k, self.v, self.m = (
            ConvModule(before, after, 1, conv_cfg=conv_cfg, act_cfg=None)
            for before, after in ((in_channels, 1), (in_channels, 1), (in_channels, hidden), (hidden, in_channels))
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the convolutions as the authors do."""
        for block in (self.a, self.k, self.v):
            caffe2_xavier_init(block.conv)
        constant_init(self.m.conv, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Add the context to ``x``."""
        share = self.k(x).flatten(2).softmax(2)
        values = self.v(x).flatten(2)
        context = values @ share.transpose(1, 2).to(values.dtype)
        return x + self.a(x).sigmoid() * self.m(context.unsqueeze(3))
