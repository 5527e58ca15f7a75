"""Read checkpoints without running what a hostile one holds, hand them to mmengine, and find those of a run.

Every reader of the pack goes through :func:`read`, and :func:`serve` makes mmengine's own readers do so. A file is read as
tensors and plain values. The few classes of older checkpoints are read as stand-ins (:mod:`mmext.inert`). Anything else is
refused. Flipped bytes are found by the checksums of the archive.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmext.errors import CheckpointError, UntrustedError
from mmext.inert import ForeignError, plain, tensors_only

__all__ = [
    'hand_over',
    'newest_checkpoint',
    'read',
    'read_checkpoint',
    'release',
    'serve',
    'state_dict_of',
    'unwrap',
]

#: Checked content that mmengine is about to ask for, by path, with the identity of the file that it was read from.
_handed: dict[str, tuple[tuple[int, ...], Any]] = {}


def read(path: str | Path, trust: bool = False) -> Any:
    """Read a local file that ``torch.save`` wrote, onto the CPU.

    Args:
        path: The file.
        trust: Unpickle any object in it, which can run any code. Only for a file that the user named on the command line.

    Returns:
        What was saved: of tensors, plain values, numeric arrays and mmengine's histories, unless it is trusted.

    Raises:
        UntrustedError: If it holds anything else; the message names the first such global.
        CheckpointError: If there is no such file, or it is damaged.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(
            f'checkpoint {path} is a folder (DeepSpeed and FSDP write such), not a file of torch.save; convert it to one'
        )
    if not file.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; check the path')
    try:
        with file.open('rb') as stream:
            if trust:
                return torch.load(stream, map_location='cpu', weights_only=False)
            _check_archive(stream)
            with tensors_only():
                return plain(torch.load(stream, map_location='cpu', weights_only=True))
    except (MemoryError, UntrustedError):
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        if not trust and (found := _foreign(file, error)):
            raise UntrustedError(
                f'checkpoint {path} holds more than tensors ({found}), and loading that can run any code; if you trust '
                'where the file is from, name it on the command line and pass --trust'
            ) from error
        raise CheckpointError(
            f'checkpoint {path} cannot be loaded: the file of {file.stat().st_size} bytes is truncated or corrupt '
            f'({_reason(error)}); use an earlier checkpoint of the run (--resume without a path finds the newest good one) '
            'or copy it again'
        ) from error


def _check_archive(stream: BinaryIO) -> None:
    """Refuse archives that torch reads by other means than its restricted unpickler, and those with flipped bytes."""
    if tarfile.is_tarfile(stream):
        raise ForeignError("a tar archive of torch's first versions")
    stream.seek(0)
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        return
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith('/constants.pkl') for entry in entries):
            raise ForeignError('a TorchScript program')
        wrong = [entry.filename for entry in entries if not _intact(archive, entry)]
    # torch can be told to leave the checksums out; then all of them are wrong.
    if wrong and len(wrong) < len(entries):
        raise ValueError(f'the checksum of {wrong[0]} is wrong')
    stream.seek(0)


def _intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as content:
            while content.read(1 << 20):
                pass
    except (zipfile.BadZipFile, zlib.error):
        return False
    return True


def _foreign(file: Path, error: Exception) -> str | None:
    """Return what in a file is not allowed, None if the file is damaged."""
    if isinstance(error, ForeignError):
        return str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r'GLOBAL ([\w.]+)', str(error)) or re.search(r"(?:function|got) <\w+ '?([\w.]+)", str(error))
    # A pickle of another protocol is refused without a name.
    return (
        named[1] if named else next((n for n in _globals_of(file) if not n.startswith(('torch', 'collections'))), None)
    )


def _globals_of(file: Path) -> Iterator[str]:
    """Name the globals of a file's pickles, of any protocol, without unpickling."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = archive.read(next(n for n in archive.namelist() if n.endswith('/data.pkl')))
        else:
            content = file.read_bytes()
        words: list[str] = []
        for operation, value, _ in pickletools.genops(content):
            if operation.name == 'GLOBAL':
                yield str(value).replace(' ', '.')
            elif operation.name == 'STACK_GLOBAL':
                yield '.'.join(words[-2:])
            elif isinstance(value, str):
                words.append(value)
    except (ValueError, StopIteration, OSError, KeyError, zipfile.BadZipFile):
        return


def _reason(error: Exception) -> str:
    """Return what was found, without the advice of torch."""
    text = str(error).rpartition('WeightsUnpickler error: ')[2].strip()
    return text.partition('\n')[0].partition('. ')[0] or type(error).__name__


def read_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint, see :func:`read`.

    Raises:
        CheckpointError: As there, or if it holds no dictionary.
    """
    checkpoint = read(path, trust)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary with a state_dict; '
            'save model.state_dict() instead of the model'
        )
    return checkpoint


def serve() -> None:
    """Make mmengine read checkpoints by :func:`read`, through the schemes of its ``CheckpointLoader``.

    A local file that was handed over is not opened again. What a remote scheme downloads is read as tensors only.
    """
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if not hasattr(loader, 'reads_tensors_only'):
            CheckpointLoader.register_scheme(prefix, _local if prefix == '' else _guarded(loader), force=True)


def _local(filename: str, map_location: Any = None) -> Any:
    """Return what was handed over for ``filename``, else read it."""
    identity, content = _handed.get(_key(filename), ((), None))
    if not identity or identity != _identity(filename):
        content = read(filename)
    return _moved(content, map_location) if isinstance(map_location, (str, torch.device)) else content


# mmengine logs the name without its first ten letters.
_local.__name__ = 'load_from_local'
_local.reads_tensors_only = True  # type: ignore[attr-defined]


def _guarded(loader: Callable) -> Callable:
    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> Any:
        try:
            with tensors_only():
                return plain(loader(filename, map_location))
        except (pickle.UnpicklingError, ForeignError) as error:
            raise UntrustedError(
                f'checkpoint {filename} holds more than tensors ({_reason(error)}), and loading that can run any code; '
                'download it, name the file on the command line and pass --trust if you trust it'
            ) from error

    load.reads_tensors_only = True  # type: ignore[attr-defined]
    return load


def _moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        moved = {k: _moved(v, device) for k, v in value.items()}
        if type(value) is dict:
            return moved
        ordered = type(value)(moved)
        ordered.__dict__.update(value.__dict__)
        return ordered
    return type(value)(_moved(v, device) for v in value) if type(value) in (list, tuple) else value


def hand_over(path: str | Path, content: Any) -> None:
    """Let mmengine have ``content`` when it asks for the local file ``path``, as long as that is the same file."""
    _handed[_key(path)] = _identity(path), content


def release() -> None:
    """Forget what was handed over, to free its memory."""
    _handed.clear()


def _key(path: str | Path) -> str:
    return os.path.abspath(Path(path).expanduser())


def _identity(path: str | Path) -> tuple[int, ...]:
    try:
        stat = Path(path).expanduser().stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def newest_checkpoint(work_dir: str | Path, *more: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Return the newest checkpoint of a run that loads and its content, or None if the run has saved nothing yet.

    The files of the work dir are asked, newest first, and those of the folders ``more`` that the config names. The text file
    ``last_checkpoint`` is not followed. A killed run of mmengine's own tools may leave a file truncated. If that is the
    first one that it ever wrote, there is nothing to go on from.

    Raises:
        UntrustedError: If one holds more than tensors.
        CheckpointError: If there are checkpoints, at least one was once complete, and none of them loads.
    """
    folders = {Path(work_dir).resolve(), *(Path(folder).resolve() for folder in more)}
    found = [p for folder in folders for kind in ('epoch_*', 'iter_*') for p in folder.glob(f'{kind}.pth')]
    skipped = []
    for path in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
        if path.is_dir():
            raise UntrustedError(
                f'{path} is a folder (of DeepSpeed or FSDP), whose reader can run any code; pass --resume {path} --trust '
                'if you trust it'
            )
        try:
            return str(path), read_checkpoint(path)
        except UntrustedError:
            raise
        except CheckpointError as error:
            print_log(f'skipped while looking for a checkpoint to resume from: {error}', 'current', logging.WARNING)
            skipped.append(path.name)
    pointer = Path(work_dir) / 'last_checkpoint'
    # It is written after a checkpoint: where it says nothing, the first one was cut off while it was written.
    if skipped and pointer.is_file() and pointer.read_text(errors='replace').strip('\0 \n'):
        raise CheckpointError(
            f'no checkpoint in {work_dir} loads ({", ".join(skipped)}); move them away and start without --resume'
        )
    return None


def state_dict_of(checkpoint: dict) -> dict[str, Tensor]:
    """Return the tensors as mmengine will see them: of ``state_dict`` or of the file itself, without ``module.``."""
    state = checkpoint.get('state_dict', checkpoint)
    if isinstance(state, Mapping) and (
        wrong := [k for k, v in state.items() if isinstance(v, Tensor) and type(k) is not str]
    ):
        raise CheckpointError(
            f'the checkpoint names a tensor by {wrong[0]!r}, a {type(wrong[0]).__name__}; names of parameters are text, save '
            'model.state_dict()'
        )
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise CheckpointError(
            f'the checkpoint holds no state_dict, only {sorted(map(str, checkpoint))[:5]}; '
            'pass a file that mmengine or torch.save(model.state_dict(), ...) wrote'
        )
    if sparse := [k for k, v in tensors.items() if v.layout != torch.strided]:
        raise CheckpointError(
            f'the checkpoint holds {sparse[0]} (and {len(sparse) - 1} more) as {tensors[sparse[0]].layout}, which no model of '
            'the hosts loads; save it with .to_dense()'
        )
    return {k.removeprefix('module.'): v for k, v in tensors.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what distributes it or augments its tests."""
    wrapped = is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    return unwrap(model.get_submodule('module')) if wrapped else model
