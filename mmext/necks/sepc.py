"""SEPC: a convolution over the levels of a feature pyramid, and a neck that hands heads a (cls, reg) pair per level."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmext.arguments import Cfg, Count, Few, Repeats, some
from mmext.convs.base import ExtConv2d
from mmext.registry import MODELS

__all__ = ['SEPC', 'PConv', 'PConvNeck', 'ScaleEqualizingConv2d', 'integrated_norm']


class _ZeroConv2d(ExtConv2d):
    """A convolution that starts as zero, and stays so whatever its host initializes."""

    bias: Tensor

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class ScaleEqualizingConv2d(ExtConv2d):
    """A 3 x 3 convolution that follows the blur of a pyramid: plain on its bottom level, deformable (v1) above.

    Both modes share one weight and one bias, so the layer equals the plain convolution as long as the offsets are zero,
    which they are at the start. The offsets are predicted by ``conv_offset`` from the layer's own input.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        stride: Stride in both directions.
        padding: Zero padding on all sides.
        deform: False leaves out the offsets; the layer is then plain on every level.

    Raises:
        ImportError: In ``__init__`` with ``deform=True`` where mmcv was built without its compiled operators.
    """

    bias: Tensor
    padding: tuple[int, int]

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1, deform: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding)
        self.conv_offset = None
        if deform:
            _deform_conv2d()
            self.conv_offset = _ZeroConv2d(in_channels, 2 * 3 * 3, 3, stride, padding)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def init_weights(self) -> None:
        super().init_weights()
        if self.conv_offset is not None:
            self.conv_offset.init_weights()

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W), for an output on pyramid level ``level`` (0 is the finest)."""
        if level == 0 or self.conv_offset is None:
            return super().forward(x)
        offset = self.conv_offset(x)
        out = self._deform(x, offset.float() if offset.dtype == torch.bfloat16 else offset)
        return out.to(offset.dtype) + self.bias.to(offset.dtype).view(-1, 1, 1)

    def _deform(self, x: Tensor, offset: Tensor) -> Tensor:
        height, width = offset.shape[-2:]
        # mmcv refuses a map smaller than the kernel. Sampling beyond the border reads zeros, so zeros may be appended.
        grow = [max(3 - size, 0) for size in x.shape[-2:]]
        if any(grow):
            x = F.pad(x, (0, grow[1], 0, grow[0]))
            sizes = zip(x.shape[-2:], self.stride, self.padding, strict=True)
            rows, cols = ((size + 2 * pad - 3) // stride + 1 for size, stride, pad in sizes)
            offset = F.pad(offset, (0, cols - width, 0, rows - height))
        # The operator reads memory as if it were contiguous, and wants a step that divides the batch.
        tensors = (t.contiguous() for t in (x, offset, self.weight))
        step = math.gcd(len(x), 32) if len(x) > 32 else 32
        out = _deform_conv2d()(*tensors, self.stride, self.padding, 1, 1, 1, False, step)
        return out[..., :height, :width]


def _deform_conv2d() -> Callable[..., Tensor]:
    try:
        from mmcv.ops import deform_conv2d
    except ImportError as error:
        raise ImportError(
            'pconv_deform and lcconv_deform need deform_conv2d of mmcv.ops, which this mmcv was built without; install an '
            'mmcv with ops (MMCV_WITH_OPS=1; mmcv-lite has none), or leave both False for the PConv and iBN variants'
        ) from error
    return deform_conv2d


def integrated_norm(norm: nn.Module, xs: Sequence[Tensor]) -> list[Tensor]:
    """Apply one norm to all levels of a pyramid as if they were one map, the paper's integrated batch norm.

    In training the statistics are those of the concatenated pixels, so a level weighs as much as it has pixels. A batch
    norm that uses its running statistics is a function of single pixels: then the levels need no concatenation, and none
    is made.

    Args:
        norm: Any norm layer for (N, C, H, W), synchronized or not.
        xs: The levels, (N, C, H_l, W_l).

    Returns:
        The normalized levels, in the shapes of ``xs``.
    """
    frozen = isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None
    if frozen or isinstance(norm, nn.Identity):
        return [norm(x) for x in xs]
    flat = norm(torch.cat([x.flatten(2) for x in xs], dim=2).unsqueeze(2)).squeeze(2)
    parts = flat.split([x.shape[2] * x.shape[3] for x in xs], dim=2)
    return [part.view_as(x) for part, x in zip(parts, xs, strict=True)]


def _build_norm(ibn: bool, norm_cfg: dict | None, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg or {'type': 'BN'}, channels)[1] if ibn else nn.Identity()


def _absorb(norm: nn.Module, main: nn.Conv2d, *others: nn.Conv2d) -> nn.Module:
    """Merge a batch norm over the sum of convolutions into them, and return what is left of the norm."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return norm
    zero = torch.zeros_like(norm.running_mean)
    for conv in (main, *others):
        mean, shift = (norm.running_mean, norm.bias) if conv is main else (zero, zero)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, norm.running_var, norm.eps, norm.weight, shift
        )
    return nn.Identity()


class PConv(BaseModule):
    r"""Pyramid convolution: a 3 x 3 convolution with three taps along the level axis.

    .. math:: y^l = k_0 * x^l + k_{-1} *_{s2} x^{l-1} + \mathrm{Up}(k_{+1} * x^{l+1}),
              \qquad z^l = \mathrm{ReLU}(\mathrm{iBN}(y)^l)

    Up is bilinear with aligned corners, to the exact size of the target. Where the levels do not halve (odd sizes in a
    backbone that rounds down), the strided term is resized in the same way; that case is ours.

    Args:
        in_channels: Width of every input level.
        out_channels: Width of every output level.
        deform: Whether the taps are deformable on the levels above the bottom one.
        ibn: Whether to normalize over all levels together.
        norm_cfg: The norm of ``ibn``; plain BN by default.

    Shape:
        Levels (N, in_channels, H_l, W_l), finest first, to (N, out_channels, H_l, W_l). ``Pconv`` holds the taps in the
        order :math:`k_{+1}, k_0, k_{-1}`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, deform: bool = False, ibn: bool = False, norm_cfg: dict | None = None
    ) -> None:
        super().__init__()
        self.Pconv = ModuleList(
            ScaleEqualizingConv2d(in_channels, out_channels, stride, deform=deform) for stride in (1, 1, 2)
        )
        self.bn = _build_norm(ibn, norm_cfg, out_channels)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Convolve the levels ``xs``, all of them from the old ones."""
        from_coarser, same, from_finer = self.Pconv
        ys = []
        for level, x in enumerate(xs):
            y = same(x, level)
            if level > 0:
                y = y + _resize(from_finer(xs[level - 1], level), y)
            if level + 1 < len(xs):
                y = y + _resize(from_coarser(xs[level + 1], level), y)
            ys.append(y)
        return [F.relu(z) for z in integrated_norm(self.bn, ys)]

    def absorb_norm(self) -> None:
        """Merge the norm into the taps."""
        from_coarser, same, from_finer = self.Pconv
        self.bn = _absorb(self.bn, same, from_coarser, from_finer)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=True)


@MODELS.register_module()
class PConvNeck(BaseModule):
    """A stack of pyramid convolutions behind an FPN, returning plain maps.

    Wang, Zhang, Yu, Feng, Zhang, *Scale-Equalizing Pyramid Convolution for Object Detection*, CVPR 2020, arXiv 2005.03101.
    The paper uses the stack in two-stage detectors as well; that it sits between the FPN and both the RPN and the RoI
    head is our reading.

    Args:
        in_channels: Width of the incoming levels: one number, or equal numbers, one per level.
        out_channels: Width of the outgoing levels.
        num_outs: Number of levels, incoming and outgoing.
        num_pconvs: Number of pyramid convolutions in series.
        pconv_deform: Whether they are deformable above the bottom level; needs mmcv's operators.
        ibn: Whether each is followed by a batch norm over all levels together.
        norm_cfg: The norm of ``ibn``; plain BN by default, as in the paper.
        init_cfg: As in every OpenMMLab module. Without it, weights start as N(0, 0.01), biases and offsets as zero.

    Shape:
        A sequence of ``num_outs`` maps (N, in_channels, H_l, W_l), finest first, to a tuple of as many
        (N, out_channels, H_l, W_l).

    Raises:
        ValueError: If the incoming widths differ, ``num_pconvs`` is below 1, or the number of levels is not ``num_outs``.
        ImportError: If something is deformable and mmcv has no operators.

    Example:
        >>> neck = PConvNeck(in_channels=8, out_channels=8, num_outs=3)
        >>> len(neck([torch.randn(1, 8, 2**k, 2**k) for k in (4, 3, 2)]))
        3
    """

    example = dict(in_channels=8, out_channels=8)

    def __init__(
        self,
        in_channels: Count | Annotated[Sequence[Count], some] = 256,
        out_channels: Count = 256,
        num_outs: Repeats = 5,
        num_pconvs: Few = 4,
        *,
        pconv_deform: bool = False,
        ibn: bool = False,
        norm_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        widths = {in_channels} if isinstance(in_channels, int) else set(in_channels)
        if len(widths) != 1:
            raise ValueError(
                f'{type(self).__name__} shares its kernels among the levels, so all must have one width, got '
                f'{in_channels=}; put an FPN in front: neck=[dict(type="FPN", ...), dict(type="mmext.SEPC", ...)]'
            )
        if num_pconvs < 1:
            raise ValueError(f'{type(self).__name__} needs num_pconvs of 1 or more, got {num_pconvs=}')
        self.num_outs = num_outs
        self.out_channels = out_channels
        steps = pairwise([*widths, *[out_channels] * num_pconvs])
        self.Pconvs = ModuleList(PConv(old, new, pconv_deform, ibn, norm_cfg) for old, new in steps)

    def forward(self, inputs: Sequence[Tensor]) -> tuple:
        """Return the levels after all pyramid convolutions."""
        if len(inputs) != self.num_outs:
            raise ValueError(
                f'{type(self).__name__} was built for num_outs={self.num_outs} levels and got {len(inputs)}; '
                'set num_outs to that of the neck in front'
            )
        for pconv in self.Pconvs:
            inputs = pconv(inputs)
        return tuple(inputs)

    def fold(self) -> PConvNeck:
        """Return a neck that computes what this one does in eval mode, with the batch norms merged into the kernels."""
        folded = copy.deepcopy(self)
        with torch.no_grad():
            folded._absorb_norms()
        return folded

    def _absorb_norms(self) -> None:
        for pconv in self.Pconvs:
            pconv.absorb_norm()


@MODELS.register_module()
class SEPC(PConvNeck):
    r"""Scale-equalizing pyramid convolution: a stack of pyramid convolutions, then one convolution per task.

    Wang, Zhang, Yu, Feng, Zhang, *Scale-Equalizing Pyramid Convolution for Object Detection*, CVPR 2020, arXiv 2005.03101.
    With :math:`z` the levels after the stack (see :class:`PConvNeck`, whose arguments are not repeated here):

    .. math:: \mathrm{cls}^l = \mathrm{ReLU}(\mathrm{iBN}_c(k_c * z^l)), \qquad
              \mathrm{reg}^l = \mathrm{ReLU}(\mathrm{iBN}_r(k_r * z^l))

    The neck stands in for the stacked convolutions of a dense head, so its output is a pair per level; wrap the head as
    ``dict(type='mmext.PairHead', head='mmdet.RetinaHead', ...)``. The paper's variants are

    ==========  ============  =============  =====
    variant     pconv_deform  lcconv_deform  ibn
    ==========  ============  =============  =====
    PConv       False         False          False
    iBN         False         False          True
    SEPC-lite   False         True           True
    SEPC        True          True           True
    ==========  ============  =============  =====

    State-dict names are the official ones (``Pconvs.{t}.Pconv.{i}``, ``Pconvs.{t}.bn``, ``lconv``, ``cconv``, ``lbn``,
    ``cbn``, ``conv_offset``), so official neck weights load without renaming.

    Args:
        *args: Those of :class:`PConvNeck`.
        lcconv_deform: Whether the two task convolutions are deformable above the bottom level; needs mmcv's operators.
        lc_padding: Padding of the two. 1 keeps the size of the maps; 0 is what the official weights were trained with,
            by mistake as the authors say, and shrinks every level by 2.
        **kwargs: Those of :class:`PConvNeck`.

    Shape:
        A sequence of ``num_outs`` maps (N, in_channels, H_l, W_l), finest first, to a tuple of as many pairs
        (cls, reg) of maps (N, out_channels, H_l, W_l), or (H_l - 2, W_l - 2) with ``lc_padding=0``.

    Raises:
        ValueError: As :class:`PConvNeck`; if ``lc_padding`` is not 0 or 1; if a level is too small for padding 0.
        ImportError: If something is deformable and mmcv has no operators.

    Example:
        >>> neck = SEPC(in_channels=8, out_channels=8)
        >>> len(neck([torch.randn(1, 8, 2**k, 2**k) for k in (5, 4, 3, 2, 1)]))
        5
    """

    example = dict(in_channels=8, out_channels=8)

    def __init__(
        self,
        *args: Any,
        lcconv_deform: bool = False,
        lc_padding: int = 1,
        ibn: bool = False,
        norm_cfg: Cfg | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, ibn=ibn, norm_cfg=norm_cfg, **kwargs)
        if lc_padding not in (0, 1):
            raise ValueError(f'SEPC needs lc_padding 1, or 0 for the official weights, got {lc_padding=}')
        self.lc_padding = lc_padding
        width = self.out_channels
        # Each norm stands right behind its convolution, where tools that fuse neighbors look for it.
        self.lconv = ScaleEqualizingConv2d(width, width, 1, lc_padding, deform=lcconv_deform)
        self.lbn = _build_norm(ibn, norm_cfg, width)
        self.cconv = ScaleEqualizingConv2d(width, width, 1, lc_padding, deform=lcconv_deform)
        self.cbn = _build_norm(ibn, norm_cfg, width)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the pair (cls, reg) of every level."""
        xs = super().forward(inputs)
        if self.lc_padding == 0 and any(min(x.shape[-2:]) < 3 for x in xs):
            raise ValueError(
                f'SEPC with lc_padding=0 needs levels of 3 x 3 or more, got {[tuple(x.shape[-2:]) for x in xs]}; '
                'enlarge the images, or set lc_padding=1'
            )
        branches = []
        for conv, norm in ((self.cconv, self.cbn), (self.lconv, self.lbn)):
            ys = [conv(x, level) for level, x in enumerate(xs)]
            branches.append([F.relu(z) for z in integrated_norm(norm, ys)])
        return tuple(zip(*branches, strict=True))

    def _absorb_norms(self) -> None:
        super()._absorb_norms()
        self.lbn = _absorb(self.lbn, self.lconv)
        self.cbn = _absorb(self.cbn, self.cconv)
