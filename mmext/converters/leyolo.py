"""LeYOLO: the backbone, or the whole detector. The file is a pickle of the authors' classes; save its tensors first."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, choice, system

__all__ = ['leyolo']

HALVES = {'c': '0', 'conv': '0', 'bn': '1'}
POOLING = {'cv1': 'reduce', 'cv2': 'mix'}
BRANCHES = {'cv2': 'reg_branches', 'cv3': 'cls_branches'}
PARTS = ('backbone', 'detector')
#: The nodes of the neck, in the order of the file.
NODES = ('top_down.1', 'top_down.0', 'bottom_up.0', 'bottom_up.1')


@system(
    'LeYOLO',
    r'model\.0\.c\.weight',
    takes=r'model\.\d+\..*',
    signature=(r'model\.0\.c\.weight', r'model\.2\.layers\.0\.c\.weight', r'model\.\d+\.layers\.3\.running_var'),
    part='backbone, or detector: with the names of a detector, its neck and its head; medium and large need the neck with '
    'deep and official_taps',
)
def leyolo(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name stages, nodes and branches as here, from the order of the layers."""
    places = _places(layer)
    whole = choice(options, 'part', PARTS, 'backbone') == 'detector'
    ours = {}
    for key in list(layer):
        number, rest = re.match(r'model\.(\d+)\.(.*)', key).groups()  # type: ignore[union-attr]
        place = places[int(number)]
        part, _, inside = place.partition('.')
        if not rest.startswith('dfl.') and (whole or part == 'backbone'):
            name = '.'.join(filter(None, (inside, _inside(layer, f'model.{number}.', rest))))
            ours[f'{part}.{name}' if whole else name] = layer[key]
    return ours


def _places(layer: Layer) -> dict[int, str]:
    """Return where each layer of the authors stands here."""
    kinds: dict[int, str] = {}
    for key in layer:
        number, first = re.match(r'model\.(\d+)\.(\w+)', key).groups()  # type: ignore[union-attr]
        kinds.setdefault(int(number), first)
    numbers = sorted(kinds)
    pool = next((n for n in numbers if kinds[n].startswith('cv') and f'model.{n}.cv1.conv.weight' in layer), None)
    last = numbers[-1] if pool is None else pool
    places = {0: 'backbone.stem.0', 1: 'backbone.stem.1'}
    stage, index, width = 0, 0, 0
    for number in range(2, last + 1):
        if kinds.get(number) == 'layers':
            outs = _channels(layer, number)
            if width and outs != width:
                stage, index = stage + 1, 0
            width = outs
        places[number] = f'backbone.stages.{stage}.blocks.{index}'
        index += 1
    nodes, before, down = iter(NODES), last, 0
    node, index = '', 0
    for number in (n for n in numbers if n > last):
        if kinds[number] == 'c':
            places[number] = f'neck.downsamples.{down}'
            down += 1
        elif kinds[number] == 'layers':
            if number != before + 1:  # between nodes maps are joined, which has no tensors
                node, index = next(nodes), 0
            beside = node == 'top_down.0' and index == 3
            places[number] = 'neck.beside' if beside else f'neck.{node}.{index}'
            index += 1
        else:
            places[number] = 'bbox_head'
        before = number
    return places


def _channels(layer: Layer, number: int) -> int:
    """Return the channels that a block gives, those of its last norm."""
    last = 3 if f'model.{number}.layers.3.weight' in layer else 2
    return len(layer[f'model.{number}.layers.{last}.weight'])


def _inside(layer: Layer, prefix: str, rest: str) -> str:
    """Return the name of a tensor within its layer."""
    parts = rest.split('.')
    if parts[0] == 'layers':
        widens = f'{prefix}layers.3.weight' in layer
        number = int(parts[1]) + (0 if widens else 1)
        place = ('expand', 'depthwise', 'project.0', 'project.1')[number]
        return '.'.join([place, *(HALVES.get(p, p) for p in parts[2:])])
    if parts[0] in POOLING and not parts[1].isdigit():
        return '.'.join([POOLING[parts[0]], *(HALVES.get(p, p) for p in parts[1:])])
    if parts[0] in BRANCHES:
        return '.'.join([BRANCHES[parts[0]], *(HALVES.get(p, p) for p in parts[1:])])
    return '.'.join(HALVES.get(p, p) for p in parts)
