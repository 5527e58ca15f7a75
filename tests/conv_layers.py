"""The conv layers of the pack, each with something to compute, for the tests over all of them."""

import torch
from helpers import shake
from registered import ARGUMENTS, members

from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.evolution.base import EvolutionOperator2d
from mmext.registry import MODELS

LAYERS = sorted(
    n
    for n in members('convs') + members('evolution')
    if isinstance(c := MODELS.get(n), type) and issubclass(c, ExtConv2d)
)
FAMILY = [n for n in LAYERS if issubclass(MODELS.get(n), GeneratedConv2d)]
OPERATORS = [n for n in LAYERS if issubclass(MODELS.get(n), EvolutionOperator2d)]


def make(name: str, **kwargs) -> ExtConv2d:
    """Build a layer of eight channels as it starts."""
    return MODELS.get(name)(**{**ARGUMENTS[name], **kwargs})


def own_arguments(name: str) -> dict:
    """Return the arguments of a layer's example that its place in a model does not dictate."""
    place = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'groups')
    return {k: v for k, v in ARGUMENTS[name].items() if k not in place}


def shaken(name: str, **kwargs) -> ExtConv2d:
    """Build a layer with every parameter and statistic away from its initial value."""
    return shake(make(name, **kwargs), by=0.2)


def image(*, batch: int = 1, **kwargs) -> torch.Tensor:
    """Return an image that every layer takes."""
    return torch.randn(batch, 8, 18, 18, **kwargs)
