r"""Turn an official checkpoint of a generated-kernel system into one that this pack's layers load.

SRC may be a bare state dict or hold it as state_dict, model or model_ema. Only the system's layers change; where the rest of
the network has other names than the host's, --prefix and --rename give them, after the conversion. With --config the model is
built and loads the result, and what did not fit is printed. DST holds tensors only.

Example:
    python tools/model_converters/convert.py --list
    python tools/model_converters/convert.py dilated_reparam official.pth converted.pth \
        --prefix =backbone. --config my_config.py
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmext
from mmext import cli
from mmext.checkpoints import read
from mmext.converters import SYSTEMS, Converted, convert, find_system, rename, state_dict_in
from mmext.errors import UsageError

SHOWN = 12  # of many names or notes


class _List(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        width = max(map(len, SYSTEMS))
        for entry in SYSTEMS.values():
            print(f'{entry.name:{width}}  {entry.target}: {entry.to_ours.__doc__}')
            for option, meaning in entry.options.items():
                print(f'{"":{width}}  --options {option}=: {meaning}')
        parser.exit()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--list', action=_List, nargs=0, help='show the systems and their options')
    parser.add_argument('system', help='one of --list')
    parser.add_argument('src', help='the official checkpoint')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument(
        '--key', help='where SRC holds the state dict; by default the first of state_dict, model, model_ema'
    )
    cli.add_trust(parser, 'SRC')
    parser.add_argument(
        '--options', nargs='+', default=[], metavar='KEY=VALUE', help='of the system; layers=REGEX restricts the layers'
    )
    parser.add_argument(
        '--prefix', nargs='+', default=[], metavar='OLD=NEW', help='another beginning of names; =NEW for those without'
    )
    parser.add_argument(
        '--rename', nargs='+', default=[], metavar='REGEX=NEW', help='another part of names, wherever it is found'
    )
    parser.add_argument('--config', help='build this model, load the result, and report')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(argv)


def pairs(items: Sequence[str], option: str) -> dict[str, str]:
    """Split ``KEY=VALUE`` arguments."""
    if wrong := [item for item in items if '=' not in item]:
        raise UsageError(f'{option} takes KEY=VALUE, got {", ".join(wrong)}')
    return dict(item.split('=', 1) for item in items)


def load_report(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Load ``state`` and return the names of what was loaded, missing, unexpected, and of another shape."""
    shapes: dict[str, str] = {}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = r'size mismatch for ([^\s:]+): .* shape torch\.Size\(\[(.*?)\]\) .* torch\.Size\(\[(.*?)\]\)\.'
        shapes = {name: f'{name} {own} <- {saved}' for name, saved, own in re.findall(mismatch, str(error))}
        if not shapes:
            raise
        fitting = {k: v for k, v in state.items() if k not in shapes}
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    return {
        'loaded': [k for k in state if k not in unexpected and k not in shapes],
        'missing': [k for k in missing if k not in shapes],
        'unexpected': list(unexpected),
        'of another shape': list(shapes.values()),
    }


def report_on(config: str, state: Mapping[str, Tensor]) -> None:
    """Build a config's model, load ``state`` into it, and print what fits.

    Raises:
        UsageError: If nothing does.
    """
    report = load_report(cli.load_subject(cli.read_config(config)), state)
    print(f'{config}: ' + ', '.join(f'{len(names)} {kind}' for kind, names in report.items()))
    for kind in ('missing', 'unexpected', 'of another shape'):
        print_names(f'  {kind}', report[kind])
    if not report['loaded']:
        raise UsageError(
            f'nothing fits the model of {config}; compare the names above, and give them other beginnings by --prefix'
        )


def print_names(what: str, names: Sequence[str]) -> None:
    """Print some names, and how many there are."""
    if names:
        print(
            f'{what}: {", ".join(names[:SHOWN])}' + (f', and {len(names) - SHOWN} more' if len(names) > SHOWN else '')
        )


def write(path: Path, converted: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    """Write tensors and a few words, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    # Views would be written with all that they are views of.
    state = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in converted.items()}
    try:
        torch.save(dict(state_dict=state, meta=dict(mmext=meta)), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def tell(converted: Converted, target: str) -> None:
    """Print what was converted, dropped, and what to mind."""
    print(f'layers converted to {target}: {len(converted.layers)}')
    print_names('dropped', converted.dropped)
    for note in converted.notes[:SHOWN]:
        print(f'note: {note}')
    if len(converted.notes) > SHOWN:
        print(f'and {len(converted.notes) - SHOWN} more notes of this kind')


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, report and write."""
    args = parse_args(argv)
    entry, dst = find_system(args.system), Path(args.dst)
    if dst.resolve() == Path(args.src).resolve():
        raise UsageError(f'{dst} is SRC itself; choose another DST')
    if dst.exists() and not args.force:
        raise UsageError(f'{dst} exists and is not overwritten; choose another DST or pass --force')
    cli.refuse_unwritable(dst)
    state, where = state_dict_in(read(args.src, args.trust), args.key)
    print(f'{args.src}: {len(state)} entries' + (f' in {where}' if where else ''))
    converted = convert(entry.name, state, pairs(args.options, '--options'))
    tell(converted, entry.target)
    renamed = rename(converted.state, pairs(args.prefix, '--prefix'), pairs(args.rename, '--rename'))
    if args.config:
        report_on(args.config, renamed)
    write(dst, renamed, dict(version=mmext.__version__, source=str(args.src), system=entry.name))
    print(f'wrote {dst}: {len(renamed)} tensors')


if __name__ == '__main__':
    cli.run(main)
