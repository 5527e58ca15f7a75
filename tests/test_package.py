"""Properties of the package as a whole that no single part can be asked for."""

import ast
import re
from pathlib import Path

import pytest

import mmext
from mmext.registry import ALL

PACKAGE = Path(mmext.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))

for registry in ALL.values():
    registry.import_from_location()
COMPONENTS = {name: component for registry in ALL.values() for name, component in registry.module_dict.items()}
# Components that are ours and follow no paper.
OURS = {
    'CheckpointGuardHook',
    'DepthwiseConv2d',
    'DownsamplingOperator',
    'IdentityOperator',
    'LayerOptionsConstructor',
    'PairHead',
    'ProjectionHook',
    'RadonOperator',
    'ReconstructionMetric',
    'SignalDataset',
    'SignalHook',
    'SignalModel',
    'SignalPictureHook',
    'folded',
    'swap_layers',
}


def module_level(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements that run when a module is imported."""
    body = list(tree.body)
    for node in body:
        body += (
            [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef))
            else []
        )
    return body


def imported(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name.partition('.')[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and not statement.level:
        return [(statement.module or '').partition('.')[0]]
    return []


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_file_is_quiet_and_imports_no_host(path):
    """A logger can be silenced and prefixed, ``print`` cannot; what runs in a terminal writes to a stream of its choice."""
    tree = ast.parse(path.read_text())
    prints = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print'
    ]
    assert not prints or path.name in ('cli.py', 'doctor.py')
    hosts = {'mmdet', 'mmseg', 'mmpretrain'}
    assert not [name for statement in module_level(tree) for name in imported(statement) if name in hosts]


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_file_says_what_it_is_and_what_it_exports(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    # The packages of systems import what ``__all__`` names, so a module without it would not be found.
    systems = {location.removeprefix('mmext.') for registry in ALL.values() for location in registry._locations}
    if path.parent.parent == PACKAGE and path.parent.name in systems and not path.name.startswith('_'):
        names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        assert '__all__' in names


@pytest.mark.parametrize('name', sorted(COMPONENTS))
def test_component_names_its_paper(name):
    """A reader must be able to tell what is published from what is ours."""
    component = COMPONENTS[name]
    doc = component.__doc__ or ''
    assert len(doc.splitlines()[0]) > 10, f'{name} needs a docstring'
    # A part of a system may leave the citation to the file's other classes.
    source = Path(PACKAGE, *component.__module__.split('.')[1:]).with_suffix('.py').read_text()
    cites = re.search(r'arXiv \d{4}\.\d{5}', source)
    assert bool(cites) != (name in OURS), f'{name}: cite the paper as "arXiv 0000.00000", or list it in OURS'


def test_list_of_our_own_components_is_up_to_date():
    assert set(COMPONENTS) >= OURS
