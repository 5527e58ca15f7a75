"""Coordinate networks: functions from positions to values that are fitted to one signal."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
