"""FFNet: the network, for classification and detection, and its form for segmentation."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['ffnet']

ENTRY = r'(\w+)'
NORMED = {'c': '0', 'bn': '1'}
PARTS = {
    'fc.': '0.mix.',
    'conv1.': '0.key.',
    'conv2.': '0.value.',
    'conv.': '1.local.',
    'fc1.': '1.expand.',
    'fc2.': '1.project.',
}
#: Branches of one kernel in their order here: of the network, and of its form for segmentation.
BRANCHES = {'conv': 0, 'conv1': 1}
STRIPS = ('conv1', 'conv2', 'strip_conv1', 'strip_conv2')


@system(
    'FFNet',
    r'patch_embed\.0\.c\.weight',
    takes=r'(patch_embed|stages|head\d?)\..*|norm\d?\..*',
    signature=(r'patch_embed\.0\.c\.weight', r'stages\.0\.\d\.token_mixer\.0\.main\.fc\.c\.weight'),
)
def ffnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name mixers, kernels and transitions as here; the classifier is left out."""
    ours = layer.renamed((r'norm\.(\w+)', r'out_norms.0.\1'), (r'norm(\d)\.(\w+)', r'out_norms.\1.\2'))
    names = list(layer)
    for key in names:
        if found := re.fullmatch(r'patch_embed\.(\d)\.(c|bn)\.(\w+)', key):
            ours[f'stem.{found[1]}.{NORMED[found[2]]}.{found[3]}'] = layer[key]
        elif found := re.fullmatch(r'stages\.(\d+)\.0\.proj\.(.*)', key):
            ours[f'stages.{found[1]}.shrink.{_shrink(found[2])}'] = layer[key]
        elif found := re.fullmatch(r'stages\.(\d+)\.(\d+)\.(token|channel)_mixer\.(?:0\.)?(.*)', key):
            first = any(name.startswith(f'stages.{found[1]}.0.proj.') for name in names)
            mixer = '0' if found[3] == 'token' else '1'
            rest = found[4].removeprefix('main.')
            inner = f'{mixer}.scale' if rest == 'layer_scale' else _inner(rest, mixer, names, key)
            ours[f'stages.{found[1]}.blocks.{int(found[2]) - first}.{inner}'] = layer[key]
    return ours


def _shrink(rest: str) -> str:
    """Return the name inside of a transition."""
    if found := re.fullmatch(r'0\.(conv1?)\.(c|bn)\.(\w+)', rest):
        return f'0.{_branch(BRANCHES[found[1]], found[2])}.{found[3]}'
    if found := re.fullmatch(r'1\.conv\.(c|bn)\.(\w+)', rest):
        return f'1.{"conv" if found[1] == "c" else "norm"}.{found[2]}'
    place, kind, entry = rest.split('.')
    return f'{place}.{NORMED[kind]}.{entry}'


def _inner(rest: str, mixer: str, names: list[str], key: str) -> str:
    """Return the name inside of a block."""
    start, _, end = rest.partition('.')
    name = PARTS[f'{start}.']
    if found := re.fullmatch(rf'(\w+)\.(c|bn)\.{ENTRY}', end):  # a branch of a kernel
        kernel = key.removesuffix(end)
        of_strips = any(other.startswith(f'{kernel}strip_conv1.') for other in names)
        order = [s for s in STRIPS if any(other.startswith(f'{kernel}{s}.') for other in names)]
        number = order.index(found[1]) if of_strips else BRANCHES[found[1]]
        return f'{name}{_branch(number, found[2])}.{found[3]}'
    if found := re.fullmatch(rf'(c|bn)\.{ENTRY}', end):
        return f'{name}{NORMED[found[1]]}.{found[2]}'
    return f'{name}{end}'


def _branch(number: int, kind: str) -> str:
    return f'branches.{number}' + ('.norm' if kind == 'bn' else '')
