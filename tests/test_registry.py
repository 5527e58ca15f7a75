"""Names: every component is found from every scope, wherever it is named, and nothing else changes for the host."""

import ast
import inspect
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import mmengine.registry
import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope
from mmengine.utils import get_installed_path
from registered import ARGUMENTS, members
from torch import nn

import mmext
from mmext.registry import ALL, Registry, import_systems, name_of, named, resolve

PACKAGE = Path(mmext.__file__).parent
SCOPES = [None, 'mmdet', 'mmseg', 'mmpretrain']
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
COMPONENTS = [(kind, name) for kind, registry in ALL.items() for name in sorted(registry.module_dict)]
CONVS = [name for name in members('convs') if issubclass(ALL['model'].module_dict[name], nn.Conv2d)]


def in_scope(scope):
    """Make ``scope`` the default scope, as a runner of that host does."""
    return DefaultScope.overwrite_default_scope(scope)


def fresh(code: str) -> str:
    """Run ``code`` in a new interpreter and return what it prints."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get('PYTHONPATH', '')])
    env = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- what an import does -------------------------------------------------------------------------------------------------


def test_import_is_light():
    heavy = ('torchvision', 'mmcv', *HOSTS)
    assert fresh(f'import sys, mmext; print([m for m in {heavy} if m in sys.modules])') == '[]'


def test_import_works_without_mmengine():
    code = "import sys; sys.modules['mmengine'] = None; import mmext; print(mmext.__version__)"
    assert fresh(code) == mmext.__version__


def test_all_components_load_without_hosts_and_without_compiled_operators():
    code = (
        'import sys\n'
        "for name in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv._ext'): sys.modules[name] = None\n"
        'from mmext.registry import ALL\n'
        'for registry in ALL.values(): registry.import_from_location()\n'
        'print(sum(len(registry.module_dict) for registry in ALL.values()))'
    )
    assert int(fresh(code).splitlines()[-1]) == len(COMPONENTS)


@pytest.mark.parametrize('custom_imports', ["custom_imports = dict(imports=['mmext'], allow_failed_imports=False)", ''])
def test_a_config_finds_components_with_and_without_custom_imports(custom_imports, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"{custom_imports}\nlayer = dict(type='mmext.LENI', num_channels=4)\n")
    code = (
        'from mmengine.config import Config; from mmengine.registry import MODELS, init_default_scope\n'
        f"cfg = Config.fromfile({str(config)!r}); init_default_scope('mmdet')\n"
        'print(type(MODELS.build(cfg.layer)).__name__)'
    )
    assert fresh(code).splitlines()[-1] == 'LENI'


def test_nothing_is_registered_in_a_root_registry():
    roots = [r for r in vars(mmengine.registry).values() if isinstance(r, mmengine.registry.Registry)]
    assert len(roots) > 10
    for root in roots:
        assert not [n for n, c in root.module_dict.items() if (getattr(c, '__module__', '') or '').startswith('mmext')]


def test_registering_again_replaces_only_itself():
    registry = Registry('probe', scope='probe')

    def define(module):
        made = type('Layer', (), {'__module__': module})
        registry.register_module()(made)
        return made

    define('mmext.convs.a')
    again = define('mmext.convs.a')
    assert registry.get('Layer') is again
    with pytest.raises(KeyError, match='already registered'):
        define('mmext.convs.b')
    assert registry.get('Layer') is again


def test_importing_again_changes_nothing():
    before = {kind: dict(registry.module_dict) for kind, registry in ALL.items()}
    table = dict(MODULE2PACKAGE)
    for registry in ALL.values():
        registry.import_from_location()
    mmext._teach_config_scopes()
    assert {kind: registry.module_dict for kind, registry in ALL.items()} == before
    assert table == MODULE2PACKAGE


def test_two_modules_of_a_package_export_different_names(tmp_path, monkeypatch):
    (tmp_path / 'twins').mkdir()
    for name, code in (
        ('__init__', ''),
        ('a', '__all__ = ["F"]\nF = object()'),
        ('b', 'from twins.a import F\n__all__ = ["F"]'),
    ):
        (tmp_path / 'twins' / f'{name}.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(import_systems('twins')) == ['F']
    (tmp_path / 'twins' / 'c.py').write_text('__all__ = ["F"]\nF = object()')
    with pytest.raises(ImportError, match=r'twins\.c and another module of twins both export F'):
        import_systems('twins')


# --- classes, paths and names as types -----------------------------------------------------------------------------------

LAZY = """
from mmengine.config import read_base
with read_base():
    from .base import *
from mmext.convs.refconv import RefConv2d
from mmext.surgery import swap_layers
default_scope = None
model = dict(type=swap_layers, model=model, rules=[dict(kernel_size=3, to=dict(type=RefConv2d))])
"""


@pytest.fixture
def lazy(tmp_path):
    """A config with ``read_base()`` and classes as types."""
    base = (
        'from mmpretrain.models import ResNet\nmodel = dict(type=ResNet, depth=18, base_channels=8, stem_channels=8)\n'
    )
    (tmp_path / 'base.py').write_text(base)
    (tmp_path / 'new.py').write_text(LAZY)
    return Config.fromfile(tmp_path / 'new.py')


@pytest.mark.parametrize('scope', SCOPES)
def test_a_new_style_config_its_dump_and_its_names_build_the_same(scope, lazy, tmp_path):
    lazy.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.model.type == 'mmext.surgery.swap_layers'
    by_name = Config(dict(model=named(lazy.model)))
    assert by_name.model.type == 'mmext.swap_layers'
    assert by_name.model.rules[0]['to']['type'] == 'mmext.RefConv2d'
    assert by_name.model.model.type == 'mmpretrain.ResNet'
    by_name.dump(tmp_path / 'named.py')
    shapes = []
    for cfg in (lazy, again, Config.fromfile(tmp_path / 'named.py')):
        with in_scope(scope):
            shapes.append({k: v.shape for k, v in MODELS.build(cfg.model).state_dict().items()})
    assert shapes[0] == shapes[1] == shapes[2]
    assert any('map_weight' in key for key in shapes[0])


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize(('kind', 'name'), COMPONENTS)
def test_every_component_is_found_by_name_path_and_class(kind, name, scope):
    registry = ALL[kind].parent
    component = ALL[kind].module_dict[name]
    path = f'{component.__module__}.{component.__qualname__}'
    with in_scope(scope):
        for given in (f'mmext.{name}', component, dict(type=component), dict(type=f'mmext.{name}'), path):
            assert resolve(given, registry) is component
    assert name_of(component, registry) == f'mmext.{name}'
    assert resolve(dict(type=f'mmext.{name}x'), registry) is None


def test_names_of_foreign_classes_lead_back_to_them():
    from mmdet.models import FPN
    from mmengine.optim import AmpOptimWrapper

    assert name_of(FPN) == 'mmdet.FPN'
    assert name_of(AmpOptimWrapper, mmengine.registry.OPTIM_WRAPPERS) == 'AmpOptimWrapper'
    assert name_of(nn.Conv2d) in ('Conv', 'Conv2d')
    for kind in (FPN, nn.Conv2d, nn.Softplus):
        assert resolve(name_of(kind)) is kind
    assert [resolve(kind) for kind in (None, {}, dict(model=1), 'json', 'no.such.path', 3)] == [None] * 5 + [3]


# --- bases of other packages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('installed', 'expected'), [({'mmsegmentation'}, 'mmsegmentation'), ({'onedl-mmsegmentation'}, 'mmseg')]
)
def test_mmseg_scope_is_repaired_only_where_it_is_broken(installed, expected, monkeypatch):
    def distribution(name):
        if name not in installed:
            raise PackageNotFoundError(name)

    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(mmext, 'distribution', distribution)
    mmext._teach_config_scopes()
    assert MODULE2PACKAGE['mmseg'] == expected


def test_mmext_scope_leads_to_the_package_itself():
    """An editable install too, where mmengine 0.10.7 would look into site-packages."""
    assert get_installed_path(MODULE2PACKAGE['mmext']) == str(PACKAGE)


@pytest.mark.parametrize(
    'base',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
    ],
)
def test_bases_of_the_hosts_resolve(base, tmp_path):
    (tmp_path / 'config.py').write_text(f'_base_ = {base!r}\n')
    assert Config.fromfile(tmp_path / 'config.py').default_scope == base.partition('::')[0]


# --- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize(
    ('registry', 'wrong', 'near'),
    [
        (MODELS, 'mmext.RefConv', 'mmext.RefConv2d'),
        (MODELS, 'mmext.Falconnet', 'mmext.FalconNet'),
        (MODELS, 'mmext.leni', 'mmext.LENI,'),
        (OPTIMIZERS, 'mmext.SaGD', 'mmext.SAGD'),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(scope, registry, wrong, near):
    with in_scope(scope), pytest.raises(KeyError, match=f'{wrong} is not registered .* nearest names are .*{near}'):
        registry.build(dict(type=wrong))


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('name', CONVS)
def test_conv_layers_build_through_mmcv(name, scope):
    groups = ARGUMENTS[name].get('groups', 1)
    with in_scope(scope):
        layer = build_conv_layer(dict(type=f'mmext.{name}'), 8, 8, 3, padding=1, groups=groups)
        module = ConvModule(
            8,
            8,
            3,
            padding=1,
            groups=groups,
            conv_cfg=dict(type=f'mmext.{name}'),
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='mmext.LENI', num_channels=8),
        )
        with pytest.raises(KeyError, match=rf'nearest names are .*mmext\.{name}'):
            build_conv_layer(dict(type=f'mmext.{name}x'), 8, 8, 3)
    assert type(layer).__name__ == type(module.conv).__name__ == name
    assert type(module.activate).__name__ == 'LENI'
    assert module(torch.randn(2, 8, 5, 6)).shape == (2, 8, 5, 6)


def build(kind, name):
    cfg = dict(type=f'mmext.{name}', **ARGUMENTS.get(name, {}))
    if kind == 'optim_wrapper':
        return build_optim_wrapper(nn.Linear(2, 2), cfg)
    if kind == 'optimizer':
        cfg['params'] = nn.Linear(2, 2).parameters()
    return ALL[kind].parent.build(cfg)


@pytest.mark.parametrize(('kind', 'name'), COMPONENTS)
def test_builds_from_every_scope(kind, name, monkeypatch):
    # mmengine builds an AMP wrapper only where it sees an accelerator.
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    for scope in SCOPES:
        with in_scope(scope):
            built = build(kind, name)  # fails where the component's `example` lacks an argument
        if inspect.isclass(component := ALL[kind].module_dict[name]):
            assert type(built) is component


def bare_names(code: str) -> list[str]:
    """Return the ``type`` entries of dicts in ``code`` that name a component of mmext without its prefix."""
    values = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            values += [keyword.value for keyword in node.keywords if keyword.arg == 'type']
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            values += [value for key, value in zip(keys, node.values, strict=True) if key == 'type']
    names = [value.value for value in values if isinstance(value, ast.Constant)]
    return [name for name in names if any(name in registry.module_dict for registry in ALL.values())]


def test_default_configs_carry_the_prefix():
    """A bare name of another component is not found under a host's scope."""
    assert bare_names("def f(a=dict(type='LENI'), b={'type': 'SEPC'}, c=dict(type='BN'), d='RefConv2d'): ...") == [
        'LENI',
        'SEPC',
    ]
    files = sorted(PACKAGE.rglob('*.py'))
    assert len(files) > 20
    assert {file.name: found for file in files if (found := bare_names(file.read_text()))} == {}
