"""Functional operators: each file holds public functions and their pure-torch reference."""

from mmext.ops._native import NativeStatus, native_status
from mmext.ops.depthwise import depthwise_conv2d
from mmext.ops.neighborhood import (
    neighborhood_aggregate,
    neighborhood_aggregate_adjoint,
    neighborhood_correlate,
    neighborhood_mask,
)
from mmext.ops.row_messages import row_messages
from mmext.ops.sample_conv import sample_conv2d
from mmext.ops.tap_softmax import tap_softmax

__all__ = [
    'NativeStatus',
    'depthwise_conv2d',
    'native_status',
    'neighborhood_aggregate',
    'neighborhood_aggregate_adjoint',
    'neighborhood_correlate',
    'neighborhood_mask',
    'row_messages',
    'sample_conv2d',
    'tap_softmax',
]
