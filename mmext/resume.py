"""What a training run must save, beside weights, to go on as if it had never stopped: random states, data, gradients.

Every sample is loaded with random numbers of its own, seeded by the run's seed, the process, the epoch and the place of the
sample in it. So it does not matter which worker loads it, nor what was loaded before it. The global random states then serve
the model alone, and are saved and set again.

A transform that keeps samples of earlier iterations (``CachedMosaic``) depends on what its worker loaded before. So it
forgets them where an epoch begins, as it does anyway where workers do not persist. A run that is resumed inside an epoch
loads the samples again that such transforms saw.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmext.contracts import KeepsRunState

__all__ = [
    'EndlessBatches',
    'SeededLoader',
    'counts',
    'gradients_of',
    'histories',
    'hook_states',
    'is_sharded',
    'pending',
    'plain_form',
    'random_states',
    'seed_loader',
    'set_hook_states',
    'set_random_state',
    'transforms_with_memory',
    'wrappers_of',
]


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state = {
        'python': (version, torch.tensor(words), gauss),
        'numpy': (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state_all()
    return state


def random_states() -> list[dict[str, Any]]:
    """Return the random states of Python, numpy, torch and its GPUs, one entry for each process; all processes call it."""
    state = _random_state()
    return all_gather_object(state) if get_world_size() > 1 else [state]


def set_random_state(states: list[dict[str, Any]]) -> None:
    """Set what :func:`random_states` returned; another number of processes takes the state of the first."""
    state = states[get_rank() if len(states) == get_world_size() else 0]
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    gpus = state.get('cuda', [])
    if gpus and torch.cuda.is_available() and len(gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([gpu.cpu() for gpu in gpus])


class _Place(NamedTuple):
    """A sample, and where it stands in the training."""

    index: Any
    epoch: int
    #: Where the epoch has no end, how often the data were gone through.
    turn: int
    position: int


class _SeededDataset:
    """A dataset whose every item is loaded with random numbers of its own; the global states are left as they were."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, get_rank()
        self._turn: tuple[int, int] | None = None

    def __getitem__(self, place: _Place) -> Any:
        if self._turn != (place.epoch, place.turn):
            self._turn = place.epoch, place.turn
            for transform in transforms_with_memory(self.dataset):
                transform.results_cache.clear()
        before = _cpu_states() if get_worker_info() is None else None
        words = np.random.SeedSequence([self.seed, self.rank, place.epoch, place.position]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        # Not torch.manual_seed, which seeds the GPUs as well.
        torch.default_generator.manual_seed(int(words[2]))
        try:
            return self.dataset[place.index]
        finally:
            if before is not None:
                random.setstate(before[0])
                np.random.set_state(before[1])
                torch.default_generator.set_state(before[2])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _cpu_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


class _Plan:
    """Which epoch's batches a loader yields next, and how many of them it leaves out."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch, self.skip = seed, 0, 0


class _PlacedBatches:
    """The indices of a loader's sampler, each with its place."""

    def __init__(self, batches: Any, plan: _Plan) -> None:
        self.batches, self.plan = batches, plan

    def __iter__(self) -> Iterator[Any]:
        epoch, skip, position, length = self.plan.epoch, self.plan.skip, 0, length_hint(self.batches, 0)
        self.plan.skip = 0
        for number, batch in enumerate(self.batches):
            indices = batch if isinstance(batch, (list, tuple)) else [batch]
            if number >= skip:
                turn = number // length if length else 0
                places = [_Place(index, epoch, turn, position + i) for i, index in enumerate(indices)]
                yield places if isinstance(batch, (list, tuple)) else places[0]
            position += len(indices)

    def __len__(self) -> int:
        return len(self.batches)


class SeededLoader(DataLoader):
    """A data loader whose samples have random numbers of their own, see the module; :func:`seed_loader` makes it of another.

    Attributes:
        plan: Where it goes on.
    """

    plan: _Plan

    @property
    def _index_sampler(self) -> _PlacedBatches:
        return _PlacedBatches(super()._index_sampler, self.plan)

    def __iter__(self) -> Any:
        again = 0
        if self.plan.skip and transforms_with_memory(self.dataset):
            again = self.plan.skip % (length_hint(self, 0) or self.plan.skip + 1)
            self.plan.skip -= again
        iterator = super().__iter__()
        for _ in range(again):
            next(iterator)
        return iterator

    def _get_iterator(self) -> Any:
        dataset = self.dataset
        # Only the iterator and its workers see the wrapped dataset; hooks of the hosts read and change the bare one.
        self.__dict__['dataset'] = _SeededDataset(dataset, self.plan.seed)
        try:
            return super()._get_iterator()
        finally:
            self.__dict__['dataset'] = dataset


def seed_loader(loader: Any, seed: int | None) -> SeededLoader | None:
    """Make a loader seed every sample, in place, and return it.

    Its iterators draw no number of the global random state either. A loader that is no plain ``DataLoader``, or whose dataset
    is a stream, is left as it is, and None is returned.
    """
    if type(loader) not in (DataLoader, SeededLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    loader.__class__ = SeededLoader
    loader.plan = _Plan(seed or 0)
    loader.generator = torch.Generator()
    loader._iterator = None
    return loader


class EndlessBatches:
    """Batches of a loader, epoch after epoch, in place of mmengine's iterator of the iteration-based loop.

    Args:
        loader: The loader.
        start: The number of batches that the run has seen.
        ignored: How often the loop asks for batches that the run has seen; mmengine <= 0.10.7 does so when it resumes.
    """

    def __init__(self, loader: SeededLoader, start: int = 0, ignored: int = 0) -> None:
        self.loader, self.ignored = loader, ignored
        samplers: list[Any] = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, 'sampler', None)]
        endless = [s for s in samplers if hasattr(s, '_indices_of_rank')]
        for sampler in endless:
            if hasattr(sampler, 'indices'):  # an iterator that mmengine made may have drawn from it
                sampler.indices = sampler._indices_of_rank()
        self.epoch, self._skip = (0, start) if endless else divmod(start, len(loader))
        # Begun at the first batch: until then hooks tell the sampler another epoch.
        self._iterator: Iterator[Any] | None = None

    def _begin(self) -> Iterator[Any]:
        self.loader.plan.epoch, self.loader.plan.skip, self._skip = self.epoch, self._skip, 0
        samplers: tuple[Any, ...] = (self.loader.sampler, getattr(self.loader.batch_sampler, 'sampler', None))
        for sampler in samplers:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.epoch)
                break
        return iter(self.loader)

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self.ignored:
            self.ignored -= 1
            return None
        try:
            self._iterator = self._iterator or self._begin()
            return next(self._iterator)
        except StopIteration:
            self.epoch += 1
            self._iterator = self._begin()
            return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the batches that the run has seen are left out already."""


def wrappers_of(optim_wrapper: Any) -> dict[str, OptimWrapper]:
    """Return the optimizer wrappers of a run by name; a single one has the name ``''``."""
    return {'': optim_wrapper} if hasattr(optim_wrapper, 'optimizer') else dict(optim_wrapper.items())


def pending(optim_wrapper: Any) -> bool:
    """Tell whether gradients are accumulated for a step that is not due yet."""
    return any(
        w._inner_count % w._accumulative_counts and w._inner_count != w._max_counts
        for w in wrappers_of(optim_wrapper).values()
    )


#: What the hosts' hooks count from one validation to the next; hooks of this pack answer KeepsRunState.
COUNTERS = {'EarlyStoppingHook': ('wait_count', 'best_score')}


def _counters_of(hook: Any) -> tuple[str, ...]:
    return next((COUNTERS[cls.__name__] for cls in type(hook).__mro__ if cls.__name__ in COUNTERS), ())


def counts(hook: Any) -> bool:
    """Tell whether a hook of a host counts validations."""
    return bool(_counters_of(hook))


def hook_states(runner: Any) -> dict[str, Any]:
    """Return what the hooks of a run count and keep, by the name of their class and their number among their like."""
    states = {}
    for name, hook in _numbered(runner.hooks):
        if isinstance(hook, KeepsRunState):
            states[name] = hook.run_state(runner)
        elif counters := _counters_of(hook):
            states[name] = {key: getattr(hook, key) for key in counters}
    return states


def set_hook_states(runner: Any, states: Mapping[str, Any]) -> None:
    """Give the hooks what :func:`hook_states` returned."""
    for name, hook in _numbered(runner.hooks):
        state = states.get(name)
        if state is None:
            continue
        if isinstance(hook, KeepsRunState):
            hook.set_run_state(runner, state)
        else:
            for key in _counters_of(hook):
                setattr(hook, key, state[key])


def _numbered(hooks: Any) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for hook in hooks:
        name = type(hook).__name__
        seen[name] = seen.get(name, 0) + 1
        yield f'{name} {seen[name]}', hook


def transforms_with_memory(data: Any) -> list[Any]:
    """Return the transforms of a dataset that keep samples of earlier iterations, as CachedMosaic does."""
    inner = [getattr(data, key, None) for key in ('pipeline', 'dataset')]
    for key in ('datasets', 'transforms'):
        several = getattr(data, key, None)
        inner += several if isinstance(several, (list, tuple)) else [several]
    own = [data] if isinstance(getattr(data, 'results_cache', None), list) else []
    return own + [found for part in inner if part is not None for found in transforms_with_memory(part)]


def is_sharded(model: nn.Module) -> bool:
    """Tell whether each process holds parts of the parameters only, as under FSDP."""
    kinds = {type(m).__name__ for m in model.modules()} | {type(p).__name__ for p in model.parameters()}
    return any('FullyShardedDataParallel' in kind or kind == 'DTensor' for kind in kinds)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the accumulated gradients by the names of their parameters; all processes call it and get the mean.

    The mean over processes is what their next common step uses of them. So a resumed run takes the same step, but for the
    order in which it is summed up.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = torch.tensor([p.grad is not None for p in parameters.values()], dtype=torch.int64)
    all_reduce(held)
    gradients = {}
    for (name, p), count in zip(parameters.items(), held.tolist(), strict=True):
        if count:
            gradients[name] = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            all_reduce(gradients[name], op='mean')
    return {name: gradient.cpu() for name, gradient in gradients.items()}


_LEFT = object()


def plain_form(value: Any, place: str = 'checkpoint') -> Any:
    """Return ``value`` made of tensors and plain values only, so that reading it needs no class.

    Numbers of numpy become those of Python, arrays and sets lists, mmengine's history of a logged value two tensors.
    Functions, which a scheduler keeps, are left out: they follow from the config. So is anything else, with a warning.
    """
    if value is None or isinstance(value, (Tensor, torch.Size, torch.dtype, torch.device, bytes)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    kind: Any
    for kind in (bool, int, float, complex, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, np.ndarray):
        return plain_form(value.tolist(), place)
    if isinstance(value, HistoryBuffer):
        logged, counts = (torch.from_numpy(np.array(numbers)) for numbers in value.data)
        return {'logged': logged, 'counts': counts, 'max_length': value.max_length}
    if isinstance(value, Mapping):
        items = [(plain_form(k, place), plain_form(v, f'{place}.{k}')) for k, v in value.items()]
        kept = {k: v for k, v in items if v is not _LEFT and k is not _LEFT}
        if not isinstance(value, OrderedDict):
            return kept
        ordered = OrderedDict(kept)
        if hasattr(value, '_metadata'):
            ordered._metadata = plain_form(value._metadata, place)  # type: ignore[attr-defined]
        return ordered
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        items = [v for v in (plain_form(v, place) for v in value) if v is not _LEFT]
        return tuple(items) if isinstance(value, tuple) else items  # torch 2.5 reads no set
    if isinstance(value, Path):
        return str(value)
    if not callable(value):
        print_log(
            f'{place}: a {type(value).__name__} is left out of the checkpoint, which holds tensors and plain values only',
            'current',
            logging.WARNING,
        )
    return _LEFT


def histories(scalars: Mapping[str, Any]) -> dict[str, Any]:
    """Return the histories that :func:`plain_form` took apart, as mmengine has them."""
    return {k: _history(v) if isinstance(v, Mapping) and 'logged' in v else v for k, v in scalars.items()}


def _history(saved: Mapping[str, Any]) -> HistoryBuffer:
    history = HistoryBuffer(max_length=saved['max_length'])
    history._log_history, history._count_history = saved['logged'].cpu().numpy(), saved['counts'].cpu().numpy()
    return history
