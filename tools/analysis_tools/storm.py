"""Rewire randomly drawn configs of the hosts, train each for a step, deploy it, and reload it where this pack is blocked.

A drawn config counts if its stock model takes a training step on made samples, small images of digits. Then it gets one or
two drawn moves of surgery, and goes through the same step, the deployment and the reloading. Each config runs in a process
of its own with a limit of processor time. A failure after which the stock model fails alike is marked. The same seed and the
same versions of the hosts give the same draw. The table is printed as it grows, and written to OUT after every config.

Example:
    python tools/analysis_tools/storm.py --count 60 --seed 1 --out work_dirs/storm.json
    python tools/analysis_tools/storm.py mmdet::yolox/yolox_tiny_8xb8-300e_coco.py --count 1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from mmext import cli
from mmext.analysis.isolated import Reloader, limited, preload
from mmext.analysis.samples import SAMPLES
from mmext.analysis.stages import Row, examine
from mmext.errors import UsageError
from mmext.export import unfinished


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs', nargs='*', help='draw from these, such as mmdet::NAME.py (default: all of the hosts)'
    )
    parser.add_argument('--count', type=cli.positive, default=20, help='how many configs are to count')
    parser.add_argument('--seed', type=int, default=0, help='what the draw starts from')
    parser.add_argument(
        '--limit', type=cli.positive, default=120, metavar='SECONDS', help='time of the processor for each config'
    )
    parser.add_argument(
        '--most', type=cli.positive, default=60, metavar='MILLIONS', help='skip stock models with more parameters'
    )
    parser.add_argument(
        '--fuse-bn', action='store_true', help='also fuse norms, which few hosts can build without mmext'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/storm.json'), help='JSON to write')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(argv)


def stock_folder(host: str) -> Path:
    """Return the folder of a host's stock configs."""
    spec = importlib.util.find_spec(host)
    folder = Path(spec.origin).parent / '.mim/configs' if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise UsageError(f'{host} with its configs is not installed; install it, or draw from configs of other hosts')
    return folder


def path_of(config: str) -> Path:
    """Return the file that ``host::name`` stands for."""
    host, _, name = config.partition('::')
    if host not in SAMPLES or not name:
        raise UsageError(f'a config to draw from is HOST::NAME.py with a host of {", ".join(SAMPLES)}, got {config!r}')
    path = stock_folder(host) / name
    if not path.is_file():
        raise UsageError(f'{host} has no config {name}; look into {stock_folder(host)}')
    return path


def drawn(configs: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Go through configs in a drawn order: hosts in turns, each folder as likely as another, each config once."""
    folders: dict[str, dict[str, list[str]]] = {}
    for config in configs:
        host, _, name = config.partition('::')
        folders.setdefault(host, {}).setdefault(name.partition('/')[0], []).append(config)
    while folders:
        for host in list(folders):
            folder = rng.choice(sorted(folders[host]))
            left = folders[host][folder]
            yield left.pop(rng.randrange(len(left)))
            if not left:
                del folders[host][folder]
            if not folders[host]:
                del folders[host]


def stock_configs() -> list[str]:
    """Return the configs of all hosts as ``host::name``."""
    found = []
    for host in SAMPLES:
        folder = stock_folder(host)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.glob('*/**/*.py') if '_base_' not in p.parts)
        found += [f'{host}::{name}' for name in names]
    return found


def run_one(config: str, folder: Path, args: argparse.Namespace, reloader: Reloader) -> Row:
    """Return the row of one config, whatever happens to its process."""
    folder.mkdir()
    work = partial(examine, Row(config), path_of(config), folder, args.seed, args.most, args.fuse_bn)
    ended = limited(work, args.limit, folder / 'log.txt')
    noted = folder / 'row.json'
    row = Row(**json.loads(noted.read_text())) if noted.is_file() else Row(config)
    if ended:
        sentence = f'{row.stage}: {ended}'
        row.skipped, row.reason = (sentence, '') if row.stage == 'stock' else ('', sentence)
    elif row.deploys and not row.needs:
        row.reason = reloader(folder, args.limit)
        row.stock = not row.reason
    return row


def summary(rows: Sequence[Row]) -> str:
    """Return the counts."""
    counted = [row for row in rows if not row.skipped]
    trains, deploys, stock = (sum(getattr(r, k) for r in counted) for k in ('trains', 'deploys', 'stock'))
    needing = sum(bool(row.needs) for row in counted)
    alike = sum('so does the' in row.reason for row in counted)
    return (
        f'{len(counted)} configs: {trains} train, {deploys} deploy, {stock} are stock again, {needing} need mmext for layers '
        f'without a plain form; of the failures {alike} are those of the stock model too; {len(rows) - len(counted)} '
        f'skipped, {sum(len(row.refused) for row in counted)} drawn moves refused'
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, examine and print."""
    args = parse_args(argv)
    cli.refuse_unwritable(args.out)
    for config in args.configs:
        path_of(config)
    configs = sorted(set(args.configs)) or stock_configs()
    torch.set_num_threads(1)  # what is split off a process with several threads may hang
    preload(list(SAMPLES))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    print('trains deploy stock  config  [moves]  why not, or what needs mmext')
    reloader = Reloader(list(SAMPLES))
    with tempfile.TemporaryDirectory(prefix='storm-') as work:
        for number, config in enumerate(drawn(configs, random.Random(args.seed))):
            rows.append(run_one(config, Path(work) / str(number), args, reloader))
            print(rows[-1].verdict(), flush=True)
            with unfinished(args.out) as path:
                path.write_text(json.dumps([asdict(row) for row in rows], indent=1))
            if sum(not row.skipped for row in rows) == args.count:
                break
        reloader.close()
    print(summary(rows))


if __name__ == '__main__':
    cli.run(main)
