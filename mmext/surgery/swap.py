"""Replace layers of a model by rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.arguments import Cfg, Count, checked, some
from mmext.contracts import shown_by
from mmext.hosts import build_from_host
from mmext.registry import MODELS
from mmext.surgery.layout import ChannelsLast, channel_axis
from mmext.surgery.rules import Rule, choose, parse
from mmext.surgery.trial import Place, Shape, try_out

__all__ = ['build_wrapped', 'swap_layers', 'unwrapped']


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
@checked
def swap_layers(
    model: nn.Module | str | Cfg | Annotated[list[Cfg], some],
    rules: Any,
    input_shape: tuple[Count, Count, Count] | None = None,
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

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> rules = [dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))]
        >>> type(swap_layers(net, rules)[0]).__name__
        'RefConv2d'
    """
    if not rules or not isinstance(rules, Sequence):
        raise ValueError(f'swap_layers needs a list of at least one rule, rules=[dict(to=..., ...)], got {rules=}')
    built = build_wrapped(model, model_args, 'swap_layers')
    parsed = [parse(rule) for rule in rules]
    for rule in parsed:
        rule.keep_weights = built is model if rule.keep_weights is None else rule.keep_weights
    chosen = choose(built, parsed)
    places: dict[tuple[int, str], tuple[Place, Rule]] = {}
    for name, (old, rule) in chosen.items():
        holder, attribute = _locate(built, name)
        places.setdefault((id(holder), attribute), (Place(name, holder, attribute, old), rule))
    # A host shares a layer without parameters freely; where the new one has some, each call needs one of its own.
    tried = [place for place, rule in places.values() if not place.old.state_dict() and rule.learns]
    _try(built, tried, input_shape)
    made: dict[int, nn.Module] = {}
    rows = []
    for place, rule in places.values():
        if place not in tried:
            if id(place.old) not in made:
                made[id(place.old)] = _instead(place, rule)
                rows.append((place, [made[id(place.old)]]))
            place.put([made[id(place.old)]])
        elif any(place.seen):
            rows.append((place, [_at_site(place, rule, shapes) if shapes else place.old for shapes in place.seen]))
    for place, layers in rows:
        place.put(layers)
    _refuse_nothing(built, chosen, rows)
    # The hosts freeze stages in train(); running it again reaches the new layers before an optimizer or DDP sees them.
    built.train(built.training)
    _log(built, rows)
    return built


def unwrapped(cfg: Mapping) -> dict:
    """Return the config of the component that a ``swap_layers`` entry wraps."""
    args = {k: v for k, v in cfg.items() if k not in ('type', 'model', 'rules', 'input_shape')}
    return dict(type=cfg['model'], **args) if isinstance(cfg['model'], str) else {**cfg['model'], **args}


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition('.')
    return model.get_submodule(parent), attribute


def _try(model: nn.Module, places: list[Place], input_shape: Sequence[int] | None) -> None:
    """Fill in what the call sites are given; a ``ConvModule`` tells it, everything else must be run."""
    unknown = []
    for place in places:
        module = place.holder
        if isinstance(module, ConvModule) and isinstance(module.conv, nn.Conv2d):
            before = module.order.index('act') < module.order.index('conv')
            channels = module.in_channels if before else module.out_channels
            place.seen = [[(1, channels, 1, 1)]]
        else:
            unknown.append(place)
    if unknown and (refusal := try_out(model, unknown, input_shape)) is not None:
        raise ValueError(
            f'swap_layers must run {type(model).__name__} once to learn how many channels its activations see, and that '
            f'failed ({refusal}); pass input_shape=(C, H, W) that the model accepts'
        ) from refusal


def _instead(place: Place, rule: Rule) -> nn.Module:
    """Return what stands instead of a layer, wherever that stands."""
    old, geometry = place.old, {}
    if isinstance(old, nn.Conv2d):
        keys = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
        geometry = {**{k: getattr(old, k) for k in keys}, 'bias': old.bias is not None}
    return _made(place, rule, geometry, like=next(old.parameters(), None))


def _at_site(place: Place, rule: Rule, shapes: list[Shape]) -> nn.Module:
    """Return what stands at a call site that is given tensors of these shapes."""
    axis = channel_axis(shapes)
    if axis not in (1, len(shapes[0]) - 1):
        raise ValueError(
            f'swap_layers cannot tell which axis of what {place.name} ({place.old}) is given holds the channels, a trial saw '
            f'the shapes {list(dict.fromkeys(shapes))[:4]}; leave it out by skip=...'
        )
    channels = shapes[0][axis]
    given = dict(num_channels=channels) if rule.takes_channels else {}
    new = _made(place, rule, given, like=next(place.holder.parameters(), None))
    if (out := getattr(new, 'out_channels', channels)) != channels:
        raise ValueError(
            f'swap_layers cannot put {rule.to["type"]} in the place of {place.name} ({place.old}): it would turn {channels} '
            f'channels into {out}, which what follows does not expect'
        )
    return new if axis == 1 else ChannelsLast(new)


def _made(place: Place, rule: Rule, given: dict, like: nn.Parameter | None) -> nn.Module:
    try:
        new = _take_over(place.old, ROOT_MODELS.build({**given, **rule.to}), bool(rule.keep_weights))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'swap_layers cannot put {rule.to["type"]} in the place of {place.name} ({place.old}): {error}'
        ) from error
    return new if like is None else new.to(like)


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


def _log(model: nn.Module, rows: list[tuple[Place, list[nn.Module]]]) -> None:
    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    def kind(layers: list[nn.Module]) -> str:
        return f'{len(layers)} x {type(layers[0]).__name__}' if len(layers) > 1 else type(layers[0]).__name__

    width = max(len(place.name) for place, _ in rows)
    lines = [
        f'{place.name:{width}}  {type(place.old).__name__} -> {kind(new)}  {count(place.old):,} -> {count(*new):,} parameters'
        for place, new in rows
    ]
    print_log(
        '\n'.join([f'swap_layers replaced {len(rows)} layers of {type(model).__name__}:', *lines]), logger='current'
    )
