"""What is done with a network and a measurement: the model, the data, the hooks, the metrics and the pictures."""

from mmext.registry import import_systems

__all__ = list(systems := import_systems(__name__))
globals().update(systems)
