"""The child registries of scope ``mmext``, one per kind, and the loader that fills them.

``type='mmext.Name'`` in any config makes mmengine import this module and then the ``locations`` of the registry in
question. Nothing is registered in a root registry, so no name of mmext can clash with a host's.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from mmengine import registry as root

from mmext.arguments import guard


class Registry(root.Registry):
    """A mmengine registry that answers an unknown name with the nearest known ones, and guards what it registers.

    The arguments of a registered class or function are checked against their annotations; see :mod:`mmext.arguments`.
    """

    def get(self, key: str) -> type:
        """Return the component called ``key``.

        Raises:
            KeyError: If neither this registry nor its parents know ``key``; the message names the nearest names.
        """
        try:
            found = super().get(key)
        except RuntimeError:
            found = None
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


def import_systems(package: str) -> dict[str, Any]:
    """Import every public module of ``package`` and return what their ``__all__`` lists name.

    A package of systems calls this in its ``__init__.py``, so that adding a system is adding a file.
    """
    exported: dict[str, Any] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith('_'):
            module = importlib.import_module(f'{package}.{info.name}')
            exported.update({name: getattr(module, name) for name in module.__all__})
    return exported


def _child(name: str, parent: root.Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope='mmext', locations=[f'mmext.{loc}' for loc in locations])


# Conv layers, activations, norms, blocks, backbones, necks, heads, coordinate networks, and the functions that rewire a model.
MODELS = _child(
    'model',
    root.MODELS,
    'convs',
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
        METRICS,
    )
}
