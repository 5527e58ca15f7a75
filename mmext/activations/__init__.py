"""Activations, used as ``act_cfg=dict(type='mmext.Name')`` or through surgery."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
