"""Orthogonal convolutions: three losses that pull the kernels of any model towards orthogonality."""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Natural, NonNegative, Pattern
from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.hooks.auxiliary_loss import AuxiliaryLossHook
from mmext.numerics import spread_taps
from mmext.registry import HOOKS

__all__ = ['OrthogonalConvHook', 'gor', 'l_orth', 'ocnn', 'self_convolution']


@HOOKS.register_module()
class OrthogonalConvHook(AuxiliaryLossHook):
    r"""Adds a loss of the kernels' orthogonality (OCNN, L_orth or GOR) to any model, as ``loss_orth``.

    With Z the convolution of a kernel K, seen as :math:`C_o` images, with itself (:func:`self_convolution`), and I 1 at the
    center tap of each kernel with itself and 0 elsewhere:

    - ``'ocnn'`` (Wang et al., *Orthogonal Convolutional Neural Networks*, 2020, arXiv 1911.12207):
      :math:`\sum \lVert Z - I \rVert_F`, the norm not squared, as in the released code;
    - ``'l_orth'`` (Achour, Malgouyres and Mamalet, *Existence, Stability and Scalability of Orthogonal Convolutional Neural
      Networks*, 2021, arXiv 2108.05623): :math:`\sum \lVert Z - I \rVert_F^2 - \max(0, C_o - s_h s_w C_i)`. For an N x N
      image with circular padding this is :math:`\lVert J J^\top - 1 \rVert_F^2 / n^2` exactly, with J the layer's matrix
      and n = N/s (and :math:`J^\top J`, where J has more rows than columns);
    - ``'gor'`` (Kurtz, Bar and Giryes, *Group Orthogonalization Regularization for Vision Models Adaptation and
      Robustness*, BMVC 2023, arXiv 2306.10001): the kernels, as vectors, are orthonormal within groups of them.

    A layer of this pack whose kernel is generated is regularized by the kernel that it folds to. A 1x1 kernel is a matrix V;
    its side with fewer vectors is made orthonormal.

    Args:
        method: One of the three.
        match: Regular expression, searched in the dotted names of the model's ``nn.Conv2d`` layers.
        skip: Regular expression of names to leave alone.
        linear: Whether ``nn.Linear`` layers that match take part, as 1x1 convolutions.
        num_groups: Of GOR: the number of groups; where it does not divide the kernels, the next smaller that does.
        min_filters: Of GOR: a group has so many kernels at least, if the layer has.
        sets: Of GOR: ``'inter'`` orthogonalizes the consecutive kernels of each group, ``'intra'`` the j-th of all groups
            (the released code's names).
        weight: The factor of the sum over the layers. By default 0.1, 1 and 0.01: those of the three releases.
        start_epoch: See :class:`AuxiliaryLossHook`.
        start_iter: See :class:`AuxiliaryLossHook`.

    Raises:
        ValueError: If ``method``, ``sets`` or a number is wrong, or, in training, if no layer that learns matches.

    OCNN's released default pads by 1, which leaves taps out, and with stride 2 even the center; the padding here is the
    paper's. Groups of a convolution are summed, each by itself, and the rounding of ``num_groups`` is ours too.

    Example:
        >>> custom_hooks = [dict(type='mmext.OrthogonalConvHook', match='layer4')]
    """

    def __init__(
        self,
        method: str = 'ocnn',
        match: Pattern = '',
        skip: Pattern | None = None,
        linear: bool = False,
        num_groups: int = 32,
        min_filters: int = 4,
        sets: str = 'inter',
        weight: NonNegative | None = None,
        start_epoch: Natural = 0,
        start_iter: Natural = 0,
    ) -> None:
        weights = {'ocnn': 0.1, 'l_orth': 1.0, 'gor': 0.01}
        if method not in weights or sets not in ('inter', 'intra'):
            raise ValueError(
                f"OrthogonalConvHook needs a method of {list(weights)} and sets 'inter' or 'intra', got {method=} and {sets=}"
            )
        if num_groups < 1 or min_filters < 1:
            raise ValueError(
                f'OrthogonalConvHook needs num_groups and min_filters of at least 1, got {num_groups=} and {min_filters=}'
            )
        super().__init__(weights[method] if weight is None else weight, start_epoch, start_iter)
        self.method = method
        self.match = match
        self.skip = skip
        self.linear = linear
        self.num_groups = num_groups
        self.min_filters = min_filters
        self.sets = sets

    def check(self, model: nn.Module) -> None:
        """Find the layers; a name that is misspelt is told at once."""
        self.layers(model)

    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        return {'loss_orth': torch.stack([self._term(layer) for layer in self.layers(model).values()]).sum()}

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers that are regularized, by name."""
        kinds = (nn.Conv2d, nn.Linear) if self.linear else (nn.Conv2d,)
        named: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
        matching = {
            n: m for n, m in named.items() if re.search(self.match, n) and not (self.skip and re.search(self.skip, n))
        }
        learning = {n: m for n, m in matching.items() if _learns(m)}
        if not learning:
            near = difflib.get_close_matches(self.match, named, n=5, cutoff=0.0)
            raise ValueError(
                f'OrthogonalConvHook found no layer that learns for match={self.match!r}, skip={self.skip!r} in '
                f'{type(model).__name__} ({len(matching)} match but are frozen); of its {len(named)} layers the nearest names '
                f'are {near}'
            )
        return learning

    def _term(self, layer: nn.Module) -> Tensor:
        kernel, stride, groups = _kernel_of(layer)
        if self.method == 'gor':
            return gor(kernel, self.num_groups, self.min_filters, self.sets)
        return (ocnn if self.method == 'ocnn' else l_orth)(kernel, stride, groups)


def _learns(layer: nn.Module) -> bool:
    return any(p.requires_grad for name, p in layer.named_parameters() if name != 'bias')


def _kernel_of(layer: nn.Module) -> tuple[Tensor, tuple[int, int], int]:
    """Return the kernel of the plain convolution that ``layer`` is, with its stride and groups."""
    if isinstance(layer, nn.Linear):
        return layer.weight[..., None, None], (1, 1), 1
    kernel = layer.kernel_and_bias()[0] if isinstance(layer, GeneratedConv2d) else layer.get_parameter('weight')
    if isinstance(layer, ExtConv2d):
        geometry: dict[str, Any] = layer.plain_geometry()
    else:
        geometry = {key: getattr(layer, key) for key in ('stride', 'dilation', 'groups')}
    (down, right), dilation = geometry['stride'], geometry['dilation']
    # Without a stride a dilated convolution is several plain ones, side by side, with the same kernel.
    if (down > 1 and dilation[0] > 1) or (right > 1 and dilation[1] > 1):
        kernel = spread_taps(kernel, dilation)
    return kernel.to(torch.promote_types(kernel.dtype, torch.float32)), (down, right), geometry['groups']


def self_convolution(kernel: Tensor, stride: tuple[int, int] = (1, 1), groups: int = 1) -> Tensor:
    r"""Return the convolution of a kernel's filters with each other, at all shifts that are multiples of the stride.

    Args:
        kernel: (Co, Ci/groups, kh, kw).
        stride: Of the layer.
        groups: Of the layer; only filters of the same group meet.

    Returns:
        (groups, Co/groups, Co/groups, 2 P_h/s_h + 1, 2 P_w/s_w + 1), with :math:`P = \lfloor (k-1)/s \rfloor s`; the center
        is the shift 0.
    """
    filters, channels, *size = kernel.shape
    each = filters // groups
    images = kernel.view(groups, each, channels, *size).transpose(0, 1).reshape(each, groups * channels, *size)
    padding = [(k - 1) // s * s for k, s in zip(size, stride, strict=True)]
    result = F.conv2d(images, kernel, None, stride, padding, groups=groups)
    return result.view(each, groups, each, *result.shape[2:]).transpose(0, 1)


def _residual(kernel: Tensor, stride: tuple[int, int], groups: int) -> Tensor:
    """Return Z - I, (groups, -1)."""
    if kernel.shape[2:] == (1, 1):
        return _gram_residual(kernel.view(groups, -1, kernel.shape[1]))
    correlation = self_convolution(kernel, stride, groups)
    target = torch.zeros_like(correlation)
    target[..., correlation.shape[-2] // 2, correlation.shape[-1] // 2] = torch.eye(
        correlation.shape[1], dtype=kernel.dtype, device=kernel.device
    )
    return (correlation - target).flatten(1)


def _gram_residual(vectors: Tensor) -> Tensor:
    """Return V V^T - 1, or V^T V - 1 if that is smaller, of each matrix of (sets, rows, columns), flattened."""
    if vectors.shape[1] >= vectors.shape[2]:
        vectors = vectors.mT
    gram = vectors @ vectors.mT
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).flatten(1)


def ocnn(kernel: Tensor, stride: tuple[int, int] = (1, 1), groups: int = 1) -> Tensor:
    """Return the distance of a kernel, (Co, Ci/groups, kh, kw), from orthogonality: a Frobenius norm per group, summed."""
    # Not the root of a sum, whose derivative at 0 would be infinite.
    return torch.linalg.vector_norm(_residual(kernel, stride, groups), dim=1).sum()


def l_orth(kernel: Tensor, stride: tuple[int, int] = (1, 1), groups: int = 1) -> Tensor:
    """Return L_orth of a kernel, (Co, Ci/groups, kh, kw): the squared distance, 0 at orthogonality of rows or columns."""
    filters, channels, rows, cols = kernel.shape
    # More filters than the pixels that they start from: not all can be orthogonal, and this much always remains.
    excess = 0 if rows == cols == 1 else max(0, filters // groups - stride[0] * stride[1] * channels)
    return _residual(kernel, stride, groups).square().sum() - groups * excess


def gor(kernel: Tensor, num_groups: int = 32, min_filters: int = 4, sets: str = 'inter') -> Tensor:
    """Return GOR's loss of a kernel, (Co, Ci/groups, kh, kw): squared distances of groups of filters, summed."""
    filters = kernel.shape[0]
    most = max(1, min(num_groups, filters // min_filters))
    groups = next(n for n in range(most, 0, -1) if filters % n == 0)
    vectors = kernel.reshape(groups, filters // groups, -1)
    return _gram_residual(vectors if sets == 'inter' else vectors.transpose(0, 1)).square().sum()
