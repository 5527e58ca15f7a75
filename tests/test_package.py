"""Properties of the package as a whole that no single part can be asked for."""

import ast
import re
from pathlib import Path

import pytest
from registered import COMPONENTS

import mmext
from mmext.catalogue import LISTS
from mmext.registry import ALL

PACKAGE = Path(mmext.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))

ROOT = PACKAGE.parent
FRAMES = ('inr',)
# What serves every family asks contracts, and names none.
GENERIC = [
    *(PACKAGE / f'{name}.py' for name in ('checkpoints', 'cli', 'contracts', 'deploy', 'errors', 'export', 'folding')),
    *(p for p in (ROOT / 'tools').rglob('*.py') if not p.stem.endswith(FRAMES) and p.stem != 'demo'),
]


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
    if path.relative_to(PACKAGE).parts[0] in systems and not path.name.startswith('_'):
        assigned = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        names = [target.id for target in assigned if isinstance(target, ast.Name)]
        assert '__all__' in names


@pytest.mark.parametrize('name', sorted(COMPONENTS))
def test_component_names_its_paper(name):
    """A reader must be able to tell what is published from what is ours."""
    component = COMPONENTS[name]
    doc = component.__doc__ or ''
    assert len(doc.splitlines()[0]) > 10, f'{name} needs a docstring'
    # A part of a system may leave the citation to the file's other classes.
    source = Path(PACKAGE, *component.__module__.split('.')[1:]).with_suffix('.py').read_text()
    cites = re.search(r'arXiv \d{4}\.\d{4,5}', source)
    ours = re.search(r'\(ours\b', doc.partition('\n\n')[0])
    assert bool(cites) != bool(ours), f'{name}: cite the paper as "arXiv 0000.00000", or say "(ours)" in the first line'


@pytest.mark.parametrize('path', GENERIC, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_generic_file_names_no_family(path):
    """A family is a frame (coordinate networks) or a system; the few names are those of the pack's own machinery."""
    tree = ast.parse(path.read_text())
    imports = [
        f'{node.module}.{alias.name}'
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    ]
    assert not [name for name in imports if name.startswith(tuple(f'mmext.{frame}' for frame in FRAMES))]
    classes = {
        name for name, c in COMPONENTS.items() if c.__module__.startswith(tuple(f'mmext.{frame}.' for frame in FRAMES))
    }
    words = set(re.findall(r'\w+', path.read_text()))
    assert not words & classes


def test_names_are_imported_where_the_documentation_says_they_are():
    for name, component in COMPONENTS.items():
        assert getattr(mmext, name) is component
    with pytest.raises(AttributeError, match='neither a component nor a module'):
        _ = mmext.NoSuchLayer


def test_a_name_stands_in_one_registry_only():
    assert len(COMPONENTS) == sum(len(registry.module_dict) for registry in ALL.values())


@pytest.mark.parametrize('path', LISTS)
def test_printed_list_is_up_to_date(path):
    assert LISTS[path]() == (ROOT / path).read_text(), 'python -m mmext.catalogue --write'
