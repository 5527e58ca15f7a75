"""Initializers of weights, used as ``init_cfg=dict(type='mmext.Name', layer='Conv2d')``."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
