"""A trial run of a model: which call sites of a layer are called, and what comes to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmext.contracts import MakesInputs
from mmext.export import TensorMode
from mmext.surgery.sites import CallSites, count_sites, host_class, with_sites

__all__ = ['Place', 'Point', 'Shape', 'try_out']

Shape = tuple[int, ...]


@dataclass(eq=False)
class Place:
    """An attribute of a module that holds a layer, with what each of its call sites was given in a trial."""

    name: str
    holder: nn.Module
    attribute: str
    old: nn.Module
    #: For each call site the shapes that came to it; one list where the source does not tell the sites apart.
    seen: list[list[Shape]] = field(default_factory=list)

    def put(self, layers: Sequence[nn.Module]) -> nn.Module:
        """Put a layer into the place, or one for each of its call sites."""
        single = len(layers) == 1
        self.holder._modules[self.attribute] = new = layers[0] if single else CallSites(layers)
        if not single:
            attributes = {*getattr(type(self.holder), 'sited', ()), self.attribute}
            self.holder.__class__ = with_sites(host_class(self.holder), tuple(sorted(attributes)))
        return new

    def probe(self, stack: ExitStack) -> list[list[Shape]]:
        """Let each call site, and a last list calls from elsewhere, note its shapes until ``stack`` closes."""
        cls, count = type(self.holder), count_sites(host_class(self.holder), self.attribute)
        probes = [copy.deepcopy(self.old) for _ in range(count + 1 if count > 1 else 1)]
        notes: list[list[Shape]] = [[] for _ in probes]
        for probe, shapes in zip(probes, notes, strict=True):
            probe.register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.append(tuple(args[0].shape)))
        stack.callback(setattr, self.holder, '__class__', cls)
        stack.callback(self.holder._modules.__setitem__, self.attribute, self.old)
        new = self.put(probes)
        if isinstance(new, CallSites):
            new.__class__ = _Sites
        return notes

    def take(self, seen: list[list[Shape]]) -> None:
        """Keep what was seen: all together where one call site is in use, or a call came from where the source shows none."""
        *sites, elsewhere = seen
        several = not elsewhere and sum(map(bool, sites)) > 1
        self.seen = sites if several else [[shape for site in seen for shape in site]]


@dataclass(eq=False)
class Point:
    """A module, with the shapes of the single tensors that it took and returned in a trial."""

    name: str
    module: nn.Module
    seen: list[list[Shape]] = field(default_factory=list)

    def probe(self, stack: ExitStack) -> list[list[Shape]]:
        """Let the module note these shapes until ``stack`` closes."""
        ins: list[Shape] = []
        outs: list[Shape] = []

        def note(_: nn.Module, args: tuple, out: Any) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                ins.append(tuple(args[0].shape))
            if isinstance(out, Tensor):
                outs.append(tuple(out.shape))

        stack.callback(self.module.register_forward_hook(note).remove)
        return [ins, outs]

    def take(self, seen: list[list[Shape]]) -> None:
        """Keep what was seen."""
        self.seen = seen


def try_out(model: nn.Module, places: Sequence[Place | Point], input_shape: Sequence[int] | None) -> Exception | None:
    """Run ``model`` on inputs of two sizes and fill in what each place of ``places`` was given.

    A model that accepts one size only is run once.

    Returns:
        Why the model could not be run, or None.
    """
    refusal: Exception | None = None
    with _evaluating(model), ExitStack() as stack:
        notes = [place.probe(stack) for place in places]
        for first, others in _inputs(model, input_shape):
            if (error := _run(model, first)) is not None:
                refusal = refusal or error
                _forget(notes)
                continue
            runs = [_taken(notes)]
            for other in others:
                if _run(model, other) is None:
                    runs.append(_taken(notes))
                    break
                _forget(notes)
            for place, *sites in zip(places, *runs, strict=True):
                place.take([[s for shapes in site for s in shapes] for site in zip(*sites, strict=True)])
            return None
    return refusal


def _run(model: nn.Module, inputs: Any) -> Exception | None:
    try:
        if isinstance(model, BaseModel):
            TensorMode(model, inputs)(inputs)
        elif isinstance(inputs, _Arguments):
            model(*inputs)
        else:
            model(inputs)
    except Exception as error:  # whatever a host raises says that this was no input for it
        return error
    return None


def _inputs(model: nn.Module, shape: Sequence[int] | None) -> Iterator[tuple[Any, list[Any]]]:
    """Yield what the model may take, each as a first input and others of another size."""
    like = next(model.parameters(), torch.empty(0))

    def maps(channels: Sequence[int], size: int) -> tuple[Tensor, ...]:
        return tuple(like.new_zeros(1, c, *[max(size >> i, 1)] * 2) for i, c in enumerate(channels))

    def at_two_sizes(make: Callable[[int], Any]) -> tuple[Any, list[Any]]:
        return make(64), [make(96)]

    if shape is not None:
        a, b, c = shape
        yield like.new_zeros(1, a, b, c), [like.new_zeros(1, a, 2 * b, 2 * c), like.new_zeros(1, 2 * a, 2 * b, c)]
        return
    if isinstance(model, MakesInputs):
        yield model.example_inputs(8, 8), [model.example_inputs(12, 12)]
        return
    if isinstance(model, BaseModel):
        yield at_two_sizes(lambda size: like.new_zeros(1, 3, size, size))
        return
    extractor = getattr(model, 'bbox_roi_extractor', None)
    if isinstance(extractor, nn.Module):  # the second stage of a detector takes maps, boxes and samples
        width, levels = int(extractor.out_channels), int(extractor.num_inputs)  # type: ignore[arg-type]
        yield at_two_sizes(lambda size: _Arguments((maps([width] * levels, size), [_boxes(like, size // 32)], None)))
        return
    channels = getattr(model, 'in_channels', None)
    if isinstance(channels, (list, tuple)):
        yield at_two_sizes(lambda size: maps(channels, size))
        return
    levels = getattr(getattr(model, 'prior_generator', None), 'num_levels', 0)
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    width = first.in_channels if isinstance(first, nn.Conv2d) else first.in_features if first is not None else 3
    if levels:
        yield at_two_sizes(lambda size: maps([width] * levels, size))
    if isinstance(first, nn.Linear):
        vector = like.new_zeros(1, width)
        yield vector, []
        yield (vector,), []
    yield at_two_sizes(lambda size: like.new_zeros(1, width, size, size))
    yield at_two_sizes(lambda size: (like.new_zeros(1, width, size, size),))


class _Arguments(tuple):
    """Several arguments of a forward."""


def _boxes(like: Tensor, count: int) -> Any:
    from mmengine.structures import InstanceData

    return InstanceData(bboxes=like.new_tensor([[0.0, 0.0, 32.0, 32.0]]).repeat(count, 1))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()  # not chained: the train() of some hosts' backbones returns None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


class _Sites(CallSites):
    """Sites on trial: the last of them takes the calls that come from elsewhere than the source shows."""

    def forward(self, *args: Any) -> Any:
        return self[-1](*args)


def _taken(notes: list[list[list[Shape]]]) -> list[list[list[Shape]]]:
    taken = [[list(shapes) for shapes in sites] for sites in notes]
    _forget(notes)
    return taken


def _forget(notes: list[list[list[Shape]]]) -> None:
    for sites in notes:
        for shapes in sites:
            shapes.clear()
