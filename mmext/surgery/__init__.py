"""Put layers of this pack into any existing model, by rules in a config, and keep its weights and its keys."""

from mmext.surgery.channels import auto_channels, fill_channels
from mmext.surgery.insert import inserted_blocks
from mmext.surgery.sites import CallSites, host_class
from mmext.surgery.swap import swap_layers
from mmext.surgery.undo import merge_swap, undo_swap
from mmext.takeover import distance, verdict

__all__ = [
    'CallSites',
    'auto_channels',
    'distance',
    'fill_channels',
    'host_class',
    'inserted_blocks',
    'merge_swap',
    'swap_layers',
    'undo_swap',
    'verdict',
]
