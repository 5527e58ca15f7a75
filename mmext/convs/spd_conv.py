"""SPD convolution: strides are replaced by moving pixels to channels, so that none is skipped."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['SPDConv2d']


@MODELS.register_module()
class SPDConv2d(GeneratedConv2d):
    r"""Space-to-depth instead of a stride, as one convolution.

    *No More Strided Convolutions or Pooling: A New CNN Building Block for Low-Resolution Images and Small Objects*,
    ECML-PKDD 2022, arXiv 2208.03641.

    A layer with stride s becomes the :math:`s^2` phases of the image, stacked on the channels, and a k x k convolution of
    them. With phase :math:`q = s\,d_x + d_y` (rows first) that is one plain convolution of kernel s k, stride s and padding
    s p, and is computed as such:

    .. math:: K_{o,\,c,\,s u + d_y,\,s v + d_x} = W_{o,\,q C + c,\,u,\,v}

    Args:
        *args: Those of ``nn.Conv2d``; ``kernel_size`` and ``padding`` are those of the convolution after space-to-depth,
            and may stay what the strided layer had.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``phase_weight`` is (Co, s^2 Ci/groups, k, k); there is no ``weight``. The output has
        :math:`\lfloor H/s \rfloor + 2p - k + 1` rows: what the strided layer returns where H is divisible by s and the
        kernel centered, 2 p = k - 1. The rows and columns beyond the last whole s x s block are not seen, as in any strided
        convolution (the released layer refuses such sizes); where a sum needs equal sizes, replace the strided layers of
        both sides. A plain strided kernel is taken exactly: at a position of the larger kernel.

    Raises:
        ValueError: If a strided layer is dilated.

    Layers without a stride, and those whose kernel is the stride and that do not pad (patch embeddings are SPD and a 1x1
    convolution already), stay plain, so that ``conv_cfg`` can name this class for a whole network. Ours: strides other
    than 2; with ``groups``, each group sees all phases of its own channels; other padding modes pad the image itself.

    Example:
        >>> layer = SPDConv2d(8, 8, 3, stride=2, padding=1)
        >>> layer(torch.randn(1, 8, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    example = dict(stride=2)
    typical = dict(kernel_size=3, stride=2)
    loads_kernel_exactly = False
    refuses = ('dilation', 'named padding')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patches = self.kernel_size == self.stride and self.padding in ((0, 0), 'valid')
        self.plain = self.stride == (1, 1) or patches
        if self.plain:
            return
        if self.dilation != (1, 1):
            raise ValueError(
                f'SPDConv2d needs dilation 1 where it has a stride, got stride={self.stride} and '
                f'dilation={self.dilation}; leave the layer out'
            )
        like = self.drop_weight()
        channels = self.stride[0] * self.stride[1] * like.shape[1]
        self.phase_weight = nn.Parameter(like.new_empty(like.shape[0], channels, *self.kernel_size))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the kernel as torch draws a convolution of its own shape."""
        if self.plain:
            return super().init_weights()
        nn.init.kaiming_uniform_(self.phase_weight, a=5**0.5)
        if self.bias is not None:
            bound = self.phase_weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def plain_geometry(self) -> dict[str, Any]:
        geometry = super().plain_geometry()
        if not self.plain:
            padding = (0, 0) if isinstance(self.padding, str) else self.padding
            geometry['padding'] = (self.stride[0] * padding[0], self.stride[1] * padding[1])
        return geometry

    def generate_kernel(self) -> Tensor:
        (rows, cols), (down, right) = self.kernel_size, self.stride
        phases = self.phase_weight.view(self.out_channels, right, down, -1, rows, cols)
        return phases.permute(0, 3, 4, 2, 5, 1).reshape(self.out_channels, -1, rows * down, cols * right)

    def load_kernel(self, kernel: Tensor) -> None:
        # The larger kernel begins s p before the image, the given one p before it.
        (rows, cols), (down, right) = self.kernel_size, self.stride
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        top, left = (down - 1) * padding[0], (right - 1) * padding[1]
        whole = F.pad(kernel, (left, (right - 1) * cols - left, top, (down - 1) * rows - top))
        phases = whole.view(self.out_channels, -1, rows, down, cols, right).permute(0, 5, 3, 1, 2, 4)
        self.phase_weight.copy_(phases.reshape(self.phase_weight.shape))
