"""Put layers of this pack into any existing model, by rules in a config, and keep its weights and its keys."""

from mmext.surgery.sites import CallSites
from mmext.surgery.swap import build_wrapped, swap_layers, unwrapped

__all__ = ['CallSites', 'build_wrapped', 'swap_layers', 'unwrapped']
