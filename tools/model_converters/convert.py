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
import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import mmext
from mmext import cli
from mmext.checkpoints import read
from mmext.converters import SYSTEMS, Converted, convert, find_system, rename
from mmext.errors import UsageError

SHOWN = 12  # of many names or notes
NESTS = ('state_dict', 'model', 'model_ema')


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
    return parser.parse_args(argv)


def state_dict_in(content: Any, key: str | None) -> tuple[dict[str, Any], str]:
    """Return the state dict that a file holds, without ``module.`` in its names, and where it was found.

    Values other than tensors stay: one system lists its ranks beside them.
    """
    where = ''
    if isinstance(content, Mapping):
        where = key or next((k for k in NESTS if isinstance(content.get(k), (Mapping, nn.Module))), '')
        if key and key not in content:
            raise UsageError(f'the checkpoint has no {key}, only {", ".join(map(str, list(content)[:8]))}')
    inside = content[where] if where else content
    state = inside.state_dict() if isinstance(inside, nn.Module) else inside
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        have = ', '.join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise UsageError(f'there is no state dict in the checkpoint, only {have}; name its place by --key')
    return {str(k).removeprefix('module.'): v for k, v in state.items()}, where


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
    cfg = cli.read_config(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    report = load_report(MODELS.build(copy.deepcopy(cfg.model)), state)
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
    torch.save(dict(state_dict=state, meta=dict(mmext=meta)), partial)
    os.replace(partial, path)


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
    if dst.is_dir() or dst.resolve() == Path(args.src).resolve():
        raise UsageError(f'{dst} is a folder or SRC itself; choose another DST')
    if dst.exists() and not args.force:
        raise UsageError(f'{dst} exists and is not overwritten; choose another DST or pass --force')
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
