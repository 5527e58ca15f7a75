"""Normalization layers, used as ``norm_cfg=dict(type='mmext.Name')``."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
