"""The laws of constructor arguments, read from their annotations and checked before a constructor runs.

A registered class needs no line of its own: its registry guards the constructor. The annotation is the law::

    def __init__(self, width: Count, rate: Share = 0.0, mode: Literal['a', 'b'] = 'a', center: bool = False) -> None:

``int`` means an integer, ``float`` a finite number, ``bool`` True or False; none of the three stands for another, but an
integer is a number. ``Annotated[float, above(0)]`` narrows a type, ``Any`` leaves an argument free.
A law that ties several arguments together stays in the constructor.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from mmext.errors import UsageError

__all__ = [
    'Axis',
    'Cfg',
    'Count',
    'DropRate',
    'Few',
    'Law',
    'Many',
    'Natural',
    'NonNegative',
    'OddSize',
    'Pattern',
    'Positive',
    'Repeats',
    'Seed',
    'Share',
    'Sides',
    'above',
    'at_least',
    'at_most',
    'below',
    'check',
    'check_conv2d',
    'checked',
    'guard',
    'laws_of',
    'some',
]


@dataclass(frozen=True)
class Law:
    """What an argument must be.

    Args:
        words: Completes "needs NAME as ...".
        holds: Whether a value, of whatever type, obeys; it never raises.
    """

    words: str
    holds: Callable[[Any], bool]


def _bound(sign: str, compare: Callable[[Any, Any], bool]) -> Callable[[float], Law]:
    return lambda limit: Law(f'{sign} {limit}', lambda value: compare(value, limit))


at_least, at_most = _bound('>=', operator.ge), _bound('<=', operator.le)
above, below = _bound('>', operator.gt), _bound('<', operator.lt)
#: Narrows a collection to one that holds something.
some = Law('with one entry at least', lambda value: len(value) > 0)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_device(value: Any) -> bool:
    try:
        torch.empty(0, device=value)
    except (RuntimeError, TypeError, AssertionError):  # the last where torch was built without CUDA
        return False
    return True


def _is_inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


# The upper ends keep a slip of the keyboard from filling the memory, or from running for hours.
#: An integer for which something is made one by one, and one for which memory is taken; the constructor tells the lower end.
Few = Annotated[int, at_most(2**12)]
Many = Annotated[int, at_most(2**20)]
#: A number of layers, passes or pixels of a side; and one of channels, features or points.
Repeats = Annotated[int, at_least(1), at_most(2**12)]
Count = Annotated[int, at_least(1), at_most(2**20)]
#: The side of a kernel that is centered.
OddSize = Annotated[Repeats, Law('odd', lambda value: value % 2 == 1)]
#: Rows and columns of a kernel, or one number for both.
Sides = Repeats | tuple[Repeats, Repeats]
#: An axis of a tensor, counted from either end.
Axis = Annotated[int, at_least(-8), at_most(7)]
#: What numpy takes for a seed.
Seed = Annotated[int, at_least(0), at_most(2**32 - 1)]
#: A count from 0 on.
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0)]
NonNegative = Annotated[float, at_least(0)]
#: A share of a whole, and the rate of something dropped, of which some must stay.
Share = Annotated[float, at_least(0), at_most(1)]
DropRate = Annotated[float, at_least(0), below(1)]
#: A regular expression.
Pattern = Annotated[str, Law('that is a regular expression', _is_pattern)]
#: A config that a registry builds.
Cfg = Annotated[dict, Law("with the key 'type'", lambda value: bool(value.get('type')))]
_Margin = Annotated[int, at_least(0), at_most(2**12)]


def checked(function: Callable, owner: str | None = None) -> Callable:
    """Return ``function`` with its arguments checked first, in the name of ``owner`` or its own; see :func:`check`.

    A constructor is called in the name of the class that is built.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        name = type(args[0]).__name__ if function.__name__ == '__init__' else function.__name__
        check(owner or name, function, args, kwargs)
        return function(*args, **kwargs)

    return run


def guard(cls: type) -> None:
    """Check the arguments of every constructor that ``cls`` has from its own package, in place; harmless when repeated."""
    package = cls.__module__.partition('.')[0]
    for base in cls.__mro__:
        init = base.__dict__.get('__init__')
        if (
            base.__module__.partition('.')[0] == package
            and inspect.isfunction(init)
            and not hasattr(init, '__wrapped__')
        ):
            setattr(base, '__init__', checked(init))  # noqa: B010, mypy knows no assignment to a method


def check(owner: str, function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of a call against the annotations of ``function``.

    Args:
        owner: Whose arguments they are, for the message.
        function: What is called.
        args: The positional arguments.
        kwargs: The others.

    Raises:
        UsageError: If one does not obey; the message has the law, the value and, where there is one, the default.
    """
    signature, laws = _signature(function), laws_of(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # the call itself says what is missing or too much
    for name, law in laws.items():
        if name in given and not law.holds(given[name]):
            default = signature.parameters[name].default
            remedy = '' if default in (None, inspect.Parameter.empty) else f'; leave it out for {_show(default)}'
            raise UsageError(f'{owner} needs {name} {_as(law)}, got {name}={_show(given[name])}{remedy}')


@functools.cache
def laws_of(function: Callable) -> dict[str, Law]:
    """Return the law of every argument of ``function`` that has one, by name."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # a class inside of a function, whose annotations name its neighbors
        return {}
    found = {}
    for name, parameter in _signature(function).parameters.items():
        single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if single and name in hints and (law := _law(hints[name])) is not None:
            found[name] = law
    return found


_signature = functools.cache(inspect.signature)


def _law(hint: Any) -> Law | None:
    """Return the law that an annotation states, None where it states none."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return None
    if origin is Annotated:
        base, narrowing = _law(parts[0]), [law for law in parts[1:] if isinstance(law, Law)]
        return functools.reduce(_narrow, narrowing, base)
    if origin in (Union, UnionType):
        options = [_law(part) for part in parts]
        return None if None in options else _either([law for law in options if law])
    if origin is Literal:
        return _either([Law(repr(one), functools.partial(_equals, one)) for one in parts])
    if hint in _PLAIN:
        return _PLAIN[hint]
    kind = origin or hint
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Mapping):
        return _mapping(_law(parts[1]) if parts else None)
    if issubclass(kind, Collection) and issubclass(kind, Sequence):
        return _sequence(parts)
    if kind is Callable or kind.__name__ == 'Callable':
        return Law('a callable', callable)
    article = 'an' if kind.__name__[0] in 'AEIOU' else 'a'
    return Law(f'{article} {kind.__name__}', lambda value: isinstance(value, kind))


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, _FLAG) and -(2**63) <= int(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, _FLAG) and abs(value) <= _LARGEST


_FLAG = (bool, np.bool_)
_LARGEST: Any = sys.float_info.max  # neither NaN nor infinity compares as smaller, and no integer overflows by it
_PLAIN = {
    bool: Law('True or False', lambda value: isinstance(value, _FLAG)),
    int: Law('an integer', _is_integer),
    float: Law('a finite number', _is_number),
    str: Law('a string', lambda value: isinstance(value, str)),
    NoneType: Law('None', lambda value: value is None),
}


def _equals(one: Any, value: Any) -> bool:
    return isinstance(value, type(one)) and value == one


def _narrow(base: Law | None, law: Law) -> Law:
    if base is None:
        return law
    obeys = base.holds
    joint = ' and ' if base.words[-1].isdigit() else ' '
    return Law(f'{base.words}{joint}{law.words}', lambda value: obeys(value) and law.holds(value))


def _either(laws: Sequence[Law]) -> Law:
    *first, last = [law.words if law is laws[0] else _as(law) for law in laws]
    words = f'{", ".join(first)} or {last}' if first else last
    return Law(words, lambda value: any(law.holds(value) for law in laws))


def _mapping(each: Law | None) -> Law:
    words = f'a dict (each value {each.words})' if each else 'a dict'
    return Law(words, lambda value: isinstance(value, Mapping) and (not each or all(map(each.holds, value.values()))))


def _sequence(parts: tuple) -> Law:
    """Return the law of a sequence whose type has these arguments: one for all, or one for each."""
    each = [_law(part) for part in parts if part is not Ellipsis]
    one_by_one = len(each) > 1
    words = f'a sequence of {len(each)}' if one_by_one else 'a sequence'
    if each and each[0]:
        words += f' (each {each[0].words})'

    def holds(value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return False
        if one_by_one and len(value) != len(each):
            return False
        laws = each if one_by_one else each * len(value)
        return all(law is None or law.holds(item) for law, item in zip(laws, value, strict=False))

    return Law(words, holds)


def _as(law: Law) -> str:
    return f'as {law.words}' if law.words.startswith(('a ', 'an ')) else law.words


_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 100


def _show(value: Any) -> str:
    return _shorten.repr(value)


def _conv2d(
    in_channels: Count,
    out_channels: Count,
    kernel_size: Sides,
    stride: Sides = 1,
    padding: Literal['same', 'valid'] | _Margin | tuple[_Margin, _Margin] = 0,
    dilation: Sides = 1,
    groups: Count = 1,
    bias: bool = True,
    padding_mode: Literal['zeros', 'reflect', 'replicate', 'circular'] = 'zeros',
    device: Annotated[Any, Law("a device of this machine, such as 'cpu', or None", _is_device)] = None,
    dtype: Annotated[torch.dtype, Law('of real or complex numbers', _is_inexact)] | None = None,
) -> None:
    """State the laws of ``nn.Conv2d``'s arguments."""


def check_conv2d(owner: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check the arguments of ``nn.Conv2d``; see :func:`check`."""
    check(owner, _conv2d, args, kwargs)
