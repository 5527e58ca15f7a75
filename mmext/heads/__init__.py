"""Heads, and adapters that put a host's own head behind a neck of this pack."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
