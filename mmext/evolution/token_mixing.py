"""Token mixing: a weight for every pair of an output and an input pixel."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from mmext.arguments import Sides
from mmext.errors import UsageError
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TokenKernel
from mmext.ops.arguments import pair
from mmext.registry import MODELS

__all__ = ['TokenMixing2d']

# The weights are as many as the square of this.
MOST_PIXELS = 2**14


@MODELS.register_module()
class TokenMixing2d(EvolutionOperator2d):
    r"""The token-mixing layer of an MLP: one fully connected layer over the pixels, shared by the channels.

    Tolstikhin et al., *MLP-Mixer: An all-MLP Architecture for Vision*, NeurIPS 2021, arXiv 2105.01601, in the form of Cai,
    *Evolution*, 2023, arXiv 2305.14409. (The paper of the mixer has two such layers and an activation between.)

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, M_{p,n}

    Args:
        *args: Those of ``nn.Conv2d``. The window only tells the size of the output.
        size: Rows and columns of the input. No other size has a kernel.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``mixing`` (M) is (Ho * Wo, H * W).

    Raises:
        ValueError: If input and output channels differ, or no window fits into ``size``.
        UsageError: If an image has another size, or ``size`` more than 2^14 pixels.

    It starts as ``nn.Linear`` does.

    Example:
        >>> layer = TokenMixing2d(8, 8, 3, stride=2, padding=1, size=(9, 7))
        >>> layer(torch.randn(1, 8, 9, 7)).shape
        torch.Size([1, 8, 5, 4])
    """

    spatial_specific, channel_specific, dynamic = True, False, False
    refuses = ('other sizes',)
    example = dict(size=(18, 18))
    typical = dict(size=(14, 14))

    def __init__(self, *args: Any, size: Sides, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.size = tuple(pair('size', size))
        if prod(self.size) > MOST_PIXELS:
            raise UsageError(
                f'TokenMixing2d has a weight for every pair of pixels and takes a size of at most {MOST_PIXELS} of them, got '
                f'size={self.size}'
            )
        try:
            self.output_size = self.positions.output_size(self.size)
        except ValueError as error:
            raise ValueError(f'TokenMixing2d cannot have size={self.size}: {error}') from error
        self.mixing = self.inner_parameter(prod(self.output_size), prod(self.size))
        self.init_weights()

    def init_kernel(self) -> None:
        nn.init.kaiming_uniform_(self.mixing, a=5**0.5)

    def check_size(self, size: Sequence[int]) -> None:
        if tuple(size) != self.size:
            raise UsageError(
                f'TokenMixing2d has one weight for each pair of pixels of size={self.size} and takes no image of '
                f'{tuple(size)}; build it with that size, or resize the images'
            )

    def evolution_kernel(self, x: Tensor) -> TokenKernel:
        return TokenKernel(weight=self.mixing[None, None], size=self.output_size)

    def own_repr(self) -> str:
        return f'size={self.size}'
