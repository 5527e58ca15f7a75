"""RedNet: the released classifiers and detectors, whose stages are numbered layers."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['rednet']

_NAMES = {
    r'^stem\.1\.conv1\.(conv|bn)': lambda m: f'stem.1.conv.reduce.{_norm(m[1])}',
    r'^stem\.1\.conv2\.conv': lambda _: 'stem.1.conv.span',
    r'^stem\.2\.': lambda _: 'stem.1.bn.',
    r'^stem\.4\.': lambda _: 'stem.2.',
    r'^layer(\d)\.': lambda m: f'stages.{int(m[1]) - 1}.blocks.',
    r'\.conv2\.conv1\.(conv|bn)': lambda m: f'.spatial.conv.reduce.{_norm(m[1])}',
    r'\.conv2\.conv2\.conv': lambda _: '.spatial.conv.span',
    r'\.(conv|bn)([123])\.': lambda m: f'.{("reduce", "spatial", "expand")[int(m[2]) - 1]}.{m[1]}.',
    r'\.downsample\.([01])\.': lambda m: f'.shortcut.{("conv", "bn")[int(m[1])]}.',
}


def _norm(name: str) -> str:
    return 'norm' if name == 'bn' else name


@system(
    'RedNet',
    r'layer1\.0\.conv2\.conv1\.conv\.weight',
    takes=r'(stem|layer\d)\..*',
    signature=(r'stem\.1\.conv2\.conv\.weight', r'layer1\.0\.conv2\.conv1\.conv\.weight'),
)
def rednet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name stages, convolutions and the parts of the involutions as ours are."""
    ours = {}
    for official in layer:
        name = official
        for pattern, new in _NAMES.items():
            name = re.sub(pattern, new, name)
        ours[name] = layer[official]
    return ours
