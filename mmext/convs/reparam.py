"""Convolutions that are trained as a sum of parallel branches with a batch norm each, and fold into one kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.arguments import Cfg
from mmext.convs.generated import GeneratedConv2d
from mmext.ops.depthwise import depthwise_conv2d

__all__ = ['ReparamConv2d', 'bn_affine', 'foldable_norm']


class ReparamConv2d(GeneratedConv2d):
    r"""A sum of linear branches; a system of this kind is its list of branches.

    Nothing non-linear stands between the branches, so that in eval mode they are one kernel and one bias, with
    :math:`s_i = \gamma_i / \sqrt{\mathrm{var}_i + \epsilon}`:

    .. math::
        y = \sum_i \mathrm{BN}_i(x * w_i), \qquad
        W = \sum_i s_i\,\mathrm{pad}(w_i), \qquad b = \sum_i (\beta_i - s_i\,\mathrm{mean}_i)

    Args:
        *args: Those of ``nn.Conv2d``. The kernel size must be odd.
        branches: What is summed; entries may repeat, and with none at all the layer stays a plain convolution. ``'kxk'``
            is the layer's own kernel size, ``'1x3'`` any smaller odd one (``k`` stands for the layer's size in that
            direction: ``'1xk'``), ``'3x3@2'`` one with taps two apart, ``'avg'`` the average over the window with the
            padding counted, ``'identity'`` the input. The last two need as many outputs as inputs, and ``'identity'``
            stride 1; where a layer cannot have them, they are left out.
        norm_cfg: The batch norm of each branch.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        Branch kernels are (Co, Ci/groups, kh, kw) of the branch. There is no ``weight``. A plain layer's kernel is taken
        by the first ``'kxk'`` branch, so that all of them together compute with it.

    Raises:
        ValueError: If a kernel is even, a branch is unknown, larger than the layer, or no branch is left, or if
            ``norm_cfg`` is not a batch norm with running statistics (no other norm folds).
    """

    def __init__(
        self,
        *args: Any,
        branches: Sequence[str] = ('kxk',),
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not branches:
            self.plain = True
            return
        if not all(k % 2 for k in self.kernel_size):
            raise ValueError(
                f'{type(self).__name__} centers its branches and needs an odd kernel_size, got {self.kernel_size}'
            )
        self.drop_weight()
        same_channels = self.in_channels == self.out_channels
        impossible = (
            () if same_channels and self.stride == (1, 1) else ('identity',) if same_channels else ('identity', 'avg')
        )
        # Any, because torch does not tell what a ModuleList holds.
        self.branches: Any = nn.ModuleList(_Branch(self, kind, norm_cfg) for kind in branches if kind not in impossible)
        if not self.branches:
            raise ValueError(
                f'{type(self).__name__} has no branch left of {tuple(branches)} for in_channels={self.in_channels}, '
                f"out_channels={self.out_channels}, stride={self.stride}; add 'kxk'"
            )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the kernels (Kaiming normal) and reset the norms and the bias."""
        if self.plain:
            return super().init_weights()
        for branch in self.branches:
            branch.init_weights()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W): branch by branch in training, with the generated kernel in eval mode."""
        if self.plain or not self.training:
            return super().forward(x)
        # Every branch sees the part of the padded input that its kernel covers in the center of the full one; this is the
        # same linear map as the zero-padded kernel, for any stride, padding and dilation.
        x = self.pad(x)
        y = sum(branch(x, self) for branch in self.branches)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def generate_kernel(self) -> Tensor:
        return torch.stack([branch.padded_kernel(self.kernel_size) for branch in self.branches]).sum(0)

    def generate_bias(self) -> Tensor:
        shift = torch.stack([bn_affine(branch.norm)[1] for branch in self.branches]).sum(0)
        return shift if self.bias is None else shift + self.bias

    def load_kernel(self, kernel: Tensor) -> None:
        whole = next((branch for branch in self.branches if branch.kind == 'kxk'), None)
        if whole is None:
            raise ValueError(f"{type(self).__name__} starts from a given kernel only with a branch 'kxk'")
        scale = bn_affine(whole.norm)[0].view(-1, 1, 1, 1)
        whole.weight += (kernel - self.generate_kernel()) / scale

    def own_repr(self) -> str:
        return f'branches={tuple(branch.kind for branch in self.branches)}'


class _Branch(nn.Module):
    """One kernel, learned or fixed, and its batch norm."""

    def __init__(self, conv: ReparamConv2d, kind: str, norm_cfg: dict | None) -> None:
        super().__init__()
        self.kind = kind
        owner = type(conv).__name__
        size, self.spacing = _branch_size(kind, conv.kernel_size, owner)
        self.extent = tuple(self.spacing * (k - 1) + 1 for k in size)
        like = (conv.out_channels, conv.in_channels // conv.groups)
        if kind in ('avg', 'identity'):
            kernel = nn.init.dirac_(torch.empty(*like, 1, 1), conv.groups)
            kernel = kernel.expand(-1, -1, *size) / (size[0] * size[1])
            self.register_buffer('weight', kernel, persistent=False)
        else:
            self.weight = nn.Parameter(torch.empty(*like, *size))
        self.norm = foldable_norm(norm_cfg, conv.out_channels, owner)

    def init_weights(self) -> None:
        if isinstance(self.weight, nn.Parameter):
            nn.init.kaiming_normal_(self.weight)
        self.norm.reset_parameters()

    def forward(self, padded: Tensor, conv: ReparamConv2d) -> Tensor:
        rows, cols = ((k - e) // 2 * d for k, e, d in zip(conv.kernel_size, self.extent, conv.dilation, strict=True))
        x = padded[..., rows : padded.shape[-2] - rows, cols : padded.shape[-1] - cols]
        if self.kind != 'identity':
            dilation = (conv.dilation[0] * self.spacing, conv.dilation[1] * self.spacing)
            if conv.groups == conv.in_channels == conv.out_channels:
                x = depthwise_conv2d(x, self.weight, None, conv.stride, 0, dilation)
            else:
                x = F.conv2d(x, self.weight, None, conv.stride, 0, dilation, conv.groups)
        return self.norm(x)

    def padded_kernel(self, full: tuple[int, int]) -> Tensor:
        """Return what the branch adds to a kernel of size ``full`` in eval mode."""
        scale, _ = bn_affine(self.norm)
        kernel = self.weight * scale.view(-1, 1, 1, 1)
        if self.spacing > 1:
            spread = kernel.new_zeros(*kernel.shape[:2], *self.extent)
            spread[..., :: self.spacing, :: self.spacing] = kernel
            kernel = spread
        rows, cols = ((k - e) // 2 for k, e in zip(full, self.extent, strict=True))
        return F.pad(kernel, (cols, cols, rows, rows))


def foldable_norm(norm_cfg: dict | None, channels: int, owner: str) -> _BatchNorm:
    """Build a norm, and refuse one that is no batch norm with running statistics, in the name of class ``owner``."""
    norm = build_norm_layer(norm_cfg, channels)[1] if norm_cfg else None
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f'{owner} folds batch norms with running statistics only, got {norm_cfg=}; use a norm_cfg of type BN or SyncBN'
        )
    return norm


def bn_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, (C,) each, that a batch norm applies in eval mode."""
    mean, var = norm.get_buffer('running_mean'), norm.get_buffer('running_var')
    scale = (var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def _branch_size(kind: str, full: tuple[int, int], owner: str) -> tuple[tuple[int, int], int]:
    """Return the number of taps per direction and their distance."""
    if kind in ('avg', 'identity'):
        return full if kind == 'avg' else (1, 1), 1
    match = re.fullmatch(r'(k|\d+)x(k|\d+)(?:@(\d+))?', kind)
    if match is None:
        raise ValueError(
            f"{owner} knows the branches 'avg', 'identity' and sizes like 'kxk', '1x3', '3x3@2', got {kind!r}"
        )
    rows, cols = (k if side == 'k' else int(side) for k, side in zip(full, match.groups()[:2], strict=True))
    spacing = int(match[3] or 1)
    extent = tuple(spacing * (k - 1) + 1 for k in (rows, cols))
    if rows % 2 == 0 or cols % 2 == 0 or spacing < 1 or any(e > k for e, k in zip(extent, full, strict=True)):
        raise ValueError(
            f'{owner} needs branches of odd sizes that cover no more than kernel_size={full}, got {kind!r}, which covers '
            f'{extent[0]}x{extent[1]}'
        )
    return (rows, cols), spacing
