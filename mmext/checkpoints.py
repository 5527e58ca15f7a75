"""Read checkpoints, and compare their tensors with a model: what cannot be right is refused in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmext.contracts import FitsWhole, StartsFromKernel, find, optional_state
from mmext.errors import CheckpointError

__all__ = ['compare', 'load_all', 'newest_loadable', 'read_checkpoint', 'state_dict_of', 'unwrap']


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a local checkpoint onto the CPU with mmengine's own loader.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, or it holds no dictionary.
    """
    if not Path(path).expanduser().is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; check the path')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = str(error).partition('\n')[0].partition('. ')[0] or type(error).__name__
        raise CheckpointError(
            f'checkpoint {path} ({Path(path).expanduser().stat().st_size} bytes) is truncated or corrupt ({reason}); '
            'use an earlier checkpoint of the run (--resume without a path finds the newest good one) or copy it again'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary with a state_dict; '
            'save model.state_dict() instead of the model'
        )
    return checkpoint


def newest_loadable(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a run that loads, or None if the run has saved nothing yet.

    mmengine writes a checkpoint, then the file ``last_checkpoint``, neither atomically: a killed run may leave either
    truncated, or the second one behind the first. So the files themselves are asked, newest first. A checkpoint
    that is a folder (DeepSpeed, FSDP) is taken as it is.

    Raises:
        CheckpointError: If there are checkpoints and none of them loads.
    """
    folders, pointer = {Path(work_dir)}, Path(work_dir) / 'last_checkpoint'
    if pointer.is_file() and (target := pointer.read_text(errors='replace').strip('\0 \n')):
        folders.add(Path(target).parent)  # CheckpointHook's out_dir may lie elsewhere
    found = {p.resolve() for folder in folders for kind in ('epoch_*', 'iter_*') for p in folder.glob(f'{kind}.pth')}
    skipped = []
    for path in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
        try:
            if not path.is_dir():
                read_checkpoint(path)
        except CheckpointError as error:
            print_log(f'skipped while looking for a checkpoint to resume from: {error}', 'current', logging.WARNING)
            skipped.append(path.name)
        else:
            return str(path)
    if skipped:
        raise CheckpointError(
            f'no checkpoint in {work_dir} loads ({", ".join(skipped)}); move them away and start without --resume'
        )
    return None


def state_dict_of(checkpoint: dict) -> dict[str, Tensor]:
    """Return the tensors as mmengine will see them: of ``state_dict`` or of the file itself, without ``module.``."""
    state = checkpoint.get('state_dict', checkpoint)
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise CheckpointError(
            f'the checkpoint holds no state_dict, only {sorted(map(str, checkpoint))[:5]}; '
            'pass a file that mmengine or torch.save(model.state_dict(), ...) wrote'
        )
    return {k.removeprefix('module.'): v for k, v in tensors.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what distributes it or augments its tests."""
    wrapped = is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    return unwrap(model.get_submodule('module')) if wrapped else model


def compare(saved: dict[str, Tensor], model: nn.Module, what: str, logger: logging.Logger) -> None:
    """Refuse what cannot work; else log one line, as a warning if anything does not fit."""
    own = model.state_dict()
    _refuse_unfolded(saved, own)
    # Layers that keep no kernel and yet start from a plain one: they take it, and their own keys are not missed.
    takers = {f'{name}.' for name, m in find(model, StartsFromKernel) if m.loads_kernel and f'{name}.weight' in saved}
    takers = {p for p in takers if not any(k in saved for k in own if k.startswith(p) and k != f'{p}bias')}
    own = {k: v for k, v in own.items() if not any(k.startswith(p) and k != f'{p}bias' for p in takers)}
    own |= {f'{p}weight': saved[f'{p}weight'] for p in takers}
    own |= {k: saved[k] for k in optional_state(model) if k in saved}
    loaded = [k for k in own if k in saved and _fits(saved[k], own[k])]
    missing = [k for k in own if k not in saved and not k.endswith('num_batches_tracked')]
    unexpected = [k for k in saved if k not in own]
    shapes = [k for k in own if k in saved and not _fits(saved[k], own[k])]
    if not loaded:
        raise CheckpointError(
            f'{what}: no tensor fits ({_named(unexpected or shapes)} in the checkpoint, '
            f'{_named(missing or shapes)} in the model); it belongs to another model, check config, checkpoint and prefix'
        )
    if isinstance(model, FitsWhole) and model.fits_whole and (missing or unexpected or shapes):
        raise CheckpointError(
            f'{what} fits {type(model).__name__} in part only: {_named(missing)} missing, {_named(unexpected)} unexpected, '
            f'{_named(shapes)} of another shape; use the config that it was trained with'
        )
    logger.log(
        logging.WARNING if missing or unexpected or shapes else logging.INFO,
        f'{what}: {len(loaded)} tensors loaded, {_named(missing)} missing, {_named(unexpected)} unexpected, '
        f'{_named(shapes)} of another shape',
    )


def _refuse_unfolded(saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """A generated kernel's source is saved with a leading axis of length 1; a plain layer's kernel has none."""
    unfolded = [k for k in own if k in saved and saved[k].ndim == 5 and saved[k].shape == (1, *own[k].shape)]
    if unfolded:
        raise CheckpointError(
            f'the checkpoint holds the unfolded kernel of {unfolded[0].removesuffix(".weight")} '
            f'(and of {len(unfolded) - 1} more layers), where the model has a plain convolution; fold the checkpoint '
            'with `python tools/deploy.py CONFIG CHECKPOINT OUT`, or use the config that it was trained with'
        )


def _fits(saved: Tensor, own: Tensor | Any) -> bool:
    """Equal shapes; a plain kernel also fits a layer that generates its own from it."""
    shape = getattr(own, 'shape', torch.Size())
    return saved.shape == shape or (len(shape) == 5 and (1, *saved.shape) == shape)


def _named(keys: list[str]) -> str:
    few = ', '.join(keys[:3]) + (', ...' if len(keys) > 3 else '')
    return f'{len(keys)} ({few})' if keys else '0'


def load_all(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that must fit without a missing or unexpected key.

    Raises:
        RuntimeError: If they do not; in one sentence.
    """
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as misfit:
        # The first line names the class, each of the others a tensor.
        lines = str(misfit).splitlines()[1:] or [str(misfit)]
        raise RuntimeError(
            f'the checkpoint does not fit the model: {lines[0].strip().rstrip(".")}, and {len(lines) - 1} more like it; pass '
            'the config that it was trained with'
        ) from misfit
    if missing or unexpected:
        raise RuntimeError(
            f'the checkpoint does not fit the model: {len(missing)} keys are missing ({missing[:3]} ...) and '
            f'{len(unexpected)} unexpected ({unexpected[:3]} ...); pass the config that it was trained with'
        )
