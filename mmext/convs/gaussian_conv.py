"""Gaussian composition: a small free-form kernel, blurred by a Gaussian whose width is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import at_most
from mmext.convs.generated import GeneratedConv2d
from mmext.numerics import is_depthwise, spread_taps
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['GaussianConv2d']

NUMBERS = {'iso': 1, 'diag': 2, 'full': 3}
_Sigma = Annotated[float, at_most(256)]
MIN_SIGMA = 0.1


@MODELS.register_module()
class GaussianConv2d(GeneratedConv2d):
    r"""Gaussian composition: a small kernel blurred by a Gaussian of learned covariance.

    Shelhamer, Wang and Darrell, *Blurring the Line Between Structure and Learning to Optimize and Adapt Receptive Fields*,
    2019, arXiv 1904.11487.

    The receptive field grows and shrinks with the Gaussian's covariance, which is learned, while the number of weights stays
    that of the free-form kernel F:

    .. math::
        W_{oi} = F_{oi} \circledast G_\Sigma, \qquad
        G_\Sigma(z) \propto \exp\bigl(-\tfrac12\, z^\top \Sigma^{-1} z\bigr), \quad \textstyle\sum_z G_\Sigma(z) = 1

    with the full convolution, so that the kernel is larger than ``kernel_size``; the layer's padding grows alike.

    Args:
        *args: Those of ``nn.Conv2d``, which describe F.
        sigma: The standard deviation at the start, in pixels.
        covariance: ``'iso'`` learns one standard deviation, ``'diag'`` those of rows and columns, ``'full'`` the Cholesky
            factor :math:`\bigl(\begin{smallmatrix} e^a & b \\ 0 & e^c \end{smallmatrix}\bigr)` of :math:`\Sigma`, for
            z = (y, x) with y upwards.
        per: ``'layer'`` for one Gaussian, ``'channel'`` for one per input channel.
        max_sigma: The largest standard deviation, twice ``sigma`` by default; or a pair, of rows and of columns.
        std_devs: How many times ``max_sigma`` the Gaussian's window reaches to each side.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` is (Co, Ci/groups, kh, kw); ``log_sigma`` (1 or Ci, 1, 2 or 3). With :math:`h = \lceil` ``std_devs`` *
        ``max_sigma`` :math:`\rceil` of a direction, the generated kernel has :math:`d (k - 1) + 1 + 2 h` taps there.

    Raises:
        ValueError: If ``covariance`` or ``per`` is unknown, if not 0.1 <= ``sigma`` <= ``max_sigma`` or ``std_devs`` is not
            positive, or if ``padding='same'`` differs between the two sides (even kernels).

    The released code blurs the input and then convolves it, and loses what the blur writes outside of the frame: with padding,
    its outermost rows and columns differ from this composition. Ours, too: the logarithm of sigma is learned; the window is
    fixed (the released one follows sigma, and sizes would depend on a parameter), so that sigma is to be kept below
    ``max_sigma`` after every optimizer step (``mmext.ProjectionHook``); and so is the choice per channel.

    Where the layer is not depthwise it computes as blur and convolution in eval mode as well, and deployment leaves it, since
    a dense kernel of the full size costs several times more. A 1 x 1 kernel stays a plain convolution.

    Example:
        >>> layer = GaussianConv2d(8, 8, 3, sigma=1.0).eval()
        >>> layer(torch.randn(1, 8, 20, 20)).shape[:2]
        torch.Size([1, 8])
    """

    def __init__(
        self,
        *args: Any,
        sigma: _Sigma = 1.0,
        covariance: str = 'iso',
        per: Literal['layer', 'channel'] = 'layer',
        max_sigma: _Sigma | Sequence[_Sigma] | None = None,
        std_devs: Annotated[float, at_most(16)] = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        largest = _pair(2 * sigma if max_sigma is None else max_sigma)
        if covariance not in NUMBERS:
            raise ValueError(f'GaussianConv2d needs covariance {sorted(NUMBERS)}, got {covariance=}')
        if len(largest) != 2 or not MIN_SIGMA <= sigma <= min(largest) or std_devs <= 0:
            raise ValueError(
                f'GaussianConv2d needs {MIN_SIGMA} <= sigma <= max_sigma, which is a number or a pair, and a positive '
                f'std_devs, got {sigma=}, {max_sigma=}, {std_devs=}'
            )
        self.sigma, self.max_sigma, self.covariance, self.per = sigma, largest, covariance, per
        rows, cols = (max(1, math.ceil(std_devs * s)) for s in largest)
        self.reach = (rows, cols)
        self.plain = self.kernel_size == (1, 1)
        self.depthwise = is_depthwise(self)
        self.fold_in_deploy = self.plain or self.depthwise
        self._free_padding = self._symmetric_padding()
        if self.plain:
            self.register_parameter('log_sigma', None)
            return
        count = self.in_channels if per == 'channel' else 1
        self.log_sigma = nn.Parameter(self.weight.new_empty(count, NUMBERS[covariance]))
        self.init_weights()

    def _symmetric_padding(self) -> tuple[int, int]:
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == 'valid':
            return (0, 0)
        around = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if any(a % 2 for a in around):
            raise ValueError(
                f"GaussianConv2d pads both sides alike, which padding='same' with kernel_size={self.kernel_size} and "
                f'dilation={self.dilation} does not; use an odd kernel_size or a number'
            )
        return (around[0] // 2, around[1] // 2)

    def init_weights(self) -> None:
        """Draw the free-form kernel (Xavier uniform); the Gaussian is round."""
        super().init_weights()
        if self.plain:
            return
        nn.init.xavier_uniform_(self.weight)
        nn.init.constant_(self.log_sigma, math.log(self.sigma))
        if self.covariance == 'full':
            nn.init.zeros_(self.log_sigma.data[:, 1])

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Keep the standard deviations inside of the window."""
        if self.plain:
            return
        largest = [min(self.max_sigma)] if self.covariance == 'iso' else self.max_sigma
        of_axes = self.log_sigma[:, ::2] if self.covariance == 'full' else self.log_sigma
        for own, high in zip(of_axes.unbind(1), largest, strict=True):
            own.clamp_(math.log(MIN_SIGMA), math.log(high))
        if self.covariance != 'full':
            return
        _, b, c = self.log_sigma.unbind(1)
        # The variance of x is b^2 + e^2c.
        limit = (self.max_sigma[1] ** 2 - (2 * c).exp()).clamp(min=0).sqrt()
        b.copy_(b.clamp(-limit, limit))

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Return what the Gaussian learns with, relative to the other parameters: no decay, which is ours."""
        return {} if self.plain else dict(log_sigma=dict(decay_mult=0.0))

    def plain_geometry(self) -> dict[str, Any]:
        if self.plain:
            return super().plain_geometry()
        padding = tuple(p + h for p, h in zip(self._free_padding, self.reach, strict=True))
        return dict(stride=self.stride, padding=padding, dilation=(1, 1), groups=self.groups)

    def gaussian(self) -> Tensor:
        """Return the Gaussians, (1 or Ci, rows, columns)."""
        if self.covariance != 'full':
            rows, cols = self._axes()
            return rows.unsqueeze(2) * cols.unsqueeze(1)
        a, b, c = self.log_sigma.unsqueeze(-1).unsqueeze(-1).unbind(1)
        down, right = (self._offsets(axis) for axis in (0, 1))
        # With the lower triangular factor L of Sigma, z Sigma^-1 z is the squared length of L^-1 z.
        u = -down.unsqueeze(1) / a.exp()
        v = (right - b * u) / c.exp()
        g = (-0.5 * (u.square() + v.square())).exp()
        return g / g.sum((1, 2), keepdim=True)

    def _offsets(self, axis: int) -> Tensor:
        reach = self.reach[axis]
        return torch.arange(-reach, reach + 1, dtype=self.log_sigma.dtype, device=self.log_sigma.device)

    def _axes(self) -> tuple[Tensor, Tensor]:
        """Return the factors of rows and columns, (1 or Ci, taps) each, of a Gaussian without covariance."""
        sigma = self.log_sigma.exp()
        rows, cols = (
            (-0.5 * (self._offsets(axis) / sigma[:, own : own + 1]).square()).exp()
            for axis, own in ((0, 0), (1, sigma.shape[1] - 1))
        )
        return rows / rows.sum(1, keepdim=True), cols / cols.sum(1, keepdim=True)

    def generate_kernel(self) -> Tensor:
        outputs, inputs = self.weight.shape[:2]
        blur = self.gaussian()
        if self.per == 'channel':
            # The input channels of every output, in the order of the weight's.
            blur = blur.view(self.groups, 1, inputs, *blur.shape[1:])
            blur = blur.expand(-1, outputs // self.groups, -1, -1, -1).flatten(0, 2)
        kernels = blur.expand(outputs * inputs, -1, -1).unsqueeze(1)
        # Dilated taps and zeros enough for every overlap. A Gaussian is its own mirror image, so correlation is convolution.
        free = spread_taps(self.weight, self.dilation).flatten(0, 1).unsqueeze(0)
        around = (2 * self.reach[0], 2 * self.reach[1])
        full = F.conv2d(free, kernels, padding=around, groups=outputs * inputs)
        return full[0].unflatten(0, (outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W): with the generated kernel if depthwise, else in two exact steps."""
        if self.plain or self.depthwise:
            return super().forward(x)
        x = self.pad(x, self.plain_geometry()['padding'])
        for kernel in self._blurs():
            x = depthwise_conv2d(x, kernel.to(x.dtype).expand(self.in_channels, -1, -1, -1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _blurs(self) -> list[Tensor]:
        """Return the kernels of the blur in the order of their use."""
        if self.covariance == 'full':
            return [self.gaussian().unsqueeze(1)]
        rows, cols = self._axes()
        return [rows[:, None, :, None], cols[:, None, None, :]]

    def own_repr(self) -> str:
        return (
            f'sigma={self.sigma}, covariance={self.covariance!r}, per={self.per!r}, max_sigma={self.max_sigma}, '
            f'reach={self.reach}'
        )


def _pair(value: float | Sequence[float]) -> tuple[float, ...]:
    return (value, value) if isinstance(value, (int, float)) else tuple(value)
