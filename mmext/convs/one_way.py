"""One-way filters: a convolution made of filters along one direction at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Many
from mmext.convs.generated import GeneratedConv2d
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['OneWayConv2d']


@MODELS.register_module()
class OneWayConv2d(GeneratedConv2d):
    r"""One-way filters: convolutions along one direction at a time, a kernel of low CP rank.

    Boukraichi et al., *A priori compression of convolutional neural networks for wave simulators*, 2023, arXiv 2304.04964.

    The paper replaces filters over two or three directions by one-way ones. How they make up a layer is our reading, the
    canonical (CP) form of rank R: across the inputs, along the columns, along the rows, across the outputs.

    .. math:: W_{oiuv} = \sum_{r=1}^R a_{or}\, b_{ri}\, h_{ru}\, w_{rv}

    Where that costs fewer multiplications than the whole kernel, the layer computes in these four steps, training or not,
    and deploying leaves it as it is; :meth:`fold` gives the whole kernel all the same. A 1x1 kernel has no direction and
    stays a plain convolution.

    Args:
        *args: Those of ``nn.Conv2d``; ``groups`` must be 1.
        rank: R; by default half of the larger number of channels.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``pw_in`` (b) is (R, Ci), ``col`` (h) is (R, kh), ``row`` (w) is (R, kw), ``pw_out`` (a) is (Co, R).

    Attributes:
        factored: Whether the layer computes in steps.

    Raises:
        ValueError: If ``groups`` is not 1 or ``rank`` is not positive.

    The factors are drawn normally, each so that it keeps the variance of what it gets, and the last so that the kernel has
    the variance :math:`2 / (C_i k_h k_w)`. A plain layer's kernel has no such form, so that none is taken over.

    Example:
        >>> layer = OneWayConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    serves = ('dense',)

    fold_in_deploy = False
    factored = False

    def __init__(self, *args: Any, rank: Many | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = self.kernel_size == (1, 1)
        if self.plain:
            self.fold_in_deploy = True
            return
        if self.groups != 1:
            raise ValueError(
                f'OneWayConv2d factors a kernel over all channels and needs groups=1, got groups={self.groups}; choose dense '
                'layers by a rule (groups=1)'
            )
        self.rank = max(max(self.in_channels, self.out_channels) // 2, 1) if rank is None else rank
        if self.rank < 1:
            raise ValueError(f'OneWayConv2d needs a rank of at least 1, got {rank=}')
        like = self.drop_weight()
        rows, cols = self.kernel_size
        self.pw_in = nn.Parameter(like.new_empty(self.rank, self.in_channels))
        self.col = nn.Parameter(like.new_empty(self.rank, rows))
        self.row = nn.Parameter(like.new_empty(self.rank, cols))
        self.pw_out = nn.Parameter(like.new_empty(self.out_channels, self.rank))
        down, right = self.stride
        in_steps = self.rank * (self.in_channels * down * right + rows * right + cols + self.out_channels)
        self.factored = in_steps < self.in_channels * self.out_channels * rows * cols
        self.fold_in_deploy = not self.factored
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the factors and set the bias to zero."""
        if self.plain:
            return super().init_weights()
        for factor in (self.pw_in, self.col, self.row):
            nn.init.normal_(factor, std=factor.shape[1] ** -0.5)
        nn.init.normal_(self.pw_out, std=(2 / self.rank) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W): one direction at a time where that is cheaper."""
        if not self.factored:
            return super().forward(x)
        x = F.conv2d(x, self.pw_in[..., None, None])
        padding: Any = self.padding
        if self.padding_mode != 'zeros' or isinstance(padding, str):
            x, padding = self.pad(x), (0, 0)
        across = ((self.stride[0], 1), (padding[0], 0), (self.dilation[0], 1))
        along = ((1, self.stride[1]), (0, padding[1]), (1, self.dilation[1]))
        x = depthwise_conv2d(x, self.col[:, None, :, None], None, *across)
        x = depthwise_conv2d(x, self.row[:, None, None, :], None, *along)
        return F.conv2d(x, self.pw_out[..., None, None], self.bias)

    def generate_kernel(self) -> Tensor:
        spatial = self.col.unsqueeze(2) * self.row.unsqueeze(1)
        return torch.einsum('or,ri,ruv->oiuv', self.pw_out, self.pw_in, spatial)

    def own_repr(self) -> str:
        return f'rank={self.rank}'
