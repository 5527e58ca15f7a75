"""The released layers of every system, written down from their formulas, under the names of their files: a file each.

``CASES`` of a file says which layer of ours computes the same.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from mmext.converters import SYSTEMS


class Case(NamedTuple):
    """A released layer, the layer of ours, channels of the input, options of the conversion, and how exact they agree.

    ``input_shape`` is that of an input which is no image of 12 x 14 pixels.
    """

    official: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    channels: int
    options: dict[str, str] = {}
    tolerance: float = 1e-10
    input_shape: tuple[int, ...] | None = None


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def shaken(model):
    """Eval mode, with statistics and affine parameters of batch norms that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return model.eval()


def depthwise(cls, channels, size, **kwargs):
    return cls(channels, channels, size, padding=size // 2, groups=channels, **kwargs)


def last_map(cls, **kwargs):
    """Return what makes a backbone of ours that returns the map of its last scale alone."""

    def make():
        net = cls(**kwargs, out_indices=(-1,))
        net.register_forward_hook(lambda _, args, outs: outs[0])
        return net

    return make


def all_cases():
    """Return (system, name, case) of all files."""
    modules = {name: importlib.import_module(f'official_layers.{name}') for name in SYSTEMS}
    return [(system, name, case) for system, module in modules.items() for name, case in module.CASES.items()]
