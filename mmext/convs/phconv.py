"""Parameterised hypercomplex convolution: the kernel is a sum of Kronecker products of small matrices and filters."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.base import flattened
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['PHConv2d']


@MODELS.register_module()
class PHConv2d(GeneratedConv2d):
    r"""Parameterized hypercomplex convolution (PHC): sums of Kronecker products, 1/n of the parameters.

    Grassucci, Zhang, Comminiello, *PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions*,
    arXiv 2110.04176.

    ``n`` learned matrices :math:`A_s`, the rules of an algebra of dimension ``n``, and as many banks of filters
    :math:`F_s` make the kernel; the product is taken over the two channel axes:

    .. math:: W = \sum_{s=1}^{n} A_s \otimes F_s, \qquad
        W_{p C_o/n + o,\, q C_i/n + i} = \sum_s A_{s,p,q}\, F_{s,o,i}

    That is about 1/n of the parameters. ``n=1`` is a plain convolution times a scalar, ``n=2`` contains the complex
    convolution and ``n=4`` the quaternion one, each with its own algebra; here the algebra is learned. 1x1 layers are
    served as well.

    Args:
        *args: Those of ``nn.Conv2d``.
        n: Dimension of the algebra.
        init: ``'he'`` scales the filters so that the kernel has the variance :math:`2 / (C_i k^2)`, which is ours and the
            default; ``'official'`` draws both tensors as the released code does (Xavier uniform), which leaves a kernel of
            a far smaller variance: harmless before a batch norm, and a vanishing signal without one.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``algebra`` is (n, n, n), ``filters`` (Co, ceil(Ci/groups/n), kh, kw), bank by bank. There is no ``weight``. A plain
        kernel is approached by the nearest sum of n Kronecker products, a truncated singular value decomposition.

    Raises:
        ValueError: If ``n`` does not divide the output channels of a group, or ``init`` is unknown.

    Our reading: with ``groups``, every group has filters of its own and all share the algebra. Input channels of a group
    that ``n`` does not divide are completed by channels of zeros, so that an image of three channels can be the input for
    n=2 or n=4. The released layer creates a bias and never adds it; here ``bias`` means what it does in ``nn.Conv2d``.

    Example:
        >>> layer = PHConv2d(8, 8, 3, n=4, bias=False)
        >>> layer.fold().weight.numel() > sum(p.numel() for p in layer.parameters())
        True
    """

    serves = ('dense', 'grouped')
    loads_kernel_exactly = False

    def __init__(self, *args: Any, n: int = 4, init: Literal['he', 'official'] = 'he', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if n < 1 or self.out_channels // self.groups % n:
            raise ValueError(
                f'PHConv2d needs an n that divides the output channels of each group, got {n=} for '
                f'out_channels={self.out_channels}, groups={self.groups}; pass another n, or leave the layer out'
            )
        self.n = n
        self.init = init
        like = self.drop_weight()
        self.algebra = nn.Parameter(like.new_empty(n, n, n))
        inputs = -(-self.in_channels // self.groups // n)
        self.filters = nn.Parameter(like.new_empty(self.out_channels, inputs, *self.kernel_size))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the algebra and the filters, and the bias as ``nn.Conv2d`` does."""
        fan_in = self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]
        nn.init.xavier_uniform_(self.algebra)
        if self.init == 'official':
            nn.init.xavier_uniform_(self.filters.unflatten(0, (self.n, -1)))
        else:
            # By the drawn algebra and not by its expected size, from which few numbers (one, for n=1) may be far.
            bound = (6 / fan_in) ** 0.5
            self.filters.uniform_(-bound, bound).div_(self.algebra.square().sum(0).mean().sqrt())
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def generate_kernel(self) -> Tensor:
        per_group = self.filters.unflatten(0, (self.n, self.groups, -1))
        kernel = torch.einsum('spq,sgoiuv->gpoqiuv', self.algebra, per_group)
        kernel = kernel.reshape(self.out_channels, -1, *self.kernel_size)
        return kernel[:, : self.in_channels // self.groups]

    def load_kernel(self, kernel: Tensor) -> None:
        n, completed = self.n, self.n * self.filters.shape[1]
        kernel = F.pad(kernel.double(), (0, 0, 0, 0, 0, completed - kernel.shape[1]))
        # One row per entry (p, q) of the algebra: a sum of n Kronecker products is a matrix of rank n.
        blocks = kernel.view(self.groups, n, -1, n, self.filters.shape[1], *self.kernel_size)
        rows = blocks.permute(1, 3, 0, 2, 4, 5, 6).reshape(n * n, -1)
        leading = torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -n:].T
        self.algebra.copy_(leading.reshape(n, n, n))
        self.filters.copy_((leading @ rows).view(self.filters.shape))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict = flattened(state_dict, f'{prefix}filters', self.filters)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def own_repr(self) -> str:
        return f'n={self.n}, init={self.init!r}'
