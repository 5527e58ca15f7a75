"""Put layers of this pack into any existing model, by rules in a config, and keep its weights and its keys."""

from __future__ import annotations

import difflib
import inspect
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.contracts import shown_by
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['CallSites', 'build_wrapped', 'swap_layers', 'unwrapped']


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


class CallSites(nn.ModuleList):
    """Stands where a parent calls one activation several times per forward, and gives each call its own instance.

    The parent's forward rewinds to the first instance, so an interrupted forward leaves nothing out of step, and a forward
    that is recomputed for activation checkpointing starts where the first one started.
    """

    def __init__(self, sites: Sequence[nn.Module], parent: nn.Module) -> None:
        super().__init__(sites)
        self.next_site = 0
        parent.register_forward_pre_hook(self._rewind)

    def _rewind(self, *_: Any) -> None:
        self.next_site = 0

    def forward(self, x: Tensor) -> Tensor:
        site = self[self.next_site]
        self.next_site = (self.next_site + 1) % len(self)
        return site(x)


def build_wrapped(model: nn.Module | str | dict | list, model_args: dict, user: str) -> nn.Module:
    """Build what a wrapping config entry wraps.

    ``model`` is a config, or a type name whose arguments are the wrapper's remaining ones. The second form lets a config
    wrap a component of its base by a merge: ``backbone=dict(type='mmext.swap_layers', model='mmdet.ResNet', rules=[...])``
    keeps every argument that the base gave to its ResNet.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str):
        model = dict(type=model)
    if isinstance(model, Sequence):
        return ROOT_MODELS.build(list(model))
    return build_from_host({**model, **model_args}, user)


@MODELS.register_module()
@shown_by(
    model=dict(type='mmext.LENIConv', in_channels=8, out_channels=8, kernel_size=3),
    rules=[dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))],
)
def swap_layers(
    model: nn.Module | str | dict,
    rules: Sequence[dict],
    input_shape: Sequence[int] | None = None,
    **model_args: Any,
) -> nn.Module:
    """Put any layer into any existing model, by rules (ours).

    Use it as the ``type`` of a backbone, neck, head or whole model. The result is the host's own model, of its own class;
    where a new layer keeps ``weight``, so do its state-dict keys, and a checkpoint of the plain model loads. New layers take
    over the old ones' weights where names and shapes agree. A module that stands in several places is replaced once. An
    activation that its parent calls several times per forward becomes :class:`CallSites`.

    Args:
        model: Config or type name of the component; with a type name, ``model_args`` are its arguments.
        rules: See :class:`Rule`. The first rule that wants a layer gets it.
        input_shape: (C, H, W) of the trial input that tells how many channels an activation sees; needed only where one
            stands outside of a ``ConvModule`` and the default, 64 x 64, is refused by the model.
        **model_args: Arguments of the component.

    Raises:
        ValueError: If a rule is malformed or matches nothing (the nearest names are shown), or if a new layer refuses the old
            one's arguments.
    """
    if not rules or not isinstance(rules, Sequence):
        raise ValueError(f'swap_layers needs a list of at least one rule, rules=[dict(to=..., ...)], got {rules=}')
    built = build_wrapped(model, model_args, 'swap_layers')
    parsed = [_parse(rule) for rule in rules]
    for rule in parsed:
        rule.keep_weights = built is model if rule.keep_weights is None else rule.keep_weights
    chosen = _choose(built, parsed)
    sites = _trace_activations(
        built, {id(m): m for m, rule in chosen.values() if not isinstance(m, nn.Conv2d)}, input_shape
    )
    replaced: dict[int, nn.Module] = {}
    rows = []
    for name, (old, rule) in chosen.items():
        if sites.get(id(old)) == []:
            continue
        parent = built.get_submodule(name.rpartition('.')[0])
        if id(old) not in replaced:
            try:
                replaced[id(old)] = _replacement(old, rule, sites.get(id(old), []), _caller(built, name))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f'swap_layers cannot put {rule.to["type"]} in the place of {name} ({old}): {error}'
                ) from error
            rows.append((name, old, replaced[id(old)]))
        parent._modules[name.rpartition('.')[2]] = replaced[id(old)]
    _refuse_nothing(built, chosen, rows)
    # The hosts freeze stages in train(); running it again reaches the new layers before an optimizer or DDP sees them.
    built.train(built.training)
    _log(built, rows)
    return built


def unwrapped(cfg: Mapping) -> dict:
    """Return the config of the component that a ``swap_layers`` entry wraps."""
    args = {k: v for k, v in cfg.items() if k not in ('type', 'model', 'rules', 'input_shape')}
    return dict(type=cfg['model'], **args) if isinstance(cfg['model'], str) else {**cfg['model'], **args}


def _parse(rule: dict) -> Rule:
    known = {f.name for f in fields(Rule) if f.init}
    if unknown := set(rule) - known:
        raise ValueError(f'swap_layers rules take {sorted(known)}, got {sorted(unknown)} in {rule}')
    if 'to' not in rule or 'type' not in rule['to']:
        raise ValueError(f"swap_layers needs to=dict(type='mmext.Name', ...) in every rule, got {rule}")
    return Rule(**rule)


def _choose(model: nn.Module, rules: Sequence[Rule]) -> dict[str, tuple[nn.Module, Rule]]:
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


def _trace_activations(
    model: nn.Module, targets: dict[int, nn.Module], input_shape: Sequence[int] | None
) -> dict[int, list[int]]:
    """Return, for each target, the channels that it sees at each call of one forward of its parent.

    The list is empty for a layer that the model has and never calls, as some hosts' heads do.
    """
    from mmcv.cnn import ConvModule

    sites: dict[int, list[int]] = {}
    parents = _callers(model, targets)
    for key, parent in parents.items():
        if isinstance(parent, ConvModule):
            before = parent.order.index('act') < parent.order.index('conv')
            sites[key] = [parent.in_channels if before else parent.out_channels]
    open_targets = {key: m for key, m in targets.items() if key not in sites}
    if not open_targets:
        return sites

    seen: dict[int, list[list[int]]] = defaultdict(list)
    hooks = []
    for key, module in open_targets.items():
        # Registered before the target's own hook can fire: a forward of the parent opens a new list of calls.
        hooks.append(parents[key].register_forward_pre_hook(lambda *_, key=key: seen[key].append([])))
        hooks.append(module.register_forward_pre_hook(lambda _, x, key=key: seen[key][-1].append(x[0].shape[1])))
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            model.eval()  # not chained: the train() of some hosts' backbones returns None
            model(_trial_input(model, input_shape))
    except Exception as error:
        raise ValueError(
            f'swap_layers must run {type(model).__name__} once to learn how many channels its activations see, and that '
            f'failed ({error}); pass input_shape=(C, H, W) that the model accepts'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode

    for key, module in open_targets.items():
        calls = [c for c in seen[key] if c]
        if any(c != calls[0] for c in calls):
            name = next(n for n, m in model.named_modules() if m is module)
            raise ValueError(
                f'swap_layers needs {name} to see the same channels at every forward of its parent, a trial forward called '
                f'it with {calls}; leave it out by skip=...'
            )
        sites[key] = calls[0] if calls else []
    return sites


def _callers(model: nn.Module, targets: dict[int, nn.Module]) -> dict[int, nn.Module]:
    """Return, for each target, the module whose forward calls it."""
    callers: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in targets:
            continue
        caller = _caller(model, name)
        if callers.setdefault(id(module), caller) is not caller:
            raise ValueError(
                f'swap_layers found {name} ({module}) in several parents, which would make them share its parameters; '
                'leave it out by skip=...'
            )
    return callers


def _caller(model: nn.Module, name: str) -> nn.Module:
    """Return the nearest ancestor of ``name`` that has a forward of its own."""
    while True:
        name = name.rpartition('.')[0]
        module = model.get_submodule(name)
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return module


def _trial_input(model: nn.Module, input_shape: Sequence[int] | None) -> Tensor | tuple[Tensor, ...]:
    like = next(model.parameters())
    channels = getattr(model, 'in_channels', None)
    if input_shape is None and isinstance(channels, (list, tuple)):
        return tuple(like.new_zeros(1, c, max(64 >> i, 1), max(64 >> i, 1)) for i, c in enumerate(channels))
    if input_shape is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        input_shape = (3 if first is None else first.in_channels, 64, 64)
    return like.new_zeros(1, *input_shape)


def _replacement(old: nn.Module, rule: Rule, sites: list[int], parent: nn.Module) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        keys = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
        new = ROOT_MODELS.build({**{k: getattr(old, k) for k in keys}, 'bias': old.bias is not None, **rule.to})
        return _take_over(old, new, bool(rule.keep_weights)).to(old.weight)
    takes_channels = 'num_channels' in inspect.signature(rule.cls).parameters
    like = next(parent.parameters(), None)
    made = []
    for channels in sites:
        new = ROOT_MODELS.build({**(dict(num_channels=channels) if takes_channels else {}), **rule.to})
        if (out := getattr(new, 'out_channels', channels)) != channels:
            raise ValueError(f'it would turn {channels} channels into {out}, which what follows does not expect')
        made.append(_take_over(old, new) if like is None else _take_over(old, new).to(like))
    return made[0] if len(made) == 1 else CallSites(made, parent)


def _take_over(old: nn.Module, new: nn.Module, kernel: bool = False) -> nn.Module:
    loads_kernel = getattr(new, 'loads_kernel', False)
    if loads_kernel and not kernel:
        return new
    same = {k: v for k, v in old.state_dict().items() if getattr(getattr(new, k, None), 'shape', None) == v.shape}
    if loads_kernel:
        same['weight'] = old.get_parameter('weight')
    new.load_state_dict(same, strict=False)
    return new


def _refuse_nothing(model: nn.Module, chosen: dict[str, tuple[nn.Module, Rule]], rows: list) -> None:
    if not rows:
        raise ValueError(
            f'swap_layers replaced nothing in {type(model).__name__}: its forward never calls {list(chosen)[:5]}; name '
            'layers that it calls'
        )


def _log(model: nn.Module, rows: list[tuple[str, nn.Module, nn.Module]]) -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    def kind(module: nn.Module) -> str:
        return f'{len(module)} x {type(module[0]).__name__}' if isinstance(module, CallSites) else type(module).__name__

    width = max(len(name) for name, *_ in rows)
    lines = [
        f'{n:{width}}  {type(o).__name__} -> {kind(m)}  {count(o):,} -> {count(m):,} parameters' for n, o, m in rows
    ]
    print_log(
        '\n'.join([f'swap_layers replaced {len(rows)} layers of {type(model).__name__}:', *lines]), logger='current'
    )
