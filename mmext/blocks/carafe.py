"""CARAFE: a map is enlarged by a kernel that each new pixel makes from the content around it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Count, Repeats
from mmext.convs.base import InnerConv2d
from mmext.ops import neighborhood_aggregate, tap_softmax
from mmext.registry import MODELS

__all__ = ['CARAFE']


@MODELS.register_module()
class CARAFE(BaseModule):
    r"""CARAFE: content-aware reassembly of features, on any device.

    Wang et al., *CARAFE: Content-Aware ReAssembly of FEatures*, ICCV 2019, arXiv 1905.02188.

    The new pixel :math:`l'` of an image that is :math:`\sigma` times as large lies in the old pixel :math:`l`. With
    :math:`k` = ``up_kernel``

    .. math:: x'_{c,l'} = \sum_{j=1}^{k^2} w_{g(c),j,l'}\, x_{c,N(l,j)}, \qquad
              w_{g,\cdot,l'} = \operatorname{softmax}_j \bigl(E(D x)\bigr)_{g,j,l'}

    D is a 1 x 1 convolution to ``compressed_channels``. E is one of ``encoder_kernel``, which has an output for every tap of
    each of the :math:`\sigma^2` new pixels. Beyond the border the map is zero.

    mmcv's ``CARAFEPack`` has the same arguments, weights and names, and computes on a GPU only. A rule puts this in its
    place, and a checkpoint of either serves both::

        neck=dict(type='mmext.swap_layers', model='FPN_CARAFE', in_channels=..., out_channels=256, num_outs=5,
                  rules=[dict(layer='CARAFEPack', to=dict(type='mmext.CARAFE'))])

    The kernels are never laid out as patches: :func:`mmext.ops.neighborhood_aggregate` reads the map once for each of the
    :math:`\sigma^2` new pixels.

    Args:
        channels: C.
        scale_factor: :math:`\sigma`.
        up_kernel: k, odd.
        up_group: Groups of channels with kernels of their own; it divides C.
        encoder_kernel: Size of E's kernel, odd.
        encoder_dilation: Dilation of E.
        compressed_channels: Channels that E sees.
        init_cfg: As in mmengine.

    Shape:
        (N, C, H, W) to (N, C, :math:`\sigma` H, :math:`\sigma` W).

    Raises:
        ValueError: If a kernel is even, or the groups do not divide the channels.

    Example:
        >>> CARAFE(8)(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 8, 10, 14])
    """

    example = dict(channels=8)

    def __init__(
        self,
        channels: Count,
        scale_factor: Repeats = 2,
        up_kernel: Repeats = 5,
        up_group: Count = 1,
        encoder_kernel: Repeats = 3,
        encoder_dilation: Repeats = 1,
        compressed_channels: Count = 64,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if up_kernel % 2 == 0 or encoder_kernel % 2 == 0:
            raise ValueError(
                f'CARAFE needs odd kernels, so that a pixel is in the middle, got {up_kernel=} and {encoder_kernel=}'
            )
        if channels % up_group:
            raise ValueError(f'CARAFE needs an up_group that divides the channels, got {up_group=} and {channels=}')
        self.channels, self.scale_factor = channels, scale_factor
        self.up_kernel, self.up_group = up_kernel, up_group
        # Hosts draw every nn.Conv2d anew, and this start is not theirs.
        self.channel_compressor = InnerConv2d(channels, compressed_channels, 1)
        self.content_encoder = InnerConv2d(
            compressed_channels,
            up_kernel**2 * up_group * scale_factor**2,
            encoder_kernel,
            padding=encoder_dilation * (encoder_kernel // 2),
            dilation=encoder_dilation,
        )
        self._draw()

    @classmethod
    def arguments_from(cls, old: Any) -> dict[str, Any]:
        """Return the arguments that mmcv's ``CARAFEPack`` says of itself."""
        return {name: getattr(old, name) for name in inspect.signature(cls).parameters if name != 'init_cfg'}

    def _draw(self) -> None:
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for layer in (self.channel_compressor, self.content_encoder):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def init_weights(self) -> None:
        """Draw everything as the constructor does: at first each new pixel is nearly a mean."""
        super().init_weights()
        if not self.init_cfg:
            self._draw()

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the map."""
        scores = self.content_encoder(self.channel_compressor(x))
        # As the channels of a pixel shuffle: the new pixels of an old one are beside each other.
        parts = self.scale_factor**2
        scores = scores.unflatten(1, (self.up_group, self.up_kernel**2, parts))
        weights = tap_softmax(scores.flatten(3, 4)).unflatten(3, (parts, -1))
        value = x.to(weights.dtype)
        found = [neighborhood_aggregate(value, each, self.up_kernel) for each in weights.unbind(3)]
        return F.pixel_shuffle(torch.stack(found, 2).flatten(1, 2), self.scale_factor)

    def extra_repr(self) -> str:
        return (
            f'{self.channels}, scale_factor={self.scale_factor}, up_kernel={self.up_kernel}, up_group={self.up_group}'
        )
