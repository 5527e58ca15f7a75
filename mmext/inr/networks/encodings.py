"""What a coordinate network is given instead of the bare coordinates."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from mmext.arguments import Count, Positive, at_least, at_most
from mmext.inr.networks.base import Open, check_chosen
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['FourierFeatures', 'IdentityEncoding', 'PositionalEncoding']


@MODELS.register_module()
class IdentityEncoding(nn.Module):
    """The coordinates themselves.

    Args:
        in_features: Number of coordinates.

    Attributes:
        out_features: Number of features per position, here that of the coordinates.

    Example:
        >>> IdentityEncoding()(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_features: Count = 2) -> None:
        super().__init__()
        self.in_features = self.out_features = in_features

    def forward(self, coords: Tensor) -> Tensor:
        """Return ``coords``."""
        return coords


@MODELS.register_module()
class PositionalEncoding(nn.Module):
    r"""Sines and cosines of octaves, :math:`\sin(2^i b p)` and :math:`\cos(2^i b p)` for :math:`i = 0 \dots L - 1`.

    Mildenhall et al., *NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis*, ECCV 2020, arXiv 2003.08934;
    in the order of Cai et al., arXiv 2407.17834, by default.

    Args:
        in_features: d, the number of coordinates.
        num_octaves: L. The sampling theorem allows floor(log2(n / 4)) for n samples per axis.
        include_input: Whether the coordinates come first.
        order: ``'function'``: per octave, the sines of all coordinates, then the cosines; ``'axis'``: per octave and
            coordinate, sine and cosine, as SIREN's and WIRE's repositories write it.
        base: b, the lowest frequency. With 1 the formula is that of NeRF's code, which leaves positions unscaled.

    Shape:
        (..., d) to (..., 2Ld), plus d if the coordinates are included. Computed in float32 at least.

    Raises:
        ValueError: If ``order`` is unknown or ``num_octaves`` negative.

    Example:
        >>> encoding = PositionalEncoding(num_octaves=4)
        >>> encoding(torch.zeros(5, 2)).shape[1] == encoding.out_features
        True
    """

    #: What FreSh chooses, and the values that it tries (ours).
    frequency = ('num_octaves', tuple(range(1, 11)))

    def __init__(
        self,
        in_features: Count = 2,
        num_octaves: Annotated[int, at_least(0), at_most(64)] | Open = 10,
        include_input: bool = True,
        order: Literal['function', 'axis'] = 'function',
        base: Positive = math.pi,
    ) -> None:
        super().__init__()
        check_chosen('PositionalEncoding', num_octaves=num_octaves)
        if num_octaves < (0 if include_input else 1):
            raise ValueError(f'PositionalEncoding has no feature with {num_octaves=} and {include_input=}')
        self.in_features = in_features
        self.num_octaves = num_octaves
        self.include_input = include_input
        self.order = order
        self.base = base
        self.out_features = in_features * (2 * num_octaves + include_input)

    def forward(self, coords: Tensor) -> Tensor:
        """Encode ``coords``, (..., d)."""
        coords = at_least_float32(coords)
        parts = [coords] if self.include_input else []
        for octave in range(self.num_octaves):
            phase = coords * (2**octave * self.base)
            if self.order == 'function':
                parts += [phase.sin(), phase.cos()]
            else:
                parts.append(torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2))
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        return f'{self.in_features}, num_octaves={self.num_octaves}, order={self.order!r}'


@MODELS.register_module()
class FourierFeatures(nn.Module):
    r"""Random Fourier features, :math:`[\cos(2\pi B p), \sin(2\pi B p)]` with :math:`B_{ij} \sim N(0, \sigma^2)`, fixed.

    Tancik et al., *Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains*, NeurIPS 2020,
    arXiv 2006.10739.

    Args:
        in_features: d, the number of coordinates.
        num_frequencies: m.
        sigma: Standard deviation of the frequencies.
        seed: Draws B from a generator of its own; None draws it like a weight, so that it differs from run to run.

    Shape:
        (..., d) to (..., 2m); B (buffer) is (m, d). Computed in float32 at least.

    Example:
        >>> encoding = FourierFeatures()
        >>> encoding(torch.zeros(5, 2)).shape[1] == encoding.out_features
        True
    """

    #: What FreSh chooses, and the values that it tries.
    frequency = ('sigma', tuple(range(1, 21)))
    frequencies: Tensor

    def __init__(
        self,
        in_features: Count = 2,
        num_frequencies: Count = 128,
        sigma: Positive | Open = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_chosen('FourierFeatures', sigma=sigma)
        self.in_features = in_features
        self.out_features = 2 * num_frequencies
        self.sigma = sigma
        self.seed = seed
        self.register_buffer('frequencies', torch.empty(num_frequencies, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the frequencies."""
        # Drawn on the CPU: a generator belongs to a device, and a seed means the same numbers on all of them.
        generator = None if self.seed is None else torch.Generator('cpu').manual_seed(self.seed)
        drawn = torch.randn(self.frequencies.shape, generator=generator, device='cpu')
        with torch.no_grad():
            self.frequencies.copy_(drawn * self.sigma)

    def forward(self, coords: Tensor) -> Tensor:
        """Encode ``coords``, (..., d)."""
        coords = at_least_float32(coords)
        frequencies = self.frequencies.to(coords.dtype)
        # Not a matrix product: autocast would take it to half precision, where high frequencies are noise.
        phase = (2 * math.pi) * torch.stack(
            [coords[..., i : i + 1] * frequencies[:, i] for i in range(self.in_features)]
        ).sum(0)
        return torch.cat((phase.cos(), phase.sin()), dim=-1)

    def extra_repr(self) -> str:
        return f'{self.in_features}, num_frequencies={self.out_features // 2}, sigma={self.sigma}, seed={self.seed}'
