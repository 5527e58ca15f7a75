"""Assigners: which place of a detector learns which object."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
