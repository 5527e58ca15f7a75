"""Evolution kernels in factored form: how each aggregates fast, and the dense kernel that it stands for.

The paper's formula, with E(p) the kernel of output pixel p and S(p) the positions that it sees:

    Y[o, p] = sum_n sum_c E(p)[n, o, c] X[c, s_n(p)] (+ b[o])

A factored kernel is one of the forms in which operators have their E: weights of taps that channels share
(:class:`TapKernel`), one plain kernel for an image (:class:`ImageKernel`), weights of all pixels (:class:`TokenKernel`,
:class:`AttentionKernel`), or several of them on parts of the channels (:class:`SplitKernel`). None builds a patch tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext import ops
from mmext.evolution.positions import Positions
from mmext.numerics import attend
from mmext.ops.depthwise import depthwise_conv2d
from mmext.ops.neighborhood import neighborhood_aggregate, neighborhood_mask
from mmext.ops.sample_conv import sample_conv2d

__all__ = [
    'AttentionKernel',
    'DenseKernel',
    'FactoredKernel',
    'ImageKernel',
    'SplitKernel',
    'TapKernel',
    'TokenKernel',
    'relative_bias',
    'tap_softmax',
]


class DenseKernel(NamedTuple):
    """The paper's E and S, for tests and pictures: it takes P * N * Co * Ci numbers for an image.

    Args:
        kernel: E, (B or 1, P, N, Co, Ci).
        positions: S, (P, N), indices of pixels, -1 outside of the image.
        size: (Ho, Wo), whose product is P.
    """

    kernel: Tensor
    positions: Tensor
    size: tuple[int, ...]

    def aggregate(self, x: Tensor) -> Tensor:
        """Return Y, (B, Co, Ho, Wo), of ``x``, (B, Ci, H, W), by the definition."""
        seen = F.pad(x.flatten(2), (0, 1))[:, :, self.positions]
        kernel = self.kernel.expand(x.shape[0], *self.kernel.shape[1:])
        return torch.einsum('bpnoc,bcpn->bop', kernel, seen).unflatten(2, self.size)


@dataclass
class FactoredKernel:
    """A kernel as an operator has it.

    Args:
        bias: What is added to the output, (B or 1, Co, Ho or 1, Wo or 1); None for the layer's own bias.
    """

    bias: Tensor | None = None

    def aggregate(self, x: Tensor) -> Tensor:
        """Return Y, (B, Co, Ho, Wo), of ``x``, (B, Ci, H, W)."""
        raise NotImplementedError

    def dense(self, x: Tensor) -> DenseKernel:
        """Return the dense kernel for images of the channels and size of ``x``."""
        raise NotImplementedError


@dataclass
class TapKernel(FactoredKernel):
    """Weights of the taps of every output pixel, shared by the channels of a group: E(p)[n, o, c] = δ_oc w[g(c), n, p].

    Args:
        weight: (B or 1, G, N, Ho, Wo), or (B or 1, G * N, Ho, Wo) as a convolution emits it. A batch of 1 serves all.
        positions: S.
    """

    weight: Tensor = None  # type: ignore[assignment]
    positions: Positions = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.weight.ndim == 4:
            self.weight = self.weight.unflatten(1, (self.weight.shape[1] // self.positions.taps, self.positions.taps))

    def aggregate(self, x: Tensor) -> Tensor:
        options = {**self.positions.options, 'group_map': self.positions.group_map}
        x, weight = self.positions.pad(x), self.weight.to(x.dtype)
        batch, groups = x.shape[0], weight.shape[1]
        if weight.shape[0] == batch or batch == 0 or torch.onnx.is_in_onnx_export():
            return neighborhood_aggregate(x, weight, **options)
        # One weight for all images: they are further channels of its groups, so that its gradient is summed on the spot.
        if self.positions.group_map == 'interleave':
            return neighborhood_aggregate(x.flatten(0, 1)[None], weight, **options)[0].unflatten(0, (batch, -1))
        grouped = x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
        out = neighborhood_aggregate(grouped[None], weight, **options)[0]
        return out.unflatten(0, (groups, batch, -1)).transpose(0, 1).flatten(1, 2)

    def dense(self, x: Tensor) -> DenseKernel:
        group = self.positions.groups_of(x.shape[1], self.weight.shape[1], x.device)
        diagonal = self.weight[:, group].flatten(3).permute(0, 3, 2, 1)
        size = tuple(self.weight.shape[-2:])
        return DenseKernel(torch.diag_embed(diagonal), self.positions.table(x.shape[-2:], x.device), size)


@dataclass
class ImageKernel(FactoredKernel):
    """A plain kernel, the same for every output pixel: E(p)[n, o, c] = W[o, c, n].

    Args:
        weight: (Co, Ci/groups, kh, kw), or one for every image, (B, Co, Ci/groups, kh, kw).
        positions: S.
        groups: As in ``nn.Conv2d``.
    """

    weight: Tensor = None  # type: ignore[assignment]
    positions: Positions = None  # type: ignore[assignment]
    groups: int = 1

    def aggregate(self, x: Tensor) -> Tensor:
        here = self.positions
        padding = here.padding
        if here.border != 'zero' or isinstance(padding, str):
            x, padding = here.padded(x), (0, 0)
        weight = self.weight.to(x.dtype)
        if weight.ndim == 5:
            return sample_conv2d(x, weight, here.stride, padding, here.dilation, self.groups)
        if self.groups == x.shape[1] == weight.shape[0]:
            return depthwise_conv2d(x, weight, None, here.stride, padding, here.dilation)
        return F.conv2d(x, weight, None, here.stride, padding, here.dilation, self.groups)

    def dense(self, x: Tensor) -> DenseKernel:
        size = self.positions.output_size(x.shape[-2:])
        weight = self.weight if self.weight.ndim == 5 else self.weight[None]
        batch, outputs, inputs = weight.shape[:3]
        blocks = weight.new_zeros(batch, self.positions.taps, outputs, self.groups, inputs)
        rows = torch.arange(outputs, device=weight.device)
        blocks[:, :, rows, rows // (outputs // self.groups)] = weight.flatten(3).permute(0, 3, 1, 2)
        kernel = blocks.flatten(3)[:, None].expand(-1, size[0] * size[1], -1, -1, -1)
        return DenseKernel(kernel, self.positions.table(x.shape[-2:], x.device), size)


def _everywhere(weight: Tensor, channels: int, size: tuple[int, ...]) -> DenseKernel:
    """Return the dense kernel of weights of all pixels, (B or 1, G, P, HW), with channels in blocks."""
    diagonal = weight.repeat_interleave(channels // weight.shape[1], 1).permute(0, 2, 3, 1)
    table = torch.arange(weight.shape[3], device=weight.device).expand(weight.shape[2], -1)
    return DenseKernel(torch.diag_embed(diagonal), table, size)


@dataclass
class TokenKernel(FactoredKernel):
    """Weights of all pixels, shared by the channels of a group: E(p)[n, o, c] = δ_oc M[g(c), p, n].

    Args:
        weight: (B or 1, G, Ho * Wo, H * W); consecutive channels share a group.
        size: (Ho, Wo).
    """

    weight: Tensor = None  # type: ignore[assignment]
    size: tuple[int, ...] = ()

    def aggregate(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).unflatten(1, (self.weight.shape[1], -1))
        return (tokens @ self.weight.to(x.dtype).transpose(-1, -2)).flatten(1, 2).unflatten(2, self.size)

    def dense(self, x: Tensor) -> DenseKernel:
        return _everywhere(self.weight, x.shape[1], self.size)


@dataclass
class AttentionKernel(FactoredKernel):
    """Attention over all pixels, never written down on the fast path: M[m, p, n] = softmax_n(q_m(p) · k_m(n) / √d).

    Args:
        query: (B, heads, Ho * Wo, d).
        key: (B, heads, H * W, d).
        size: (Ho, Wo).
    """

    query: Tensor = None  # type: ignore[assignment]
    key: Tensor = None  # type: ignore[assignment]
    size: tuple[int, ...] = ()

    def aggregate(self, x: Tensor) -> Tensor:
        value = x.flatten(2).unflatten(1, (self.query.shape[1], -1)).transpose(-1, -2)
        out = attend(self.query.to(x.dtype), self.key.to(x.dtype), value)
        return out.transpose(-1, -2).flatten(1, 2).unflatten(2, self.size)

    def dense(self, x: Tensor) -> DenseKernel:
        return _everywhere(self._weights(), x.shape[1], self.size)

    def _weights(self) -> Tensor:
        logits = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        return logits.softmax(-1)


@dataclass
class SplitKernel(FactoredKernel):
    """Several kernels, each on a part of the channels.

    Args:
        parts: The kernels, of equal output size.
        channels: How many channels each has.
    """

    parts: Sequence[FactoredKernel] = ()
    channels: Sequence[int] = ()

    def aggregate(self, x: Tensor) -> Tensor:
        split = x.split(list(self.channels), 1)
        return torch.cat([kernel.aggregate(part) for kernel, part in zip(self.parts, split, strict=True)], 1)

    def dense(self, x: Tensor) -> DenseKernel:
        split = x.split(list(self.channels), 1)
        dense = [kernel.dense(part) for kernel, part in zip(self.parts, split, strict=True)]
        placed, before = [], 0
        for part, count in zip(dense, self.channels, strict=True):
            rest = x.shape[1] - before - count
            placed.append(F.pad(part.kernel, (before, rest, before, rest)))
            before += count
        positions = torch.cat([part.positions for part in dense], 1)
        return DenseKernel(torch.cat(placed, 2), positions, dense[0].size)


def tap_softmax(logits: Tensor, positions: Positions, size: Sequence[int], mask: bool = True) -> Tensor:
    """Return the softmax over the taps in full precision, in the type of ``logits``.

    Args:
        logits: (B, G, N, Ho, Wo).
        positions: S.
        size: (H, W) of the image.
        mask: Whether taps outside of the image get no weight. A window that sees no pixel has equal weights.
    """
    inside = None
    if mask and positions.border == 'zero':
        inside = neighborhood_mask((size[0], size[1]), **positions.options, device=logits.device)
    return ops.tap_softmax(logits, inside)


def relative_bias(table: Tensor, positions: Positions, size: Sequence[int], of_taps: Tensor | None = None) -> Tensor:
    """Return what a table of relative positions adds to the logits, (G, N, Ho, Wo), or (G, N, 1, 1) where that is enough.

    Args:
        table: (G, 2 * kh - 1, 2 * kw - 1), by the distance of a tap from the center of its window.
        positions: S. Taps of windows that slide inside of the image are as far from the center as they then are.
        size: (H, W) of the image.
        of_taps: (N,), added too.
    """
    # Windows that slide have as many places as taps; an image of that size shows them all, and the middle one repeats.
    slides = positions.border == 'shift' and positions.dilation == (1, 1)
    repeats = slides and not torch.onnx.is_in_onnx_export()  # which knows a size as a tensor
    shown = positions.kernel_size if repeats else size
    rows, columns = (
        (offset[..., None] == torch.arange(n, device=table.device)).to(table)
        for offset, n in zip(positions.offsets(shown, table.device), table.shape[1:], strict=True)
    )
    # Products with ones and zeros: exact, and their gradients are products too, where indexing would add one by one.
    picked = rows.flatten(0, 1) @ table @ columns.flatten(0, 1).T
    picked = picked.unflatten(2, columns.shape[:2]).unflatten(1, rows.shape[:2])
    bias = picked.permute(0, 2, 4, 1, 3).flatten(1, 2)
    bias = bias if of_taps is None else bias + of_taps[:, None, None]
    if repeats:
        for axis, length in zip((2, 3), size, strict=True):
            before, middle, after = bias.tensor_split((bias.shape[axis] // 2, bias.shape[axis] // 2 + 1), axis)
            shape = [-1] * 4
            shape[axis] = length - bias.shape[axis] + 1
            bias = torch.cat([before, middle.expand(shape), after], axis)
    return bias
