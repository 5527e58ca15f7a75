"""DCLS: the taps of a large sparse kernel have learned positions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmext.arguments import Few
from mmext.convs.points import PointConv2d
from mmext.registry import MODELS

__all__ = ['DCLSConv2d']

# For the versions that have SIG: what is added to its magnitude; where it starts; and where it starts with a given kernel, as
# narrow as it gets with a gradient (the magnitude has none at 0).
MIN_WIDTH = {'max': 1.0, 'gauss': 0.27}
START = {'max': 1e-3, 'gauss': 0.23}
NARROW = {'max': 1e-3, 'gauss': 0.03}


@MODELS.register_module()
class DCLSConv2d(PointConv2d):
    r"""Dilated convolution with learnable spacings: weighted points at learned positions in a large window.

    Khalfaoui-Hassani, Pellegrini and Masquelier, *Dilated Convolution with Learnable Spacings*, ICLR 2023, arXiv 2112.03740;
    the versions ``'v1'``, ``'max'`` and ``'gauss'``: *Dilated Convolution with Learnable Spacings: beyond bilinear
    interpolation*, 2023, arXiv 2306.00817.

    A two-dimensional kernel is m weighted points at real positions inside of its window, made differentiable in the
    positions by an interpolation:

    .. math:: W[r, s] = \sum_{i=1}^{m} w_i\, X_i[r, s], \qquad X_i[r, s] = \frac{g(r - y_i)\, g(s - x_i)}{Z_i}

    with rows and columns counted from the center, and

    - ``'v0'``: the triangle :math:`g(d) = \max(0, 1 - |d|)`, :math:`Z = 1`: bilinear interpolation;
    - ``'v1'``: the same, with :math:`Z_i = \sum_{r, s} g(r - y_i)\, g(s - x_i) + 10^{-7}`;
    - ``'max'``: wider triangles :math:`g(d) = \max(0, \sigma - |d|)`, :math:`\sigma = 1 + |\mathrm{SIG}|`, normalized;
    - ``'gauss'``: :math:`g(d) = \exp(-d^2 / 2 \sigma^2)`, :math:`\sigma = 0.27 + |\mathrm{SIG}|`, normalized.

    All of them are products over the two axes, so that all kernels are one batched matrix product here, of (rows x points)
    by (points x columns).

    Args:
        *args: Those of ``nn.Conv2d``. ``kernel_size`` is the window that the points move in, what the paper calls the
            dilated kernel size; give ``padding=kernel_size // 2`` for an output as large as the input.
        kernel_count: m, the number of points per kernel. 9, as many as a 3 x 3 kernel has taps, is our default.
        version: The interpolation.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``point_weight`` is (Co, Ci/groups, m); ``P``, the positions, and ``SIG``, the widths (``'max'`` and ``'gauss'`` only),
        are (2, Co, Ci/groups, m), rows first, in pixels from the center.

    Raises:
        ValueError: If ``kernel_count`` is not positive or ``version`` unknown.

    Positions are to be kept inside of the window after every optimizer step (``mmext.ProjectionHook`` does it), and learn
    five times as fast as weights, without decay (``mmext.LayerOptionsConstructor``); the released training code does both. It
    predates ``SIG``, for which the same is our reading. ``mmext.RepulsionHook`` is the paper's loss that keeps points apart.

    Ours, too:

    - Rows come first in every version. In the official one ``'v0'`` has rows first, the others columns.
    - Each axis has its own center. The official one takes the rows' for both in all versions but ``'v0'``.
    - At an even window the positions stop at its last row. The official bound lets a point leave.
    - ``SIG`` of ``'max'`` starts at 0.001. At the official 0 it has no gradient.
    - A point exactly on a pixel has the derivative towards larger positions in every version. In the official ``'v1'`` and
      ``'max'`` it is 0 there, and a point that was stopped at the border stays for good.

    A plain kernel is taken tap by tap, the m largest of each: exactly by ``'v0'`` and ``'v1'`` if m points suffice.

    Example:
        >>> layer = DCLSConv2d(8, 8, 17, padding=8, groups=8, kernel_count=20).eval()
        >>> layer.fold().kernel_size
        (17, 17)
    """

    typical = dict(kernel_size=17, depthwise=True, kernel_count=34)
    loads_kernel_exactly = False

    SIG: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        kernel_count: Few = 9,
        version: Literal['v0', 'v1', 'max', 'gauss'] = 'gauss',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if kernel_count < 1:
            raise ValueError(f'DCLSConv2d needs a positive kernel_count, got {kernel_count=}')
        self.kernel_count = kernel_count
        self.version = version
        if self.plain:
            return
        like = self.drop_weight()
        shape = (self.out_channels, self.in_channels // self.groups, kernel_count)
        self.point_weight = nn.Parameter(like.new_empty(shape))
        self.P = nn.Parameter(like.new_empty(2, *shape))
        self.register_parameter('SIG', nn.Parameter(like.new_empty(2, *shape)) if version in MIN_WIDTH else None)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights and bias from U(+-1 / sqrt(m Ci / groups)) and positions from N(0, 0.5)."""
        if self.plain:
            return super().init_weights()
        bound = self.point_weight[0].numel() ** -0.5
        nn.init.uniform_(self.point_weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.P, std=0.5)
        self.project_parameters()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, START[self.version])

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Keep the positions inside of the window."""
        if self.plain:
            return
        for positions, size in zip(self.P, self.kernel_size, strict=True):
            positions.clamp_(-(size // 2), (size - 1) // 2)

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Return what positions and widths learn with, relative to the other parameters."""
        names = [] if self.plain else ['P'] if self.SIG is None else ['P', 'SIG']
        return {name: dict(lr_mult=5.0, decay_mult=0.0) for name in names}

    def generate_kernel(self) -> Tensor:
        rows, cols = self._profile(0), self._profile(1)
        weight = self.point_weight.flatten(0, 1)
        if self.version != 'v0':
            weight = weight / (rows.sum(-1) * cols.sum(-1) + 1e-7)
        kernels = (rows * weight.unsqueeze(-1)).transpose(1, 2) @ cols
        return kernels.unflatten(0, self.point_weight.shape[:2])

    def _profile(self, axis: int) -> Tensor:
        """Return how much of each point falls on each row or column, (kernels, m, size)."""
        position = self.P[axis].flatten(0, 1).unsqueeze(-1)
        width = position.new_ones(())
        if self.SIG is not None:
            width = self.SIG[axis].flatten(0, 1).unsqueeze(-1).abs() + MIN_WIDTH[self.version]
        if self.version == 'gauss':
            return (-0.5 * (_distance(position, self.kernel_size[axis]) / width).square()).exp()
        return _Triangle.apply(position, width, self.kernel_size[axis])

    def load_kernel(self, kernel: Tensor) -> None:
        taps = kernel.flatten(2)
        count = min(self.kernel_count, taps.shape[-1])
        chosen = taps.abs().topk(count).indices
        self.point_weight.zero_()
        self.point_weight[..., :count] = taps.gather(-1, chosen)
        height, width = self.kernel_size
        self.P[0, ..., :count] = (chosen // width - height // 2).to(self.P)
        self.P[1, ..., :count] = (chosen % width - width // 2).to(self.P)
        if self.SIG is not None:
            nn.init.constant_(self.SIG, NARROW[self.version])

    def own_repr(self) -> str:
        return f'kernel_count={self.kernel_count}, version={self.version!r}'


def _distance(position: Tensor, size: int) -> Tensor:
    """Return how far each row or column lies from each position."""
    return torch.arange(size, dtype=position.dtype, device=position.device) - size // 2 - position


class _Triangle(torch.autograd.Function):
    """The profile max(0, width - |d|), which has a derivative everywhere: that towards larger positions.

    With ``abs`` and ``relu`` all derivatives vanish where a point lies exactly on a pixel, and one that was stopped at the
    border would stay there for good. The official ``'v0'`` has this derivative, too. Besides, this keeps nothing but the
    positions for the backward pass.
    """

    @staticmethod
    def forward(position: Tensor, width: Tensor, size: int) -> Tensor:
        # The last step not in place: torch.compile (2.11) would return zeros for the gradient.
        return _distance(position, size).abs_().neg_().add_(width).relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        position, width, ctx.size = inputs
        ctx.save_for_backward(position, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        position, width = ctx.saved_tensors
        # 1 for what a point comes nearer to, up to its width; 0 for what it leaves or stands on.
        side = (_distance(position, ctx.size) / width).ceil()
        nearing, leaving = (grad * (side == 1)).sum(-1, True), (grad * (side == 0)).sum(-1, True)
        return nearing - leaving, nearing + leaving if ctx.needs_input_grad[1] else None, None
