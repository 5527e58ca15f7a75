"""Write files at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mmext.errors import UsageError

__all__ = ['write_whole']


def write_whole(path: str | Path, content: bytes) -> None:
    """Write ``content`` under a temporary name and rename it, so that ``path`` is never seen in part.

    Raises:
        UsageError: If it cannot be written; what was there before stays.
    """
    target = Path(path)
    partial = target.with_name(f'{target.name}.partial')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise UsageError(
            f'{path} cannot be written ({error.strerror or error}); make room or choose another folder (a training goes on '
            'with --resume)'
        ) from error
