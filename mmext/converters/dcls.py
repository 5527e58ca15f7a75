"""DCLS: rows and columns change places between the versions of the released layer."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, choice, system
from mmext.errors import UsageError

__all__ = ['dcls']


@system(
    'DCLSConv2d',
    'P',
    takes='weight|SIG',
    signature=('P', 'weight'),
    version='v0 or v1, for files without SIG, which do not tell',
    window='HxW, the dilated kernel size, where it is not square (of v1, max and gauss)',
)
def dcls(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Put rows before columns, as only v0 has them; each block keeps its copy of positions that a stage shares."""
    positions = layer['P']
    if positions.shape[0] != 2:
        return None
    known, usual = (('max', 'gauss'), 'gauss') if 'SIG' in layer else (('v0', 'v1'), '')
    version = choice(options, 'version', known, usual)
    if version == 'v0':
        return dict(point_weight=layer['weight'], P=positions)
    positions = positions.flip(0)
    if 'window' in options:
        # The released code counts the columns from the middle of the rows, and the rows from that of the columns.
        rows, cols = _pair(options['window'])
        offset = positions.new_tensor([cols // 2 - rows // 2, rows // 2 - cols // 2])
        positions = positions + offset.view(2, *[1] * (positions.ndim - 1))
    widths = dict(SIG=layer['SIG'].flip(0)) if 'SIG' in layer else {}
    return dict(point_weight=layer['weight'], P=positions, **widths)


def _pair(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r'(\d+)x(\d+)', text)):
        raise UsageError(f'--options window=HxW needs two numbers, such as 5x11, got {text}')
    return int(match[1]), int(match[2])
