"""mmext: a plug-in pack of conv ops, activations, backbones, necks, heads and optimizers for OpenMMLab.

Every component is used from a config as ``type='mmext.Name'``; no import line is needed, because mmengine resolves the
scope ``mmext`` through :mod:`mmext.registry`, which imports the component modules on first use. Importing this package
therefore does one thing only: it teaches mmengine's config loader where ``mmext::`` and ``mmseg::`` bases live.
"""

from importlib.metadata import PackageNotFoundError, distribution

__version__ = '0.1.0'


def _teach_config_scopes() -> None:
    """Make ``_base_ = 'mmext::...'`` and ``'mmseg::...'`` resolve; harmless when repeated.

    mmengine maps a scope to a *distribution* name in a closed table. The maintained builds renamed the distribution of
    mmseg, so the table points to one that is not installed; the import name resolves as well and is always right. For mmext
    it gets a module: mmengine 0.10.7 would look for the distribution's files where an editable install has none.
    """
    try:
        from mmengine.config.utils import MODULE2PACKAGE
    except ModuleNotFoundError:
        return
    MODULE2PACKAGE.setdefault('mmext', 'mmext.registry')
    try:
        distribution(MODULE2PACKAGE['mmseg'])
    except PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


_teach_config_scopes()


def __getattr__(name: str) -> object:
    """Find a component by its registered name: ``from mmext import RefConv2d`` imports the components on first use."""
    from importlib.util import find_spec

    # The import system asks for submodules here, too; these must not load every component.
    if not name.startswith('_') and find_spec(f'{__name__}.{name}') is None:
        from mmext.registry import ALL

        for registry in ALL.values():
            registry.import_from_location()
            if name in registry.module_dict:
                return registry.module_dict[name]
    raise AttributeError(f'mmext has neither a component nor a module {name!r}; python -m mmext.doctor lists all')
