"""Necks, drop-in for FPN or placed after it."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
