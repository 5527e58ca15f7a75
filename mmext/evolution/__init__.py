"""Operators whose kernel depends on the input or on the position: idea 2 of the pack."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
