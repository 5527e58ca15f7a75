"""The functions that are fitted, with their encodings and activations, and what their weights and frequencies come from."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
