"""Convolution-aware initialization: kernels that are orthonormal in the Fourier domain."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from mmengine.model.weight_init import BaseInit, update_init_info
from torch import Tensor, nn

from mmext.registry import WEIGHT_INITIALIZERS

__all__ = ['ConvolutionAwareInit', 'convolution_aware_', 'fourier_basis']


@WEIGHT_INITIALIZERS.register_module()
class ConvolutionAwareInit(BaseInit):
    r"""Kernels whose spectra are orthonormal, scaled as He's initialization scales them.

    Aghajanyan, *Convolution Aware Initialization*, arXiv 1702.06295.

    The half spectrum of a real kh x kw kernel has q = kh (kw // 2 + 1) entries. For each filter, orthonormal blocks of q real
    vectors of length q (:func:`fourier_basis`) are the spectra of its input channels; they are transformed back, noise
    :math:`N(0, \epsilon^2)` is added, and the whole kernel is scaled once to the variance
    :math:`2 / (C_i k_h k_w / \mathrm{groups})`.

    Args:
        eps_std: The standard deviation of the noise, relative to unit spectra.
        bias: What the bias is set to.
        layer: Class name, or names, of the layers that are drawn, ``'Conv2d'`` or ``['Conv2d', 'Linear']``. The matrices of
            linear layers become orthogonal.

    Raises:
        ValueError: If ``eps_std`` is not positive, or the model has no layer of the names.
        TypeError: If a named layer has kernels of another number of dimensions.

    The steps are those of the public Keras implementation. There, input and output channels change places at the end, so that
    only layers with equally many of both can be built; here they do not. 1x1 kernels, whose spectrum is one number, are noise.

    Example:
        >>> init_cfg = dict(type='mmext.ConvolutionAwareInit', layer='Conv2d')
    """

    def __init__(self, eps_std: float = 0.05, bias: float = 0, layer: str | Sequence[str] | None = None) -> None:
        super().__init__(bias=bias, layer=layer if layer is None or isinstance(layer, str) else list(layer))
        if eps_std <= 0:
            raise ValueError(f'ConvolutionAwareInit needs a positive eps_std, got {eps_std=}')
        self.eps_std = eps_std

    def __call__(self, module: nn.Module) -> None:
        """Initialize the layers of ``module`` that were named, or all of them where mmengine says so (``override``)."""
        if self.layer and not self.wholemodule:
            self._refuse_nothing(module)
        for layer in module.modules():
            names = {type(layer).__name__, *(base.__name__ for base in type(layer).__bases__)}
            if self.wholemodule or names & set(self.layer):
                self._init(layer)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())

    def _refuse_nothing(self, module: nn.Module) -> None:
        # A layer of the pack in the place of a plain one keeps its own start, and is one of the named kind all the same.
        known = {base.__name__ for layer in module.modules() for base in type(layer).__mro__}
        if not known & set(self.layer):
            near = difflib.get_close_matches(self.layer[0], {type(m).__name__ for m in module.modules()}, cutoff=0.0)
            raise ValueError(
                f'ConvolutionAwareInit finds no layer={self.layer} in {type(module).__name__}; its nearest classes are '
                f'{", ".join(near)}'
            )

    def _init(self, layer: nn.Module) -> None:
        weight, bias = getattr(layer, 'weight', None), getattr(layer, 'bias', None)
        if not isinstance(weight, nn.Parameter) or (self.wholemodule and weight.ndim == 1):
            return
        if weight.ndim == 4:
            convolution_aware_(weight, self.eps_std)
        elif weight.ndim == 2:
            nn.init.orthogonal_(weight)
        else:
            raise TypeError(
                f'ConvolutionAwareInit draws the weights of Conv2d and Linear layers, got {type(layer).__name__} with '
                f'{tuple(weight.shape)}; leave it out of layer={self.layer}'
            )
        if isinstance(bias, nn.Parameter):
            nn.init.constant_(bias, self.bias)

    def _get_init_info(self) -> str:
        return f'{type(self).__name__}: eps_std={self.eps_std}, bias={self.bias}'


@torch.no_grad()
def convolution_aware_(weight: Tensor, eps_std: float = 0.05) -> Tensor:
    """Fill ``weight``, (Co, Ci/groups, kh, kw), and return it."""
    filters, channels, rows, cols = weight.shape
    drawn = torch.empty(weight.shape, device=weight.device, dtype=torch.float32).normal_(std=eps_std)
    if rows * cols > 1:
        spectra = fourier_basis(filters, channels, rows * (cols // 2 + 1), weight.device)
        spectra = spectra.view(filters, channels, rows, cols // 2 + 1)
        drawn += torch.fft.irfft2(spectra.to(torch.complex64), s=(rows, cols))
    variance = drawn.var(correction=0) if drawn.numel() > 1 else drawn.square().mean()
    return weight.copy_(drawn * (2 / (channels * rows * cols) / variance).sqrt())


def fourier_basis(filters: int, channels: int, size: int, device: torch.device | str | None = None) -> Tensor:
    """Return random vectors, (filters, channels, size), orthonormal within each run of ``size`` channels of a filter.

    They are the left singular vectors of random symmetric Gaussian matrices.
    """
    matrices = torch.randn(filters, -(-channels // size), size, size, device=device)
    symmetric = matrices + matrices.mT - torch.diag_embed(matrices.diagonal(dim1=-2, dim2=-1))
    return torch.linalg.svd(symmetric).U.mT.reshape(filters, -1, size)[:, :channels]
