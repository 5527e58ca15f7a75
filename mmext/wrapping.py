"""Config entries that wrap another one: each builds what is inside, and changes it.

A wrapper is a registered function. Its argument ``model`` is the config or the type of what is inside. With a type, its
remaining arguments are those of the component.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.hosts import build_from_host
from mmext.registry import resolve

__all__ = [
    'build_wrapped',
    'innermost',
    'is_wrapper',
    'settled',
    'specialized',
    'unwrapped',
    'wrapped_cfg',
    'wraps_model',
]

F = TypeVar('F', bound=Callable)


def wraps_model(*own: str, settle: Callable[[Mapping[str, Any]], Any] | None = None) -> Callable[[F], F]:
    """Mark a registered function as a wrapper.

    Args:
        *own: Its arguments beside ``model``.
        settle: Turns its config into one that builds the same without it, where it only fills something in.
    """

    def mark(function: F) -> F:
        vars(function).update(own_arguments=own, settle=settle)
        return function

    return mark


def is_wrapper(cfg: Any) -> bool:
    """Tell whether a config wraps another one."""
    return isinstance(cfg, Mapping) and hasattr(resolve(cfg), 'own_arguments')


def unwrapped(cfg: Mapping[str, Any]) -> Any:
    """Return the config of what a wrapper wraps."""
    model = cfg['model']
    args = {k: v for k, v in cfg.items() if k not in ('type', 'model', *resolve(cfg).own_arguments)}
    if isinstance(model, (list, tuple)):
        return model
    return {**model, **args} if isinstance(model, Mapping) else dict(type=model, **args)


def settled(cfg: Any) -> Any:
    """Return a config without the wrappers that only fill something in: it says what they found."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(settled(value) for value in cfg)
    if not isinstance(cfg, Mapping):
        return cfg
    plain = {key: settled(value) for key, value in cfg.items()}
    settle = resolve(plain).settle if is_wrapper(plain) else None
    return plain if settle is None else settle(plain)


def innermost(cfg: Any) -> Any:
    """Return the config inside of all wrappers around it."""
    while is_wrapper(cfg):
        cfg = unwrapped(cfg)
    return cfg


def build_wrapped(model: Any, model_args: dict, user: str) -> nn.Module:
    """Build what a wrapping config entry wraps.

    ``model`` is a config, or a type whose arguments are the wrapper's remaining ones. The second form lets a config wrap a
    component of its base by a merge: ``backbone=dict(type='mmext.swap_layers', model='mmdet.ResNet', rules=[...])`` keeps
    every argument that the base gave to its ResNet.

    Raises:
        ValueError: If ``model`` is none of these.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, (list, tuple)):
        return ROOT_MODELS.build(list(model))
    return build_from_host(wrapped_cfg(model, model_args, user), user)


def specialized(model: nn.Module, *mixins: type) -> nn.Module:
    """Let the methods of ``mixins`` come before those of the model's own class, in place, and return the model.

    The class keeps its name, and the model its state-dict keys. Copies of it behave alike, as they would not if methods were
    set on the instance.
    """
    base: Any = type(model)
    model.__class__ = _class_with(mixins, base)
    return model


@functools.cache
def _class_with(mixins: tuple[type, ...], base: type) -> type:
    kept = {'__module__': base.__module__, '__doc__': base.__doc__, '_specializes': (mixins, base)}
    return type(base.__name__, (*mixins, base), kept)


def unspecialized(model: nn.Module, mixin: type, part: str) -> nn.Module:
    """Return a model without a mixin of :func:`specialized` and without the child ``part``; it shares all other parts."""
    plain = copy.copy(model)
    plain._modules = {name: child for name, child in model._modules.items() if name != part}
    plain.__class__ = _class_without(mixin, type(model))
    return plain


def _class_without(mixin: type, cls: Any) -> type:
    if '_specializes' not in vars(cls):
        return cls
    mixins, base = cls._specializes
    left, base = tuple(m for m in mixins if m is not mixin), _class_without(mixin, base)
    return _class_with(left, base) if left else base


def wrapped_cfg(model: Any, model_args: Mapping[str, Any], user: str) -> dict[str, Any]:
    """Return the config of one component that a wrapper's arguments say.

    Raises:
        ValueError: If ``model`` is neither a config nor a type.
    """
    if isinstance(model, str) or callable(model):
        model = dict(type=model)
    if not isinstance(model, Mapping) or not resolve(model):
        raise ValueError(f"{user} needs model='TypeName' or model=dict(type='TypeName', ...), got {model=}")
    return {**model, **model_args}
