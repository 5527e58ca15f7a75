"""Weighted convolution: the kernel is multiplied, tap by tap, by a density that is 1 in its center."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['WeightedConv2d']


@MODELS.register_module()
class WeightedConv2d(GeneratedConv2d):
    r"""A kernel times a fixed or learned density around its center.

    Cammarasana and Patanè, *Optimal Density Functions for Weighted Convolution in Learning Models*, 2025, arXiv 2505.24527,
    and *Optimal Weighted Convolution for Classification and Denosing*, 2025, arXiv 2505.24558.

    A symmetric profile :math:`\alpha` with 1 in its center weights the rows and the columns of the kernel:

    .. math:: \tilde W = W \odot \Phi, \qquad \Phi = \alpha \alpha^\top, \qquad
        \alpha = (d_1, \dots, d_r, 1, d_r, \dots, d_1), \quad r = (k - 1) / 2

    As :math:`\Phi` can be absorbed by the kernel, the layer computes nothing that a plain one cannot; what changes is the
    training: under SGD the gradient of :math:`\tilde W` is scaled by :math:`\Phi^2`. A 1x1 kernel has a center only and
    stays plain.

    Args:
        *args: Those of ``nn.Conv2d``. The kernel must be square and odd.
        density: The :math:`d_1, \dots, d_r`, the outermost first; one number stands for all of them. The default leaves the
            kernel as it is (our choice; the papers search for the best values for each task).
        trainable: Learn the density; it starts at ``density``.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` is (Co, Ci/groups, k, k), ``density`` ((k-1)/2,), a parameter if it is trained and a buffer if not. A plain
        layer's kernel is divided by :math:`\Phi`, so that the layer computes the same with it.

    Raises:
        ValueError: If the kernel is not square and odd, or ``density`` has not (k-1)/2 numbers; and if a plain kernel is to
            be taken while a density is zero.

    Example:
        >>> WeightedConv2d(8, 8, 3, density=0.5).mask()[0]
        tensor([0.2500, 0.5000, 0.2500])
    """

    example = dict(density=0.7, trainable=True)

    def __init__(
        self, *args: Any, density: float | Sequence[float] = 1.0, trainable: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        rows, cols = self.kernel_size
        if rows != cols or rows % 2 == 0:
            raise ValueError(
                f'WeightedConv2d centers its density and needs a square odd kernel, got kernel_size={self.kernel_size}; '
                'leave the layer out'
            )
        self.trainable = trainable
        self.plain = rows == 1
        taps = rows // 2
        self.start = (float(density),) * taps if isinstance(density, (int, float)) else tuple(map(float, density))
        if self.plain:
            self.register_parameter('density', None)
        elif len(self.start) != taps:
            raise ValueError(
                f'WeightedConv2d needs (kernel_size - 1) / 2 = {taps} densities, the outermost first, got {density=} for '
                f'kernel_size={self.kernel_size}; pass {taps}, or one number for all'
            )
        elif trainable:
            self.density = nn.Parameter(self.weight.detach().new_empty(taps))
        else:
            self.register_buffer('density', self.weight.detach().new_empty(taps))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the kernel (Kaiming normal, fan out), reset the density, and zero the bias, as the released code does."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if not self.plain:
            self.density.copy_(torch.tensor(self.start))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def mask(self) -> Tensor:
        """Return the density function, (k, k)."""
        profile = torch.cat([self.density, self.density.new_ones(1), self.density.flip(0)])
        return torch.outer(profile, profile)

    def generate_kernel(self) -> Tensor:
        return self.weight * self.mask()

    def load_kernel(self, kernel: Tensor) -> None:
        if not self.density.all():
            raise ValueError(
                f'WeightedConv2d cannot start from a given kernel with a density of zero, got {self.density.tolist()}; pass '
                'densities other than zero'
            )
        self.weight.copy_(kernel / self.mask())

    def own_repr(self) -> str:
        return f'density={self.start}, trainable={self.trainable}'
