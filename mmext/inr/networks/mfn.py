"""Multiplicative filter networks: products of sinusoids or Gabor filters of the coordinates instead of activations."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, Few, Positive
from mmext.inr.networks.base import CoordNetwork
from mmext.numerics import full_precision
from mmext.registry import MODELS

__all__ = ['MFN']


@MODELS.register_module()
class MFN(CoordNetwork):
    r"""Multiplicative filter network: products of sinusoids or Gabor filters of the coordinates.

    Fathony et al., *Multiplicative Filter Networks*, ICLR 2021, not on arXiv; WIRE's repository (arXiv 2301.05187) has a copy
    of the released code as a baseline.

    .. math::
        z_1 = g_1(p), \qquad z_{i+1} = (W_i z_i + b_i) \odot g_{i+1}(p), \qquad y = W_k z_k + b_k

    with filters :math:`g(p) = \sin(\omega p + \phi)` or, times a Gaussian envelope,
    :math:`\sin(\omega p + \phi)\exp(-\tfrac{\gamma}{2}\lVert p - \mu\rVert^2)`.

    Args:
        in_features: d, the number of coordinates.
        out_features: Values per position.
        width: Outputs of each filter.
        depth: k, the number of filters; one more than the ``n_layers`` of the original code.
        filter_type: ``'fourier'`` or ``'gabor'``.
        input_scale: Scale of the filters' frequencies, divided by :math:`\sqrt k`.
        weight_scale: :math:`W_i \sim U(\pm\sqrt{\mathrm{weight\_scale}/\mathrm{width}})`.
        alpha: :math:`\gamma \sim \mathrm{Gamma}(\alpha/k, \beta)`.
        beta: Rate of that distribution.
        init_cfg: As in mmengine.

    Shape:
        (..., d) to (..., out_features).

    Raises:
        ValueError: If ``filter_type`` is unknown or ``depth`` is below 1.

    Example:
        >>> MFN(out_features=3)(coordinate_grid(4, 6)).shape
        torch.Size([4, 6, 3])
    """

    example = dict(width=6, depth=2)

    def __init__(
        self,
        in_features: Count = 2,
        out_features: Count = 3,
        width: Count = 256,
        depth: Few = 4,
        filter_type: Literal['fourier', 'gabor'] = 'gabor',
        input_scale: Positive = 256.0,
        weight_scale: Positive = 1.0,
        alpha: Positive = 6.0,
        beta: Positive = 1.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, init_cfg)
        if depth < 1:
            raise ValueError(f'MFN needs one filter at least, got {depth=}')
        self.weight_scale = weight_scale
        scale = input_scale / depth**0.5
        gamma = (alpha / depth, beta) if filter_type == 'gabor' else None
        # Any, because torch does not tell what a ModuleList holds.
        self.filters: Any = nn.ModuleList(_Filter(in_features, width, scale, gamma) for _ in range(depth))
        self.linears: Any = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.head = nn.Linear(width, out_features)
        self._init_linears()

    @torch.no_grad()
    def _init_linears(self) -> None:
        for linear in self.linears:
            bound = (self.weight_scale / linear.in_features) ** 0.5
            linear.weight.uniform_(-bound, bound)

    def reset_parameters(self) -> None:
        for module in (*self.filters, *self.linears, self.head):
            module.reset_parameters()
        self._init_linears()

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network at ``coords``, (..., d)."""
        points = coords.reshape(-1, self.in_features)
        features = self.filters[0](points)
        for linear, filter_ in zip(self.linears, self.filters[1:], strict=True):
            features = linear(features) * filter_(points)
        return self.head(features).view(*coords.shape[:-1], self.out_features)


class _Filter(nn.Module):
    """A sinusoid of the coordinates per output, with a Gaussian envelope if ``gamma`` gives its distribution."""

    def __init__(self, in_features: int, out_features: int, scale: float, gamma: tuple[float, float] | None) -> None:
        super().__init__()
        self.scale = scale
        self.gamma_init = gamma
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.mu = nn.Parameter(torch.empty(out_features, in_features)) if gamma else None
        self.gamma = nn.Parameter(torch.empty(out_features)) if gamma else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.weight.mul_(self.scale)
        self.bias.uniform_(-math.pi, math.pi)
        if self.mu is not None and self.gamma is not None and self.gamma_init is not None:
            self.mu.uniform_(-1, 1)
            concentration, rate = self.gamma_init
            # torch's distribution checks its arguments by value, which the meta device has none of.
            self.gamma.copy_(torch._standard_gamma(torch.full_like(self.gamma, concentration)) / rate)
            self.weight.mul_(self.gamma.sqrt().unsqueeze(1))

    def forward(self, points: Tensor) -> Tensor:
        # Frequencies of a hundred and more need full precision.
        with full_precision(points):
            points = points.to(self.weight.dtype)
            wave = torch.sin(F.linear(points, self.weight, self.bias))
            if self.mu is None or self.gamma is None:
                return wave
            distance = sum((points[:, i : i + 1] - self.mu[:, i]).square() for i in range(points.shape[1]))
            return wave * torch.exp(-0.5 * self.gamma * distance)
