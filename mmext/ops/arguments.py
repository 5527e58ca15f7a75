"""The laws of the arguments that operators have in common."""

from __future__ import annotations

from operator import index
from typing import Any, cast

import torch

__all__ = ['MOST', 'integer', 'pair']

MOST = 2**31 - 1
"""The largest kernel, stride, dilation or padding: products of two of them still fit into 64 bits."""


def integer(name: str, value: Any, least: int = 1) -> int:
    """Return ``value``, an integer of any kind, as an ``int``.

    Raises:
        ValueError: If it is none, or out of range.
    """
    number = _whole(value)
    if number is None or not least <= number <= MOST:
        raise ValueError(f'{name} must be an integer from {least} to 2^31 - 1, got {value!r}')
    return number


def pair(name: str, value: Any, least: int = 1) -> list[int]:
    """Return ``value``, an integer or a tuple or list of one or two, as [vertical, horizontal].

    Raises:
        ValueError: If it is anything else, or out of range.
    """
    entries = [_whole(v) for v in (value if isinstance(value, (tuple, list)) else (value,))]
    numbers = [n for n in entries if n is not None and least <= n <= MOST]
    if len(numbers) != len(entries) or len(numbers) not in (1, 2):
        raise ValueError(
            f'{name} must be an integer from {least} to 2^31 - 1, or two of them (vertical, horizontal), got {value!r}'
        )
    return numbers * 2 if len(numbers) == 1 else numbers


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return cast('int', value)
    try:
        return index(value)
    except TypeError:
        return None
