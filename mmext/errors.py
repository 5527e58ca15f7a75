"""Errors that a user can mend: the tools show their one sentence without a traceback."""

from __future__ import annotations

__all__ = ['CheckpointError', 'UntrustedError', 'UsageError']


class UsageError(ValueError):
    """An argument or a config that cannot work; :func:`mmext.cli.run` shows the message without a traceback."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be used as asked; the message names it, says why, and what to do."""


class UntrustedError(CheckpointError):
    """A checkpoint that holds more than tensors and plain values, so that reading it could run any code."""
