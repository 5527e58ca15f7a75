"""What every coordinate network promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Count, Law
from mmext.blocks.build import accepts
from mmext.norms.position_norm import freeze_stats
from mmext.registry import require

__all__ = ['CoordNetwork', 'Open', 'build_position_norm', 'check_chosen']


class CoordNetwork(BaseModule):
    """A function from positions to values.

    Positions stand in the last axis, in whatever layout: a list (N, d), a grid (H, W, d) as
    :func:`mmext.inr.coordinate_grid` makes it, or several. The values come in the same layout, (..., out_features).

    With norms over positions (BN, :class:`mmext.GlobalNorm`, :class:`mmext.CrossNorm`) the value at a position depends on
    which others it is evaluated with, in training always, in eval mode until :meth:`freeze_stats`.

    A network that makes something of what its signal looks like also defines ``set_signal(image)`` and ``awaits_signal``, see
    :class:`mmext.SPW`; one that folds into another config says so in ``deployed_cfg(cfg, fuse_bn)``, see :mod:`mmext.deploy`.

    Args:
        in_features: d, the number of coordinates.
        out_features: Values per position.
        init_cfg: As in mmengine; a pre-trained checkpoint, for example.
    """

    def __init__(self, in_features: Count, out_features: Count, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        self.in_features = in_features
        self.out_features = out_features

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        raise NotImplementedError(f'{type(self).__name__} must define reset_parameters()')

    def init_weights(self) -> None:
        """Draw all parameters anew, then apply ``init_cfg``."""
        self.reset_parameters()
        super().init_weights()

    def freeze_stats(self, coords: Tensor) -> CoordNetwork:
        """Set eval mode with the exact statistics of ``coords``, the whole grid, for evaluation point by point."""
        freeze_stats(self, coords)
        return self


def build_position_norm(norm_cfg: dict, channels: int, channel_dim: int) -> nn.Module:
    """Build a norm whose channels are in axis ``channel_dim`` of a list (N, C) or a map (N, C, H, W)."""
    cfg: dict[str, Any] = dict(norm_cfg)
    if cfg.get('type') == 'BN' and channel_dim == -1:
        cfg['type'] = 'BN1d'
    if accepts(require(cfg), 'channel_dim'):
        cfg.setdefault('channel_dim', channel_dim)
    return build_norm_layer(cfg, channels)[1]


class ComplexNorm(nn.Module):
    """A norm of complex features, whose real and imaginary parts are channels of their own (ours).

    Args:
        norm_cfg: Config of the norm.
        features: C. The norm has 2 C channels.

    Shape:
        (N, C) to (N, C), complex.
    """

    def __init__(self, norm_cfg: dict, features: int) -> None:
        super().__init__()
        # Any, because torch does not tell what attributes a module has.
        self.norm: Any = build_position_norm(norm_cfg, 2 * features, -1)

    def reset_parameters(self) -> None:
        if hasattr(self.norm, 'reset_parameters'):
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the parts."""
        parts = self.norm(torch.view_as_real(x).flatten(-2))
        return torch.view_as_complex(parts.unflatten(-1, (-1, 2)).contiguous())


def _is_open(value: Any) -> bool:
    kind = value.get('type') if isinstance(value, Mapping) else value
    return isinstance(kind, str) and kind == 'fresh'


#: A choice that is still to be made, see :func:`check_chosen`.
Open = Annotated[Any, Law("'fresh', or a dict with type='fresh'", _is_open)]


def check_chosen(component: str, **arguments: Any) -> None:
    """Refuse a frequency that is still to be chosen, see :func:`mmext.inr.choose_frequencies`.

    Raises:
        ValueError: If an argument is the word or the config that asks for a choice.
    """
    for name, value in arguments.items():
        if isinstance(value, (str, Mapping)):
            raise ValueError(
                f'{component} is given {name}={value!r}, a choice that is made before it is built, from the spectrum of the '
                'signal: train with tools/train.py and go on with the config that it writes into the work dir, or call '
                'mmext.inr.choose_frequencies'
            )
