"""State dicts of other networks: where a file holds one, and other names for its tensors."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmext.errors import UsageError

__all__ = ['rename', 'state_dict_in']

NESTS = ('state_dict', 'model', 'model_ema')


def state_dict_in(content: Any, key: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the state dict that a file holds, without ``module.`` in its names, and where it was found.

    Values other than tensors stay: one system lists its ranks beside them.

    Args:
        content: What :func:`mmext.checkpoints.read` returned, or a model.
        key: Where the state dict is in it. By default the first of ``state_dict``, ``model`` and ``model_ema``.

    Raises:
        UsageError: If there is none, or two names differ by ``module.`` alone.
    """
    where = ''
    if isinstance(content, Mapping):
        where = key or next((k for k in NESTS if isinstance(content.get(k), (Mapping, nn.Module))), '')
        if key and key not in content:
            raise UsageError(f'the checkpoint has no {key}, only {", ".join(map(str, list(content)[:8]))}')
    inside = content[where] if where else content
    state = inside.state_dict() if isinstance(inside, nn.Module) else inside
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        have = ', '.join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise UsageError(f'there is no state dict in the checkpoint, only {have or "nothing"}; name its place by --key')
    names = Counter(str(k).removeprefix('module.') for k in state)
    if len(names) < len(state):
        raise UsageError(
            f'the checkpoint holds {names.most_common(1)[0][0]} twice, with and without "module." before it'
        )
    return dict(zip(names, state.values(), strict=True)), where


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """Give names other beginnings, then other parts. Of several prefixes the longest that fits a name counts.

    Raises:
        UsageError: If a prefix or a pattern fits no name, or two tensors would get the same one.
    """
    for old in prefixes:
        if not any(k.startswith(old) for k in state):
            starts = sorted({k.split('.')[0] for k in state})
            near = difflib.get_close_matches(old.rstrip('.'), starts, n=3, cutoff=0.0)
            raise UsageError(f'--prefix: no name begins with {old!r}; the nearest beginnings are {", ".join(near)}')
    new = {k: k for k in state}
    for key in new:
        fitting = [p for p in prefixes if key.startswith(p)]
        if fitting:
            old = max(fitting, key=len)
            new[key] = prefixes[old] + key[len(old) :]
    for pattern, replacement in patterns.items():
        try:
            changed = {k: re.sub(pattern, replacement, name) for k, name in new.items()}
        except re.error as error:
            raise UsageError(f'--rename takes a regular expression, {pattern!r} is none ({error})') from error
        if changed == new:
            raise UsageError(f'--rename: {pattern!r} is found in no name, such as {", ".join(list(new.values())[:3])}')
        new = changed
    name, times = Counter(new.values()).most_common(1)[0]
    if times > 1:
        raise UsageError(f'--prefix and --rename give {times} tensors the name {name}')
    return {new[k]: v for k, v in state.items()}
