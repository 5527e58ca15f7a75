"""RefConv: a trained kernel is frozen, and a small convolution over the kernel itself is learned on top of it."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Repeats
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['RefConv2d']


@MODELS.register_module()
class RefConv2d(GeneratedConv2d):
    r"""Re-parameterized refocusing: a trained kernel, frozen, and a learned convolution over the kernel itself.

    Cai, Ding et al., *RefConv: Re-parameterized Refocusing Convolution for Powerful ConvNets*, 2023, arXiv 2310.10563.

    The basis :math:`W_b` is the kernel of an already trained layer, frozen (a buffer called ``weight``, so that the plain
    model's checkpoint loads into it). Its :math:`N = C_o C_i / g` two-dimensional slices are seen as the channels of one
    image, over which a map :math:`W_r` of :math:`m \times m` convolves in :math:`G = C_i C_o / g^2` groups of :math:`g`:

    .. math:: W = W_b + \mathrm{conv}(W_b;\, W_r,\ \mathrm{padding}\ \lfloor m/2 \rfloor,\ \mathrm{groups}\ G)

    A depthwise layer (:math:`g = C`) so lets every channel's kernel see all the others; a dense one (:math:`g = 1`) mixes
    each slice with itself only. The recipe has two stages: train the plain model; then load it here and train again with
    everything else still learning and a fresh optimizer. A 1x1 kernel has nothing to refocus: such a layer stays a plain,
    learning convolution, as in the released script, so that ``conv_cfg`` can name this class for a whole network.

    Args:
        *args: Those of ``nn.Conv2d``.
        map_kernel_size: m, odd and not larger than the kernel.
        map_init: ``'zero'`` starts exactly at the plain convolution with the basis as its kernel, which is what the
            paper's listing says; ``'default'`` draws from :math:`U(\pm 1/\sqrt{g m^2})`, as the released script does.
        freeze_basis: Whether the basis stays as it is loaded. False lets it learn together with the map, for training
            from scratch in one stage (ours).
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` (a buffer unless it learns) is (Co, Ci/g, kh, kw), ``map_weight`` (N, g, m, m).

    Raises:
        ValueError: If ``map_kernel_size`` is even or exceeds a kernel other than 1x1, or ``map_init`` is unknown.

    Without a checkpoint the basis is drawn as ``nn.Conv2d`` draws its kernel and stays frozen. That case is ours: the
    official basis starts as zeros, from which nothing can be learned.

    Example:
        >>> layer = RefConv2d(8, 8, 3, padding=1).eval()
        >>> layer.fold()
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(
        self,
        *args: Any,
        map_kernel_size: Repeats = 3,
        map_init: Literal['zero', 'default'] = 'zero',
        freeze_basis: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plain = self.kernel_size == (1, 1)
        if map_kernel_size % 2 == 0 or (map_kernel_size > min(self.kernel_size) and not self.plain):
            raise ValueError(
                f'RefConv2d needs an odd map_kernel_size no larger than the kernel, got {map_kernel_size=} for '
                f'kernel_size={self.kernel_size}; pass a smaller map_kernel_size'
            )
        self.map_kernel_size = map_kernel_size
        self.map_init = map_init
        self.freeze_basis = freeze_basis
        if self.plain:
            self.register_parameter('map_weight', None)
            return
        basis = self.weight.detach()
        if freeze_basis:
            del self.weight
            self.register_buffer('weight', basis)
        slices = basis.shape[0] * basis.shape[1]
        self.map_weight = nn.Parameter(basis.new_empty(slices, self.groups, map_kernel_size, map_kernel_size))
        self._reset_map()

    def _reset_map(self) -> None:
        if self.plain:
            return
        if self.map_init == 'zero':
            nn.init.zeros_(self.map_weight)
        else:
            nn.init.kaiming_uniform_(self.map_weight, a=5**0.5)

    def init_weights(self) -> None:
        super().init_weights()
        self._reset_map()

    def generate_kernel(self) -> Tensor:
        # Numbers, not sizes of a tensor: under torch.jit.trace those are tensors, which torch 2.5 takes for no padding.
        slices = self.out_channels * self.in_channels // self.groups
        image = self.weight.reshape(1, slices, *self.kernel_size)
        refocused = F.conv2d(image, self.map_weight, padding=self.map_kernel_size // 2, groups=slices // self.groups)
        return self.weight + refocused.view_as(self.weight)

    def own_repr(self) -> str:
        own = f'map_kernel_size={self.map_kernel_size}, map_init={self.map_init!r}'
        return own if self.freeze_basis else f'{own}, freeze_basis=False'
