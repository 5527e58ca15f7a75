"""Draw surgery for a model: which of its layers this pack replaces, by what, and how the config says so."""

from __future__ import annotations

import copy
import inspect
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from mmext.contracts import example_of
from mmext.convs.base import ExtConv2d
from mmext.numerics import is_depthwise
from mmext.registry import MODELS

__all__ = ['Move', 'draw_moves', 'rewired']

#: Activations of torch that an activation of this pack can stand for; gates (Sigmoid, Tanh) are none.
ACTIVATIONS = ('ReLU', 'ReLU6', 'LeakyReLU', 'GELU', 'SiLU', 'Mish', 'Hardswish', 'ELU')


class Move(NamedTuple):
    """One change of a model's config."""

    #: The component, such as ``backbone``; empty for the whole model.
    place: str
    #: A rule of ``mmext.swap_layers``, or the ``conv_cfg`` of the component.
    rule: dict | None = None
    conv_cfg: dict | None = None

    def __str__(self) -> str:
        what = f'conv_cfg={self.conv_cfg}' if self.rule is None else f'rule={self.rule}'
        return f'{self.place or "model"}: {what}'


def draw_moves(model_cfg: Mapping[str, Any], model: nn.Module, rng: random.Random) -> list[Move]:
    """Draw one or two moves among those that ``model`` has layers for.

    Raises:
        ValueError: If there are none.
    """
    choices = list(_choices(model_cfg, model))
    if not choices:
        raise ValueError(f'{type(model).__name__} has no layer that this pack replaces')
    kinds = sorted({kind for kind, _, _ in choices})
    moves = []
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.choice([*kinds, 'conv'] if 'conv' in kinds else kinds)
        _, place, part = rng.choice([choice for choice in choices if choice[0] == kind])
        moves.append(_KINDS[kind](place, part, rng))
    return moves


def rewired(model_cfg: Mapping[str, Any], moves: list[Move]) -> dict[str, Any]:
    """Return the config of a model with all moves done."""
    cfg = copy.deepcopy(dict(model_cfg))
    for move in moves:
        if move.conv_cfg is not None:
            cfg[move.place]['conv_cfg'] = move.conv_cfg
    for place in dict.fromkeys(move.place for move in moves):
        rules = [move.rule for move in moves if move.place == place and move.rule is not None]
        if rules and place:
            cfg[place] = dict(type='mmext.swap_layers', model=cfg[place], rules=rules)
    if rules := [move.rule for move in moves if not move.place and move.rule is not None]:
        cfg = dict(type='mmext.swap_layers', model=cfg, rules=rules)
    return cfg


def _choices(model_cfg: Mapping[str, Any], model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Go through kind of move, place and part."""
    for place in ('', *model_cfg):
        part = getattr(model, place, None) if place else model
        own = model_cfg[place] if place else None
        if not isinstance(part, nn.Module) or place == 'data_preprocessor' or (place and not isinstance(own, Mapping)):
            continue
        if own is not None and 'type' not in own:  # not built by a registry, so nothing can stand in its place
            continue
        if _sites(part):
            yield 'conv', place, part
        if _activations(part):
            yield 'activation', place, part
        slot = 'conv_cfg' in inspect.signature(type(part)).parameters
        if own is not None and slot and own.get('conv_cfg') is None and own.get('dcn') is None and _sites(part):
            yield 'conv_cfg', place, part


def _sites(part: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the plain convolutions with a kernel wider than a point, or all if there are none."""
    convs = [(n, m) for n, m in part.named_modules() if n and type(m) is nn.Conv2d]
    return [(n, m) for n, m in convs if max(m.kernel_size) > 1] or convs


def _activations(part: nn.Module) -> list[tuple[str, str]]:
    return [(n, type(m).__name__) for n, m in part.named_modules() if n and type(m).__name__ in ACTIVATIONS]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and is_depthwise(conv)


def _layers(depthwise: bool) -> dict[str, type[ExtConv2d]]:
    """Return the conv layers of this pack; those whose place is depthwise only where ``depthwise`` is asked for."""
    MODELS.import_from_location()
    found = {n: c for n, c in sorted(MODELS.module_dict.items()) if isinstance(c, type) and issubclass(c, ExtConv2d)}
    return {n: c for n, c in found.items() if depthwise or not _wants_depthwise(c)}


def _typical(layer: type[ExtConv2d]) -> Mapping[str, Any]:
    return getattr(layer, 'typical', {})


def _wants_depthwise(layer: type[ExtConv2d]) -> bool:
    return bool(_typical(layer).get('depthwise')) or example_of(layer).get('groups', 1) > 1


def _config(name: str, layer: type[ExtConv2d]) -> dict[str, Any]:
    """Return the layer with the options of its own that its example needs."""
    plain = inspect.signature(nn.Conv2d).parameters
    return {'type': f'mmext.{name}', **{k: v for k, v in example_of(layer).items() if k not in plain}}


def _conv(place: str, part: nn.Module, rng: random.Random) -> Move:
    """Draw a convolution, what replaces it, and conditions that it passes."""
    sites = _sites(part)
    name, conv = rng.choice(sites)
    layers = _layers(_is_depthwise(conv))
    chosen, layer = rng.choice(list(layers.items()))
    to, typical = _config(chosen, layer), _typical(layer)
    fitting = [(n, m) for n, m in sites if m.stride[0] == typical.get('stride', m.stride[0])]
    if fitting and (name, conv) not in fitting:
        name, conv = rng.choice(fitting)
    size = conv.kernel_size
    rule: dict[str, Any] = {'kernel_size': size[0] if size[0] == size[1] else list(size)}
    rule |= {'depthwise': True} if _is_depthwise(conv) else {'groups': conv.groups}
    if 'stride' in typical or rng.random() < 0.3:
        rule['stride'] = conv.stride[0] if conv.stride[0] == conv.stride[1] else list(conv.stride)
    wider = max(5, typical.get('kernel_size', 5))
    near = all(m.dilation == (1, 1) for _, m in sites)
    if size[0] == size[1] < wider and near and rng.random() < (0.6 if typical.get('depthwise') else 0.15):
        to |= {'kernel_size': wider, 'padding': wider // 2}
    rule |= rng.choice(_conditions(name, rng))
    return Move(place, rule={**rule, 'to': to})


def _activation(place: str, part: nn.Module, rng: random.Random) -> Move:
    MODELS.import_from_location()
    asking = [
        n
        for n, c in sorted(MODELS.module_dict.items())
        if isinstance(c, type) and c.__module__.startswith('mmext.activations.') and 'num_channels' in example_of(c)
    ]
    name, kind = rng.choice(_activations(part))
    return Move(
        place, rule={'layer': kind, **rng.choice(_conditions(name, rng)), 'to': {'type': f'mmext.{rng.choice(asking)}'}}
    )


def _conv_cfg(place: str, part: nn.Module, rng: random.Random) -> Move:
    chosen, layer = rng.choice([item for item in _layers(False).items() if 'stride' not in _typical(item[1])])
    return Move(place, conv_cfg=_config(chosen, layer))


def _conditions(name: str, rng: random.Random) -> list[dict[str, Any]]:
    """Return sets of conditions that a layer of this name passes."""
    above = name.split('.')[:-1]
    found: list[dict[str, Any]] = [{}, {}, {'first': rng.randint(1, 4)}]
    if above:
        found.append({'match': '^' + re.escape('.'.join(above[: rng.randint(1, len(above))])) + r'\.'})
    if stage := re.search(r'\b(?:layer|stage|stages\.)(\d+)\b', name):
        found.append({'stage': int(stage[1])})
    return found


_KINDS = {'conv': _conv, 'activation': _activation, 'conv_cfg': _conv_cfg}
