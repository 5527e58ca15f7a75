"""Partial convolution: the window is divided by what it really sees, and the holes of an image are not seen."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.base import ExtConv2d
from mmext.convs.cache import CACHED_KEYS, may_cache
from mmext.registry import MODELS

__all__ = ['PartialConv2d']

REFUSAL = (
    "in mode='mask' zeroes the holes after its bias, so that no batch norm can be fused into it; leave fuse_conv_bn and "
    'efficient_conv_bn_eval out for this model'
)


@MODELS.register_module()
class PartialConv2d(ExtConv2d):
    r"""Partial convolution: the padding, or the holes of a mask, count as missing pixels.

    Liu et al., *Image Inpainting for Irregular Holes Using Partial Convolutions*, 2018, arXiv 1804.07723, and *Partial
    Convolution based Padding*, 2018, arXiv 1811.11718. No relation to FasterNet's operator of the same name.

    With a mask m (1 where the image is valid), n its sum over the window and w what n is in a window without holes:

    .. math::
        y = m' \left( \frac{w}{n}\,\mathrm{conv}(x \odot m) + b \right), \qquad m' = \min(n, 1)

    - ``mode='padding'``: every pixel is valid and only the zero padding is a hole. Then w/n is a fixed map for each size of
      the image, 1 inside and larger at the border (9/4 in the corners of a 3x3 layer), and m' is left out, so that
      :math:`y = \mathrm{conv}(x)\,w/n + b`. A batch norm behind it fuses as into any convolution. Deploying keeps the
      layer: no single kernel does this, except without padding, where it is a plain convolution (:meth:`fold`).
    - ``mode='mask'``: :meth:`forward` takes the mask. What it computes depends on the mask, so that it has no plain form,
      and a batch norm behind it does not fuse.

    The state is that of ``nn.Conv2d``; either loads the other's checkpoints. A constant image does not stay constant: the
    window is scaled by the number of its pixels and not by the weights on them.

    Args:
        *args: Those of ``nn.Conv2d``, with zero padding.
        mode: ``'padding'`` or ``'mask'``.
        multi_channel: In mask mode, whether each channel has a mask of its own.
        return_mask: In mask mode, whether ``forward`` returns (y, m').
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        The mask is (N or 1, 1, H, W), or (N or 1, in_channels, H, W) with ``multi_channel``; m' has one channel, or
        ``out_channels``.

    Raises:
        ValueError: If ``mode`` or ``padding_mode`` is another, a mask option is used in padding mode, or a mask does not fit.
        TypeError: If a host tries to fuse a batch norm into the layer in mask mode.

    Ours: the quotient is exact, without the released code's 1e-8 (which is 0 in half precision); in a layer with several
    groups, each is scaled by its own channels' mask; nothing of a mask is kept from one call for the next. A soft mask, with
    values between 0 and 1, follows the formula above, where the released code multiplies by m' twice if there is a bias.

    Example:
        >>> layer = PartialConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    fold_in_deploy = False

    def __init__(
        self,
        *args: Any,
        mode: Literal['padding', 'mask'] = 'padding',
        multi_channel: bool = False,
        return_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if mode == 'padding' and (multi_channel or return_mask):
            raise ValueError(f"PartialConv2d has a mask in mode='mask' only, got {multi_channel=} and {return_mask=}")
        if self.padding_mode != 'zeros':
            raise ValueError(
                f"PartialConv2d counts padding as missing and needs padding_mode='zeros', got {self.padding_mode!r}"
            )
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self._ratios: dict[tuple, Tensor] = {}
        self.mode = mode
        if mode == 'mask':
            self.refuses_weight = REFUSAL

    @property
    def cannot_fold(self) -> str | None:
        """Why there is no plain form to be deployed, or None where the layer is deployed as it is."""
        return 'its output depends on a mask, which no kernel knows' if self.mode == 'mask' else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        """Convolve ``x``, (N, in_channels, H, W).

        Args:
            x: The image.
            mask: In mask mode, 1 where the image is valid, 0 in its holes; None for no holes.

        Returns:
            y, or (y, m') with ``return_mask``.
        """
        if self.mode == 'mask':
            return self._masked(x, mask)
        if mask is not None:
            raise ValueError("PartialConv2d got a mask in mode='padding'; build it with mode='mask'")
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute padding mode with these weights, which mmcv's ``efficient_conv_bn_eval`` passes with the norm in them."""
        if self.mode == 'mask' or not self._is_padded():
            return super()._conv_forward(x, weight, bias)
        y = super()._conv_forward(x, weight, None)
        y = y * self._ratio(x, y)
        return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)

    def _is_padded(self) -> bool:
        return any(self._reversed_padding_repeated_twice)

    def _ratio(self, x: Tensor, y: Tensor) -> Tensor:
        """Return w/n for images of the size of ``x``, from the cache where that is possible."""
        if not may_cache():
            return self._make_ratio(x, y)
        key = (x.shape[-2:], self.stride, self.padding, self.dilation, y.device, y.dtype)
        if key not in self._ratios:
            if len(self._ratios) >= CACHED_KEYS:
                self._ratios.clear()
            # A tensor made under inference_mode could not be used by a later training step.
            with torch.inference_mode(False), torch.no_grad():
                self._ratios[key] = self._make_ratio(x, y)
        return self._ratios[key]

    def _make_ratio(self, x: Tensor, y: Tensor) -> Tensor:
        left, _, top, _ = self._reversed_padding_repeated_twice
        rows, cols = (
            self._seen(x.shape[axis], y.shape[axis], axis, before, x.device) for axis, before in ((-2, top), (-1, left))
        )
        dtype = torch.promote_types(y.dtype, torch.float32)
        rows, cols = (size / seen.to(dtype) for size, seen in zip(self.kernel_size, (rows, cols), strict=True))
        return (rows[:, None] * cols).to(y.dtype)

    def _seen(self, size: int, steps: int, axis: int, before: int, device: torch.device) -> Tensor:
        """Return how many taps of each step lie in the image along one axis; where none does, 1."""
        starts = torch.arange(steps, device=device) * self.stride[axis] - before
        taps = starts[:, None] + torch.arange(self.kernel_size[axis], device=device) * self.dilation[axis]
        return ((taps >= 0) & (taps < size)).sum(1).clamp(min=1)

    def _masked(self, x: Tensor, mask: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        channels = self.in_channels if self.multi_channel else 1
        if mask is None:
            mask = x.new_ones(1, channels, *x.shape[-2:])
        elif not torch.jit.is_tracing() and (
            x.ndim != 4
            or mask.ndim != 4
            or mask.shape[0] not in (1, x.shape[0])
            or mask.shape[1:] != (channels, *x.shape[2:])
        ):
            raise ValueError(
                f'PartialConv2d needs a mask of shape (N or 1, {channels}, H, W) for an image (N, C, H, W), got '
                f'{tuple(mask.shape)} for {tuple(x.shape)}'
            )
        # Counts would be rounded in half precision; the meta device has no autocast to switch off.
        full = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
        with torch.no_grad(), full:
            seen, window = self._count(mask)
            updated = seen.clamp(max=1)
            # m' w/n in one: w where n < 1 (a soft mask); where n = 0 the convolution is 0.
            scale = window / seen.clamp(min=1)
        y = F.conv2d(x * mask.to(x.dtype), self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        y = y * scale.to(y.dtype)
        updated = updated.to(y.dtype)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, 1, 1) * updated
        return (y, updated) if self.return_mask else y

    def _count(self, mask: Tensor) -> tuple[Tensor, int]:
        """Return the mask's sum over each window, (N or 1, 1 or out_channels, H, W), and that of a window without holes."""
        groups = self.groups if self.multi_channel else 1
        mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
        per_group = mask.unflatten(1, (groups, -1)).sum(2)
        ones = mask.new_ones(groups, 1, *self.kernel_size)
        seen = F.conv2d(per_group, ones, None, self.stride, self.padding, self.dilation, groups)
        if self.multi_channel:
            seen = seen.repeat_interleave(self.out_channels // groups, 1)
        return seen, self.kernel_size[0] * self.kernel_size[1] * (mask.shape[1] // groups)

    def fold(self) -> nn.Conv2d:
        """Return the plain convolution that this layer is without padding.

        Raises:
            ValueError: In mask mode and with padding, where there is none.
        """
        if self.mode == 'mask' or self._is_padded():
            raise ValueError(
                f'PartialConv2d is a plain convolution only in padding mode and without padding, got mode={self.mode!r} and '
                f'padding={self.padding}; deploy it as it is'
            )
        return self.as_plain(self.weight, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_ratios': {}}

    def _apply(self, *args: Any, **kwargs: Any) -> PartialConv2d:
        self._ratios.clear()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        own = f', multi_channel={self.multi_channel}, return_mask={self.return_mask}' if self.mode == 'mask' else ''
        return f'{super().extra_repr()}, mode={self.mode!r}{own}'
