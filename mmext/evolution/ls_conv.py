"""LSConv: a large kernel looks, a small one that it predicts aggregates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmext.arguments import Cfg, Count, OddSize
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel
from mmext.norms.normalized import normalized
from mmext.registry import MODELS

__all__ = ['LSConv2d']


@MODELS.register_module()
class LSConv2d(EvolutionOperator2d):
    r"""Large-small convolution: a kernel for every pixel, predicted from a large neighborhood.

    Wang et al., *LSNet: See Large, Focus Small*, CVPR 2025, arXiv 2503.23135.

    .. math::
        E(p)_{n,o,c} = \delta_{oc}\, w(p)_{c \bmod G,\,n}, \qquad w = \mathrm{GN}(W_4\, f + b_4), \qquad
        f = \sigma(W_3 * W_{7 \times 7} * \sigma(W_1 x)), \qquad y = \mathrm{BN}(E \cdot x) + x

    All convolutions but the last have a batch norm. GN normalizes each of the G groups over its taps and all pixels. They
    interleave: channels c and c + G share a kernel. With a stride, the prediction is taken at the centers of the windows, and
    so is the x that is added. That is ours.

    Args:
        *args: Those of ``nn.Conv2d``. The paper's layers have ``kernel_size=3``, ``padding=1`` and ``bias=False``.
        look: Side of the large kernel.
        group_channels: Channels that share a kernel.
        residual: Whether x is added.
        norm_cfg: The norm of the convolutions and of the result, None for none.
        act_cfg: The activation sigma.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``enter`` (W1) is C -> C/2, ``view`` (7 x 7) depthwise, ``leave`` (W3) C/2 -> C/2, ``span`` (W4) from there to
        C/group_channels * kh * kw, groups first.

    Raises:
        ValueError: If ``group_channels`` does not divide the channels, or input and output channels differ.

    Example:
        >>> layer = LSConv2d(16, 16, 3, padding=1)
        >>> layer(torch.randn(1, 16, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    group_map = 'interleave'
    example = dict(group_channels=4)
    typical = dict(kernel_size=3, group_channels=8)

    def __init__(
        self,
        *args: Any,
        look: OddSize = 7,
        group_channels: Count = 8,
        residual: bool = True,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        channels = self.in_channels
        if channels % group_channels:
            raise ValueError(
                f'LSConv2d needs group_channels that divide in_channels, got group_channels={group_channels} and '
                f'in_channels={channels}'
            )
        self.look, self.group_channels, self.residual = look, group_channels, residual
        hidden, groups = max(channels // 2, 1), channels // group_channels
        self.enter = self.inner_block(channels, hidden, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.view = self.inner_block(hidden, hidden, look, norm_cfg, padding=look // 2, groups=hidden)
        self.leave = self.inner_block(hidden, hidden, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.span = self.inner_conv(hidden, groups * self.positions.taps)
        self.span_norm = nn.GroupNorm(groups, groups * self.positions.taps, **self._factory)
        self.norm = self.inner_norm(norm_cfg, channels)
        self.init_weights()

    def evolution_kernel(self, x: Tensor) -> TapKernel:
        seen = self.positions.centers(self.view(self.enter(x)), pool=False)
        return self.tap_kernel(self.span_norm(self.span(self.leave(seen))))

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        y = normalized(y, self.norm, type(self).__name__)
        return y + self.positions.centers(x, pool=False) if self.residual else y

    def own_repr(self) -> str:
        return f'look={self.look}, group_channels={self.group_channels}, residual={self.residual}'
