"""XNOR: the convolution of a binarized input with a binary kernel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.convs.base import ExtConv2d
from mmext.convs.binary_weight import binarize_weight, check_binary, settle_latent
from mmext.registry import MODELS

__all__ = ['XNORConv2d']


@MODELS.register_module()
class XNORConv2d(ExtConv2d):
    r"""XNOR-Net: binary weights, and an input that is reduced to its signs.

    Rastegari, Ordonez, Redmon, Farhadi, *XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks*,
    ECCV 2016, arXiv 1603.05279.

    .. math:: y = \big(\mathrm{sign}(x) * \tilde W\big) \odot K + b, \qquad
        K = \Big(\tfrac1C \sum_c |x_c|\Big) * \mathbf{1}_{k_h k_w} / (k_h k_w)

    with :math:`\tilde W` of :class:`mmext.BinaryWeightConv2d`, whose ``weight`` and gradients it shares. In a group
    :math:`K` is the mean over its channels. The signs have the derivative :math:`1[|x| \le 1]`. It computes with
    floating-point numbers: it is for training such networks and measuring their accuracy, not for bit arithmetic.

    The paper orders the layers as norm, binarized convolution, pooling. Right behind a ReLU the layer is useless, because
    every sign is +1 there. The result is not linear in the input, so that the layer folds into no plain convolution.

    Args:
        *args: Those of ``nn.Conv2d``.
        scale_input: Multiply by K; without, the layer is ``sign(x) * W`` only.
        grad: See :class:`mmext.BinaryWeightConv2d`.
        center: See :class:`mmext.BinaryWeightConv2d`.
        clamp: See :class:`mmext.BinaryWeightConv2d`.
        per_output: See :class:`mmext.BinaryWeightConv2d`.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        As :class:`mmext.BinaryWeightConv2d`.

    Raises:
        ValueError: As :class:`mmext.BinaryWeightConv2d`.

    Our reading: sign(0) is +1 and the padding, in whatever mode, is added to the signs and to the absolute values, so that
    zeros around the image contribute nothing.

    Example:
        >>> layer = XNORConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    cannot_fold = 'it binarizes its input'
    weight_is_kernel = False
    refuses_weight = 'binarizes its weight, which no norm may scale; leave fuse_conv_bn and efficient_conv_bn_eval out'

    def __init__(
        self,
        *args: Any,
        scale_input: bool = True,
        grad: str = 'paper',
        center: bool = False,
        clamp: bool = True,
        per_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_binary(self, grad, center)
        self.scale_input = scale_input
        self.grad, self.center, self.clamp, self.per_output = grad, center, clamp, per_output

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Center and clamp the latent weights, as the layer computes with them."""
        self.weight.copy_(settle_latent(self.weight, self.center, self.clamp))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the signs of ``x``, (N, in_channels, H, W), with the binary kernel."""
        kernel = binarize_weight(self.weight, self.grad, self.center, self.clamp, self.per_output)
        y = self._convolve(_ste_sign(x), kernel, self.groups)
        if self.scale_input:
            magnitude = x.abs().unflatten(1, (self.groups, -1)).mean(2)
            box = magnitude.new_full(
                (self.groups, 1, *self.kernel_size), 1 / (self.kernel_size[0] * self.kernel_size[1])
            )
            scale = self._convolve(magnitude, box, self.groups)
            y = (y.unflatten(1, (self.groups, -1)) * scale.unsqueeze(2)).flatten(1, 2)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _convolve(self, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != 'zeros':
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return F.conv2d(x, kernel, None, self.stride, padding, self.dilation, groups)

    def extra_repr(self) -> str:
        own = f'grad={self.grad!r}, center={self.center}, clamp={self.clamp}, per_output={self.per_output}'
        return f'{super().extra_repr()}, scale_input={self.scale_input}, {own}'


def _ste_sign(x: Tensor) -> Tensor:
    """Return the signs of ``x`` with the derivative 1 where abs(x) <= 1 and 0 elsewhere."""
    fixed = x.detach()
    return torch.where(fixed >= 0, 1.0, -1.0).to(x) + torch.where(fixed.abs() <= 1, x - fixed, 0.0)
