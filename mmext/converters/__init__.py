"""Converters of the systems' published checkpoints, a file each, found by being here.

:func:`state_dict_in` finds the tensors in what a file holds. :func:`recognize` tells whose they are, :func:`convert` turns
them into ours, and :func:`rename` gives the rest of a network other names.

Example:
    state, _ = state_dict_in(read('official.pth'))
    ours = convert(recognize(state), state).state
"""

from mmext.converters._state import rename, state_dict_in
from mmext.converters.engine import SYSTEMS, Converted, System, convert, find_system, recognize
from mmext.registry import import_systems

__all__ = ['SYSTEMS', 'Converted', 'System', 'convert', 'find_system', 'recognize', 'rename', 'state_dict_in']

import_systems(__name__)
