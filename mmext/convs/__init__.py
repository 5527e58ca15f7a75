"""Conv layers, used as ``conv_cfg=dict(type='mmext.Name')``, in a ``dcn=`` slot or through surgery."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
