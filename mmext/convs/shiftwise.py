"""Shift-wise convolution: a large cross-shaped kernel made of small kernels in fixed random places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Few, Repeats, Seed
from mmext.convs.base import flattened
from mmext.convs.generated import GeneratedConv2d
from mmext.convs.reparam import bn_affine, foldable_norm, total_shift
from mmext.norms.normalized import normalized
from mmext.numerics import is_depthwise
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['ShiftwiseConv2d']


@MODELS.register_module()
class ShiftwiseConv2d(GeneratedConv2d):
    r"""Shift-wise convolution: a large cross-shaped depthwise kernel made of small ones.

    CVPR 2025, arXiv 2401.12736.

    Each channel has :math:`n = \lceil M/k \rceil` small kernels of k x k. Laid end to end, in an order that is random and
    fixed, they are a horizontal strip of about k x M; in another order, a vertical one; and one alone, chosen at random, is a
    center. With several orders (``n_rep``) the strips are summed. The released code convolves with every small kernel, then
    shifts and adds what comes out; no more than sums stands between, so that here each of the three is assembled from the
    small kernels by fixed tables and is *one* depthwise convolution:

    .. math:: y = \mathrm{BN}_1(x * H) + \mathrm{BN}_2(x * V) + \mathrm{BN}_3(x * S) + x

    In eval mode the layer is one depthwise convolution of size :math:`2R + 1`, where
    :math:`R = \max(\lfloor M/2 \rfloor, nk - 1 - \lfloor M/2 \rfloor)`, because the strips may end behind M. A part of the
    channels (``ghost_ratio``) passes unchanged. A layer whose kernel is no larger than k x k stays a plain convolution.

    Args:
        *args: Those of ``nn.Conv2d``: depthwise, and ``kernel_size`` is M. ``padding`` counts as for a kernel of M x M, so
            that ``M // 2`` keeps the size; the generated kernel's own padding follows from it.
        small_kernel: k, odd.
        ghost_ratio: Part of the channels that pass unchanged; the number of the others is rounded down to an even one.
        n_path: How many sets of small kernels are summed; they fold into one.
        n_rep: How many orders are summed.
        norm_cfg: The three batch norms, None for none.
        seed: Of the orders and of the choice of channels. They are drawn by generators of the layer's own, in the
            sequence of the released code, whose tables are those of its seed, the default.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``paths`` is (n_path C', n, k, k) with C' channels that do not pass unchanged. Fixed and saved: ``channels`` (C',),
        their indices; ``slots_h`` and ``slots_v`` (C', n, n), how many of the orders put the small kernel of the last index
        into the place of the middle one; ``slots_s`` (C', n), how many centers the kernel is.

    Raises:
        ValueError: If the layer is not depthwise, a kernel even or not square, an argument out of range, no channel is left
            to convolve, or ``norm_cfg`` is not a batch norm with running statistics; in training, if a batch has one value
            per channel.

    Our reading: the channels stay in their order, where the released code puts those that pass behind the others, so that the
    layer folds into a plain convolution alone. Stride and dilation are those of the generated kernel; the released
    operator has stride 1. The small kernels are drawn Kaiming-normally.

    Example:
        >>> layer = ShiftwiseConv2d(8, 8, 7, padding=3, groups=8)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    places_norm = True
    serves = ('depthwise',)
    example = dict(kernel_size=7, groups=8)
    typical = dict(kernel_size=13, depthwise=True)

    paths: nn.Parameter
    channels: Tensor
    slots_h: Tensor
    slots_v: Tensor
    slots_s: Tensor

    def __init__(
        self,
        *args: Any,
        small_kernel: Repeats = 3,
        ghost_ratio: float = 0.23,
        n_path: Few = 2,
        n_rep: Few = 4,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        seed: Seed = 123,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.small_kernel, self.ghost_ratio, self.n_path, self.n_rep = small_kernel, ghost_ratio, n_path, n_rep
        self.plain = max(self.kernel_size) <= small_kernel
        if self.plain:
            return
        size = self.kernel_size[0]
        if not is_depthwise(self):
            raise ValueError(
                f'ShiftwiseConv2d needs groups = in_channels = out_channels, got groups={self.groups}, '
                f'in_channels={self.in_channels}, out_channels={self.out_channels}; choose depthwise layers by a rule '
                '(depthwise=True)'
            )
        if self.kernel_size != (size, size) or size % 2 == 0 or small_kernel % 2 == 0:
            raise ValueError(
                'ShiftwiseConv2d centers its kernels and needs a square kernel_size and a small_kernel that are odd, got '
                f'kernel_size={self.kernel_size}, {small_kernel=}'
            )
        if not 0 <= ghost_ratio < 1 or n_path < 1 or n_rep < 1:
            raise ValueError(
                f'ShiftwiseConv2d needs 0 <= ghost_ratio < 1 and at least one path and one rep, got {ghost_ratio=}, '
                f'{n_path=}, {n_rep=}'
            )
        count = int(self.in_channels * (1 - ghost_ratio)) // 2 * 2
        if count == 0:
            raise ValueError(
                f'ShiftwiseConv2d convolves an even number of channels, and none is left of in_channels={self.in_channels} '
                f'with {ghost_ratio=}; lower ghost_ratio or leave the layer out'
            )
        self.n_small = -(-size // small_kernel)
        # How far the strips, which begin M // 2 before the center, reach behind it; and the larger of both.
        self.reach = self.n_small * small_kernel - 1 - size // 2
        self.radius = max(size // 2, self.reach)
        like = self.drop_weight()
        self.paths = nn.Parameter(like.new_empty(n_path * count, self.n_small, small_kernel, small_kernel))
        # Any, because torch does not tell what a ModuleList holds.
        norms: Any = [foldable_norm(norm_cfg, count, 'ShiftwiseConv2d', like) for _ in range(3)]
        self.norms: Any = nn.ModuleList(norms)
        for name, table in self._draw_tables(seed).items():
            self.register_buffer(name, table.to(like.device))
        self.init_weights()

    def _draw_tables(self, seed: int) -> dict[str, Tensor]:
        """Draw which channels are convolved and which small kernel goes where, in the released code's sequence."""
        count, n = len(self.paths) // self.n_path, self.n_small
        passing = np.random.RandomState(seed).choice(self.in_channels, self.in_channels - count, replace=False)
        generator = torch.Generator().manual_seed(seed)
        tables = {'channels': torch.from_numpy(np.setdiff1d(np.arange(self.in_channels), passing))}
        for name in ('slots_h', 'slots_v'):
            orders = [torch.randperm(n, generator=generator, device='cpu') for _ in range(self.n_rep * count)]
            tables[name] = _count(torch.stack(orders).view(self.n_rep, count, n), n)
        centers = [torch.randint(n, (count,), generator=generator, device='cpu') for _ in range(self.n_rep)]
        tables['slots_s'] = _count(torch.stack(centers), n)
        return tables

    def init_weights(self) -> None:
        """Draw the small kernels (Kaiming normal) and reset the norms and the bias."""
        if self.plain:
            return super().init_weights()
        nn.init.normal_(self.paths, std=2**0.5 / self.small_kernel)
        for norm in self.norms:
            if norm is not None:
                norm.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def plain_geometry(self) -> dict[str, Any]:
        geometry = super().plain_geometry()
        if self.plain:
            return geometry
        half, (down, right) = self.kernel_size[0] // 2, self.dilation
        padding = self.padding
        if isinstance(padding, str):
            padding = (0, 0) if padding == 'valid' else (half * down, half * right)
        more = self.radius - half
        return {**geometry, 'padding': (padding[0] + more * down, padding[1] + more * right)}

    def strips(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the kernels H (C', 1, k, 2R+1), V (C', 1, 2R+1, k) and S (C', 1, k, k)."""
        small = self.paths.unflatten(0, (self.n_path, -1)).sum(0)
        # Products and sums, not matmul, which autocast would compute in half precision.
        horizontal, vertical = (
            (table.to(small)[..., None, None] * small.unsqueeze(1)).sum(2) for table in (self.slots_h, self.slots_v)
        )
        center = (self.slots_s.to(small)[..., None, None] * small).sum(1)
        ends = (self.radius - self.kernel_size[0] // 2, self.radius - self.reach)
        return (
            F.pad(horizontal.transpose(1, 2).flatten(2), ends).unsqueeze(1),
            F.pad(vertical.flatten(1, 2), (0, 0, *ends)).unsqueeze(1),
            center.unsqueeze(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, C, H, W): strip by strip in training, with the generated kernel in eval mode."""
        if self.plain or not self.training:
            return super().forward(x)
        x = self.pad(x, self.plain_geometry()['padding'])
        convolved = x.index_select(1, self.channels)
        outs = [
            depthwise_conv2d(self._crop(convolved, strip.shape[2:]), strip, None, self.stride, 0, self.dilation)
            for strip in self.strips()
        ]
        outs = [normalized(out, norm, type(self).__name__) for out, norm in zip(outs, self.norms, strict=True)]
        y = self._crop(x, (1, 1))[..., :: self.stride[0], :: self.stride[1]]
        y = y.index_add(1, self.channels, (outs[0] + outs[1] + outs[2]).to(y))
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _crop(self, padded: Tensor, size: Sequence[int]) -> Tensor:
        """Return the part of the padded input that a kernel of ``size`` covers in the center of the whole one."""
        rows, cols = ((self.radius - k // 2) * d for k, d in zip(size, self.dilation, strict=True))
        return padded[..., rows : padded.shape[-2] - rows, cols : padded.shape[-1] - cols]

    def generate_kernel(self) -> Tensor:
        whole = 2 * self.radius + 1
        kernel = self.paths.new_zeros(())
        for strip, norm in zip(self.strips(), self.norms, strict=True):
            rows, cols = (self.radius - k // 2 for k in strip.shape[2:])
            scaled = strip if norm is None else strip * bn_affine(norm)[0].view(-1, 1, 1, 1)
            kernel = kernel + F.pad(scaled, (cols, cols, rows, rows))
        identity = F.pad(self.paths.new_ones(self.in_channels, 1, 1, 1), (whole // 2,) * 4)
        return identity.index_add(0, self.channels, kernel)

    def generate_bias(self) -> Tensor | None:
        shift = total_shift(self.norms, None)
        if shift is None:
            return self.bias
        shift = shift.new_zeros(self.in_channels).index_add(0, self.channels, shift)
        return shift if self.bias is None else shift + self.bias

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        if not self.plain:
            state_dict = flattened(state_dict, f'{prefix}paths', self.paths)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def own_repr(self) -> str:
        return f'small_kernel={self.small_kernel}, ghost_ratio={self.ghost_ratio}, n_path={self.n_path}, n_rep={self.n_rep}'


def _count(chosen: Tensor, n: int) -> Tensor:
    """Count over the first axis how often each of ``n`` was chosen, along a new last axis."""
    return F.one_hot(chosen, n).sum(0).to(torch.uint8)
