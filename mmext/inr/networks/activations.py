"""Activations that are made for coordinates, each with the initialization that belongs to it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmext.arguments import Positive
from mmext.inr.networks.base import Open, check_chosen
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['FinerActivation', 'GaussianActivation', 'SineActivation', 'WaveletActivation']


@MODELS.register_module()
class SineActivation(nn.Module):
    r"""SIREN: :math:`\sin(\omega_0 z)`.

    Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, NeurIPS 2020, arXiv 2006.09661.

    Weights are drawn from :math:`U(\pm 1/n)` in the first layer and :math:`U(\pm\sqrt{6/n}/\omega_0)` in all others, with n
    inputs, so that every pre-activation :math:`\omega_0 z` has variance near one behind the first layer.

    Args:
        w0: :math:`\omega_0`.
        first_w0: :math:`\omega_0` of the first layer, by default the same; it sets which frequencies are learnt first.
        bias_init: ``'default'``, torch's :math:`U(\pm 1/\sqrt n)`, as in the original code; ``'weight'``, the range of the
            weights, as in Norm-INR's.
        first: Whether this one stands in the first layer; the network says so.
        first_beta: b: the weights of the first layer are :math:`(2 B - 1) / n` with :math:`B \sim \mathrm{Beta}(b, b)`, an
            option of FreSh (arXiv 2410.05050). One is the uniform distribution. Below one more of them have high frequencies.

    Raises:
        ValueError: If ``bias_init`` is unknown.

    Example:
        >>> SineActivation()(torch.zeros(3))
        tensor([0., 0., 0.])
    """

    #: What FreSh chooses, and the values that it tries.
    frequency = ('first_w0', tuple(range(10, 201, 10)))

    def __init__(
        self,
        w0: Positive = 30.0,
        first_w0: Positive | Open | None = None,
        bias_init: Literal['default', 'weight'] = 'default',
        first: bool = False,
        first_beta: Positive = 1.0,
    ) -> None:
        super().__init__()
        check_chosen('SineActivation', first_w0=first_w0)
        self.first_beta = first_beta
        self.hidden_w0 = w0
        self.w0 = first_w0 if first and first_w0 is not None else w0
        self.bias_init = bias_init

    @torch.no_grad()
    def init_linear(self, linear: nn.Linear, first: bool = False) -> None:
        """Draw the parameters of the layer before this activation, or of the output layer."""
        linear.reset_parameters()
        bound = 1 / linear.in_features if first else (6 / linear.in_features) ** 0.5 / self.hidden_w0
        if first and self.first_beta != 1:
            # Drawn on the CPU, where a seed means the same numbers for all devices.
            drawn = torch.distributions.Beta(self.first_beta, self.first_beta).sample(linear.weight.shape)
            linear.weight.copy_((2 * drawn - 1) * bound)
        else:
            linear.weight.uniform_(-bound, bound)
        if self.bias_init == 'weight' and linear.bias is not None:
            linear.bias.uniform_(-bound, bound)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation."""
        return torch.sin(self.w0 * z)

    def extra_repr(self) -> str:
        return f'w0={self.w0}, bias_init={self.bias_init!r}'


@MODELS.register_module()
class FinerActivation(nn.Module):
    r"""FINER: :math:`\sin(\omega_0 (|z| + 1) z)`, whose local frequency grows with the pre-activation.

    Liu et al., *FINER: Flexible Spectral-bias Tuning in Implicit Neural Representation by Variable-periodic Activation
    Functions*, CVPR 2024, arXiv 2312.02434.

    The factor :math:`|z| + 1` is held constant in the derivative, as in the authors' code: what is computed for it is
    :math:`\omega_0 (|z| + 1) \cos(\cdot)`, and not the true derivative, which has :math:`2 |z| + 1`. Weights are drawn as for
    SIREN.

    Args:
        w0: :math:`\omega_0`.
        first_w0: :math:`\omega_0` of the first layer, by default the same.
        first_bias: k: biases of the first layer are drawn from :math:`U(\pm k)`, torch's by default. The larger, the more
            high frequencies can be learnt.
        first: Whether this one stands in the first layer; the network says so.

    Example:
        >>> FinerActivation()(torch.zeros(3))
        tensor([0., 0., 0.])
    """

    def __init__(
        self,
        w0: Positive = 30.0,
        first_w0: Positive | None = None,
        first_bias: Positive | None = None,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_w0 = w0
        self.w0 = first_w0 if first and first_w0 is not None else w0
        self.first_bias = first_bias

    @torch.no_grad()
    def init_linear(self, linear: nn.Linear, first: bool = False) -> None:
        """Draw the parameters of the layer before this activation, or of the output layer."""
        linear.reset_parameters()
        bound = 1 / linear.in_features if first else (6 / linear.in_features) ** 0.5 / self.hidden_w0
        linear.weight.uniform_(-bound, bound)
        if first and self.first_bias is not None and linear.bias is not None:
            linear.bias.uniform_(-self.first_bias, self.first_bias)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation."""
        return torch.sin(self.w0 * (z.detach().abs() + 1) * z)

    def extra_repr(self) -> str:
        return f'w0={self.w0}, first_bias={self.first_bias}'


@MODELS.register_module()
class GaussianActivation(nn.Module):
    r"""Gauss: :math:`\exp(-(s z)^2)`, in the form of WIRE's repository, after layers of torch's initialization.

    Args:
        scale: s.
        center: Subtract the mean over the features (the last axis) first, as GARF does in layers that see coordinates.

    Example:
        >>> GaussianActivation()(torch.zeros(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, scale: Positive = 10.0, center: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.center = center

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation."""
        z = z - z.mean(-1, keepdim=True) if self.center else z
        return torch.exp(-(self.scale * z).square())

    def extra_repr(self) -> str:
        return f'scale={self.scale}, center={self.center}'


@MODELS.register_module()
class WaveletActivation(nn.Module):
    r"""WIRE: the complex Gabor wavelet :math:`\exp(j \omega_0 z - |s_0 z|^2)`.

    Saragadam et al., *WIRE: Wavelet Implicit Neural Representations*, CVPR 2023, arXiv 2301.05187.

    The layers behind the first one are complex, and so is the output layer, of which the real part is returned; the width is
    divided by :math:`\sqrt 2`, so that the number of real parameters stays about the same.

    With ``orthogonal`` it is WIRE-2D, :math:`\exp(j \omega_0 z - s_0^2 (|z|^2 + |z_2|^2))`, where a second linear layer beside
    the first one gives :math:`z_2`. The network builds it, and divides its width by 2.

    Args:
        w0: :math:`\omega_0`.
        s0: :math:`s_0`.
        orthogonal: Whether the envelope has a second axis; the authors' values are then 10 and 10.

    Example:
        >>> WaveletActivation()(torch.zeros(3)).abs()
        tensor([1., 1., 1.])
    """

    complex_valued = True

    def __init__(self, w0: Positive = 20.0, s0: Positive = 30.0, orthogonal: bool = False) -> None:
        super().__init__()
        self.w0 = w0
        self.s0 = s0
        self.orthogonal = orthogonal

    def forward(self, z: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map real or complex ``z``, and what the layer ``beside`` gives, to complex values."""
        # There is no complex form of the half precision that autocast computes with.
        z = at_least_float32(z)
        envelope = (self.s0 * z.abs()).square()
        if beside is not None:
            envelope = envelope + (self.s0 * at_least_float32(beside).abs()).square()
        return torch.exp(1j * self.w0 * z - envelope)

    def extra_repr(self) -> str:
        return f'w0={self.w0}, s0={self.s0}, orthogonal={self.orthogonal}'
