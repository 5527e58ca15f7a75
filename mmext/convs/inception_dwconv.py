"""Inception depthwise convolution: a few channels see a square and two bands, the others pass untouched."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Repeats
from mmext.convs.generated import GeneratedConv2d
from mmext.numerics import is_depthwise
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['InceptionDWConv2d']


@MODELS.register_module()
class InceptionDWConv2d(GeneratedConv2d):
    r"""Inception depthwise convolution: a few channels see a square, a row or a column, the others pass.

    *InceptionNeXt: When Inception Meets ConvNeXt*, CVPR 2024, arXiv 2303.16900.

    The channels are split into four parts in this order; three of them have :math:`n = \lfloor C r \rfloor` channels:

    .. math:: y = [\,x_0,\quad x_1 * w_{s \times s},\quad x_2 * w_{1 \times K},\quad x_3 * w_{K \times 1}\,]

    Taken together that is one depthwise K x K convolution with mostly empty kernels, and :meth:`fold` returns it. Its K^2
    taps for every channel cost more, so the split form is computed in training and in eval mode, and deploying keeps it.

    Args:
        *args: Those of ``nn.Conv2d``. ``kernel_size`` is the bands' length K (11 in the paper), odd.
        square_kernel: s, odd; no larger than the kernel, else cut down to it.
        branch_ratio: r, at most 1/3. Each part has one channel at least.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``square`` is (n, 1, s, s), ``row`` (n, 1, 1, K), ``column`` (n, 1, K, 1), ``branch_bias`` (3 n,): the untouched
        channels have none. There is no ``weight`` and no ``bias``, and neither can be taken over from a plain layer.

    Raises:
        ValueError: If ``kernel_size`` or ``square_kernel`` is even, or ``branch_ratio`` not in (0, 1/3].

    A layer that is not depthwise, is 1x1 or has fewer than three channels stays plain, so that ``conv_cfg`` can name this
    class for a whole network. Ours: any stride, padding and dilation (the released layer has stride 1 and keeps the size;
    here every part sees what its place in the K x K kernel sees), and the one channel where :math:`C r < 1`.

    Example:
        >>> layer = InceptionDWConv2d(8, 8, 11, padding=5, groups=8)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    serves = ('depthwise',)
    example = dict(kernel_size=5, groups=8)
    typical = dict(kernel_size=11, depthwise=True)

    fold_in_deploy = False
    bias: nn.Parameter | None

    def __init__(self, *args: Any, square_kernel: Repeats = 3, branch_ratio: float = 0.125, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if square_kernel % 2 == 0 or not 0 < branch_ratio <= 1 / 3:
            raise ValueError(
                f'InceptionDWConv2d needs an odd square_kernel and a branch_ratio in (0, 1/3], got {square_kernel=} and '
                f'{branch_ratio=}'
            )
        self.square_kernel = square_kernel
        self.branch_ratio = branch_ratio
        depthwise = is_depthwise(self)
        self.plain = not depthwise or self.in_channels < 3 or self.kernel_size == (1, 1)
        self.register_parameter('branch_bias', None)
        if self.plain:
            self.fold_in_deploy = True
            return
        rows, cols = self.kernel_size
        if rows % 2 == 0 or cols % 2 == 0:
            raise ValueError(
                f'InceptionDWConv2d centers its branches and needs an odd kernel_size, got {self.kernel_size}'
            )
        count = max(int(self.in_channels * branch_ratio), 1)
        self.parts = (self.in_channels - 3 * count, count, count, count)
        like = self.drop_weight()
        self.sizes = ((min(square_kernel, rows), min(square_kernel, cols)), (1, cols), (rows, 1))
        self.square, self.row, self.column = (nn.Parameter(like.new_empty(count, 1, *size)) for size in self.sizes)
        if self.bias is not None:
            self.bias = None
            self.branch_bias = nn.Parameter(like.new_empty(3 * count))
        self.init_weights()

    @property
    def _kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.square, self.row, self.column

    def init_weights(self) -> None:
        """Draw every branch as torch draws a convolution of its own shape."""
        if self.plain:
            return super().init_weights()
        for kernel, bias in zip(self._kernels, self._biases(), strict=True):
            nn.init.kaiming_uniform_(kernel, a=5**0.5)
            if bias is not None:
                bound = kernel[0].numel() ** -0.5
                nn.init.uniform_(bias.detach(), -bound, bound)

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None, None) if self.branch_bias is None else self.branch_bias.chunk(3)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, C, H, W), part by part, in training and in eval mode."""
        if self.plain:
            return super().forward(x)
        if self.padding_mode != 'zeros' or isinstance(self.padding, str):
            x, padding = self.pad(x), (0, 0)
        else:
            padding = self.padding
        untouched, *inputs = x.split(self.parts, -3)
        outputs = [
            self._branch(part, kernel, bias, self._rest(padding, size))
            for part, kernel, bias, size in zip(inputs, self._kernels, self._biases(), self.sizes, strict=True)
        ]
        rows, cols = self._rest(padding, (1, 1))
        if rows or cols:
            untouched = F.pad(untouched, (cols, cols, rows, rows))
        if self.stride != (1, 1):
            untouched = untouched[..., :: self.stride[0], :: self.stride[1]]
        # Under autocast the convolutions return a smaller type.
        return torch.cat([untouched.to(outputs[0].dtype), *outputs], -3)

    def _branch(self, x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        rows, cols = padding
        if rows < 0 or cols < 0:
            crop = (min(rows, 0), min(cols, 0))
            x = F.pad(x, (crop[1], crop[1], crop[0], crop[0]))
        return depthwise_conv2d(x, kernel, bias, self.stride, (max(rows, 0), max(cols, 0)), self.dilation)

    def _rest(self, padding: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Return the padding of a smaller kernel in the center of the full one, negative where the input is cropped."""
        rows, cols = (
            p - (full - k) // 2 * d
            for p, full, k, d in zip(padding, self.kernel_size, size, self.dilation, strict=True)
        )
        return rows, cols

    def generate_kernel(self) -> Tensor:
        untouched = self.row.new_ones(self.parts[0], 1, 1, 1)
        return torch.cat([self._padded(kernel) for kernel in (untouched, *self._kernels)])

    def _padded(self, kernel: Tensor) -> Tensor:
        rows, cols = ((full - k) // 2 for full, k in zip(self.kernel_size, kernel.shape[2:], strict=True))
        return F.pad(kernel, (cols, cols, rows, rows))

    def generate_bias(self) -> Tensor | None:
        return self.bias if self.branch_bias is None else F.pad(self.branch_bias, (self.parts[0], 0))

    def own_repr(self) -> str:
        bias = '' if self.branch_bias is None else ', branch_bias=True'
        return f'square_kernel={self.square_kernel}, branch_ratio={self.branch_ratio:g}{bias}'
