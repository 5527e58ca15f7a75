"""The child registries of scope ``mmext``, one per kind, and the loader that fills them.

``type='mmext.Name'`` in any config makes mmengine import this module and then the ``locations`` of the registry in
question. Nothing is registered in a root registry, so no name of mmext can clash with a host's.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from mmengine import registry as root
from mmengine.config.lazy import LazyAttr, LazyObject

from mmext.arguments import guard


class Registry(root.Registry):
    """A mmengine registry that answers an unknown name with the nearest known ones, and guards what it registers.

    The arguments of a registered class or function are checked against their annotations; see :mod:`mmext.arguments`.
    """

    def get(self, key: str) -> type:
        """Return the component called ``key``, or what stands at the dotted path ``key``.

        Raises:
            KeyError: If neither this registry nor its parents know ``key``; the message names the nearest names.
        """
        try:
            found = super().get(key)
        except RuntimeError:
            found = None
        if found is None and '.' in key:  # mmengine has taken the first part of the path for the scope
            found = _at(key if key.startswith(f'{self.scope}.') else f'{self.scope}.{key}')
        if found is None:
            name = key.rpartition('.')[2]
            known = {n.lower(): n for n in self.module_dict}  # a slip of case is a near miss
            near = [known[n] for n in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.0)]
            hint = ', '.join(f'mmext.{n}' for n in near) or 'nothing'
            raise KeyError(
                f"mmext.{name} is not registered among mmext's {self.name}s; the nearest names are {hint} "
                '(python -m mmext.doctor lists all)'
            )
        return found

    def _register_module(self, module: Any, module_name: str | list[str] | None = None, force: bool = False) -> None:
        """Let a component that is defined again, by a reload or in a notebook, replace itself."""
        names = [module_name or module.__name__] if not isinstance(module_name, list) else module_name
        known = [self.module_dict[name] for name in names if name in self.module_dict]
        itself = all((k.__module__, k.__qualname__) == (module.__module__, module.__qualname__) for k in known)
        if isinstance(module, type):
            guard(module)
        super()._register_module(module, module_name, force or itself)


def _at(path: str) -> Any:
    """Return what a module holds; a package may export a function by the name of its module, so modules are imported whole."""
    module, _, name = path.rpartition('.')
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def import_systems(package: str) -> dict[str, Any]:
    """Import every public module of ``package`` and return what their ``__all__`` lists name.

    A package of systems calls this in its ``__init__.py``, so that adding a system is adding a file.
    """
    exported: dict[str, Any] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith('_'):
            module = importlib.import_module(f'{package}.{info.name}')
            for name in module.__all__:
                value = getattr(module, name)
                if exported.setdefault(name, value) is not value:
                    raise ImportError(
                        f'{module.__name__} and another module of {package} both export {name}; rename one of them'
                    )
    return exported


def resolve(kind: Any, registry: root.Registry = root.MODELS) -> Any:
    """Return the class or function that a config entry means, None if there is none.

    Args:
        kind: A config with a ``type``, or what may stand as one: a registered name with or without scope, a dotted path
            as mmengine dumps it, a class or function, or what a config with ``read_base()`` holds in the place of one.
        registry: Where names are looked up, in the default scope.
    """
    if isinstance(kind, Mapping):
        kind = kind.get('type')
    if isinstance(kind, (LazyObject, LazyAttr)):
        kind = kind.build()
    if not isinstance(kind, str):
        return kind
    try:
        with registry.switch_scope_and_registry(None) as scoped:
            found = scoped.get(kind)
    except (KeyError, RuntimeError):
        return None
    return found if callable(found) else None


def require(kind: Any, registry: root.Registry = root.MODELS) -> Any:
    """Return what :func:`resolve` returns.

    Raises:
        KeyError: If there is none; the message names the nearest names.
    """
    found = resolve(kind, registry)
    if found is None:
        name = kind.get('type') if isinstance(kind, Mapping) else kind
        found = ALL[registry.name].get(str(name))
    return found


def takes(cls: Any, argument: str) -> bool:
    """Tell whether a class or function has an argument of this name, be it one that a class passes on to its base."""
    parameters = inspect.signature(cls).parameters
    if argument in parameters:
        return True
    passes_on = inspect.isclass(cls) and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return passes_on and any(takes(base, argument) for base in cls.__mro__[1:2] if base is not object)


def name_of(kind: Any, registry: root.Registry = root.MODELS) -> str:
    """Return the shortest name under which :func:`resolve` finds a class or function from any scope."""
    top = kind.__module__.partition('.')[0]
    for found in (registry, registry.children.get(top)):
        for name, known in (found.module_dict if found else {}).items():
            if known is kind:
                return name if found is registry else f'{top}.{name}'
    return f'{kind.__module__}.{kind.__qualname__}'


def named(cfg: Any) -> Any:
    """Return ``cfg`` with names in the place of classes and functions, as a file can hold them."""
    if isinstance(cfg, Mapping):
        return {key: named(value) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(named(value) for value in cfg)
    if isinstance(cfg, (LazyObject, LazyAttr)):
        cfg = cfg.build()
    if isinstance(cfg, str) and re.fullmatch(r'mmext(\.\w+){2,}', cfg):  # a path of this pack, as mmengine dumps it
        found = resolve(cfg)
        cfg = cfg if found is None else found
    cfg = name_of(cfg) if inspect.isclass(cfg) or inspect.isfunction(cfg) else cfg
    return bare_name(cfg) if isinstance(cfg, str) else cfg


#: Paths of functions that a host looks up among its own, by ``eval``: a config holds the bare name of such a one.
EVALUATED = re.compile(r'mmcv\.ops(?:\.nms)?\.(\w*nms\w*)')


def bare_name(name: str) -> str:
    """Return the bare name where ``name`` is the path of a function that its host looks up by name."""
    found = EVALUATED.fullmatch(name)
    return found[1] if found else name


def _child(name: str, parent: root.Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope='mmext', locations=[f'mmext.{loc}' for loc in locations])


# Conv layers, operators with dynamic kernels, activations, norms, blocks, backbones, necks, heads, coordinate networks, and
# the functions that rewire a model.
MODELS = _child(
    'model',
    root.MODELS,
    'convs',
    'evolution',
    'activations',
    'norms',
    'blocks',
    'backbones',
    'necks',
    'heads',
    'inr',
    'surgery',
    'folding',
)
# Optimizers: the update rule itself.
OPTIMIZERS = _child('optimizer', root.OPTIMIZERS, 'optim')
# What stands between the runner and an optimizer: AMP, accumulation, the loss that SA-GD needs.
OPTIM_WRAPPERS = _child('optim_wrapper', root.OPTIM_WRAPPERS, 'optim')
# Per-parameter options (learning rate, decay) by rule.
OPTIM_WRAPPER_CONSTRUCTORS = _child('optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'optim')
# Hooks of the training loop.
HOOKS = _child('hook', root.HOOKS, 'hooks', 'inr')
# What the weights of a model start from (``init_cfg``).
WEIGHT_INITIALIZERS = _child('weight initializer', root.WEIGHT_INITIALIZERS, 'inits')
# Data.
DATASETS = _child('dataset', root.DATASETS, 'datasets', 'inr')
TRANSFORMS = _child('transform', root.TRANSFORMS, 'datasets')
# Parts of detectors that are no layers, as mmdet's assigners.
TASK_UTILS = _child('task util', root.TASK_UTILS, 'assigners')
# What the evaluator computes.
METRICS = _child('metric', root.METRICS, 'inr')

#: Every registry of the pack, by kind; tests and the doctor walk over it.
ALL = {
    r.name: r
    for r in (
        MODELS,
        OPTIMIZERS,
        OPTIM_WRAPPERS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        HOOKS,
        WEIGHT_INITIALIZERS,
        DATASETS,
        TRANSFORMS,
        TASK_UTILS,
        METRICS,
    )
}
