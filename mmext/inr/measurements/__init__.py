"""What is measured of a signal: the operators between a network and its loss."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
