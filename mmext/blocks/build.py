"""Build the layers of a block from configs, with what the block knows filled in.

A block knows its channel count, its norm and its activation; a config names only what differs. What a class wants to be
told is read from its signature, so that any registered layer fits without a list of names here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule
from torch import nn

from mmext.contracts import PlacesNorm
from mmext.registry import MODELS, require

__all__ = ['accepts', 'build_operator', 'places_norm', 'with_num_channels']

# The arguments of nn.Conv2d that ConvModule passes on itself; the others travel in its conv_cfg.
_GEOMETRY = ('kernel_size', 'padding', 'dilation', 'groups', 'bias', 'padding_mode')


def accepts(cls: Any, argument: str) -> bool:
    """Tell whether ``cls`` names ``argument`` in its signature."""
    return argument in inspect.signature(cls).parameters


def places_norm(cls: Any) -> bool:
    """Tell whether a conv layer takes the norm that follows it, and puts it inside."""
    return isinstance(cls, PlacesNorm) and cls.places_norm


def with_num_channels(act_cfg: dict | None, channels: int) -> dict | None:
    """Return ``act_cfg`` with ``num_channels`` filled in where the activation takes it, as ``mmext.LENI`` does."""
    if act_cfg is None or not accepts(require(act_cfg), 'num_channels'):
        return act_cfg
    return {'num_channels': channels, **act_cfg}


def build_operator(
    cfg: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    *,
    layer: Mapping[str, Any],
    norm_cfg: dict | None,
    act_cfg: dict | None,
    **hints: Any,
) -> nn.Module:
    """Build a layer together with its norm and activation.

    Args:
        cfg: The config of the operator; ``norm_cfg`` and ``act_cfg`` in it override the block's (None leaves them out). Its
            type is either a conv layer, with the arguments of ``nn.Conv2d``, or a whole operator, which is told by an
            ``act_cfg`` in its signature. A conv layer that places its norm itself (``mmext.RepSO2d``) gets the norm.
            After any other conv layer stands the norm, and then the activation, in a ``ConvModule``.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        layer: Arguments of a conv layer where ``cfg`` does not give them. The padding, if not given, keeps the size.
        norm_cfg: The block's norm.
        act_cfg: The block's activation after this operator.
        **hints: Further arguments for a whole operator, each passed only if it takes it.
    """
    cls = require(cfg)
    if accepts(cls, 'act_cfg'):
        known = {'norm_cfg': norm_cfg, 'act_cfg': act_cfg, **hints}
        known = {name: value for name, value in known.items() if accepts(cls, name)}
        return MODELS.build({**known, **cfg, 'in_channels': in_channels, 'out_channels': out_channels})
    conv_cfg = {**layer, **cfg}
    norm_cfg, act_cfg = conv_cfg.pop('norm_cfg', norm_cfg), conv_cfg.pop('act_cfg', act_cfg)
    geometry = {name: conv_cfg.pop(name) for name in _GEOMETRY if name in conv_cfg}
    if places_norm(cls):
        conv_cfg['norm_cfg'], norm_cfg = norm_cfg, None
        geometry.setdefault('bias', False)
    geometry.setdefault('padding', _same_padding(geometry['kernel_size'], geometry.get('dilation', 1)))
    act_cfg = with_num_channels(act_cfg, out_channels)
    return ConvModule(in_channels, out_channels, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg, **geometry)


def _same_padding(kernel_size: int | tuple[int, int], dilation: int | tuple[int, int]) -> tuple[int, int]:
    kernel, dilation = ((v, v) if isinstance(v, int) else v for v in (kernel_size, dilation))
    return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
