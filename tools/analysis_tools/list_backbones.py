"""Print a table of all backbones and variants of the pack, beside some of the hosts' own: what they cost and return.

Multiply-adds are those of convolutions, linear layers and products of matrices, in the deployed form. The last example makes
docs/backbones.md and its plot. Without --time no forward is measured, and its column is empty.

Example:
    python tools/analysis_tools/list_backbones.py
    python tools/analysis_tools/list_backbones.py FFNet UniRepLKNet-[AFPN]$ --time 1 --plot backbones.png
    python tools/analysis_tools/list_backbones.py --markdown --time 1 --plot docs/backbones.png > docs/backbones.md
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmext import cli
from mmext.analysis.backbones import TITLES, Cost, cells, draw, matching, try_cost
from mmext.analysis.timing import setting
from mmext.errors import UsageError

COMMAND = (
    'python tools/analysis_tools/list_backbones.py --markdown --time 1 --plot docs/backbones.png > docs/backbones.md'
)
HEAD = f"""# Backbones

This page is what `{COMMAND}` prints. Do not edit it.

Multiply-adds are those of convolutions, linear layers and products of matrices, in the deployed form.
The last column is the median time of a forward of one image of 224 x 224, in the deployed form, on one thread.
A dash stands where a network takes no picture of that size, or nothing was measured.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='regular expressions of names; all by default')
    parser.add_argument('--time', type=float, default=0.0, metavar='SECONDS', help='measure a forward for so long')
    parser.add_argument('--markdown', action='store_true', help='print a page of Markdown')
    parser.add_argument('--plot', help='draw parameters, and times if measured, over multiply-adds')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    args = parse_args(argv)
    if args.plot:
        cli.refuse_unwritable(Path(args.plot))
    MMLogger.get_instance('list_backbones', logger_name='mmext', log_level=logging.ERROR)
    torch.set_num_threads(1)
    chosen = dict(pair for pattern in args.names or [''] for pair in matching(pattern))
    if not chosen:
        raise UsageError(f'no backbone has {" or ".join(args.names)} in its name; call this without names to see all')
    rows = []
    if args.markdown:
        print(HEAD)
        if args.time:
            machine = setting()
            print(f'Measured with torch {machine["torch"]} and {machine["isa"]}.\n')
        if args.plot:
            print(f'![Cost of the backbones]({Path(args.plot).name})\n')
        print('|', ' | '.join(TITLES), '|\n|', ':-- |' + ' --: |' * 4 + ' :-- | :-- | --: |')
    else:
        print('  '.join(f'{title:>13}' for title in TITLES))
    for name, cfg in chosen.items():
        row = try_cost(name, cfg, args.time)
        entries = cells(row) if isinstance(row, Cost) else [name, row]
        print(f'| {" | ".join(entries)} |' if args.markdown else '  '.join(f'{e:>13}' for e in entries), flush=True)
        rows += [row] if isinstance(row, Cost) else []
    if args.plot:
        draw(rows, args.plot)


if __name__ == '__main__':
    cli.run(main)
