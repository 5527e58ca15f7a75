"""Involution in a feature pyramid: the output convolutions of the host's FPN become involutions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from mmext.arguments import Cfg, OddSize, checked
from mmext.contracts import shown_by
from mmext.evolution.involution import Involution2d
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['involution_fpn']


class _XavierInvolution(Involution2d):
    """An involution that starts as the authors' pyramid draws it."""

    def init_kernel(self) -> None:
        for conv in (self.reduce.conv, self.span):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


@MODELS.register_module(name='InvolutionFPN')
@shown_by(neck='mmdet.FPN', in_channels=[8, 8], out_channels=16, num_outs=3)
@partial(checked, owner='InvolutionFPN')
def involution_fpn(neck: str | Cfg = 'FPN', kernel_size: OddSize = 7, **neck_args: Any) -> nn.Module:
    """The host's FPN with involutions in the place of its 3x3 output convolutions.

    Li et al., *Involution: Inverting the Inherence of Convolution for Visual Recognition*, CVPR 2021, arXiv 2103.06255.

    ::

        level n ── 1x1 ── + ── involution 7x7 ── output n
                          ↑ up 2
        level n+1 ─ 1x1 ─ + ── involution 7x7 ── output n+1 ─┬─ further outputs, as the host makes them

    No norm and no activation follows the involutions. Convolutions of further levels stay. It is the host's own class, so as a
    diff on a stock config the other settings hold::

        neck=dict(type='mmext.InvolutionFPN')

    Args:
        neck: The type of the pyramid, or its config. Its class has ``lateral_convs`` and ``fpn_convs``, as those of mmdet and
            mmseg have.
        kernel_size: Side of the involutions.
        **neck_args: Arguments of the pyramid.

    Returns:
        The pyramid, with nothing but the output convolutions changed.

    Raises:
        ValueError: If the pyramid has no such convolutions, or 16 does not divide its channels.
        ImportError: If the scope of ``neck`` is that of a package that is not installed.

    Example:
        >>> neck = dict(type='mmext.InvolutionFPN', neck='mmdet.FPN', in_channels=[64, 128], out_channels=32, num_outs=2)
    """
    built = build_from_host({**neck_args, **({'type': neck} if isinstance(neck, str) else neck)}, 'InvolutionFPN')
    laterals, outputs = (getattr(built, name, None) for name in ('lateral_convs', 'fpn_convs'))
    if not isinstance(laterals, nn.ModuleList) or not isinstance(outputs, nn.ModuleList):
        raise ValueError(f'InvolutionFPN needs a neck with lateral_convs and fpn_convs, as FPN has, got {neck!r}')
    for i, lateral in enumerate(laterals):
        width = lateral.out_channels
        outputs[i] = _XavierInvolution(width, width, kernel_size, padding=kernel_size // 2, bias=False)
    return built
