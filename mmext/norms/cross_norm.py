"""Cross normalization: every entry by the statistics of its own row and column."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmext.arguments import Axis, Count, Positive
from mmext.norms.position_norm import PositionNorm
from mmext.registry import MODELS

__all__ = ['CrossNorm']


@MODELS.register_module()
class CrossNorm(PositionNorm):
    r"""Cross normalization: every entry by the statistics of its row and of its column.

    Cai, Zhu, Shen, Wang, Cao, *Towards the Spectral bias Alleviation by Normalizations in Coordinate Networks*, 2024,
    arXiv 2407.17834.

    Of a matrix of N positions and C channels, with the row sums :math:`R_i` and column sums :math:`S_j`,

    .. math::
        y_{ij} = \gamma_j \frac{x_{ij} - u_{ij}}{\sqrt{s_{ij} + \epsilon}} + \beta_j, \qquad
        u_{ij} = \frac{R_i + S_j - x_{ij}}{N + C}, \qquad
        s_{ij} = \mathrm{Var}_i(x_{ij}) + \mathrm{Var}_j(x_{ij})

    as the released code computes it, both variances unbiased. The cross of an entry has N + C - 1 entries and not N + C, so
    that this mean is not quite one: a constant added to the input comes through, divided by N + C.

    Args:
        num_features: C, at least 2.
        eps: :math:`\epsilon`.
        divisor: ``'official'`` divides by N + C, ``'exact'`` by N + C - 1, which makes the norm invariant to shifts (ours).
        var: ``'sum'`` adds the variances of column and row; ``'cross'`` takes the variance over the cross,
            :math:`(R_i(x^2) + S_j(x^2) - x_{ij}^2) / (N + C) - u_{ij}^2`, which the released code computes and does not use
            (ours as an option).
        channel_dim: Where the channels are: -1 for lists and grids of positions, 1 for maps (N, C, H, W).

    Shape:
        Any with C entries along ``channel_dim``; the output has the same. With batch statistics N must be at least 2.

    Raises:
        ValueError: If ``divisor`` or ``var`` is unknown, C is 1, or N is 1 and the statistics are not frozen.

    Example:
        >>> CrossNorm(8)(torch.randn(100, 8)).shape
        torch.Size([100, 8])
    """

    example = dict(num_features=8)

    statistics = ('count', 'column_mean', 'column_var', 'column_square')
    _abbr_ = 'cross_norm'

    def __init__(
        self,
        num_features: Count,
        eps: Positive = 1e-5,
        divisor: Literal['official', 'exact'] = 'official',
        var: Literal['sum', 'cross'] = 'sum',
        channel_dim: Axis = -1,
    ) -> None:
        super().__init__(num_features, eps, divisor, channel_dim)
        if num_features < 2:
            raise ValueError(
                f'CrossNorm takes a variance over the channels and needs two at least, got {num_features=}'
            )
        self.var = var

    def measure(self, rows: Tensor) -> tuple[Tensor, ...]:
        self._check(rows)
        var, mean = torch.var_mean(rows, 0)
        return torch.tensor(float(len(rows)), device=rows.device), mean, var, rows.square().mean(0)

    def normalize(self, rows: Tensor, *statistics: Tensor) -> Tensor:
        if _recorded():
            return self._formula(rows, *statistics)
        parts = [self._formula(block, *statistics) for block in _blocks(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def normalize_itself(self, rows: Tensor) -> Tensor:
        self._check(rows)
        weight, bias = self.weight.to(rows.dtype), self.bias.to(rows.dtype)
        # A derivative by hand saves two thirds of the time.
        if self.var == 'sum' and not _recorded() and rows.device.type != 'meta':
            return _CrossNorm.apply(rows, weight, bias, self._divisor(len(rows)), self.eps)
        column_var, column_mean = torch.var_mean(rows, 0)
        square = rows.square().mean(0) if self.var == 'cross' else column_var
        return self._formula(rows, rows.shape[0], column_mean, column_var, square)

    def _formula(
        self, rows: Tensor, count: Any, column_mean: Tensor, column_var: Tensor, column_square: Tensor
    ) -> Tensor:
        weight, bias = self.weight.to(rows.dtype), self.bias.to(rows.dtype)
        divisor = self._divisor(count)
        if self.var == 'sum':
            return cross_normalize(rows, weight, bias, divisor, self.eps, (count, column_mean, column_var))
        mean = (rows.sum(1, keepdim=True) + count * column_mean - rows) / divisor
        square = rows.square()
        var = (square.sum(1, keepdim=True) + count * column_square - square) / divisor - mean.square()
        # A difference of two large numbers may fall below zero by rounding.
        return torch.addcmul(bias, (rows - mean) * (var.clamp_min(0) + self.eps).rsqrt(), weight)

    def _divisor(self, count: Any) -> Any:
        return count + self.num_features - int(self.divisor == 'exact')

    def _check(self, rows: Tensor) -> None:
        if len(rows) < 2:
            raise ValueError(
                f'CrossNorm takes a variance over the positions and needs two at least, got {len(rows)}; freeze the '
                'statistics of the whole grid first (freeze_stats)'
            )

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, var={self.var!r}'


def _recorded() -> bool:
    """Whether a compiler, an exporter or a transform of torch.func looks on, which need the formula as it is."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()


def cross_normalize(
    x: Tensor, weight: Tensor, bias: Tensor, divisor: Any, eps: float, columns: tuple[Any, Tensor, Tensor] | None = None
) -> Tensor:
    """Normalize ``x``, (N, C), by the formula of :class:`CrossNorm`.

    Args:
        x: The input.
        weight: The affine map's scale.
        bias: The affine map's shift.
        divisor: What the sum over the cross is divided by.
        eps: Added to the variance.
        columns: Count, mean and variance of the columns, if they are not those of ``x``.
    """
    # var_mean is many times slower along rows of a few channels.
    row_mean = x.mean(1, keepdim=True)
    row_var = (x - row_mean).square().sum(1, keepdim=True) / (x.shape[1] - 1)
    if columns is None:
        count: Any = x.shape[0]
        column_var, column_mean = torch.var_mean(x, 0)
    else:
        count, column_mean, column_var = columns
    # x - u = (1 + 1/d) x - R/d - S/d; nothing of the size of x is made for a sum.
    gain = 1 + 1 / divisor
    centered = x - column_mean * (count / divisor / gain) - row_mean * (x.shape[1] / divisor / gain)
    return torch.addcmul(bias, centered * (row_var + (column_var + eps)).rsqrt(), weight * gain)


class _CrossNorm(torch.autograd.Function):
    """:func:`cross_normalize` in few passes over memory, and these in blocks of rows that stay in a CPU's cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, divisor: float, eps: float) -> Tensor:
        count, channels = x.shape
        gain = 1 + 1 / divisor
        blocks = _blocks(x)
        column_mean = torch.stack([block.sum(0) for block in blocks]).sum(0) / count
        squares = torch.stack([(block - column_mean).square_().sum(0) for block in blocks]).sum(0)
        column_var = squares / (count - 1)
        column_shift = column_mean * (count / divisor / gain)
        row_mean, row_var, y = x.new_empty(count, 1), x.new_empty(count, 1), torch.empty_like(x)
        for block, mean, var, out in zip(blocks, _blocks(row_mean, x), _blocks(row_var, x), _blocks(y), strict=True):
            torch.sum(block, 1, keepdim=True, out=mean).div_(channels)
            torch.sum((block - mean).square_(), 1, keepdim=True, out=var).div_(channels - 1)
            scale = (var + (column_var + eps)).rsqrt_()
            normed = (block - column_shift).sub_(mean * (channels / divisor / gain)).mul_(scale)
            torch.addcmul(bias, normed, weight * gain, out=out)
        ctx.save_for_backward(x, weight, bias, column_mean, column_var, row_mean, row_var)
        ctx.divisor, ctx.eps = divisor, eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight, bias, column_mean, column_var, row_mean, row_var = ctx.saved_tensors
        divisor, eps, (count, channels) = ctx.divisor, ctx.eps, x.shape
        if torch.is_grad_enabled():  # a second derivative is wanted, which needs the formula's own graph
            y = cross_normalize(x, weight, bias, divisor, eps)
            wanted = [t for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None)
        gain = 1 + 1 / divisor
        column_shift = column_mean * (count / divisor / gain)
        # In this order: a small tensor in the gap that a freed large one left would send the next large one to fresh pages.
        row_slope, row_offset = torch.empty_like(row_mean), torch.empty_like(row_mean)
        grad_x = torch.empty_like(x)
        sums = []
        rows = [_blocks(t, x) for t in (x, grad, grad_x, row_mean, row_var, row_slope, row_offset)]
        for block, g, out, mean, var, slope, offset in zip(*rows, strict=True):
            scale = (var + (column_var + eps)).rsqrt_()
            normed = (block - column_shift).sub_(mean * (channels / divisor / gain)).mul_(scale)
            product = normed.mul_(g)
            weight_sum = product.sum(0)
            # d y / d s = - normed scale^2 / 2, and s is a sum of a column's and a row's variance.
            product.mul_(scale).mul_(scale)
            inner = torch.mul(g, scale, out=out)
            with torch.autocast(x.device.type, enabled=False):
                slope.copy_((product @ weight).unsqueeze(1)).mul_(-gain / (channels - 1))
                offset.copy_((inner @ weight).unsqueeze(1)).div_(divisor).addcmul_(slope, mean)
            sums.append(torch.stack((weight_sum, product.sum(0), inner.sum(0), g.sum(0))))
        weight_sum, product_sum, inner_sum, grad_bias = torch.stack(sums).sum(0)
        column_slope = product_sum * weight * (-gain / (count - 1))
        column_offset = inner_sum * weight / divisor + column_slope * column_mean
        rows = [_blocks(t, x) for t in (x, grad_x, row_slope, row_offset)]
        for block, out, slope, offset in zip(*rows, strict=True):
            out.mul_(weight * gain).addcmul_(slope + column_slope, block).sub_(column_offset).sub_(offset)
        return grad_x, weight_sum * gain, grad_bias, None, None


def _blocks(tensor: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split the rows of ``tensor`` as those of ``like``: a few hundred KiB each on a CPU, one block elsewhere."""
    like = tensor if like is None else like
    return tensor.split(max(1, 2**17 // like.shape[1]) if like.device.type == 'cpu' else len(like))
