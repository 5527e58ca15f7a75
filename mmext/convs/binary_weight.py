"""Binary weights: the kernel is a sign with one scale per filter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['BinaryWeightConv2d', 'binarize_weight', 'check_binary', 'settle_latent']

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
        center: Subtract each filter's mean over its input channels first, see :func:`settle_latent`.
        clamp: Clamp to [-1, 1], after centering. ``mmext.ProjectionHook`` centers and clamps what is stored as well, after
            every optimizer step: a weight that may run away takes as long to come back.
        per_output: One scale per filter; else one for the whole layer.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` is (Co, Ci/groups, kh, kw).

    Raises:
        ValueError: If ``grad`` is unknown, or ``center`` is asked for filters with a single input channel, which it would
            set to zero.

    Centering and clamping follow a port of the authors' code, which does both in place before every forward: the gradient
    passes by them to what is stored. Our reading: sign(0) is +1, so that the kernel stays binary.

    Example:
        >>> kernel = BinaryWeightConv2d(8, 8, 3).eval().fold().weight
        >>> kernel[0].unique().numel()
        2
    """

    stretches = False  # the sign of zero is +1

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
        check_binary(self, grad, center)
        self.grad, self.center, self.clamp, self.per_output = grad, center, clamp, per_output

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Center and clamp the latent weights, as the layer computes with them."""
        self.weight.copy_(settle_latent(self.weight, self.center, self.clamp))

    def generate_kernel(self) -> Tensor:
        return binarize_weight(self.weight, self.grad, self.center, self.clamp, self.per_output)

    def own_repr(self) -> str:
        return f'grad={self.grad!r}, center={self.center}, clamp={self.clamp}, per_output={self.per_output}'


def settle_latent(weight: Tensor, center: bool, clamp: bool) -> Tensor:
    """Return the latent weights that are binarized: centered over the input channels, then clamped to [-1, 1]."""
    weight = weight - weight.mean(1, keepdim=True) if center else weight
    return weight.clamp(-1, 1) if clamp else weight


def binarize_weight(
    weight: Tensor, grad: str = 'paper', center: bool = False, clamp: bool = True, per_output: bool = True
) -> Tensor:
    """Return the scaled signs of ``weight``, (Co, ...), with the estimated gradient; see :class:`BinaryWeightConv2d`."""
    # A difference of zero carries the gradient, so that the value is alpha times the sign exactly. Centering and clamping
    # are projections of what is stored, and the gradient is that of what they return.
    zero = weight - weight.detach()
    fixed = settle_latent(weight.detach(), center, clamp)
    inside = (fixed.abs() <= 1).to(weight)
    signs = torch.where(fixed >= 0, 1.0, -1.0).to(weight)
    over = tuple(range(1 if per_output else 0, weight.ndim))
    alpha = fixed.abs().mean(over, keepdim=True)
    if grad == 'ste':
        return alpha * signs + inside * zero
    if grad == 'paper':
        per_scale = weight.numel() / alpha.numel()
        return alpha * signs + (1 / per_scale + alpha * inside) * zero
    return (alpha + (signs * zero).mean(over, keepdim=True)) * (signs + inside * zero)


def check_binary(conv: ExtConv2d, grad: str, center: bool) -> None:
    """Refuse an unknown gradient, and centering where a filter has one input channel, in the name of ``conv``."""
    name = type(conv).__name__
    if grad not in GRADIENTS:
        raise ValueError(f'{name} knows the gradients {GRADIENTS}, got {grad=}')
    if center and conv.groups == conv.in_channels:
        raise ValueError(
            f'{name} with center=True needs at least two input channels per filter, got in_channels={conv.in_channels}, '
            f'groups={conv.groups}, where the mean is the weight itself; pass center=False'
        )
