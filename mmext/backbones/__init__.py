"""Backbones, used as ``backbone=dict(type='mmext.Name')`` by any host."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
