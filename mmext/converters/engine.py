"""Run a system's converter over a state dict of its authors, and tell whose a state dict is.

A converter is one function of one layer, in a file of this package with the system's name. It gets the layer's tensors by
their official names and returns ours. With ``takes='.*'`` the layer is a whole network.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmext.errors import UsageError

__all__ = [
    'SYSTEMS',
    'WHICH',
    'Converted',
    'Layer',
    'System',
    'choice',
    'convert',
    'find_system',
    'number',
    'recognize',
    'source',
    'system',
]


class Layer(dict[str, Any]):
    """The tensors of one layer by their official names, which remembers those that were asked for.

    Raises:
        UsageError: If a tensor is asked for that is not there, or is none.
    """

    def __init__(self, name: str, tensors: Mapping[str, Any], notes: list[str]) -> None:
        super().__init__(tensors)
        self.name = name or 'the layer'
        self.notes = notes
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise UsageError(f'{self.name} has {", ".join(self)} and no {key}; is it a layer of this system?')
        if not isinstance(value := self.other(key), Tensor):
            raise UsageError(
                f'{self.name} has a {type(value).__name__} where a layer of this system has the tensor {key}'
            )
        return value

    def part(self, prefix: str) -> Layer:
        """Return the tensors whose names begin with ``prefix``, as a layer of their own; they count as asked for."""
        inside = {k.removeprefix(prefix): v for k, v in self.items() if k.startswith(prefix)}
        self.used.update(f'{prefix}{k}' for k in inside)
        return Layer(f'{self.name}.{prefix}'.rstrip('.'), inside, self.notes)

    def renamed(self, *names: tuple[str, str]) -> dict[str, Tensor]:
        """Return the tensors that a pattern fits, under the name that the first such pattern gives them."""
        ours = {}
        for key in self:
            for pattern, replacement in names:
                if re.fullmatch(pattern, key):
                    ours[re.sub(f'^{pattern}$', replacement, key)] = self[key]
                    break
        return ours

    def other(self, key: str) -> Any:
        """Return a value that need not be a tensor, or None."""
        self.used.add(key)
        return self.get(key)


LayerMap = Callable[[Layer, dict[str, str]], 'dict[str, Tensor] | None']


@dataclass(frozen=True)
class System:
    """A system's converter.

    Args:
        name: The slug of the system.
        target: The class whose names the converted tensors have.
        to_ours: The function of one layer. None from it leaves the layer as it is.
        marker: Regular expression of the name by which a layer is found.
        takes: Regular expression of the layer's other names. What the function does not ask for is dropped.
        signature: Regular expressions of names. Only an official layer has all of them. It is empty where the keys are
            those of plain convolutions.
        hint: What else a file without any such layer may be.
        options: What the user can say, with an explanation. ``layers`` among them must be said.
    """

    name: str
    target: str
    to_ours: LayerMap
    marker: str
    takes: str
    signature: tuple[str, ...]
    hint: str
    options: dict[str, str]

    def layers(self, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the tensors of every layer by their official names, in the file's order."""
        marker, names = re.compile(self.marker), re.compile(f'{self.marker}|{self.takes}')
        layers: dict[str, dict[str, Any]] = {}
        for key, value in state.items():
            if self.signature or getattr(value, 'ndim', 0) == 4:
                found = next((layer for layer, short in _splits(key) if marker.fullmatch(short)), None)
                if found is not None:
                    layers.setdefault(found, {})
        for key, value in state.items():
            for layer, short in _splits(key):
                if layer in layers and names.fullmatch(short):
                    layers[layer][short] = value
        return layers

    def holds(self, state: Mapping[str, Any]) -> int:
        """Return how many entries of a file belong to layers that no other system has."""
        return sum(len(own) for own in self.layers(state).values() if self.claims(own))

    def claims(self, names: Collection[str]) -> bool:
        """Return whether a layer with these names is an official one of this system."""
        return bool(self.signature) and all(any(re.fullmatch(p, name) for name in names) for p in self.signature)


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Return every module that a tensor may belong to, with the rest of its name, the outermost first."""
    yield '', key
    for dot in re.finditer(r'\.', key):
        yield key[: dot.start()], key[dot.end() :]


SYSTEMS: dict[str, System] = {}
WHICH = ", whose keys are those of plain ones ('.*' for all)"


def system(
    target: str, marker: str, takes: str = 'weight', signature: tuple[str, ...] = (), hint: str = '', **options: str
) -> Callable[[LayerMap], LayerMap]:
    """Enter a function of one layer into the table, under its own name; the arguments are those of :class:`System`."""

    def enter(to_ours: LayerMap) -> LayerMap:
        name = to_ours.__name__
        SYSTEMS[name] = System(name, target, to_ours, marker, takes, signature, hint, options)
        return to_ours

    return enter


@dataclass
class Converted:
    """The new state dict, and what to tell about it."""

    state: dict[str, Tensor] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_system(name: str) -> System:
    """Return the entry of that name.

    Raises:
        UsageError: If there is none; the message names the nearest ones.
    """
    if name not in SYSTEMS:
        near = difflib.get_close_matches(name, SYSTEMS, n=3, cutoff=0.0)
        raise UsageError(f'no system is called {name!r}; the nearest are {", ".join(near)} (--list shows all)')
    return SYSTEMS[name]


def convert(name: str, state: Mapping[str, Any], options: Mapping[str, str] | None = None) -> Converted:
    """Convert every layer of a system in a state dict.

    Args:
        name: The system.
        state: The official state dict. Only tensors are kept of it. A layer may read other values too.
        options: The system's own, and ``layers``, a regular expression that restricts the conversion to some names.

    Raises:
        UsageError: If the name or an option is unknown, no layer is found, or one is not as the system's are.
    """
    entry, options = find_system(name), dict(options or {})
    if unknown := sorted(set(options) - {'layers', *entry.options}):
        raise UsageError(f'{name} takes the options {", ".join(["layers", *entry.options])}, got {", ".join(unknown)}')
    if 'layers' in entry.options and 'layers' not in options:
        raise UsageError(f'{name} needs --options layers=REGEX: {entry.options["layers"]}')
    try:
        wanted = re.compile(options.get('layers', ''))
    except re.error as error:
        raise UsageError(f'layers= takes a regular expression, {options["layers"]!r} is none ({error})') from error
    state = {str(k): v for k, v in state.items()}
    layers = entry.layers(state)
    new = Converted()
    used: set[str] = set()
    ours: dict[str, dict[str, Tensor]] = {}  # by the official key in whose place they are put
    for found in filter(wanted.search, layers):
        prefix = f'{found}.' if found else ''
        layer = Layer(found, layers[found], new.notes)
        tensors = _converted(entry, layer, options)
        if tensors is None:
            if entry.claims(layer):
                new.notes.append(f'{layer.name} is left as it is: no layer of ours computes what it does')
            continue
        own = [f'{prefix}{short}' for short in layers[found]]
        new.layers.append(found)
        new.dropped += [f'{prefix}{short}' for short in layers[found] if short not in layer.used]
        used.update(own)
        ours[own[0]] = {f'{prefix}{short}': tensor for short, tensor in tensors.items()}
    if not new.layers:
        raise UsageError(_nothing_found(entry, state, list(layers), options))
    for key, value in state.items():
        if key in used:
            new.state.update(ours.get(key, {}))
        elif isinstance(value, Tensor):
            new.state[key] = value
        else:
            new.dropped.append(key)
    return new


def _converted(entry: System, layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    try:
        return entry.to_ours(layer, options)
    except UsageError:
        raise
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what tensors of other shapes cause
        shapes = ', '.join(f'{k} {tuple(v.shape)}' for k, v in layer.items() if isinstance(v, Tensor))
        raise UsageError(f'{layer.name} is not as the layers of {entry.name} are: it has {shapes}') from error


def _nothing_found(entry: System, state: Mapping[str, Any], layers: Sequence[str], options: Mapping[str, str]) -> str:
    """Return why nothing was converted, and what the file may be."""
    if layers and not any(re.search(options.get('layers', ''), name) for name in layers):
        return f'layers={options["layers"]} is found in no name of a layer of {entry.name}, such as {", ".join(layers[:3])}'
    others = [s.name for s in SYSTEMS.values() if s is not entry and s.holds(state)]
    return (
        f'there is no layer of {entry.name} among the {len(state)} entries ({", ".join(list(state)[:3])}, ...); '
        + (f'are they of {" or ".join(others)}?' if others else 'is it a file of another system, or already folded?')
        + (f' {entry.hint}' if entry.hint else '')
    )


def recognize(state: Mapping[str, Any]) -> str | None:
    """Return the name of the system whose authors wrote a state dict, or None.

    It is the one whose layers hold the most entries, so that a network is found before a layer in it. None if no system has a
    layer there, or if two hold equally many. Some files cannot be told from those of plain networks: their keys are the same.
    Such systems have an empty ``signature``.
    """
    state = {str(k): v for k, v in state.items()}
    held = {entry.name: entry.holds(state) for entry in SYSTEMS.values()}
    most = max(held.values(), default=0)
    names = [name for name, count in held.items() if count == most > 0]
    return names[0] if len(names) == 1 else None


def choice(options: dict[str, str], name: str, values: tuple[str, ...], default: str = '') -> str:
    """Return one of the values that an option can have."""
    value = options.get(name, default)
    if value not in values:
        raise UsageError(f'--options {name}= needs one of {", ".join(values)}, got {value or "none"}')
    return value


def number(options: dict[str, str], name: str, default: float, low: float, high: float = 1e9) -> float:
    """Return the value of an option that is a number from ``low`` to ``high``."""
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f'--options {name}= needs a number from {low:g} to {high:g}, got {options[name]!r}')
    return value


def source(kernel: Tensor) -> Tensor:
    """Mark what is only the source of a kernel as our layers do: no plain layer accepts another leading axis."""
    return kernel.unsqueeze(0)
