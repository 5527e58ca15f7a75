"""Building blocks that more than one backbone or neck uses."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
