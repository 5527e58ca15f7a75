"""Involution in a region proposal head: its 3x3 convolution becomes an involution."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from mmext.arguments import Cfg, OddSize, checked
from mmext.contracts import shown_by
from mmext.evolution.involution import Involution2d
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['involution_rpn_head']


@MODELS.register_module(name='InvolutionRPNHead')
@shown_by(head='mmdet.RPNHead', in_channels=16, feat_channels=16)
@partial(checked, owner='InvolutionRPNHead')
def involution_rpn_head(head: str | Cfg = 'RPNHead', kernel_size: OddSize = 7, **head_args: Any) -> nn.Module:
    """The host's RPNHead with an involution in the place of its 3x3 convolution.

    Li et al., *Involution: Inverting the Inherence of Convolution for Visual Recognition*, CVPR 2021, arXiv 2103.06255.

    ::

        level ── involution 7x7 ── ReLU ─┬─ 1x1 ── objectness
                                         └─ 1x1 ── boxes

    It is the host's own class, so as a diff on a stock config the other settings hold::

        rpn_head=dict(type='mmext.InvolutionRPNHead')

    Args:
        head: The type of the head, or its config. Its class has one convolution ``rpn_conv``.
        kernel_size: Side of the involution.
        **head_args: Arguments of the head.

    Returns:
        The head, with nothing but that convolution changed.

    Raises:
        ValueError: If the head has no single ``rpn_conv``, that changes its channels, or 16 does not divide them.
        ImportError: If the scope of ``head`` is that of a package that is not installed.

    Example:
        >>> head = dict(type='mmext.InvolutionRPNHead', head='mmdet.RPNHead', in_channels=16, feat_channels=16)
    """
    built = build_from_host({**head_args, **({'type': head} if isinstance(head, str) else head)}, 'InvolutionRPNHead')
    conv = getattr(built, 'rpn_conv', None)
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != conv.out_channels:
        raise ValueError(
            f'InvolutionRPNHead needs one rpn_conv that keeps its channels (num_convs=1, feat_channels=in_channels): {conv}'
        )
    width = conv.in_channels
    built.rpn_conv = Involution2d(width, width, kernel_size, padding=kernel_size // 2, bias=False)
    return built
