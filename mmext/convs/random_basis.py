"""Random filters that never learn, and learned linear combinations of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Few
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['RandomBasisConv2d']


@MODELS.register_module()
class RandomBasisConv2d(GeneratedConv2d):
    r"""Learned linear combinations of frozen random filters.

    Gavrikov and Keuper, *The Power of Linear Combinations: Learning with Random Convolutions*, arXiv 2301.11360.

    A k x k convolution with random filters R is followed directly, with nothing in between, by a learned 1x1 convolution
    Q; the two are one convolution:

    .. math:: W_o = \sum_{m=1}^{E C_o} Q_{om}\, R_m

    With fewer filters than taps, :math:`E C_o < C_i k^2`, every kernel stays in the span of the random ones. A 1x1 kernel is
    a linear combination to begin with: such a layer stays a plain, learning convolution.

    Args:
        *args: Those of ``nn.Conv2d``.
        expansion: E, the number of random filters per output channel.
        seed: Of the filters. Layers of one shape and seed share their filters; with None each draws its own.
        freeze: Whether the filters are fixed; with False they learn too.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``basis`` is (E Co, Ci/groups, kh, kw), a buffer if frozen; ``coeff`` (Co, E Co/groups). There is no ``weight``. A
        plain kernel is approached by least squares over ``coeff``, exactly where the filters span everything.

    Raises:
        ValueError: If ``expansion`` is below 1.

    The filters are drawn as torch draws a convolution, which is the paper's "default initialization"; the number of them and
    the distribution of Q (Kaiming uniform) are our reading. So is ``groups``: filters are combined within their group.

    Example:
        >>> layer = RandomBasisConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    loads_kernel_exactly = False

    def __init__(
        self, *args: Any, expansion: Few = 1, seed: int | None = None, freeze: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if expansion < 1:
            raise ValueError(f'RandomBasisConv2d needs an expansion of at least 1, got {expansion=}')
        self.expansion = expansion
        self.freeze = freeze
        self.plain = self.kernel_size == (1, 1)
        if self.plain:
            return
        # Known for good, so that init_weights() draws the same filters again.
        self.seed = int(torch.randint(2**31, (), device='cpu')) if seed is None else seed
        like = self.drop_weight()
        filters = expansion * self.out_channels
        basis = like.new_empty(filters, *like.shape[1:])
        if freeze:
            self.register_buffer('basis', basis)
        else:
            self.basis = nn.Parameter(basis)
        self.coeff = nn.Parameter(like.new_empty(self.out_channels, filters // self.groups))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the coefficients and the bias anew, and the filters from the seed."""
        if self.plain:
            return super().init_weights()
        generator = torch.Generator('cpu').manual_seed(self.seed)
        bound = self.basis[0].numel() ** -0.5
        drawn = torch.empty(self.basis.shape, device='cpu').uniform_(-bound, bound, generator=generator)
        self.basis.copy_(drawn)
        nn.init.kaiming_uniform_(self.coeff)
        if self.bias is not None:
            bound = self.coeff.shape[1] ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def generate_kernel(self) -> Tensor:
        kernel = self._by_group(self.coeff) @ self._by_group(self.basis.flatten(1))
        return kernel.view(self.out_channels, *self.basis.shape[1:])

    def load_kernel(self, kernel: Tensor) -> None:
        # In float64 on the CPU: the least-squares driver for rank-deficient systems exists there alone.
        basis, wanted = (self._by_group(t.flatten(1)).mT.to('cpu', torch.float64) for t in (self.basis, kernel))
        solution = torch.linalg.lstsq(basis, wanted, driver='gelsy').solution
        self.coeff.copy_(solution.mT.reshape(self.coeff.shape))

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.view(self.groups, -1, rows.shape[1])

    def own_repr(self) -> str:
        return f'expansion={self.expansion}, seed={self.seed}, freeze={self.freeze}'
