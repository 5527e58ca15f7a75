"""Checkpoints as their authors published them, named in a config in the place of converted ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmext.checkpoints import read
from mmext.converters import SYSTEMS, convert, recognize, state_dict_in
from mmext.errors import CheckpointError, UsageError
from mmext.hosts import loads_weights

__all__ = ['local_files', 'published_state']


def local_files(module: nn.Module) -> list[dict[str, Any]]:
    """Return those entries of the module's ``init_cfg`` that load a local file."""
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
    # What is downloaded or comes from a model zoo is mmengine's to check.
    return [c for c in cfgs if loads_weights(c) and '://' not in (c.get('checkpoint') or '://')]


def published_state(module: nn.Module, path: str | Path, content: Any = None) -> dict[str, Tensor] | None:
    """Return what a file says of ``module`` if its authors wrote the file, under the names of here.

    Args:
        module: What the file is to be loaded into.
        path: The file.
        content: What is in it, where it was read already.

    Returns:
        The tensors, or None if the file has the names of here, or belongs to no system that has a converter.

    Raises:
        CheckpointError: If the file is of a system that is not this module's, or of another variant of its network.
    """
    try:
        saved = state_dict_in(read(path) if content is None else content)[0]
    except CheckpointError:
        raise
    except UsageError:  # who loads the file says what is wrong with it
        return None
    own = {k: v for k, v in module.state_dict().items() if not k.endswith('num_batches_tracked')}
    name = None if own.keys() <= saved.keys() else recognize(saved)
    if name is None:
        return None
    kind = type(module).__name__
    if SYSTEMS[name].target != kind:
        raise CheckpointError(
            f'{path} is a file of the authors of {name}, whose tensors {kind} does not know by these names; convert it first: '
            f'python tools/model_converters/convert.py {name} {path} {Path(path).stem}_converted.pth'
        )
    converted = convert(name, saved)
    # Scales that are not built and the norms of other outputs are no sign of another variant.
    built = {_scale(key) for key in own}
    strange = [k for k in converted.state if k not in own and _scale(k) in built]
    strange = [k for k in strange if not k.endswith('num_batches_tracked')]
    shapes = [k for k, v in converted.state.items() if k in own and v.shape != own[k].shape]
    missing = [k for k in own if k not in converted.state and not k.startswith('out_norms.')]
    if wrong := strange or shapes or missing:
        raise CheckpointError(
            f'{path} is a file of the authors of {name}, but not of this variant: {len(strange)} tensors more, {len(missing)} '
            f'less, {len(shapes)} of another shape, such as {wrong[0]}; set the arch that it was trained with'
        )
    print_log(f'{path} is a file of the authors of {name}: converted {len(converted.state)} tensors', 'current')
    return converted.state


def _scale(key: str) -> str:
    return '.'.join(key.split('.')[:2])
