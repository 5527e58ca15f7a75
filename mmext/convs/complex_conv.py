"""Complex convolution on real tensors: two kernels, and a real kernel of four blocks made of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['ComplexConv2d']


@MODELS.register_module()
class ComplexConv2d(GeneratedConv2d):
    r"""Complex-valued convolution, computed as a real one.

    Trabelsi et al., *Deep Complex Networks*, arXiv 1705.09792.

    The first half of the channels are real parts, the second half the imaginary parts, in the input and in the output.
    With the complex kernel :math:`A + iB`:

    .. math::
        \begin{pmatrix} y_r \\ y_i \end{pmatrix} =
        \begin{pmatrix} A & -B \\ B & A \end{pmatrix} * \begin{pmatrix} x_r \\ x_i \end{pmatrix}

    That is half of the parameters of a real convolution of the same width. An odd number of input channels is no complex
    input, but a real one (an image), whose complex convolution is any real kernel: such a layer stays plain, and so
    ``conv_cfg`` can name this class for a whole network. 1x1 layers are served as well.

    Args:
        *args: Those of ``nn.Conv2d``; the channels are counted as real ones.
        init: ``'he'`` or ``'glorot'``, the criterion for the modulus.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``real`` and ``imag`` are (Co/2, Ci/2/groups, kh, kw), ``bias`` (Co,). There is no ``weight``. A plain kernel is
        approached by the nearest kernel of this form.

    Raises:
        ValueError: If the output channels are odd, ``groups`` does not divide half of the channels, or ``init`` is unknown.

    The modulus is Rayleigh distributed with :math:`\sigma = 1/\sqrt{n_{in}}` (He) or
    :math:`1/\sqrt{n_{in} + n_{out}}` (Glorot), the phase uniform; the released code leaves the square root out. With
    ``groups``, the complex channels are grouped (our reading). That is no grouping of the real ones, so the kernel is a
    dense one with zeros, and costs as much.

    Example:
        >>> layer = ComplexConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    serves = ('dense', 'grouped')
    loads_kernel_exactly = False

    def __init__(self, *args: Any, init: Literal['he', 'glorot'] = 'he', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init = init
        self.plain = self.in_channels % 2 == 1 and self.groups == 1
        pairs = (self.out_channels, self.out_channels if self.plain else self.in_channels)
        if any(c % (2 * self.groups) for c in pairs):
            raise ValueError(
                f'ComplexConv2d pairs channels and needs 2 * groups to divide them, got in_channels={self.in_channels}, '
                f'out_channels={self.out_channels}, groups={self.groups}; pass fewer groups, or leave the layer out'
            )
        if self.plain:
            return
        like = self.drop_weight()
        shape = (self.out_channels // 2, like.shape[1] // 2, *self.kernel_size)
        self.real = nn.Parameter(like.new_empty(shape))
        self.imag = nn.Parameter(like.new_empty(shape))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the kernel with a Rayleigh distributed modulus and a uniform phase, and zero the bias."""
        if self.plain:
            return super().init_weights()
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan = self.real[0].numel() + (self.real.shape[0] * taps if self.init == 'glorot' else 0)
        # Both parts of a number with such a modulus and phase are normal, and independent.
        nn.init.normal_(self.real, std=fan**-0.5)
        nn.init.normal_(self.imag, std=fan**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def plain_geometry(self) -> dict[str, Any]:
        return super().plain_geometry() if self.plain else {**super().plain_geometry(), 'groups': 1}

    def generate_kernel(self) -> Tensor:
        real, imag = _block_diagonal(self.real, self.groups), _block_diagonal(self.imag, self.groups)
        return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)], 0)

    def load_kernel(self, kernel: Tensor) -> None:
        # Least squares: each entry stands in two blocks, and takes their mean.
        upper, lower = _block_diagonal(kernel, self.groups).chunk(2)
        (rr, ri), (ir, ii) = upper.chunk(2, 1), lower.chunk(2, 1)
        self.real.copy_(_diagonal_blocks((rr + ii) / 2, self.groups))
        self.imag.copy_(_diagonal_blocks((ir - ri) / 2, self.groups))

    def own_repr(self) -> str:
        return f'init={self.init!r}'


def _block_diagonal(kernel: Tensor, groups: int) -> Tensor:
    """Return the dense kernel, (Co, Ci, kh, kw), of a grouped one, (Co, Ci/groups, kh, kw)."""
    if groups == 1:
        return kernel
    outputs, inputs, *size = kernel.shape
    own = torch.eye(groups, dtype=kernel.dtype, device=kernel.device).view(groups, 1, groups, 1, 1, 1)
    return (own * kernel.view(groups, -1, 1, inputs, *size)).reshape(outputs, groups * inputs, *size)


def _diagonal_blocks(kernel: Tensor, groups: int) -> Tensor:
    """Return the grouped kernel on the diagonal of a dense one."""
    outputs, inputs, *size = kernel.shape
    blocks = kernel.view(groups, outputs // groups, groups, inputs // groups, *size)
    return torch.cat([blocks[g, :, g] for g in range(groups)])
