"""Blocks that save memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.model import BaseModule
from torch.utils.checkpoint import checkpoint

__all__ = ['Recomputed', 'recomputed']


def recomputed(call: Callable[..., Any], *inputs: Any, with_cp: bool) -> Any:
    """Return ``call(*inputs)``; with ``with_cp`` its activations are forgotten, and computed again in the backward pass."""
    if with_cp and any(x.requires_grad for x in inputs):
        return checkpoint(call, *inputs, use_reentrant=False)
    return call(*inputs)


class Recomputed(BaseModule):
    """A module that may forget its activations and compute them again in the backward pass.

    A subclass defines ``compute``, whose arguments are tensors.

    Args:
        with_cp: Whether it does.
        init_cfg: As in mmengine.
    """

    compute: Callable[..., Any]

    def __init__(self, with_cp: bool, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp

    def forward(self, *inputs: Any) -> Any:
        """Return ``compute(*inputs)``."""
        return recomputed(self.compute, *inputs, with_cp=self.with_cp)
