"""Rules of surgery: which layers of a model are meant, and what happens there."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.registry import require, takes

__all__ = ['Insertion', 'Rule', 'as_pair', 'choose', 'parse']


@dataclass
class Rule:
    """Which layers to replace and by what; a layer must pass every condition that is given.

    Args:
        to: Config of the new layer. What the old layer already says (channels, kernel, stride, ...) is filled in.
        match: Regular expression, searched in the dotted name.
        layer: Class of the old layer, its name or its dotted path; 'Conv2d' where ``to`` is a convolution.
        kernel_size: Kernel, an int for a square one.
        stride: Stride, an int for equal ones.
        groups: Number of groups.
        depthwise: Whether groups equals both channel counts.
        stage: The number in the layer's ``layerN``, ``stageN`` or ``stages.N``, as the model itself counts.
        first: Take only the first so many.
        skip: Regular expression of names to leave alone.
        keep_weights: Whether a generated kernel starts as the old layer's. By default yes if the model was passed as a
            built module. A model built from a config has random weights, and there each system's own initialization is
            better. A checkpoint that is loaded later is taken in any case.
        channel_axis: Where the channels of an activation's input are, 1 or -1. A trial finds that out; say it, together with
            ``num_channels`` in ``to``, where the model cannot be tried.
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
    channel_axis: int | None = None
    written: dict = field(init=False, repr=False)
    cls: Any = field(init=False, repr=False)
    _learns: bool | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.cls = require(self.to)
        if self.layer is not None:  # a class, or its path as mmengine dumps it
            self.layer = getattr(self.layer, '__name__', str(self.layer)).rpartition('.')[2]
        if self.layer is None:
            if not (inspect.isclass(self.cls) and issubclass(self.cls, nn.Conv2d)):
                raise ValueError(
                    f"swap_layers needs layer='ClassName' in a rule whose target is no convolution, got to={self.to}; "
                    "for an activation write layer='ReLU'"
                )
            self.layer = 'Conv2d'

    def takes(self, argument: str) -> bool:
        """Tell whether the new layer has an argument of this name."""
        return takes(self.cls, argument)

    @property
    def learns(self) -> bool:
        """Whether the new layer has parameters or statistics."""
        if self._learns is None:
            asked = dict(num_channels=8) if self.takes('num_channels') else {}
            self._learns = bool(asked) or bool(ROOT_MODELS.build({**asked, **self.to}).state_dict())
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
                ('kernel_size', as_pair(self.kernel_size)),
                ('stride', as_pair(self.stride)),
                ('groups', self.groups),
            )
        )


@dataclass
class Insertion:
    """Where to put a block; exactly one of ``after``, ``before`` and ``around`` is given.

    Args:
        insert: Config of the block. ``num_channels``, ``channels``, ``in_channels`` and ``out_channels`` are filled in where
            its signature has them and the config does not.
        after: Regular expression of the whole dotted name of a layer or stage. Its output goes through the block.
        before: The same; its input goes through the block.
        around: The same; the block gets both, ``block(x, y)``, and returns the new output. See
            :class:`mmext.ParallelBranch`.
        first: Take only the first so many.
        skip: Regular expression, searched in names to leave alone.
        identity: Whether the model computes the same as before at the start. Where the block does not do that itself, its
            effect is multiplied by one learned number that starts at 0.
    """

    insert: dict
    after: str | None = None
    before: str | None = None
    around: str | None = None
    first: int | None = None
    skip: str | None = None
    identity: bool = True
    written: dict = field(init=False, repr=False)
    cls: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.cls = require(self.insert)

    @property
    def where(self) -> str:
        """Which of the three it is."""
        return next(key for key in _PLACES if getattr(self, key) is not None)

    def takes(self, argument: str) -> bool:
        """Tell whether the block has an argument of this name."""
        return takes(self.cls, argument)

    def find(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules that are meant, by name.

        Raises:
            ValueError: If there are none; the message names the nearest names.
        """
        pattern = getattr(self, self.where)
        named = {n: m for n, m in model.named_modules() if n}
        found = {n: m for n, m in named.items() if re.fullmatch(pattern, n)}
        found = {n: m for n, m in found.items() if not (self.skip and re.search(self.skip, n))}
        if not found:
            near = difflib.get_close_matches(pattern, named, n=5, cutoff=0.0)
            raise ValueError(
                f'swap_layers found nothing in {type(model).__name__} for the rule {self.written}, whose {self.where} must '
                f'match a whole name; the nearest names are {near}'
            )
        return dict(list(found.items())[: self.first])


_PLACES = ('after', 'before', 'around')


def as_pair(value: Any) -> Any:
    """Return a number as a pair, anything else as a tuple or as it is."""
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _several(one: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        if not isinstance(value, (list, tuple)):
            return one(value)
        return all(map(one, value)) and len(value) in ((count,) if count else range(1, 99))

    return holds


_TEXT = ('a regular expression in quotes', lambda value: isinstance(value, str))
_FLAG = ('True or False', lambda value: isinstance(value, bool))
_SIZE = ('a whole number from 1 on, or two of them,', _several(_whole(1), 2))
_CONFIG = ("a config, dict(type='mmext.Name', ...),", lambda value: isinstance(value, Mapping) and 'type' in value)
#: What a value must be, in words and as a test; None is as good as no value where there is a default.
_LAWS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'to': _CONFIG,
    'insert': _CONFIG,
    'match': _TEXT,
    'skip': _TEXT,
    'after': _TEXT,
    'before': _TEXT,
    'around': _TEXT,
    'layer': ('a class or its name', lambda value: isinstance(value, str) or inspect.isclass(value)),
    'kernel_size': _SIZE,
    'stride': _SIZE,
    'groups': ('a whole number from 1 on', _whole(1)),
    'stage': ('a whole number, or several,', _several(_whole(0))),
    'first': ('a whole number from 1 on', _whole(1)),
    'depthwise': _FLAG,
    'keep_weights': _FLAG,
    'identity': _FLAG,
    'channel_axis': ('1 or -1', lambda value: value in (1, -1)),
}


def parse(rule: Any) -> Rule | Insertion:
    """Read one rule of a config.

    Raises:
        ValueError: If it is none; in one sentence.
    """
    if not isinstance(rule, Mapping):
        raise ValueError(
            f"swap_layers takes dictionaries as rules, dict(to=dict(type='mmext.Name'), ...), got {rule!r}"
        )
    kind: type[Rule | Insertion] = Insertion if 'insert' in rule else Rule
    known = {f.name for f in fields(kind) if f.init}
    if unknown := set(rule) - known:
        raise ValueError(f'swap_layers rules take {sorted(known)}, got {sorted(unknown)} in {dict(rule)}')
    main = 'insert' if kind is Insertion else 'to'
    for key, value in {main: None, **rule}.items():
        law, holds = _LAWS[key]
        if (value is not None or key == main) and not holds(value):
            needs = f"needs {main}=dict(type='mmext.Name', ...)" if key == main else f'takes {law} as {key}'
            raise ValueError(f'swap_layers {needs} in every rule, got {value!r} in {dict(rule)}')
        if law == _TEXT[0]:
            _refuse_no_pattern(key, value)
    if kind is Insertion and sum(rule.get(key) is not None for key in _PLACES) != 1:
        raise ValueError(f'swap_layers needs one of {", ".join(_PLACES)} with insert, got {dict(rule)}')
    parsed = kind(**{k: v for k, v in rule.items() if v is not None})
    parsed.written = dict(rule)
    return parsed


def _refuse_no_pattern(key: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or '')
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f'swap_layers takes a regular expression as {key}, and {pattern!r} is none ({error}); write '
            r'\( for a bracket and \. for a dot'
        ) from error


def choose(model: nn.Module, rules: Sequence[Rule]) -> dict[str, tuple[nn.Module, Rule]]:
    """Map the name of every layer to be replaced to (layer, rule); a shared layer appears under each of its names."""
    named = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if n]
    chosen: dict[str, tuple[nn.Module, Rule]] = {}
    for rule in rules:
        wanted = [(n, m) for n, m in named if rule.wants(n, m)]
        free = [(n, m) for n, m in wanted if n not in chosen][: rule.first]
        if not free:
            _refuse(model, rule, wanted, chosen, named)
        chosen.update({n: (m, rule) for n, m in free})
    # A shared layer that a rule wants under one of its names is replaced under all of them.
    by_id = {id(m): (m, rule) for m, rule in chosen.values()}
    return {n: by_id[id(m)] for n, m in named if id(m) in by_id}


def _refuse(
    model: nn.Module,
    rule: Rule,
    wanted: list[tuple[str, nn.Module]],
    chosen: dict[str, tuple[nn.Module, Rule]],
    named: list[tuple[str, nn.Module]],
) -> None:
    if wanted:
        raise ValueError(
            f'swap_layers finds nothing left for the rule {rule.written}: an earlier rule, {chosen[wanted[0][0]][1].written}, '
            f'took all {len(wanted)} layers that it wants ({wanted[0][0]}, ...); put the narrower rule first'
        )
    names = [n for n, m in named if type(m).__name__ == rule.layer]
    if not names:
        classes = sorted({type(m).__name__ for _, m in named})
        raise ValueError(
            f'swap_layers found no layer of class {rule.layer} in {type(model).__name__}; its nearest classes are '
            f'{difflib.get_close_matches(str(rule.layer), classes, n=5, cutoff=0.0)}'
        )
    near = difflib.get_close_matches(rule.match or str(rule.layer), names, n=5, cutoff=0.0)
    raise ValueError(
        f'swap_layers found no layer in {type(model).__name__} for the rule {rule.written}; of its '
        f'{len(names)} {rule.layer} layers the nearest names are {near}'
    )
