"""Rules of surgery: which layers of a model are meant, and what stands there afterwards."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

__all__ = ['Rule', 'choose', 'parse']


@dataclass
class Rule:
    """Which layers to replace and by what; a layer must pass every condition that is given.

    Args:
        to: Config of the new layer. What the old layer already says (channels, kernel, stride, ...) is filled in.
        match: Regular expression, searched in the dotted name.
        layer: Class name of the old layer; 'Conv2d' where ``to`` is a convolution.
        kernel_size: Kernel, an int for a square one.
        stride: Stride, an int for equal ones.
        groups: Number of groups.
        depthwise: Whether groups equals both channel counts.
        stage: The number in the layer's ``layerN``, ``stageN`` or ``stages.N``, as the model itself counts.
        first: Take only the first so many.
        skip: Regular expression of names to leave alone.
        keep_weights: Whether a generated kernel starts as the old layer's. By default only where the model was given
            built: one built from a config has learned nothing yet, and each system's own start is the better one. A
            checkpoint that is loaded later is taken in any case.
    """

    to: dict
    match: str = ''
    layer: str | None = None
    kernel_size: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    groups: int | None = None
    depthwise: bool | None = None
    stage: int | Sequence[int] | None = None
    first: int | None = None
    skip: str | None = None
    keep_weights: bool | None = None
    cls: Any = field(init=False, repr=False)
    _learns: bool | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.cls = ROOT_MODELS.get(self.to['type']) if isinstance(self.to['type'], str) else self.to['type']
        if self.cls is None:
            raise KeyError(
                f'swap_layers does not know the layer type {self.to["type"]!r}; is its scope prefix missing?'
            )
        if self.layer is None:
            if not (inspect.isclass(self.cls) and issubclass(self.cls, nn.Conv2d)):
                raise ValueError(
                    f"swap_layers needs layer='ClassName' in a rule whose target is no convolution, got to={self.to}; "
                    "for an activation write layer='ReLU'"
                )
            self.layer = 'Conv2d'
        for key in ('match', 'skip'):
            try:
                re.compile(getattr(self, key) or '')
            except re.error as error:
                raise ValueError(
                    f'swap_layers takes a regular expression as {key}, and {getattr(self, key)!r} is none ({error}); write '
                    r'\( for a bracket and \. for a dot'
                ) from error

    @property
    def takes_channels(self) -> bool:
        """Whether the new layer asks for the number of channels that it is given."""
        return 'num_channels' in inspect.signature(self.cls).parameters

    @property
    def learns(self) -> bool:
        """Whether the new layer has parameters or statistics."""
        if self._learns is None:
            asked = dict(num_channels=8) if self.takes_channels else {}
            self._learns = self.takes_channels or bool(ROOT_MODELS.build({**asked, **self.to}).state_dict())
        return self._learns

    def wants(self, name: str, module: nn.Module) -> bool:
        if type(module).__name__ != self.layer or not re.search(self.match, name):
            return False
        if self.skip is not None and re.search(self.skip, name):
            return False
        if self.stage is not None:
            found = re.search(r'\b(?:layer|stage|stages\.)(\d+)\b', name)
            stages = (self.stage,) if isinstance(self.stage, int) else self.stage
            if not found or int(found[1]) not in stages:
                return False
        if self.depthwise is not None:
            depthwise = (
                getattr(module, 'groups', 1) == getattr(module, 'in_channels', 0) == getattr(module, 'out_channels', 0)
            )
            if depthwise != self.depthwise:
                return False
        return all(
            wanted is None or getattr(module, key, None) == wanted
            for key, wanted in (
                ('kernel_size', _as_pair(self.kernel_size)),
                ('stride', _as_pair(self.stride)),
                ('groups', self.groups),
            )
        )


def _as_pair(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    return value if value is None else (value, value) if isinstance(value, int) else tuple(value)


def parse(rule: dict) -> Rule:
    """Read one rule of a config."""
    known = {f.name for f in fields(Rule) if f.init}
    if unknown := set(rule) - known:
        raise ValueError(f'swap_layers rules take {sorted(known)}, got {sorted(unknown)} in {rule}')
    if 'to' not in rule or 'type' not in rule['to']:
        raise ValueError(f"swap_layers needs to=dict(type='mmext.Name', ...) in every rule, got {rule}")
    return Rule(**rule)


def choose(model: nn.Module, rules: Sequence[Rule]) -> dict[str, tuple[nn.Module, Rule]]:
    """Map the name of every layer to be replaced to (layer, rule); a shared layer appears under each of its names."""
    named = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if n]
    chosen: dict[str, tuple[nn.Module, Rule]] = {}
    for rule in rules:
        wanted = [(n, m) for n, m in named if n not in chosen and rule.wants(n, m)][: rule.first]
        if not wanted:
            names = [n for n, m in named if type(m).__name__ == rule.layer]
            if not names:
                classes = sorted({type(m).__name__ for _, m in named})
                raise ValueError(
                    f'swap_layers found no layer of class {rule.layer} in {type(model).__name__}; its nearest classes are '
                    f'{difflib.get_close_matches(str(rule.layer), classes, n=5, cutoff=0.0)}'
                )
            near = difflib.get_close_matches(rule.match or rule.layer, names, n=5, cutoff=0.0)
            conditions = {f.name: v for f in fields(rule) if f.init and (v := getattr(rule, f.name)) not in (None, '')}
            raise ValueError(
                f'swap_layers found no layer in {type(model).__name__} for the rule {conditions}; of its '
                f'{len(names)} {rule.layer} layers the nearest names are {near}'
            )
        chosen.update({n: (m, rule) for n, m in wanted})
    # A shared layer that a rule wants under one of its names is replaced under all of them.
    by_id = {id(m): (m, rule) for m, rule in chosen.values()}
    return {n: by_id[id(m)] for n, m in named if id(m) in by_id}
