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
from mmext.norms.normalized import normalized
from mmext.numerics import is_depthwise, spread_taps
from mmext.ops.depthwise import depthwise_conv2d

__all__ = ['ReparamConv2d', 'bn_affine', 'foldable_norm', 'total_shift']


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
        norm_cfg: The batch norm of each branch, None for none: a batch of one with maps of one pixel has no statistics.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        Branch kernels are (Co, Ci/groups, kh, kw) of the branch. There is no ``weight``. A plain layer's kernel is taken
        by the first ``'kxk'`` branch, so that all of them together compute with it.

    Raises:
        ValueError: If a kernel is even, a branch is unknown, larger than the layer, or no branch is left; if ``norm_cfg`` is
            not a batch norm with running statistics (no other norm folds), or None with nothing but fixed branches; in
            training, if a batch has one value per channel.
    """

    places_norm = True

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
        like = self.drop_weight()
        same_channels = self.in_channels == self.out_channels
        impossible = (
            () if same_channels and self.stride == (1, 1) else ('identity',) if same_channels else ('identity', 'avg')
        )
        # Any, because torch does not tell what a ModuleList holds.
        self.branches: Any = nn.ModuleList(
            _Branch(self, kind, norm_cfg, like) for kind in branches if kind not in impossible
        )
        if not any(True for _ in self.branches.parameters()):
            raise ValueError(
                f'{type(self).__name__} has no branch left that learns of {tuple(branches)} for in_channels='
                f"{self.in_channels}, out_channels={self.out_channels}, stride={self.stride}, {norm_cfg=}; add 'kxk'"
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
        own = [branch.own_padding(self) for branch in self.branches]
        padded = self.pad(x) if None in own else x
        y, *rest = (branch(padded if p is None else x, self, p) for branch, p in zip(self.branches, own, strict=True))
        for one in rest:
            y = y + one
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def generate_kernel(self) -> Tensor:
        return torch.stack([branch.padded_kernel(self) for branch in self.branches]).sum(0)

    def like(self) -> Tensor:
        """Return a tensor of the layer's own, for its device and type."""
        learned = (t for branch in self.branches for t in (branch.weight, branch.norm and branch.norm.running_mean))
        return next(t for t in learned if t is not None)

    def generate_bias(self) -> Tensor | None:
        return total_shift([branch.norm for branch in self.branches], self.bias)

    def load_kernel(self, kernel: Tensor) -> None:
        whole = next((branch for branch in self.branches if branch.kind == 'kxk'), None)
        if whole is None:
            raise ValueError(f"{type(self).__name__} starts from a given kernel only with a branch 'kxk'")
        rest = kernel - self.generate_kernel()
        whole.weight += rest if whole.norm is None else rest / bn_affine(whole.norm)[0].view(-1, 1, 1, 1)

    def own_repr(self) -> str:
        return f'branches={tuple(branch.kind for branch in self.branches)}'


class _Branch(nn.Module):
    """One kernel, learned or fixed, and its batch norm."""

    def __init__(self, conv: ReparamConv2d, kind: str, norm_cfg: dict | None, like: Tensor) -> None:
        super().__init__()
        self.kind, self.groups = kind, conv.groups
        owner = type(conv).__name__
        self.size, self.spacing = _branch_size(kind, conv.kernel_size, owner)
        self.extent = tuple(self.spacing * (k - 1) + 1 for k in self.size)
        fixed = kind in ('avg', 'identity')
        self.weight = None if fixed else nn.Parameter(like.new_empty(*like.shape[:2], *self.size))
        self.norm = foldable_norm(norm_cfg, conv.out_channels, owner, like)

    def init_weights(self) -> None:
        if self.weight is not None:
            nn.init.kaiming_normal_(self.weight)
        if self.norm is not None:
            self.norm.reset_parameters()

    def kernel(self, like: Tensor, channels: int) -> Tensor:
        """Return the kernel, (Co, Ci/groups, kh, kw); a fixed one is made anew, of the device and type of ``like``.

        A buffer that no checkpoint holds would stay empty on a layer that was built on the meta device.
        """
        if self.weight is not None:
            return self.weight
        # Not torch.eye, which torch.fx of torch 2.5 does not trace.
        per_group = like.new_ones(channels // self.groups).diag().repeat(self.groups, 1)
        return per_group[..., None, None].expand(-1, -1, *self.size) / (self.size[0] * self.size[1])

    def margins(self, conv: ReparamConv2d) -> tuple[int, int]:
        """Return by how many pixels the layer's window is larger than the branch's, on each side."""
        rows, cols = ((k - e) // 2 * d for k, e, d in zip(conv.kernel_size, self.extent, conv.dilation, strict=True))
        return rows, cols

    def own_padding(self, conv: ReparamConv2d) -> tuple[int, int] | None:
        """Return the zero padding with which the branch sees what it should, None where there is no such."""
        if conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
            return None
        rows, cols = (p - m for p, m in zip(conv.padding, self.margins(conv), strict=True))
        fits = rows == cols == 0 if self.kind == 'identity' else min(rows, cols) >= 0
        return (rows, cols) if fits else None

    def forward(self, x: Tensor, conv: ReparamConv2d, padding: tuple[int, int] | None) -> Tensor:
        """Convolve the input with ``padding``, or, where that is None, the input that the layer has padded."""
        if padding is None:
            (rows, cols), padding = self.margins(conv), (0, 0)
            x = x[..., rows : x.shape[-2] - rows, cols : x.shape[-1] - cols]
        if self.kind != 'identity':
            dilation = (conv.dilation[0] * self.spacing, conv.dilation[1] * self.spacing)
            kernel = self.kernel(x, conv.out_channels)
            if is_depthwise(conv):
                x = depthwise_conv2d(x, kernel, None, conv.stride, padding, dilation)
            else:
                x = F.conv2d(x, kernel, None, conv.stride, padding, dilation, conv.groups)
        return normalized(x, self.norm, type(conv).__name__)

    def padded_kernel(self, conv: ReparamConv2d) -> Tensor:
        """Return what the branch adds to the layer's kernel in eval mode."""
        kernel = self.kernel(conv.like(), conv.out_channels)
        if self.norm is not None:
            kernel = kernel * bn_affine(self.norm)[0].view(-1, 1, 1, 1)
        kernel = spread_taps(kernel, (self.spacing, self.spacing))
        rows, cols = ((k - e) // 2 for k, e in zip(conv.kernel_size, self.extent, strict=True))
        return F.pad(kernel, (cols, cols, rows, rows))


def foldable_norm(norm_cfg: dict | None, channels: int, owner: str, like: Tensor) -> _BatchNorm | None:
    """Build a norm of the device and type of ``like``; refuse, for class ``owner``, what is no batch norm with statistics."""
    if norm_cfg is None:
        return None
    norm = build_norm_layer(norm_cfg, channels)[1]
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f'{owner} folds batch norms with running statistics only, got {norm_cfg=}; use a norm_cfg of type BN or SyncBN'
        )
    return norm.to(device=like.device, dtype=like.dtype)


def total_shift(norms: Sequence[_BatchNorm | None], bias: Tensor | None) -> Tensor | None:
    """Return the sum of what the norms add in eval mode and of ``bias``, None where there is neither."""
    shifts = [bn_affine(norm)[1] for norm in norms if norm is not None]
    shifts += [] if bias is None else [bias]
    return torch.stack(shifts).sum(0) if shifts else None


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
