"""The softmax over the taps of every pixel, in one pass over the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmext.numerics import at_least_float32
from mmext.ops._native import native_status
from mmext.ops._operator import operator, primals

__all__ = ['tap_softmax']


def tap_softmax(logits: Tensor, inside: Tensor | None = None) -> Tensor:
    r"""Return the weights that the taps of every pixel have.

    .. math:: w_{b,g,k,o} = \exp(l_{b,g,k,o}) \Big/ \sum_j \exp(l_{b,g,j,o})

    The sum is over the taps that are inside. It is computed in full precision and rounded once.

    Args:
        logits: (B, G, N, Ho, Wo), as :func:`mmext.ops.neighborhood_correlate` returns them.
        inside: Which taps see the image, bool (N, Ho, Wo), see :func:`mmext.ops.neighborhood_mask`; all, if None. The others
            get no weight. A window that sees no pixel weighs all taps alike.

    Returns:
        The weights, of the shape and type of ``logits``, contiguous.

    Raises:
        ValueError: If the shapes or types do not fit.
    """
    if logits.ndim != 5 or not logits.is_floating_point():
        raise ValueError(f'logits must be (B, G, N, Ho, Wo) and floating, got {list(logits.shape)} of {logits.dtype}')
    bias = None
    if inside is not None:
        if inside.dtype != torch.bool or inside.shape != logits.shape[2:]:
            raise ValueError(
                f'inside must be bool {list(logits.shape[2:])}, one for each tap and pixel, got {inside.dtype} '
                f'{list(inside.shape)}'
            )
        wide = torch.promote_types(logits.dtype, torch.float32)
        # Half of what there is, so that no logit makes it infinite.
        bias = torch.zeros_like(inside, dtype=wide).masked_fill(~inside, torch.finfo(wide).min / 2)
    if torch.onnx.is_in_onnx_export():
        return _run(logits, bias)
    return _softmax(logits, bias)


def _run(logits: Tensor, bias: Tensor | None) -> Tensor:
    wide = at_least_float32(logits)
    return (wide if bias is None else wide + bias).softmax(2).to(logits.dtype).contiguous()


def _fake(logits: Tensor, bias: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.save_for_forward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (weights,) = ctx.saved_tensors
    return _through(weights, grad), None


def _through(weights: Tensor, change: Tensor) -> Tensor:
    """Apply the derivative of the softmax, a symmetric matrix."""
    wide, change = at_least_float32(weights), at_least_float32(change)
    return torch._softmax_backward_data(change, wide, 2, wide.dtype).to(weights.dtype)


def _jvp(op: Callable, ctx: Any, tangent: Tensor | None, _: Any) -> Tensor | None:
    (weights,) = primals(ctx)
    return None if tangent is None else _through(weights, tangent)


def _vmap(op: Callable, axes: Sequence[int | None], logits: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
    axis, bias_axis = axes
    if bias is not None and bias_axis is not None:
        # A bias of its own for each: rare enough to be added before.
        biases = bias.movedim(bias_axis, 0)[:, None, None]
        logits = logits.movedim(axis, 0) if axis is not None else logits[None]
        logits, bias, axis = (at_least_float32(logits) + biases).to(logits.dtype), None, 0
    whole = logits.movedim(axis or 0, 0)
    return op(whole.flatten(0, 1), bias).unflatten(0, whole.shape[:2]), 0


native_status()  # loads the compiled kernel, where it was built
_softmax = operator('tap_softmax(Tensor logits, Tensor? bias) -> Tensor', _run, _fake, _save, _backward, _jvp, _vmap)
