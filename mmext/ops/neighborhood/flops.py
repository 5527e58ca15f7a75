"""Multiply-adds of the neighbourhood operators, for ``torch.utils.flop_counter`` and for ``mmengine.analysis``.

Either counter sees a custom operator as nothing unless it is told. torch counts two per multiply-add, mmengine one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape
from torch.utils.flop_counter import register_flop_formula

from mmext.ops.neighborhood import op as op  # defines the operators


def _by_weight(features: list[int], weight: list[int], *_: Any) -> int:
    """Count aggregate and its adjoint: every output pixel of every channel, once per tap."""
    return prod(features[:2]) * prod(weight[2:])


def _by_logits(query: list[int], *rest: Any) -> int:
    *_, logits = rest
    return prod(query) * logits[2]


@register_flop_formula([torch.ops.mmext.neighborhood_aggregate, torch.ops.mmext.neighborhood_aggregate_adjoint])
def _weight_flops(
    features: list[int], weight: list[int], *args: Any, out_shape: list[int] | None = None, **_: Any
) -> int:
    return 2 * _by_weight(features, weight)


@register_flop_formula(torch.ops.mmext.neighborhood_correlate)
def _logit_flops(query: list[int], key: list[int], *args: Any, out_shape: list[int] | None = None, **_: Any) -> int:
    return 2 * _by_logits(query, out_shape)


complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(
    {
        'mmext::neighborhood_aggregate': lambda i, o: _by_weight(get_shape(i[0]), get_shape(i[1])),
        'mmext::neighborhood_aggregate_adjoint': lambda i, o: _by_weight(get_shape(i[0]), get_shape(i[1])),
        'mmext::neighborhood_correlate': lambda i, o: _by_logits(get_shape(i[0]), get_shape(o[0])),
    }
)
