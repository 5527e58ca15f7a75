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
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmext
from mmext import cli
from mmext.checkpoints import read
from mmext.converters import SYSTEMS, Converted, convert, find_system, rename, state_dict_in
from mmext.errors import UsageError
from mmext.files import write_whole
from mmext.fit import compare

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


def report_on(config: str, state: Mapping[str, Tensor], what: str) -> None:
    """Build a config's model, load ``state`` into it, and print what fits; nothing at all is an error."""
    model = cli.load_subject(cli.read_config(config))
    fit = compare(state, model, what)
    model.load_state_dict({k: v for k, v in state.items() if k in fit.loaded}, strict=False)
    own = model.state_dict()
    shapes = [f'{k} {tuple(own[k].shape)} <- {tuple(state[k].shape)}' for k in fit.shapes]
    kinds = {'missing': fit.missing, 'unexpected': fit.unexpected, 'of another shape': shapes}
    print(f'{config}: ' + ', '.join(f'{len(n)} {kind}' for kind, n in {'loaded': fit.loaded, **kinds}.items()))
    for kind, names in kinds.items():
        print_names(f'  {kind}', names)


def print_names(what: str, names: Sequence[str]) -> None:
    """Print some names, and how many there are."""
    if names:
        print(
            f'{what}: {", ".join(names[:SHOWN])}' + (f', and {len(names) - SHOWN} more' if len(names) > SHOWN else '')
        )


def write(path: Path, converted: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    """Write tensors and a few words, at once or not at all."""
    # Views would be written with all that they are views of.
    state = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in converted.items()}
    content = io.BytesIO()
    torch.save(dict(state_dict=state, meta=dict(mmext=meta)), content)
    write_whole(path, content.getvalue())


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
        report_on(args.config, renamed, str(args.src))
    write(dst, renamed, dict(version=mmext.__version__, source=str(args.src), system=entry.name))
    print(f'wrote {dst}: {len(renamed)} tensors')


if __name__ == '__main__':
    cli.run(main)
