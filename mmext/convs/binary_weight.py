"""Binary weights: the kernel is a sign with one scale per filter; and the same with a binarized input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['BinaryWeightConv2d', 'XNORConv2d', 'binarize_weight']

GRADIENTS = ('paper', 'exact', 'ste')


@MODELS.register_module()
class BinaryWeightConv2d(GeneratedConv2d):
    r"""Binary weights (BWN): a kernel of signs with one scale per filter.

    Rastegari, Ordonez, Redmon, Farhadi, *XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks*,
    ECCV 2016, arXiv 1603.05279.

    The kernel is the nearest one, in the sense of least squares, whose filters each have two values :math:`\pm\alpha_o`; with
    :math:`n` weights in a filter,

    .. math:: \tilde W_o = \alpha_o\,\mathrm{sign}(W_o), \qquad \alpha_o = \tfrac1n \lVert W_o \rVert_1

    What learns is the latent :math:`W`, ``weight``, which a plain checkpoint fills. With the gradient :math:`G` of
    :math:`\tilde W` and :math:`m = 1[|W| \le 1]`, its own is by ``grad``

    - ``'paper'``: :math:`G\,(1/n + \alpha m)`, the paper's estimator;
    - ``'exact'``: :math:`\alpha m G + \mathrm{sign}(W)\,\tfrac1n \sum_j G_j\,\mathrm{sign}(W_j)`, the product rule with
      the sign's derivative taken for :math:`m`;
    - ``'ste'``: :math:`m G`, straight through.

    Networks usually keep their first and last layers real; leave those out by a rule. 1x1 kernels are binarized as well.

    Args:
        *args: Those of ``nn.Conv2d``.
        grad: See above.
        center: Subtract each filter's mean over its input channels first.
        clamp: Keep the latent weights in [-1, 1]: in place before every forward in training, and in the kernel.
        per_output: One scale per filter; else one for the whole layer.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` is (Co, Ci/groups, kh, kw).

    Raises:
        ValueError: If ``grad`` is unknown, or ``center`` is asked for filters with a single input channel, which it would
            set to zero.

    Our reading: sign(0) is +1, so that the kernel stays binary.
    """

    def __init__(
        self,
        *args: Any,
        grad: str = 'paper',
        center: bool = False,
        clamp: bool = True,
        per_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check(self, grad, center)
        self.grad, self.center, self.clamp, self.per_output = grad, center, clamp, per_output

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W), with the binary kernel."""
        _clamp_latent(self)
        return super().forward(x)

    def generate_kernel(self) -> Tensor:
        return binarize_weight(self.weight, self.grad, self.center, self.clamp, self.per_output)

    def own_repr(self) -> str:
        return f'grad={self.grad!r}, center={self.center}, clamp={self.clamp}, per_output={self.per_output}'


@MODELS.register_module()
class XNORConv2d(ExtConv2d):
    r"""XNOR-Net: binary weights, and an input that is reduced to its signs.

    Rastegari, Ordonez, Redmon, Farhadi, *XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks*,
    ECCV 2016, arXiv 1603.05279.

    .. math:: y = \big(\mathrm{sign}(x) * \tilde W\big) \odot K + b, \qquad
        K = \Big(\tfrac1C \sum_c |x_c|\Big) * \mathbf{1}_{k_h k_w} / (k_h k_w)

    with :math:`\tilde W` of :class:`BinaryWeightConv2d`, whose ``weight`` and gradients it shares. In a group :math:`K` is
    the mean over its channels. The signs have the derivative :math:`1[|x| \le 1]`. It computes with floating-point numbers:
    this layer is for training such networks and measuring their accuracy, not for bit arithmetic.

    The paper orders the layers as norm, binarized convolution, pooling. Right behind a ReLU the layer is useless, because
    every sign is +1 there. The result is not linear in the input, so that the layer folds into no plain convolution.

    Args:
        *args: Those of ``nn.Conv2d``.
        scale_input: Multiply by K; without, the layer is ``sign(x) * W`` only.
        grad: See :class:`BinaryWeightConv2d`.
        center: See :class:`BinaryWeightConv2d`.
        clamp: See :class:`BinaryWeightConv2d`.
        per_output: See :class:`BinaryWeightConv2d`.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        As :class:`BinaryWeightConv2d`.

    Raises:
        ValueError: As :class:`BinaryWeightConv2d`.

    Our reading: sign(0) is +1 and the padding, in whatever mode, is added to the signs and to the absolute values, so that
    zeros around the image contribute nothing.
    """

    cannot_fold = 'it binarizes its input'
    weight_is_kernel = False

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
        _check(self, grad, center)
        self.scale_input = scale_input
        self.grad, self.center, self.clamp, self.per_output = grad, center, clamp, per_output

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the signs of ``x``, (N, in_channels, H, W), with the binary kernel."""
        _clamp_latent(self)
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


def binarize_weight(
    weight: Tensor, grad: str = 'paper', center: bool = False, clamp: bool = True, per_output: bool = True
) -> Tensor:
    """Return the scaled signs of ``weight``, (Co, ...), with the estimated gradient; see :class:`BinaryWeightConv2d`."""
    if center:
        weight = weight - weight.mean(1, keepdim=True)
    fixed = weight.detach()
    inside = (fixed.abs() <= 1).to(weight)
    signs = torch.where(fixed >= 0, 1.0, -1.0).to(weight)
    over = tuple(range(1 if per_output else 0, weight.ndim))
    magnitude = fixed.abs().clamp(max=1) if clamp else fixed.abs()
    alpha = magnitude.mean(over, keepdim=True)
    # A difference of zero carries the gradient, so that the value is alpha times the sign exactly. Nothing here keeps the
    # parameter itself for the backward pass, because the next forward may clamp it in place.
    zero = weight - fixed
    if grad == 'ste':
        return alpha * signs + inside * zero
    if grad == 'paper':
        per_scale = weight.numel() / alpha.numel()
        return alpha * signs + (1 / per_scale + alpha * inside) * zero
    return (alpha + (signs * zero).mean(over, keepdim=True)) * (signs + inside * zero)


def _ste_sign(x: Tensor) -> Tensor:
    """Return the signs of ``x`` with the derivative 1 where abs(x) <= 1 and 0 elsewhere."""
    fixed = x.detach()
    return torch.where(fixed >= 0, 1.0, -1.0).to(x) + torch.where(fixed.abs() <= 1, x - fixed, 0.0)


def _check(conv: ExtConv2d, grad: str, center: bool) -> None:
    name = type(conv).__name__
    if grad not in GRADIENTS:
        raise ValueError(f'{name} knows the gradients {GRADIENTS}, got {grad=}')
    if center and conv.groups == conv.in_channels:
        raise ValueError(
            f'{name} with center=True needs at least two input channels per filter, got in_channels={conv.in_channels}, '
            f'groups={conv.groups}, where the mean is the weight itself; pass center=False'
        )


def _clamp_latent(conv: BinaryWeightConv2d | XNORConv2d) -> None:
    if conv.training and conv.clamp:
        with torch.no_grad():
            conv.weight.clamp_(-1, 1)
