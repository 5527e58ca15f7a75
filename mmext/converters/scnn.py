"""SCNN: the four kernels, as two ports to PyTorch name them."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['scnn']

#: In our order: down, up, right, left. The first port is that of the authors' weights, the second has biases.
PORTS = (('up_down', 'down_up', 'left_right', 'right_left'), ('conv_d', 'conv_u', 'conv_r', 'conv_l'))


@system(
    'SCNNBlock',
    r'(up_down|conv_d)\.weight',
    takes=r'(down_up|left_right|right_left|conv_[url])\.weight|conv_[durl]\.bias',
    signature=tuple(rf'({"|".join(names)})\.weight' for names in zip(*PORTS, strict=True)),
)
def scnn(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Take the axis of length one out of the kernels, and count the directions."""
    names = PORTS[0] if 'up_down.weight' in layer else PORTS[1]
    ours = {f'{i}.weight': layer[f'{name}.weight'].flatten(2) for i, name in enumerate(names)}
    if f'{names[0]}.bias' in layer:
        ours.update({f'{i}.bias': layer[f'{name}.bias'] for i, name in enumerate(names)})
        layer.notes.append(f'{layer.name} has biases, as pytorch-auto-drive: it needs bias=True and skip_first=True')
    return ours
