"""Write files at once or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mmext.errors import UsageError

__all__ = ['settle', 'write_whole']


def settle(path: str | Path) -> None:
    """Wait until the disk has a file, or the names in a folder: a power cut then leaves the old file or the new one."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder cannot be opened on Windows
        if Path(path).is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)


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
        settle(partial)
        os.replace(partial, target)
        settle(target.parent)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise UsageError(
            f'{path} cannot be written ({error.strerror or error}); make room or choose another folder (a training goes on '
            'with --resume)'
        ) from error
