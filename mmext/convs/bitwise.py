"""Bit-wise training: the kernel is an integer whose bits are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['BitwiseConv2d']


@MODELS.register_module()
class BitwiseConv2d(GeneratedConv2d):
    r"""Bit-wise training: a kernel of integers with one scale, whose bits are learned each by itself.

    Ivan, *Bit-wise Training of Neural Network Weights*, 2022, arXiv 2202.09571.

    .. math:: W = \alpha\, s \sum_{i < n - 1} b_i 2^i, \qquad b_i = [u_i > 0], \qquad s = 1 - 2\,[v > 0]

    The bits have the straight-through derivatives :math:`\partial b_i / \partial u_i = 1` and
    :math:`\partial s / \partial v = -1`. The scale is fixed at the start, so that the standard deviation of the kernel is
    He's, :math:`\sqrt{2 / (k^2 C_i)}`. It is found in closed form here: the released loop never ends for two bits.

    After training the layer folds into a plain one, and :meth:`integers` gives the kernel as integers. The layer takes as
    many times the memory of a kernel as it has bits.

    Args:
        *args: Those of ``nn.Conv2d``.
        bits: n, the sign included, from 2 to 8.
        trainable_bits: Which magnitude bits learn, 0 the least significant; all by default. The others keep the values
            that they were drawn with.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``magnitude_bits`` is ((n - 1) Co, Ci/groups, kh, kw), bit by bit, ``sign_bits`` (Co, Ci/groups, kh, kw), ``alpha`` a
        scalar.

    Raises:
        ValueError: If ``bits`` is outside of 2 to 8, or a trainable bit is not below ``bits`` - 1.

    Our choice: no weight decay on the bits, see :meth:`optim_options`. A decay would turn bits at random.

    Example:
        >>> layer = BitwiseConv2d(8, 8, 3, padding=1, bits=4)
        >>> layer.integers()[0].abs().max() <= 7
        tensor(True)
    """

    loads_kernel_exactly = False

    def __init__(self, *args: Any, bits: int = 8, trainable_bits: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f'BitwiseConv2d has 2 to 8 bits, the sign included, got {bits=}')
        chosen = tuple(range(bits - 1)) if trainable_bits is None else tuple(trainable_bits)
        if not set(chosen) <= set(range(bits - 1)):
            raise ValueError(
                f'BitwiseConv2d has the magnitude bits 0 to {bits - 2} with {bits=}, got {trainable_bits=}; name some of them'
            )
        self.bits, self.trainable_bits = bits, tuple(sorted(chosen))
        kernel = self.drop_weight()
        self.magnitude_bits = nn.Parameter(kernel.new_empty((bits - 1) * len(kernel), *kernel.shape[1:]))
        self.sign_bits = nn.Parameter(torch.empty_like(kernel))
        self.register_buffer('alpha', kernel.new_empty(()))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the bits, and choose the scale for them."""
        fan_in = self.sign_bits[0].numel()
        std = (2 / (self.bits * fan_in)) ** 0.5
        for raw in (self.magnitude_bits, self.sign_bits):
            nn.init.normal_(raw, std=std)
            raw[raw == 0] = std  # a bit has a value
        spread = self._signed(self.magnitude_bits, self.sign_bits).std(unbiased=False)
        self.alpha.copy_((2 / fan_in) ** 0.5 / spread.clamp_min(0.5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _signed(self, magnitudes: Tensor, signs: Tensor) -> Tensor:
        bits = [
            _passed((raw > 0).to(signs), raw, int(index in self.trainable_bits))
            for index, raw in enumerate(magnitudes.chunk(self.bits - 1))
        ]
        whole = torch.stack([2.0**index * bit for index, bit in enumerate(bits)]).sum(0)
        return whole * _passed(1 - 2 * (signs > 0).to(signs), signs, -1)

    def generate_kernel(self) -> Tensor:
        return self.alpha * self._signed(self.magnitude_bits, self.sign_bits)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return the kernel as int8, (Co, Ci/groups, kh, kw), and the scale that it is multiplied by."""
        with torch.no_grad():
            return self._signed(self.magnitude_bits, self.sign_bits).round().to(torch.int8), self.alpha.clone()

    def load_kernel(self, kernel: Tensor) -> None:
        """Round ``kernel`` to the nearest level; the largest entry decides the scale, and the error is half a level."""
        top = 2 ** (self.bits - 1) - 1
        largest = kernel.abs().max()
        self.alpha.copy_(largest / top if largest > 0 else torch.ones_like(largest))
        levels = (kernel / self.alpha).round().clamp(-top, top).to(torch.int64)
        std = (2 / (self.bits * self.sign_bits[0].numel())) ** 0.5
        for index, raw in enumerate(self.magnitude_bits.chunk(self.bits - 1)):
            raw.copy_(torch.where(levels.abs() >> index & 1 == 1, std, -std))
        self.sign_bits.copy_(torch.where(levels < 0, std, -std))

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Ask for no weight decay of the bits."""
        return {name: dict(decay_mult=0.0) for name in ('magnitude_bits', 'sign_bits')}

    def own_repr(self) -> str:
        own = f'bits={self.bits}'
        return own if len(self.trainable_bits) == self.bits - 1 else f'{own}, trainable_bits={self.trainable_bits}'


def _passed(value: Tensor, raw: Tensor, slope: float) -> Tensor:
    """Return ``value`` with the derivative ``slope`` in ``raw``."""
    return value.detach() + slope * (raw - raw.detach())
