"""What stands where a layer has no weight, for hosts that initialize every ``nn.Conv2d`` that they find."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ['AbsentWeight', 'ForeignWeightError']


class ForeignWeightError(RuntimeError):
    """A host asks a layer for a kernel that it does not have, or gives it one that it would not compute with."""


class AbsentWeight(Tensor):
    """The shape, type and device of a weight that a layer does not have.

    The ``init_weights`` of some hosts goes through all convolutions and draws ``m.weight`` (ShuffleNet, Conformer, PIDNet). So
    this one takes whatever is drawn or filled into it, or into a part of it, and keeps nothing. Nothing computes with it.

    Args:
        like: A tensor of the same type on the same device.
        shape: The shape.
        refusal: The sentence for who computes with it.

    Raises:
        ForeignWeightError: If an operation reads it.

    Example:
        >>> weight = AbsentWeight(torch.empty(0), (4, 3, 3, 3), 'the layer has no weight')
        >>> torch.nn.init.kaiming_normal_(weight).shape
        torch.Size([4, 3, 3, 3])
    """

    refusal: str

    @staticmethod
    def __new__(cls, like: Tensor, shape: tuple[int, ...], refusal: str) -> AbsentWeight:
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made.refusal = refusal
        return made

    def __init__(self, like: Tensor, shape: tuple[int, ...], refusal: str) -> None:
        pass

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f'AbsentWeight({list(self.shape)}: {self.refusal})'

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        own = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, AbsentWeight))
        schema = func._schema
        written = schema.arguments[0].alias_info if schema.arguments else None
        if own is not args[0] or written is None:
            raise ForeignWeightError(own.refusal)
        if written.is_write:
            return own
        # A part of it, or the same seen in another way: of what shape, the meta device tells.
        part = func(own._on_meta(), *args[1:], **(kwargs or {}))
        return tree_map_only(Tensor, lambda t: AbsentWeight(own, tuple(t.shape), own.refusal), part)

    def _on_meta(self) -> Tensor:
        return torch.empty(tuple(self.shape), dtype=self.dtype, device='meta')
