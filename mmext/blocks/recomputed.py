"""Blocks that save memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.model import BaseModule
from torch.utils.checkpoint import checkpoint

__all__ = ['Recomputed']


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
        if self.with_cp and any(x.requires_grad for x in inputs):
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)
