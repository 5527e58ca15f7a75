"""DFIR-DETR's blocks: attention over as many pixels as an image needs, and least squares in the frequency domain."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, OddSize, Positive, Repeats, Share, at_most
from mmext.errors import UsageError
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS

__all__ = ['DCFA', 'DPSC', 'FIRC', 'FIRC3', 'DynamicAttention', 'GatedUnit', 'norm_preserving_upsample']


class FIRC(nn.Module):
    r"""The map that a small kernel, one for each channel, would blur to the given one: least squares, in closed form.

    .. math:: \hat x = \operatorname*{argmin}_x \lVert (k * x)_{\downarrow s} - y \rVert^2 + \lambda \lVert x - x_0 \rVert^2

    The convolution is circular, x_0 is y with every pixel repeated s x s times, and
    :math:`\lambda = \sigma(b - 9) + 10^{-5}`. With s = 1 it is
    :math:`\hat x = F^{-1}[(\bar F(k) + \lambda) F(y) / (|F(k)|^2 + \lambda)]`. For larger s the s x s blocks of the spectrum
    that fall on each other are averaged.

    The form is that of Huang et al., *Reverse Convolution and Its Applications to Image Restoration*, 2025,
    arXiv 2508.09824. That DFIR-DETR means it is our conclusion: the terms are the same.

    Args:
        channels: C.
        kernel_size: Side of the kernel.
        scale: s.
        padding: Pixels that are put around the map before, and cut off after.
        padding_mode: What they are.

    Shape:
        (N, C, H, W) to (N, C, s H, s W). ``weight`` is (C, k, k), and sums to one in each channel at first.

    Raises:
        UsageError: In an export to ONNX, which has no Fourier transform here.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        scale: int = 1,
        padding: int = 2,
        padding_mode: Literal['replicate', 'circular', 'constant'] = 'replicate',
    ) -> None:
        super().__init__()
        self.scale, self.padding, self.padding_mode = scale, padding, padding_mode
        self.weight = nn.Parameter(torch.empty(channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels: a softmax over the taps of normal numbers."""
        with torch.no_grad():
            self.weight.copy_(torch.randn_like(self.weight).flatten(1).softmax(1).view_as(self.weight))
            self.bias.zero_()

    def regularization(self) -> Tensor:
        """Return lambda of each channel, (C, 1, 1)."""
        return (at_least_float32(self.bias) - 9).sigmoid()[:, None, None] + 1e-5

    def transfer(self, height: int, width: int, half: bool) -> Tensor:
        """Return the transform of the kernels, centered, on a map of that size; the half that tells all of it, or all."""
        kernel = at_least_float32(self.weight)
        rows = _phases(kernel, height, height)
        columns = _phases(kernel, width, width // 2 + 1 if half else width)
        return rows @ kernel.to(rows.dtype) @ columns.T

    def forward(self, x: Tensor) -> Tensor:
        """Solve for every channel."""
        if torch.onnx.is_in_onnx_export():
            raise UsageError(
                'ONNX knows no Fourier transform of this form, and FIRC computes by one; export to torch.export'
            )
        pads, edge = (self.padding,) * 4, self.padding * self.scale
        with full_precision(x):
            y = at_least_float32(x)
            if self.padding:
                y = F.pad(y, pads, self.padding_mode)
            solved = self._same_size(y) if self.scale == 1 else self._larger(y)
            return solved[..., edge : solved.shape[2] - edge, edge : solved.shape[3] - edge].to(x.dtype)

    def _same_size(self, y: Tensor) -> Tensor:
        height, width = y.shape[2:]
        kernel, weight = self.transfer(height, width, half=True), self.regularization().to(y)
        response = (kernel.conj() + weight) / (kernel.abs().square() + weight)
        return torch.fft.irfft2(response * torch.fft.rfft2(y), s=(height, width))

    def _larger(self, y: Tensor) -> Tensor:
        height, width = (side * self.scale for side in y.shape[2:])
        kernel, weight = self.transfer(height, width, half=False), self.regularization().to(y)
        repeated = y.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        tiles = (1, 1, self.scale, self.scale)
        # Zeros between the pixels repeat the spectrum.
        right = kernel.conj() * torch.fft.fft2(y).repeat(tiles) + weight * torch.fft.fft2(repeated)
        ratio = self._fold(kernel * right) / (self._fold(kernel.abs().square()) + weight)
        return torch.fft.ifft2((right - kernel.conj() * ratio.repeat(tiles[-ratio.ndim :])) / weight).real

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Return the mean of the blocks that fall on each other when every s-th pixel is kept."""
        s = self.scale
        return spectrum.unflatten(-1, (s, -1)).unflatten(-3, (s, -1)).mean((-4, -2))

    def extra_repr(self) -> str:
        return f'{self.weight.shape[0]}, kernel_size={self.weight.shape[1]}, scale={self.scale}, padding={self.padding}'


def _phases(kernel: Tensor, length: int, frequencies: int) -> Tensor:
    """Return the (frequencies, k) matrix of the transform of k centered taps on an axis."""
    taps = torch.arange(kernel.shape[-1], device=kernel.device, dtype=torch.float64) - kernel.shape[-1] // 2
    turns = (
        torch.arange(frequencies, device=kernel.device, dtype=torch.float64)[:, None] * taps * (-2 * math.pi / length)
    )
    return torch.complex(turns.cos().to(kernel.dtype), turns.sin().to(kernel.dtype))


@MODELS.register_module()
class FIRC3(BaseModule):
    r"""DFIR-DETR's block of frequency-domain iterative refinement: n least squares in series, and a 1 x 1 beside them.

    Gao et al., *DFIR-DETR: Frequency Domain Enhancement and Dynamic Feature Aggregation for Cross-Scene Small Object
    Detection*, 2025, arXiv 2512.07078.

    .. math:: y = W_3\,\bigl(M(W_1 x) + W_2 x\bigr)

    :math:`W_1, W_2` are 1 x 1 convolutions with norm and activation, M is n times :class:`mmext.blocks.dfir_detr.FIRC`.
    There is no official code. What the paper's equations leave open is our reading: s = 1, the series, and the padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; by default those of the input.
        num_blocks: n.
        expansion: Channels inside, relative to the output. With 1 there is no W_3.
        kernel_size: Side of the kernels.
        norm_cfg: Norm of the 1 x 1 convolutions.
        act_cfg: Their activation.
        init_cfg: As in mmengine.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H, W).

    Example:
        >>> FIRC3(8, 16)(torch.randn(2, 8, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    _abbr_ = 'firc3'
    example = dict(in_channels=8)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count | None = None,
        num_blocks: Repeats = 3,
        expansion: Annotated[Positive, at_most(64)] = 1.0,
        kernel_size: OddSize = 3,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        out_channels = in_channels if out_channels is None else out_channels
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        inside = max(int(out_channels * expansion), 1)
        self.enter, self.beside = (ConvModule(in_channels, inside, 1, **both) for _ in range(2))
        self.refine = nn.Sequential(*(FIRC(inside, kernel_size) for _ in range(num_blocks)))
        self.leave = nn.Identity() if inside == out_channels else ConvModule(inside, out_channels, 1, **both)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the map."""
        return self.leave(self.refine(self.enter(x)) + self.beside(x))


class DynamicAttention(nn.Module):
    r"""DKSA: self-attention in which every pixel looks at the K that fit it best, and the image says how many those are.

    .. math:: K = \max\bigl(1, \lfloor N \rho \rfloor\bigr), \qquad
              \rho = \sigma\bigl(\mathrm{mean}\; \psi(\mathrm{norm}(x))\bigr)

    Logits below the K-th largest of their row are left out of the softmax; equal ones stay. Each image has its own K. A count
    has no slope, so the output is multiplied by :math:`\rho / \rho`, the lower one held fixed: the value is the same, and psi
    learns. That factor, the lower end of rho and the heads are our choice.

    Args:
        channels: C.
        num_heads: Heads, a divisor of C.
        min_keep: Lower end of rho. With 1 it is plain attention.
        act_cfg: Activation within psi.
    """

    def __init__(self, channels: int, num_heads: int, min_keep: float, norm_cfg: Cfg, act_cfg: Cfg) -> None:
        super().__init__()
        self.num_heads, self.min_keep = num_heads, min_keep
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.query, self.key, self.value, self.project = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        narrow = max(channels // 4, 1)
        self.count = nn.Sequential(
            ConvModule(channels, narrow, 3, padding=1, act_cfg=act_cfg, inplace=False), nn.Conv2d(narrow, 1, 1)
        )

    def share(self, x: Tensor) -> Tensor:
        """Return rho of the images whose normed maps are ``x``, (N, 1, 1, 1)."""
        rate = at_least_float32(self.count(x)).mean((1, 2, 3)).sigmoid().clamp(min=self.min_keep)
        return rate[:, None, None, None]

    def kept(self, share: Tensor, pixels: int) -> Tensor:
        """Return K for a map of so many pixels, of the shape of ``share``."""
        return (share.detach() * pixels).floor().long().clamp(1, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; the input is not added."""
        normed = self.norm(x)
        query, key, value = (
            part(normed).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
            for part in (self.query, self.key, self.value)
        )
        logits = at_least_float32(query @ key.transpose(2, 3)) / math.sqrt(query.shape[3])
        share = self.share(normed)
        last = self.kept(share, logits.shape[3]).expand(*logits.shape[:3], 1) - 1
        limit = logits.detach().sort(-1, descending=True).values.gather(3, last)
        weights = logits.masked_fill(logits < limit, -math.inf).softmax(3).to(value.dtype)
        found = (weights @ value).transpose(2, 3).flatten(1, 2).view_as(x)
        return self.project(found * (share / share.detach()).to(found.dtype))


class GatedUnit(nn.Module):
    """SGLU: the input plus a value gated by what a depthwise convolution sees.

    Args:
        channels: C.
        drop: Share of the gated values that is set to zero in training.
    """

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.drop = nn.Dropout(drop)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, 1)
        return x + self.project(self.drop(F.gelu(self.local(gate)) * value))


class DynamicBlock(nn.Module):
    """DAFB: what a depthwise convolution sees, then attention, then the gated unit."""

    def __init__(self, channels: int, num_heads: int, min_keep: float, drop: float, **cfgs: Cfg) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.attend = DynamicAttention(channels, num_heads, min_keep, **cfgs)
        self.mix = GatedUnit(channels, drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        return self.mix(x + self.attend(x))


@MODELS.register_module()
class DCFA(BaseModule):
    """DFIR-DETR's dynamic content-feature aggregation: half of the channels pass blocks of attention, half pass by.

    Gao et al., *DFIR-DETR: Frequency Domain Enhancement and Dynamic Feature Aggregation for Cross-Scene Small Object
    Detection*, 2025, arXiv 2512.07078.

    ::

        x ── 1x1 ──┬─ F1 ────────────────────────────┐
                   └─ F2 ─┬─ block 1 ─┬─ block 2 ... ─┼ cat ── 1x1 ── y
                          └───────────┴───────────────┘
        block: h = x + depthwise 3x3(x);  h + attention(h);  gated unit

    The attention is :class:`mmext.blocks.dfir_detr.DynamicAttention`. It holds a matrix of pixels by pixels, so place it on
    maps of stride 16 or more. There is no official code. Norms, heads and psi are our reading.

    It stands in the place of the second block of a ResNet-18's stage as well::

        rules=[dict(layer='BasicBlock', match=r'layer4\\.1$', to=dict(type='mmext.DCFA'))]

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; by default those of the input.
        num_blocks: Blocks of attention.
        expansion: Channels of F1 and F2, relative to the output.
        num_heads: Attention heads.
        min_keep: The smallest share of the pixels that one looks at. With 1 attention is plain.
        drop: Share of the gated values that is set to zero in training.
        norm_cfg: Norm of the 1 x 1 convolutions.
        attention_norm: Norm before the attention.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H, W).

    Raises:
        ValueError: If ``num_heads`` does not divide the channels of F2.

    Example:
        >>> DCFA(8, 16)(torch.randn(2, 8, 5, 7)).shape
        torch.Size([2, 16, 5, 7])
    """

    _abbr_ = 'dcfa'
    example = dict(in_channels=8)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count | None = None,
        num_blocks: Repeats = 1,
        expansion: Annotated[Positive, at_most(64)] = 0.5,
        num_heads: Repeats = 1,
        min_keep: Share = 0.05,
        drop: DropRate = 0.0,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        attention_norm: Cfg = dict(type='GN', num_groups=1),  # noqa: B006
        act_cfg: Cfg = dict(type='SiLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        out_channels = in_channels if out_channels is None else out_channels
        inside = max(int(out_channels * expansion), 1)
        if inside % num_heads:
            raise ValueError(f'DCFA needs num_heads that divide {inside}, the channels inside, got {num_heads=}')
        both: dict[str, Any] = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.enter = ConvModule(in_channels, 2 * inside, 1, **both)
        self.blocks = ModuleList(
            DynamicBlock(inside, num_heads, min_keep, drop, norm_cfg=attention_norm, act_cfg=act_cfg)
            for _ in range(num_blocks)
        )
        self.leave = ConvModule((2 + num_blocks) * inside, out_channels, 1, **both)

    @classmethod
    def arguments_from(cls, old: Any) -> dict[str, Any]:
        """Return the arguments with which it stands for a residual block of stride 1."""
        if old.downsample is not None:
            raise AttributeError('its shortcut is a convolution, so the map changes there')
        width = old.conv1.in_channels
        return dict(in_channels=width, out_channels=width)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate features."""
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


def norm_preserving_upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """ANUP: repeat pixels, and divide by how often each is repeated, so that the sum of absolute values stays.

    With a size that is no multiple of the map's, it stays on average.
    """
    share = (x.shape[2] * x.shape[3]) / (size[0] * size[1])
    return F.interpolate(x, size) * share


class DPSC(nn.Module):
    """Dual-path shuffle convolution: a convolution, and a cheaper path behind it, whose channels alternate.

    Args:
        channels: C, even.
        norm_cfg: Norm of the first path.
        act_cfg: Activation of the first path.

    Shape:
        (N, C, H, W) to the same. Channel 2 i is the i-th of the first path, 2 i + 1 that of the second.
    """

    def __init__(self, channels: int, norm_cfg: Cfg, act_cfg: Cfg) -> None:
        super().__init__()
        half = channels // 2
        self.first = ConvModule(channels, half, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.second = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return torch.stack((first, self.second(first)), 2).flatten(1, 2)
