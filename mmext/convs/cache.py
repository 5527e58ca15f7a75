"""When something that was computed from parameters once may serve again, and the layer that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from operator import is_
from typing import Any, TypeVar

import torch
from mmengine.model.averaged_model import BaseAveragedModel
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ['CachingLayer', 'Sources', 'may_cache']

T = TypeVar('T')
# More image sizes than one network sees at a time, even over the levels of a pyramid.
CACHED_KEYS = 32


class _Clock:
    """Counts the writes to parameters that no version counter sees."""

    writes = 0


def _count_write(*_: Any) -> None:
    _Clock.writes += 1


def _count_updates_of_averages() -> None:
    update = BaseAveragedModel.update_parameters

    @wraps(update)
    def update_parameters(self: BaseAveragedModel, model: nn.Module) -> None:
        update(self, model)
        _count_write()

    BaseAveragedModel.update_parameters = update_parameters


# Fused optimizers bump no version, and mmengine's averaged models write through ``.data``.
register_optimizer_step_post_hook(_count_write)
_count_updates_of_averages()


def may_cache() -> bool:
    """Tell whether a tensor made now is an ordinary one, which a later forward can use.

    It is not while a function is compiled, traced or transformed (``torch.func``, dual numbers), nor under a dispatch mode
    such as ``FakeTensorMode``.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


class Sources:
    """What a kernel was made of: the tables of a layer and its children, and the state of every tensor in them.

    It keeps the tensors alive, so that no successor of one of them can have its id or its address. (Walking the tables costs
    a tenth of walking ``parameters()``, which would be felt beside a small convolution.)

    Attributes:
        known: Whether the tables hold all of it, as ordinary tensors that count what is written into them. A replica of
            ``DataParallel`` has tensors for attributes, a sharded parameter is a tensor of another class, and FSDP gathers a
            parameter anew for every forward without counting.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.writes = _Clock.writes
        modules = list(layer.modules())
        # A shallow copy shares what its original has cached: the tables of the layer itself are looked up anew.
        self.tables = [
            (None if module is layer else module, name, table, tuple(table.values()))
            for module in modules
            for name in ('_parameters', '_buffers', '_modules')
            if (table := module.__dict__[name])
        ]
        tensors = [v for *_, values in self.tables for v in values if isinstance(v, Tensor)]
        self.known = all(type(t) in (Tensor, nn.Parameter) for t in tensors) and not any(
            isinstance(value, Tensor) or name == '_is_fsdp_managed_module'
            for module in modules
            for name, value in module.__dict__.items()
        )
        self.tensors = [(t, t.data_ptr(), None if t.is_inference() else t._version) for t in tensors if self.known]

    def unchanged(self, layer: nn.Module) -> bool:
        """Whether ``layer`` still has the same tables, with the same values in them."""
        if self.writes != _Clock.writes:
            return False
        for module, name, table, values in self.tables:
            own = (layer if module is None else module).__dict__[name]
            if own is not table or len(table) != len(values) or not all(map(is_, table.values(), values)):
                return False
        for tensor, address, version in self.tensors:
            if tensor.data_ptr() != address or (version is not None and tensor._version != version):
                return False
        return True


class CachingLayer(nn.Module):
    """A layer that computes something from its parameters alone, and keeps it in eval mode.

    What is kept dies when a parameter or buffer changes, moves, is loaded or replaced, at every step of an optimizer, at every
    update of an averaged model of mmengine, and at every ``train()`` or ``eval()``. Nothing is kept inside of transforms,
    tracers and fake modes, and nothing is copied or saved with the layer. What cannot be seen is a write through
    ``tensor.data`` or a NumPy view, and a new value of an argument: call ``eval()`` after it.
    """

    _cache: tuple[Sources, dict[Hashable, Any]] | None = None

    def cached(self, make: Callable[[], T], key: Hashable = None) -> T:
        """Return what ``make`` returns, or has returned for this ``key`` where that is still valid."""
        differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if self.training or differentiable or not may_cache():
            return make()
        cache = self._cache  # another thread may drop it at any time
        if cache is None or not cache[0].unchanged(self):
            cache = (Sources(self), {})
            if not cache[0].known:
                return make()
        sources, kept = cache
        if key in kept:
            return kept[key]
        # A tensor made under inference_mode could not be used by a later forward outside of it.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        self._cache = (sources, {**(kept if len(kept) < CACHED_KEYS else {}), key: made})
        return made

    def train(self, mode: bool = True) -> Any:
        self._cache = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._cache = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_cache': None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*args, **kwargs)
