"""Idea 2 of the pack: a function generates a kernel, and the kernel aggregates the features at a set of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor, nn

from mmext.blocks.build import with_num_channels
from mmext.convs.base import ExtConv2d, InnerConv2d
from mmext.evolution.kernels import DenseKernel, FactoredKernel, TapKernel
from mmext.evolution.positions import Positions
from mmext.norms.normalized import normalized

__all__ = ['EvolutionOperator2d', 'InnerBlock']

BORDERS = {'zeros': 'zero', 'reflect': 'reflect', 'replicate': 'replicate', 'circular': 'circular'}


class InnerBlock(nn.Module):
    """A convolution, a norm and an activation inside of an operator.

    Args:
        owner: The operator's class, for error messages.
        conv: The convolution.
        norm: The norm, None for none.
        act_cfg: The activation, None for none.
    """

    def __init__(self, owner: str, conv: InnerConv2d, norm: nn.Module | None, act_cfg: dict | None) -> None:
        super().__init__()
        self.owner = owner
        self.conv: Any = conv
        self.norm = norm
        act_cfg = with_num_channels(act_cfg, conv.out_channels)
        self.act = nn.Identity() if act_cfg is None else build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalize and activate ``x``."""
        return self.act(normalized(self.conv(x), self.norm, self.owner))


class EvolutionOperator2d(ExtConv2d):
    r"""An operator whose kernel is a function of the input or of the position.

    Cai, *Evolution: A Unified Formula for Feature Operators from a High-level Perspective*, 2023, arXiv 2305.14409.

    .. math:: Y_{o,p} = \sum_{n} \sum_{c} E(p)_{n,o,c}\, X_{c,\,s_n(p)} + b_o

    E is the Evolution Kernel of output pixel p and S(p) = (s_1, ..., s_N) are the positions that it sees. A system of this
    family is its Evolution Function, :meth:`evolution_kernel`, and the parameters of that. Everything else is here, once:

    - the arguments of ``nn.Conv2d``, all of them. ``groups`` fits with any divisor where the kernel mixes no channels;
    - the positions, :attr:`positions`: stride, dilation, padding and what lies beyond the border;
    - the aggregation, by the operators of :mod:`mmext.ops`, without a tensor of patches, with their multiply-adds counted and
      their ONNX form;
    - :meth:`dense_kernel`, the kernel as the formula has it, for tests and pictures;
    - the parts that generate a kernel, made by :meth:`inner_conv`, :meth:`inner_block`, :meth:`inner_norm` and
      :meth:`inner_parameter`. No host draws them anew. They start as torch draws them, then as :meth:`init_kernel` says;
    - what is refused: a host that fuses a norm, channels that do not fit, a window that does not.

    A kernel is one of the forms in :mod:`mmext.evolution.kernels`. Softmax and norms inside of a function are computed in
    full precision (:func:`mmext.evolution.kernels.tap_softmax`). A subclass whose kernel acts on something else than the input
    defines :meth:`features`, one that goes on after the aggregation defines :meth:`finish`.

    A subclass calls ``super().__init__``, makes its parts, and calls :meth:`init_weights` last.

    Attributes:
        spatial_specific: Whether E(p) differs with p.
        channel_specific: Whether every channel has a kernel of its own, and not every group of channels.
        dynamic: Whether E depends on X.
        mixes_channels: Whether the operator has entries beside the diagonal of E, or projections, so that input and output
            channels may differ.
        border: What lies beyond the border, None for what ``padding_mode`` says.
        keeps_kernel: Whether ``weight`` is a part of the layer.
        refuses: What the operator has no kernel for: ``'even kernels'``, ``'dilation'``, ``'stride'``, ``'other padding'``,
            ``'padding modes'``, ``'other sizes'`` than the one it was built for. A shifting border implies most of these.
        group_map: Which channels share a kernel, see :func:`mmext.ops.neighborhood_aggregate`.

    Raises:
        ValueError: If the channels, or the windows of a shifting border, do not fit.
    """

    spatial_specific: bool
    channel_specific: bool
    dynamic: bool
    mixes_channels: bool = False
    border: str | None = None
    group_map: str = 'block'
    keeps_kernel: bool = False
    refuses: tuple[str, ...] = ()
    bias: nn.Parameter | None

    refuses_weight: str | None = (
        'makes its kernel from the input or the position and has none that a norm could be fused into; leave fuse_conv_bn and '
        'efficient_conv_bn_eval out'
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        owner = type(self).__name__
        if not self.mixes_channels and self.in_channels != self.out_channels:
            raise ValueError(
                f'{owner} mixes no channels and needs out_channels=in_channels, got in_channels={self.in_channels} and '
                f'out_channels={self.out_channels}; put a 1x1 convolution beside it'
            )
        self._factory: dict[str, Any] = dict(device=self.weight.device, dtype=self.weight.dtype)
        if not self.keeps_kernel:
            self.drop_weight()
        self._check_shift(owner)

    def _check_shift(self, owner: str) -> None:
        if self.border != 'shift':
            return
        reach = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        fits = self.padding in ('same', reach) and self.stride == (1, 1) and self.padding_mode == 'zeros'
        if not fits or any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(
                f"{owner} slides its windows inside of the image: it needs stride=1, an odd kernel_size, padding_mode='zeros' "
                f'and padding={reach} at this kernel_size and dilation={self.dilation}, got stride={self.stride}, '
                f'kernel_size={self.kernel_size}, padding_mode={self.padding_mode!r} and padding={self.padding}'
            )

    @property
    def positions(self) -> Positions:
        """The positions that every output pixel sees."""
        border = self.border or BORDERS[self.padding_mode]
        padding = (0, 0) if self.padding == 'valid' else self.padding
        padding = 'same' if border == 'shift' else padding
        return Positions(self.kernel_size, self.stride, self.dilation, padding, border, self.group_map)

    def evolution_kernel(self, x: Tensor) -> FactoredKernel:
        """Return the factored kernel of ``x``, (B, Ci, H, W)."""
        raise NotImplementedError(f'{type(self).__name__} must define evolution_kernel()')

    def features(self, x: Tensor) -> Tensor:
        """Return what the kernel aggregates: ``x`` itself, unless the operator projects it."""
        return x

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output but its bias, given what was aggregated and the input."""
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate ``x``, (B, Ci, H, W), to (B, Co, Ho, Wo)."""
        self.check_input(x)
        kernel = self.evolution_kernel(x)
        return self._biased(self.finish(kernel.aggregate(self.features(x)), x), kernel)

    def dense_kernel(self, x: Tensor) -> DenseKernel:
        """Return the paper's E and S for ``x``, which act on :meth:`features`."""
        return self.evolution_kernel(x).dense(self.features(x))

    def by_definition(self, x: Tensor) -> Tensor:
        """Return what :meth:`forward` returns, computed from the dense kernel by the formula."""
        kernel, features = self.evolution_kernel(x), self.features(x)
        return self._biased(self.finish(kernel.dense(features).aggregate(features), x), kernel)

    def _biased(self, y: Tensor, kernel: FactoredKernel) -> Tensor:
        bias = kernel.bias
        if bias is None:
            bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        return y if bias is None else y + bias.to(y.dtype)

    def check_input(self, x: Tensor) -> None:
        """Refuse an image that does not fit.

        Raises:
            ValueError: If it has other channels or axes, or is smaller than a window.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__} needs images (B, {self.in_channels}, H, W), got {list(x.shape)}')
        self.check_size(x.shape[-2:])

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse an image of a size that no window fits into."""
        self.positions.output_size(size)

    def tap_kernel(self, weight: Tensor) -> TapKernel:
        """Return the kernel of these weights of taps, (B, G * N, Ho, Wo) or (B, G, N, Ho, Wo)."""
        return TapKernel(weight=weight, positions=self.positions)

    def inner_conv(self, in_channels: int, out_channels: int, kernel_size: int = 1, **kwargs: Any) -> InnerConv2d:
        """Make a convolution that helps to generate the kernel."""
        return InnerConv2d(in_channels, out_channels, kernel_size, **kwargs, **self._factory)

    def inner_block(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        **kwargs: Any,
    ) -> InnerBlock:
        """Make a convolution with a norm and an activation behind it; it has a bias where it has no norm."""
        conv = self.inner_conv(in_channels, out_channels, kernel_size, bias=norm_cfg is None, **kwargs)
        return InnerBlock(type(self).__name__, conv, self.inner_norm(norm_cfg, out_channels), act_cfg)

    def inner_norm(self, cfg: dict | None, channels: int) -> nn.Module | None:
        """Make a norm of this config, None for none."""
        return None if cfg is None else build_norm_layer(cfg, channels)[1].to(**self._factory)

    def inner_parameter(self, *shape: int) -> nn.Parameter:
        """Make a parameter of this shape, which :meth:`init_kernel` must fill."""
        return nn.Parameter(torch.empty(shape, **self._factory))

    def reset_parameters(self) -> None:
        """Draw the kernel as torch does, where the layer keeps one, and set any other operator's bias to zero."""
        if self._parameters.get('weight') is not None:
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize the layer and its parts as the constructor does."""
        self.reset_parameters()
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()  # type: ignore[operator]
        self.init_kernel()

    def init_kernel(self) -> None:
        """Draw what the system draws in its own way; the rest is as torch draws it."""

    def extra_repr(self) -> str:
        own = self.own_repr()
        return f'{super().extra_repr()}, {own}' if own else super().extra_repr()

    def own_repr(self) -> str:
        """Return the system's own arguments, as they appear in the repr."""
        return ''
