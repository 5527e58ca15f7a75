"""Print the sentences of README and docs that are hardest to read: the longest ones, and those with semicolons.

    python tools/misc/prose.py [FILES ...] [--worst 5]

It counts, and fails nothing. The law is one thought per sentence, at most 25 words, no semicolons.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRINTED = 'Printed by `python -m mmext.catalogue'


def sentences(text: str) -> Iterator[str]:
    """Go through the sentences of a Markdown text, without code, tables, headings, pictures and comments."""
    text = re.sub(r'```.*?```|<!--.*?-->|\$\$.*?\$\$', '', text, flags=re.DOTALL)
    # An indented block after an empty line is code.
    lines = [line for line in text.splitlines() if not re.match(r'\s*\||#|!\[|    ', line)]
    for paragraph in re.split(r'\n\s*\n|\n\s*(?:[-*]|\d+\.) ', '\n'.join(lines)):
        plain = ' '.join(re.sub(r'\]\([^)]*\)', ']', paragraph).split())
        yield from (s for s in re.split(r'(?<=[.!?:])\s+(?=[A-Z`\[*])', plain) if s)


def words(sentence: str) -> int:
    """Count words; a piece of code is one."""
    return len(re.sub(r'`[^`]*`', 'code', sentence).split())


def main(argv: Sequence[str] | None = None) -> None:
    """Print, for each file, the mean length, the semicolons, and the worst sentences of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', type=Path, help='Markdown files; by default README, CONTRIBUTING and docs')
    parser.add_argument('--worst', type=int, default=5)
    args = parser.parse_args(argv)
    files = args.files or [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
    found: list[tuple[int, str, Path]] = []
    for path in files:
        text = path.read_text()
        if PRINTED in text.partition('\n## ')[0]:
            continue
        mine = [(words(s), s, path) for s in sentences(text)]
        found += mine
        mean = sum(count for count, *_ in mine) / max(len(mine), 1)
        marks = sum(s.count(';') for _, s, _ in mine)
        print(f'{path.name}: {len(mine)} sentences, {mean:.1f} words each, {marks} semicolons')
    for count, sentence, path in sorted(found, key=lambda row: (-row[0], row[1]))[: args.worst]:
        print(f'{path.name}, {count} words: {sentence}')


if __name__ == '__main__':
    main()
