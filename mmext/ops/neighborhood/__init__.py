"""Aggregation over neighbourhoods and its two dual operators; README.md beside this file derives them."""

from mmext.ops.neighborhood import flops as flops
from mmext.ops.neighborhood.op import (
    neighborhood_aggregate,
    neighborhood_aggregate_adjoint,
    neighborhood_correlate,
    neighborhood_mask,
)

__all__ = [
    'neighborhood_aggregate',
    'neighborhood_aggregate_adjoint',
    'neighborhood_correlate',
    'neighborhood_mask',
]
