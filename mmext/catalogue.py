"""``python -m mmext.catalogue``: print every list of the pack from the components themselves.

    python -m mmext.catalogue                  # which lists differ from the files
    python -m mmext.catalogue --write          # write them all
    python -m mmext.catalogue docs/catalogue.md

The lists are the table of components, the README's summary of it, the operators with evolving kernels, the tools, mim's
index of models, the index of configs, and the public surface (names, arguments, defaults). Nothing in them is written by
hand. A test compares them with what is there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmext.registry import ALL

__all__ = ['LISTS', 'Entry', 'entries', 'main']

ROOT = Path(__file__).parents[1]


class Entry(NamedTuple):
    """A registered component, as its own code describes it.

    Args:
        name: As in ``type='mmext.NAME'``.
        kind: The folder, or the file, of ``mmext`` that it lives in.
        slug: The name of its system: its file's.
        text: The first line of its docstring.
        paper: Title and arXiv number, None where it is ours or a part of what its file's first component cites.
        component: The class or function.
    """

    name: str
    kind: str
    slug: str
    text: str
    paper: tuple[str, str] | None
    component: Any


def entries() -> list[Entry]:
    """Return all registered components, by kind and name."""
    found = []
    for registry in ALL.values():
        registry.import_from_location()
        for name, component in registry.module_dict.items():
            kind, _, rest = component.__module__.removeprefix('mmext.').partition('.')
            doc = inspect.getdoc(component) or ''
            text = doc.partition('\n')[0]
            found.append(Entry(name, kind, rest.rpartition('.')[2] or kind, text, _paper(doc), component))
    return sorted(found, key=lambda entry: (entry.kind, entry.slug, entry.name))


def _paper(doc: str) -> tuple[str, str] | None:
    cited = re.search(r'\*([^*]+)\*[^*]*?arXiv (\d{4}\.\d{4,5})', doc)
    number = re.search(r'arXiv (\d{4}\.\d{4,5})', doc)
    if cited:
        return ' '.join(cited[1].split()), cited[2]
    return (f'arXiv {number[1]}', number[1]) if number else None


def catalogue() -> str:
    """Return the table of components, a section for each kind."""
    lines = ['# Catalogue', '', 'Printed by `python -m mmext.catalogue docs/catalogue.md`. Do not edit.', '']
    kind = None
    for entry in entries():
        if entry.kind != kind:
            kind = entry.kind
            lines += ['', f'## {kind}', '', _markdown(_title(kind)), '']
            lines += ['| component | what it is | paper | configs |', '| :-- | :-- | :-- | :-- |']
        paper = f'[{entry.paper[0]}](https://arxiv.org/abs/{entry.paper[1]})' if entry.paper else ''
        folder = f'[{entry.slug}](../configs/{entry.slug})' if (ROOT / 'configs' / entry.slug).is_dir() else ''
        lines.append(f'| `mmext.{entry.name}` | {_markdown(entry.text)} | {paper} | {folder} |')
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)) + '\n'


def _markdown(text: str) -> str:
    """Turn the roles of a docstring into Markdown."""
    text = re.sub(r':(?:class|func|mod|meth):`~?(?:mmext\.)?([\w.]+)`', r'`\1`', text)
    text = re.sub(r':math:`([^`]+)`', lambda m: f'${m[1]}$'.replace('|', '\\|'), text)
    return text.replace('``', '`')


def model_index() -> str:
    """Return the index that mim reads."""
    return '\n'.join(['Import:', *(f'  - {path}' for path in _folders('metafile.yml'))]) + '\n'


def _folders(name: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').glob(f'*/{name}'))


def config_index() -> str:
    """Return the index of the folder of configs."""
    lines = ['# Configs', '', 'Printed by `python -m mmext.catalogue configs/README.md`. Do not edit.', '']
    lines += ['| folder | system | tasks | configs |', '| :-- | :-- | :-- | --: |']
    for path in _folders('README.md'):
        folder = (ROOT / path).parent
        title = (ROOT / path).read_text().partition('\n')[0].lstrip('# ')
        configs = [p for p in folder.rglob('*.py') if '_base_' not in p.parts]
        tasks = sorted({p.relative_to(folder).parts[0] for p in configs})
        lines.append(f'| [{folder.name}]({folder.name}) | {title} | {", ".join(tasks)} | {len(configs)} |')
    return '\n'.join(lines) + '\n'


def surface() -> str:
    """Return every public name with its arguments and defaults, one a line, so that a review sees a rename."""
    return ''.join(f'{line}\n' for line in _signatures())


def _signatures() -> Iterator[str]:
    for entry in entries():
        arguments = [_argument(p) for p in _parameters(entry.component)]
        yield f'{entry.kind} mmext.{entry.name}({", ".join(arguments)})'


def _parameters(component: Any) -> Iterator[inspect.Parameter]:
    """Go through the arguments of a component, and of its bases in the pack where it passes them on."""
    seen = set()
    classes = component.__mro__ if inspect.isclass(component) else [component]
    for layer in classes:
        own = layer.__dict__.get('__init__') if inspect.isclass(layer) else layer
        if own is None or not layer.__module__.startswith('mmext.'):
            continue
        parameters = list(inspect.signature(own).parameters.values())
        for parameter in parameters:
            passed_on = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.name not in seen and parameter.name != 'self' and not passed_on:
                seen.add(parameter.name)
                yield parameter
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return


def _argument(parameter: inspect.Parameter) -> str:
    default = parameter.default
    return parameter.name if default is parameter.empty else f'{parameter.name}={default!r}'


def tools() -> str:
    """Return the list of the tools, by what their own docstrings say."""
    lines = [
        '# Tools',
        '',
        'Printed by `python -m mmext.catalogue tools/README.md`. Do not edit. Each tool explains itself with `--help`.',
    ]
    lines += ['', '| tool | what it does |', '| :-- | :-- |']
    for path in sorted((ROOT / 'tools').rglob('*.py'), key=lambda p: (len(p.parts), p)):
        source = path.read_text()
        if "__name__ == '__main__'" in source:
            name, text = path.relative_to(ROOT / 'tools').as_posix(), ast.get_docstring(ast.parse(source)) or ''
            lines.append(f'| [{name}]({name}) | {_markdown(text.partition(chr(10))[0])} |')
    return '\n'.join(lines) + '\n'


def readme() -> str:
    """Return the README with the table of what is inside."""
    rows = ['| folder of `mmext` | components | what they are |', '| :-- | --: | :-- |']
    for kind, found in itertools.groupby(entries(), key=lambda entry: entry.kind):
        rows.append(f'| [{kind}](docs/catalogue.md#{kind}) | {len(list(found))} | {_markdown(_title(kind))} |')
    return _printed_into('README.md', rows)


def evolution() -> str:
    """Return the page on evolving kernels with the table of operators, by what their kernels depend on."""
    rows = ['| operator | kernel | differs by place | by channel | by input |', '| :-- | :-- | :-: | :-: | :-: |']
    flags = ('spatial_specific', 'channel_specific', 'dynamic')
    found = [(*(getattr(e.component, flag) for flag in flags), e) for e in entries() if hasattr(e.component, flags[0])]
    for *answers, entry in sorted(found, key=lambda row: (row[:3], row[3].name)):
        marks = ' | '.join('yes' if answer else 'no' for answer in answers)
        rows.append(f'| `mmext.{entry.name}` | {_formula(entry.component)} | {marks} |')
    return _printed_into('docs/evolution.md', rows)


def _formula(component: Any) -> str:
    """Return the first part of the equation in the docstring of a component, for a cell of a table."""
    found = re.search(r'\.\. math::\s*(.*?)\n\s*\n', inspect.getdoc(component) or '', re.DOTALL)
    equation = ' '.join(found[1].split()) if found else ''
    return '$`' + equation.replace('|', r'\vert ') + '`$' if equation else ''


def _printed_into(path: str, rows: Sequence[str]) -> str:
    """Return the text of a file with a table in its place between two marks."""
    text, mark = _read(ROOT / path), f'<!-- printed by python -m mmext.catalogue {path} -->\n'
    before, _, rest = text.partition(mark)
    return before + mark + '\n'.join(rows) + '\n<!-- end -->' + rest.partition('<!-- end -->')[2]


def _title(kind: str) -> str:
    return (inspect.getdoc(importlib.import_module(f'mmext.{kind}')) or '').partition('\n')[0]


#: What is printed into which file.
LISTS: dict[str, Callable[[], str]] = {
    'README.md': readme,
    'tools/README.md': tools,
    'docs/catalogue.md': catalogue,
    'docs/evolution.md': evolution,
    'model-index.yml': model_index,
    'configs/README.md': config_index,
    'docs/surface.txt': surface,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one list, write all, or name those that differ from their files; return 1 if any does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('list', nargs='?', choices=LISTS, help='print this one')
    parser.add_argument('--write', action='store_true', help='write every list into its file')
    args = parser.parse_args(argv)
    if args.list:
        sys.stdout.write(LISTS[args.list]())
        return 0
    stale = {path: text for path, make in LISTS.items() if (text := make()) != _read(ROOT / path)}
    for path, text in stale.items():
        if args.write:
            partial = ROOT / f'{path}.partial'
            partial.write_text(text)
            os.replace(partial, ROOT / path)
        sys.stdout.write(
            f'{path} {"is written" if args.write else "is out of date: python -m mmext.catalogue --write"}\n'
        )
    return int(bool(stale) and not args.write)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ''


if __name__ == '__main__':
    sys.exit(main())
