"""The objects that a checkpoint may hold beside tensors, as stand-ins that are data and nothing else.

A pickle names functions and calls them. What is on the list below is replaced by a stand-in of that name, so that no function
of numpy, mmengine or Python runs with a file's arguments. :func:`plain` then makes the real, checked objects.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

__all__ = ['ForeignError', 'plain', 'tensors_only']

T = TypeVar('T', bound=Callable)
ALLOWED: list[Any] = []
DTYPES = {np.dtype(t).str[1:] for t in '?bBhHiIlLqQefdFD'}
#: Attributes of mmengine's history of a logged value, in a file.
HISTORY = ('_log_history', '_count_history', 'max_length')


class ForeignError(ValueError):
    """Something that a checkpoint must not hold; the message is its name."""


def _stands_for(name: str, *modules: str) -> Callable[[T], T]:
    """Put a stand-in on the list; torch finds it by ``__module__`` and ``__name__``, in all of its versions."""

    def add(stand_in: T) -> T:
        for module in modules:
            named: Any = stand_in if isinstance(stand_in, type) else _copy_of(stand_in)
            named.__module__, named.__name__, named.__qualname__ = module, name, name
            ALLOWED.append(named)
        return stand_in

    return add


def _copy_of(function: Callable) -> Callable:
    """Return a function of its own that does the same, for a second name."""
    return FunctionType(function.__code__, function.__globals__, argdefs=function.__defaults__)


@_stands_for('dtype', 'numpy')
class _DType:
    """A number's type: a code such as ``f8``, and a byte order that comes as the state."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        self.code, self.order = str(code), '='

    def __setstate__(self, state: tuple) -> None:
        self.order = str(state[1])

    def real(self) -> np.dtype:
        text = self.code.lstrip('<>=|')
        if text not in DTYPES and not (text[:1] in 'SU' and text[1:].isdigit()):
            raise ForeignError(f'an array of the type {self.code}')
        return np.dtype((self.order if self.order in '<>' else '') + text)


@_stands_for('ndarray', 'numpy')
class _Array:
    """An array's shape, type and bytes."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = tuple(state)

    def real(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self.state
        if not (isinstance(dtype, _DType) and isinstance(content, bytes)):
            raise ForeignError('an array of objects')
        return np.frombuffer(content, dtype.real()).reshape(shape, order='F' if fortran else 'C').copy()


@_stands_for('_reconstruct', 'numpy.core.multiarray', 'numpy._core.multiarray')
def _reconstruct(*_: Any) -> _Array:
    return _Array()


@_stands_for('scalar', 'numpy.core.multiarray', 'numpy._core.multiarray')
def _scalar(dtype: _DType, content: bytes = b'') -> Any:
    return np.frombuffer(content, dtype.real())[0].item()


@_stands_for('HistoryBuffer', 'mmengine.logging.history_buffer')
class _History:
    """Attributes of a HistoryBuffer."""


@_stands_for('MessageHub', 'mmengine.logging.message_hub')
class _Hub:
    """Attributes of a MessageHub, which early checkpoints hold as a whole."""


@_stands_for('ConfigDict', 'mmengine.config.config')
def _config_dict(*items: Any) -> dict:
    return dict(*items)


@_stands_for('set', 'builtins')
def _set(items: Any = ()) -> set:
    return set(items)


@_stands_for('complex', 'builtins')
def _complex(real: float, imaginary: float = 0.0) -> complex:
    return complex(real, imaginary)


class _Left:
    """Something that is left out: what it is follows from the config."""


@_stands_for('OneCycleParamScheduler', 'mmengine.optim.scheduler.param_scheduler')
class _OneCycle:
    """The class whose annealing function a one-cycle schedule names."""


@_stands_for('getattr', 'builtins')
def _attribute(owner: Any, name: str) -> _Left:
    """Stand for a method of the classes above, which mmengine saves with them; nothing is looked up."""
    if owner is not _OneCycle and owner is not _History:
        raise ForeignError(f'getattr of {name}')
    return _Left()


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let every ``torch.load`` inside read tensors, plain values and the stand-ins, whatever it is told."""
    variable, before = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', torch.serialization.get_safe_globals()
    before, forced = list(before), os.environ.get(variable)
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(ALLOWED))
    os.environ[variable] = '1'
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
        if forced is None:
            del os.environ[variable]
        else:
            os.environ[variable] = forced


def plain(value: Any) -> Any:
    """Return what was read with real objects in place of the stand-ins.

    Raises:
        ForeignError: If it holds anything else than tensors, plain values, numeric arrays and mmengine's histories.
    """
    if isinstance(value, (Tensor, str, bytes, bool, int, float, complex, type(None))):
        return value
    if isinstance(
        value, (torch.Size, torch.dtype, torch.device, torch.layout, bytearray, np.ndarray, np.generic, HistoryBuffer)
    ):
        return value
    if isinstance(value, dict):
        items = {plain(k): plain(v) for k, v in dict.items(value) if not isinstance(v, _Left)}
        if not isinstance(value, OrderedDict):
            return items
        ordered = OrderedDict(items)
        metadata = value.__dict__.get('_metadata')  # versions of modules; nothing else may be set on the dictionary
        if isinstance(metadata, dict):
            ordered._metadata = plain(metadata)  # type: ignore[attr-defined]
        return ordered
    if type(value) in (list, tuple, set):
        return type(value)(map(plain, value))
    if isinstance(value, _Array):
        return value.real()
    if isinstance(value, _History):
        logged, counts, length = (plain(value.__dict__[name]) for name in HISTORY)
        history = HistoryBuffer(max_length=int(length))
        history._log_history, history._count_history = np.asarray(logged), np.asarray(counts)
        return history
    if isinstance(value, _Hub):
        names = ('log_scalars', 'runtime_info', 'resumed_keys')
        return {name: plain(value.__dict__[f'_{name}']) for name in names}
    kind = value if hasattr(value, '__qualname__') else type(value)
    raise ForeignError(f'{kind.__module__}.{kind.__qualname__}')
