"""Errors that a user can mend: the tools show their one sentence without a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = ['CheckpointError', 'UntrustedError', 'UsageError', 'reason']


class UsageError(ValueError):
    """An argument or a config that cannot work; :func:`mmext.cli.run` shows the message without a traceback."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be used as asked; the message names it, says why, and what to do."""


class UntrustedError(CheckpointError):
    """A checkpoint that holds more than tensors and plain values, so that reading it could run any code."""


def reason(error: BaseException) -> str:
    """Return the first line of what an error says; where it says nothing, the place that raised it."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(text).strip().splitlines()
    if lines:
        return lines[0] if isinstance(error, UsageError) else f'{type(error).__name__}: {lines[0]}'
    frames = traceback.extract_tb(error.__traceback__)
    where = f' in {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}' if frames else ''
    return f'{type(error).__name__}{where}'
