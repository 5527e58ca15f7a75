"""Converters of the systems' published checkpoints, a file each, found by being here.

:func:`recognize` tells whose a state dict is, :func:`convert` turns it into ours.
"""

from mmext.converters.engine import SYSTEMS, Converted, System, convert, find_system, recognize, rename
from mmext.registry import import_systems

__all__ = ['SYSTEMS', 'Converted', 'System', 'convert', 'find_system', 'recognize', 'rename']

import_systems(__name__)
