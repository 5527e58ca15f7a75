"""RepSO: a depthwise convolution that is trained as several parallel branches and folds into one kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.convs.generated import GeneratedConv2d
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['RepSO2d']


@MODELS.register_module()
class RepSO2d(GeneratedConv2d):
    r"""Re-parameterized spatial operator of FalconNet.

    Cai and Shen, *FalconNet: Factorization for the Light-weight ConvNets*, 2023, arXiv 2306.06365.

    Linear branches with a batch norm each are summed; nothing non-linear stands between them, so that in eval mode they are
    one kernel and one bias, with :math:`s_i = \gamma_i / \sqrt{\mathrm{var}_i + \epsilon}`:

    .. math::
        y = \sum_i \mathrm{BN}_i(x * w_i), \qquad
        W = \sum_i s_i\,\mathrm{pad}(w_i), \qquad b = \sum_i (\beta_i - s_i\,\mathrm{mean}_i)

    The paper states that several branches make up the operator. Which ones, and that they fold, is our reading.

    Args:
        *args: Those of ``nn.Conv2d``. The paper's operator is depthwise (``groups=in_channels=out_channels``); any other
            grouping, stride, padding and dilation works as well. The kernel size must be odd.
        branches: What is summed; entries may repeat. ``'kxk'`` is the layer's own kernel size, ``'1x3'`` any smaller odd
            one (``k`` stands for the layer's size in that direction: ``'1xk'``), ``'avg'`` the average over the window
            with the padding counted, ``'identity'`` the input. The last two need as many outputs as inputs, and
            ``'identity'`` stride 1; where a layer cannot have them, they are left out.
        norm_cfg: The batch norm of each branch.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        Branch kernels are (Co, Ci/groups, kh, kw) of the branch. There is no ``weight``.

    Raises:
        ValueError: If a kernel is even, a branch is unknown, larger than the layer, or no branch is left, or if
            ``norm_cfg`` is not a batch norm with running statistics (no other norm folds).
    """

    def __init__(
        self,
        *args: Any,
        branches: Sequence[str] = ('kxk', '1x1', 'identity'),
        norm_cfg: dict = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not all(k % 2 for k in self.kernel_size):
            raise ValueError(f'RepSO2d centres its branches and needs an odd kernel_size, got {self.kernel_size}')
        self.register_parameter('weight', None)
        same_channels = self.in_channels == self.out_channels
        impossible = (
            () if same_channels and self.stride == (1, 1) else ('identity',) if same_channels else ('identity', 'avg')
        )
        # Any, because torch does not tell what a ModuleList holds.
        self.branches: Any = nn.ModuleList(_Branch(self, kind, norm_cfg) for kind in branches if kind not in impossible)
        if not self.branches:
            raise ValueError(
                f'RepSO2d has no branch left of {tuple(branches)} for in_channels={self.in_channels}, '
                f"out_channels={self.out_channels}, stride={self.stride}; add 'kxk'"
            )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the kernels (Kaiming normal) and reset the norms and the bias."""
        for branch in self.branches:
            branch.init_weights()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W): branch by branch in training, with the generated kernel in eval mode."""
        if not self.training:
            return super().forward(x)
        # Every branch sees the part of the padded input that its kernel covers in the centre of the full one; this is the
        # same linear map as the zero-padded kernel, for any stride, padding and dilation.
        x = self._pad(x)
        y = sum(branch(x, self) for branch in self.branches)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _pad(self, x: Tensor) -> Tensor:
        if isinstance(self.padding, str):
            pads = self._reversed_padding_repeated_twice
        else:
            pads = [p for p in reversed(self.padding) for _ in range(2)]
        return F.pad(x, pads, mode='constant' if self.padding_mode == 'zeros' else self.padding_mode)

    def generate_kernel(self) -> Tensor:
        return sum(branch.padded_kernel(self.kernel_size) for branch in self.branches)

    def generate_bias(self) -> Tensor:
        shift = sum(branch.affine()[1] for branch in self.branches)
        return shift if self.bias is None else shift + self.bias

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, branches={tuple(branch.kind for branch in self.branches)}'


class _Branch(nn.Module):
    """One kernel, learned or fixed, and its batch norm."""

    def __init__(self, conv: RepSO2d, kind: str, norm_cfg: dict) -> None:
        super().__init__()
        self.kind = kind
        self.size = _branch_size(kind, conv.kernel_size)
        like = (conv.out_channels, conv.in_channels // conv.groups)
        if kind in ('avg', 'identity'):
            kernel = nn.init.dirac_(torch.empty(*like, 1, 1), conv.groups)
            kernel = kernel.expand(-1, -1, *self.size) / (self.size[0] * self.size[1])
            self.register_buffer('weight', kernel, persistent=False)
        else:
            self.weight = nn.Parameter(torch.empty(*like, *self.size))
        norm = build_norm_layer(norm_cfg, conv.out_channels)[1] if norm_cfg else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            raise ValueError(
                f'RepSO2d folds batch norms with running statistics only, got {norm_cfg=}; use a norm_cfg of type BN or SyncBN'
            )
        self.norm = norm

    def init_weights(self) -> None:
        if isinstance(self.weight, nn.Parameter):
            nn.init.kaiming_normal_(self.weight)
        self.norm.reset_parameters()

    def forward(self, padded: Tensor, conv: RepSO2d) -> Tensor:
        rows, cols = ((k - b) // 2 * d for k, b, d in zip(conv.kernel_size, self.size, conv.dilation, strict=True))
        x = padded[..., rows : padded.shape[-2] - rows, cols : padded.shape[-1] - cols]
        if self.kind != 'identity':
            if conv.groups == conv.in_channels == conv.out_channels:
                x = depthwise_conv2d(x, self.weight, None, conv.stride, 0, conv.dilation)
            else:
                x = F.conv2d(x, self.weight, None, conv.stride, 0, conv.dilation, conv.groups)
        return self.norm(x)

    def padded_kernel(self, full: tuple[int, int]) -> Tensor:
        """Return what the branch adds to a kernel of size ``full`` in eval mode."""
        scale, _ = self.affine()
        rows, cols = ((k - b) // 2 for k, b in zip(full, self.size, strict=True))
        return F.pad(self.weight * scale.view(-1, 1, 1, 1), (cols, cols, rows, rows))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the scale and shift, (Co,) each, that the norm applies in eval mode."""
        norm = self.norm
        mean, var = norm.get_buffer('running_mean'), norm.get_buffer('running_var')
        scale = (var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        shift = -mean * scale
        return scale, shift + norm.bias if norm.affine else shift


def _branch_size(kind: str, full: tuple[int, int]) -> tuple[int, int]:
    if kind in ('avg', 'identity'):
        return full if kind == 'avg' else (1, 1)
    match = re.fullmatch(r'(k|\d+)x(k|\d+)', kind)
    if match is None:
        raise ValueError(f"RepSO2d knows the branches 'avg', 'identity' and sizes like 'kxk' or '1x3', got {kind!r}")
    rows, cols = (k if side == 'k' else int(side) for k, side in zip(full, match.groups(), strict=True))
    if rows % 2 == 0 or cols % 2 == 0 or rows > full[0] or cols > full[1]:
        raise ValueError(f'RepSO2d needs branch sizes that are odd and no larger than kernel_size={full}, got {kind!r}')
    return rows, cols
