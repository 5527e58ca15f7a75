"""Channel operators: the pointwise halves of a light block. The dense one is a plain ``Conv2d``; here are the others."""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Many, OddSize
from mmext.blocks.build import with_num_channels
from mmext.registry import MODELS

__all__ = ['GhostCO', 'RefCO', 'receptive_range']


def receptive_range(channels: int, hidden: int, groups: tuple[int, int], shuffle: bool = True) -> int:
    r"""Return how many input channels an output channel of two grouped pointwise convolutions is connected to.

    With C ``channels`` in and out, :math:`C_h` ``hidden`` ones, groups :math:`(G_1, G_2)` and a channel shuffle between:

    .. math:: RR = \frac{C}{G_1} \min\left(G_1, \frac{C_h}{G_2}\right), \qquad
        \text{full } (RR = C) \iff G_1 G_2 \le C_h

    Without the shuffle an output sees only the groups that its own :math:`C_h / G_2` neighboring hidden channels belong
    to; where that differs between outputs, the smallest number is returned. A channel-wise operator in the middle changes
    nothing, and the residual adds only the channel itself. The definition is our reading of the paper's term.

    Raises:
        ValueError: If a number of groups does not divide the channels on both of its sides.
    """
    first, second = groups
    if channels % first or hidden % first or hidden % second or channels % second:
        raise ValueError(
            f'grouped factors need groups that divide channels and hidden, got {channels=}, {hidden=}, {groups=}'
        )
    seen = hidden // second
    if shuffle:
        return channels // first * min(first, seen)
    width = hidden // first
    reached = min((start + seen - 1) // width - start // width + 1 for start in range(0, hidden, seen))
    return channels // first * reached


@MODELS.register_module()
class RefCO(nn.Module):
    """FalconNet's sparse channel operator: two grouped 1x1 convolutions with full receptive range.

    Cai and Shen, *FalconNet: Factorization for the Light-weight ConvNets*, 2023, arXiv 2306.06365.

    A pair of these, C to C_h and back, costs C C_h (1/G1 + 1/G2) weights where a dense pair costs 2 C C_h, and still connects
    every output with every input if G1 G2 <= C_h (see :func:`receptive_range`). That the factors are grouped convolutions
    with a shuffle between is our reading; the paper's principle is that the receptive range guides the factorization.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        groups: (G1, G2) of the pair, or one number for both.
        shuffle: Whether the first of the pair shuffles its output.
        check_full_range: Whether a pair that loses the full receptive range is an error.
        factor: Which of the pair this is, 0 or 1; a block fills it in.
        norm_cfg: Norm after the convolution.
        act_cfg: Activation after the norm.

    Raises:
        ValueError: If the groups do not divide the channels, or the range is not full and ``check_full_range`` is set.

    Example:
        >>> RefCO(16, 32)(torch.randn(2, 16, 6, 6)).shape
        torch.Size([2, 32, 6, 6])
    """

    example = dict(in_channels=16, out_channels=16)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        groups: Count | tuple[Count, Count] = (4, 4),
        shuffle: bool = True,
        check_full_range: bool = True,
        factor: int = 0,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
    ) -> None:
        super().__init__()
        if factor not in (0, 1):
            raise ValueError(f'RefCO is the first (factor=0) or the second (factor=1) of a pair, got {factor=}')
        pair = (groups, groups) if isinstance(groups, int) else (groups[0], groups[1])
        channels, hidden = (out_channels, in_channels) if factor else (in_channels, out_channels)
        reached = receptive_range(channels, hidden, pair, shuffle)
        if check_full_range and reached < channels:
            raise ValueError(
                f'RefCO connects each output with {reached} of {channels} channels: the range is full only with shuffle=True '
                f'and G1 * G2 <= hidden, got {groups=}, {hidden=}, {shuffle=}; use fewer groups or check_full_range=False'
            )
        self.shuffle_groups = pair[0] if shuffle and factor == 0 else 1
        self.pointwise = ConvModule(
            in_channels,
            out_channels,
            1,
            groups=pair[factor],
            norm_cfg=norm_cfg,
            act_cfg=with_num_channels(act_cfg, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        x = self.pointwise(x)
        if self.shuffle_groups == 1:
            return x
        return x.unflatten(1, (self.shuffle_groups, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f'shuffle_groups={self.shuffle_groups}'


@MODELS.register_module()
class GhostCO(nn.Module):
    """Channel operator of GhostNet (Han et al., 2020, arXiv 1911.11907): a part of the outputs is made from the others.

    A pointwise convolution makes the first ``out_channels / ratio`` channels, a depthwise one the rest from these.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of ``ratio``.
        ratio: How many times fewer channels the pointwise convolution makes.
        kernel_size: Of the depthwise convolution.
        conv_cfg: Conv layer of the depthwise convolution.
        norm_cfg: Norm after each convolution.
        act_cfg: Activation after each norm.

    Raises:
        ValueError: If ``ratio`` is smaller than 2 or does not divide ``out_channels``.

    Example:
        >>> GhostCO(8, 16)(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    example = dict(in_channels=8, out_channels=8)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        ratio: Many = 2,
        kernel_size: OddSize = 3,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
    ) -> None:
        super().__init__()
        if ratio < 2 or out_channels % ratio:
            raise ValueError(
                f'GhostCO needs a ratio of at least 2 that divides out_channels, got {ratio=}, {out_channels=}'
            )
        primary = out_channels // ratio
        rest = out_channels - primary
        self.primary = ConvModule(
            in_channels, primary, 1, norm_cfg=norm_cfg, act_cfg=with_num_channels(act_cfg, primary)
        )
        self.cheap = ConvModule(
            primary,
            rest,
            kernel_size,
            padding=kernel_size // 2,
            groups=primary,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=with_num_channels(act_cfg, rest),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        primary = self.primary(x)
        return torch.cat((primary, self.cheap(primary)), dim=1)
