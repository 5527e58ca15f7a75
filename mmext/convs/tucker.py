"""Tucker convolution: the kernel is a small core with one factor per mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['TuckerConv2d', 'hosvd']

FACTORS = ('factor_out', 'factor_in', 'factor_rows', 'factor_cols')


@MODELS.register_module()
class TuckerConv2d(GeneratedConv2d):
    r"""A low-rank kernel in Tucker format, computed in three cheaper steps.

    Zangrando, Schotthöfer, Ceruti, Kusch, Tudisco, *Geometry-aware training of factorized layers in tensor Tucker format*,
    NeurIPS 2024 (first titled *Rank-adaptive spectral pruning of convolutional layers during training*), arXiv 2305.19059.

    .. math:: W_{oiuv} = \sum_{abcd} S_{abcd}\, U^{(1)}_{oa} U^{(2)}_{ib} U^{(3)}_{uc} U^{(4)}_{vd}

    Where that costs fewer multiplications than the whole kernel, the layer computes in three steps, training or not: 1x1 to
    :math:`r_2` channels, the core with its spatial factors to :math:`r_1` channels, 1x1 to the outputs. Deploying then
    leaves it as it is; :meth:`fold` gives the whole kernel all the same. A 1x1 kernel stays a plain convolution.

    Of each factor only the leading ``live_rank`` columns are in use and the others are zero, as are the core's entries that
    belong to them. Zero columns get no gradient, so that the ranks of a layer stay as they are until somebody changes them:
    :class:`mmext.hooks.TuckerRankHook` does, in training.

    Args:
        *args: Those of ``nn.Conv2d``; ``groups`` must be 1.
        rank: :math:`(r_1, r_2)` for the output and input channels, or all four ranks; one larger than its mode is cut to it.
            With two of them the spatial modes are full, which is usual.
        ratio: Without ``rank``: the part of the channels that :math:`r_1` and :math:`r_2` are.
        start_rank: Ranks in use at the start, if smaller than ``rank``; the rest is room for ranks to grow.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``core`` is (r1, r2, r3, r4), ``factor_out`` (Co, r1), ``factor_in`` (Ci, r2), ``factor_rows`` (kh, r3),
        ``factor_cols`` (kw, r4), ``live_rank`` (buffer) (4,).

    Attributes:
        factored: Whether the layer computes in steps.

    Raises:
        ValueError: If ``groups`` is not 1, or a rank or the ratio is out of range.

    The initialization is our reading: the higher-order SVD of a Kaiming-normal kernel, cut to the ranks and scaled back to
    that kernel's norm, so that the factors start orthonormal. A plain layer's kernel is taken by the same decomposition,
    unscaled: at full rank exactly, else with the error of the singular values that were cut off.

    Example:
        >>> layer = TuckerConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    serves = ('dense',)
    loads_kernel_exactly = False

    fold_in_deploy = False
    factored = False
    core: nn.Parameter
    factor_out: nn.Parameter
    factor_in: nn.Parameter
    factor_rows: nn.Parameter
    factor_cols: nn.Parameter
    live_rank: Tensor

    def __init__(
        self,
        *args: Any,
        rank: int | Sequence[int] | None = None,
        ratio: float = 0.5,
        start_rank: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < ratio <= 1:
            raise ValueError(f'TuckerConv2d needs 0 < ratio <= 1, got {ratio=}')
        self.plain = self.kernel_size == (1, 1)
        if self.plain:
            self.fold_in_deploy = True
            return
        if self.groups != 1:
            raise ValueError(
                f'TuckerConv2d factors a kernel over all channels and needs groups=1, got groups={self.groups}; choose dense '
                'layers by a rule (groups=1)'
            )
        sizes = (self.out_channels, self.in_channels, *self.kernel_size)
        if rank is None:
            rank = [max(round(ratio * channels), 1) for channels in sizes[:2]]
        self.rank = _cut(rank, sizes, 'rank')
        self.start_rank = self.rank if start_rank is None else _cut(start_rank, self.rank, 'start_rank')
        like = self.drop_weight()
        self.core = nn.Parameter(like.new_empty(self.rank))
        for name, n, r in zip(FACTORS, sizes, self.rank, strict=True):
            self.register_parameter(name, nn.Parameter(like.new_empty(n, r)))
        self.register_buffer('live_rank', torch.tensor(self.start_rank, device=like.device))
        r1, r2, taps = *self.rank[:2], self.kernel_size[0] * self.kernel_size[1]
        in_steps = self.in_channels * r2 * self.stride[0] * self.stride[1] + r1 * r2 * taps + r1 * self.out_channels
        self.factored = in_steps < self.in_channels * self.out_channels * taps
        self.fold_in_deploy = not self.factored
        self.init_weights()

    @property
    def factors(self) -> list[nn.Parameter]:
        """The factors of the modes (outputs, inputs, rows, columns)."""
        return [self.get_parameter(name) for name in FACTORS]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw a kernel (Kaiming normal), decompose it, and set the bias to zero."""
        if self.plain:
            return super().init_weights()
        kernel = nn.init.kaiming_normal_(self.core.new_empty(self.out_channels, self.in_channels, *self.kernel_size))
        core, factors = hosvd(kernel, self.start_rank)
        self.set_factors(core * (kernel.norm() / core.norm()), factors)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def set_factors(self, core: Tensor, factors: Sequence[Tensor]) -> None:
        """Put ``core`` and ``factors``, of any ranks up to those of the layer, in place of the live ones."""
        for own, new in zip((self.core, *self.factors), (core, *factors), strict=True):
            values = new.to(own, copy=True)  # they may be views of the layer's own
            own.zero_()
            own[tuple(slice(n) for n in new.shape)] = values
        self.live_rank.copy_(torch.tensor(core.shape))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        live = state_dict.get(f'{prefix}live_rank')
        if not self.plain and live is not None and all(r <= n for r, n in zip(live.tolist(), self.rank, strict=True)):
            # A checkpoint of a layer with more room, or less, fits if its ranks in use do; beyond them there are zeros.
            ranks = live.tolist()
            used = {'core': ranks} | {name: (None, r) for name, r in zip(FACTORS, ranks, strict=True)}
            state_dict = dict(state_dict)
            for name, sizes in used.items():
                saved, own = state_dict.get(f'{prefix}{name}'), self.get_parameter(name)
                if saved is not None and (name == 'core' or len(saved) == len(own)):
                    part = tuple(slice(size) for size in sizes)
                    state_dict[f'{prefix}{name}'] = fitted = saved.new_zeros(own.shape)
                    fitted[part] = saved[part]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def load_kernel(self, kernel: Tensor) -> None:
        self.set_factors(*hosvd(kernel, self.start_rank))

    def _spatial_core(self) -> Tensor:
        """Return the core with its spatial factors multiplied in, (r1, r2, kh, kw)."""
        with self.full_precision():
            return self.factor_rows @ self.core @ self.factor_cols.t()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W): in three steps where that is cheaper, else with the whole kernel."""
        if not self.factored:
            return super().forward(x)
        x = F.conv2d(x, self.factor_in.t()[..., None, None])
        padding: Any = self.padding
        if self.padding_mode != 'zeros':  # no bias stands between, so that padding comes to the same here
            x, padding = self.pad(x), 0
        x = F.conv2d(x, self._spatial_core(), None, self.stride, padding, self.dilation)
        return F.conv2d(x, self.factor_out[..., None, None], self.bias)

    def generate_kernel(self) -> Tensor:
        return torch.einsum('abuv,oa,ib->oiuv', self._spatial_core(), self.factor_out, self.factor_in)

    def own_repr(self) -> str:
        start = '' if self.start_rank == self.rank else f', start_rank={self.start_rank}'
        return f'rank={self.rank}{start}'


def hosvd(kernel: Tensor, rank: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return the core and the orthonormal factors of the truncated higher-order singular value decomposition.

    A factor holds the leading left singular vectors of the kernel unfolded along its mode. They are computed in float64 as
    eigenvectors of the Gram matrix, which has the size of the mode and not of the kernel.
    """
    exact = kernel.double()
    factors = []
    for mode, r in enumerate(rank):
        unfolded = exact.movedim(mode, 0).flatten(1)
        factors.append(torch.linalg.eigh(unfolded @ unfolded.t()).eigenvectors.flip(1)[:, :r])
    core = torch.einsum('oiuv,oa,ib,uc,vd->abcd', exact, *factors)
    return core.to(kernel), [factor.to(kernel) for factor in factors]


def _cut(rank: int | Sequence[int], sizes: Sequence[int], name: str) -> tuple[int, ...]:
    """Complete two ranks by full spatial ones and cut each to the size of its mode."""
    if isinstance(rank, int) or len(rank) not in (2, 4) or any(r < 1 for r in rank):
        raise ValueError(
            f'TuckerConv2d needs two or four ranks of at least 1, (outputs, inputs[, rows, columns]), got {name}={rank}'
        )
    return tuple(min(r, n) for r, n in zip([*rank, *sizes[len(rank) :]], sizes, strict=True))
