"""Train a list of configs with the same budget and the same seeds, and set their accuracy and cost side by side.

    python tools/analysis_tools/compare.py configs/demo/compare/*.py --seeds 0 1 --out work_dirs/compare
    python tools/analysis_tools/compare.py configs/inr/small/*.py --seeds 0 1 2 --metric signal/PSNR --shape 64 64 \
        --reference configs/inr/small/relu_28x10_1k_camera-64.py --out work_dirs/compare_inr
    python tools/analysis_tools/compare.py configs/demo/compare_necks/*.py --seeds 0 1 2 --shape 128 128 \
        --metric coco/bbox_mAP coco/bbox_mAP_50 --out work_dirs/compare_necks

A training that is done is not run again, so the list may grow, and one that was killed goes on. What counts as done is told by
a hash of the resolved config, the seed, the code and the training that it starts from. Results of other code are kept beside.
A config names its `reference`, unless one is named for all. One with `first_stage = True` is trained once, for others to start
from, and stands in no table. A metric is the last one of the log, mean and half the range over the seeds. The first one named
has beside it the difference from the reference and what that is worth.
The cost of a training step and of a deployed forward is measured afterwards, in one process on one CPU thread, all models in
turns: 8 images and one, or the whole grid of a coordinate network.
Writes OUT.md, OUT.json and OUT.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mmext import cli
from mmext.analysis.comparison import beside, cost, draw, family_of, spread_of, table
from mmext.analysis.trials import Trial, cores, run_trials, training_command
from mmext.drawing import save_figure
from mmext.errors import UsageError
from mmext.files import write_whole

TITLES = {
    'accuracy/top1': 'Top-1 (%)',
    'signal/PSNR': 'PSNR (dB)',
    'coco/bbox_mAP': 'AP (%)',
    'coco/bbox_mAP_50': 'AP50 (%)',
    'mIoU': 'mIoU (%)',
    'shape/IoU': 'IoU (%)',
}
#: What logs a share and not a percentage.
SHARES = ('coco/', 'shape/IoU')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, help='configs to train')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument(
        '--metric', nargs='+', default=['accuracy/top1'], help='what the log calls the metrics; the first is compared'
    )
    parser.add_argument('--reference', type=Path, help='the config that all others are compared with')
    parser.add_argument('--jobs', type=cli.positive, default=cores(), help='trainings at a time')
    parser.add_argument(
        '--shape', type=cli.positive, nargs=2, default=(48, 48), metavar='SIDE', help='height and width that are timed'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='where to write, without suffix')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(argv)


def build(config: Path, work_dir: Path) -> nn.Module:
    """Build a config's model on one processor, with what the training in ``work_dir`` has chosen for it."""
    written = work_dir / config.name
    return cli.load_subject(cli.read_config(str(written if written.is_file() else config)))


def references(configs: Sequence[Path]) -> dict[Path, Path]:
    """Map each config to the one of the list that it names as its ``reference``, or to itself."""
    named = {path: cli.read_config(str(path)).get('reference') for path in configs}
    return {path: next((p for p in configs if p.name == name), path) for path, name in named.items()}


def trials_of(configs: Sequence[Path], seeds: Sequence[int], out: Path) -> dict[tuple[Path, int], Trial]:
    """Return a training for each config and seed, after the one of the first seed whose checkpoint the config names."""
    trials = {
        (c, seed): Trial(c, seed, out / c.stem / f'seed{seed}')
        for c in configs
        for seed in (seeds[:1] if is_first_stage(c) else seeds)
    }
    text = {c: trials[c, seeds[0]].resolved() for c in configs}
    for config in configs:
        base = next((c for c in configs if c != config and f'/{c.stem}/seed{seeds[0]}/' in text[config]), None)
        for seed in seeds:
            if base is not None and (config, seed) in trials:
                trials[config, seed].after = trials[base, seeds[0]]
    return trials


def is_first_stage(config: Path) -> bool:
    """Tell whether a config is only there for others to start from."""
    return bool(cli.read_config(str(config)).get('first_stage'))


def score(trial: Trial, metric: str) -> float:
    """Return a metric, in percent where it is a share."""
    return trial.value(metric) * (100 if metric.startswith(SHARES) else 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, and write the table."""
    args = parse_args(argv)
    if missing := [str(p) for p in args.configs if not p.is_file()]:
        raise UsageError(f'no such config: {", ".join(missing)}')
    if len({p.stem for p in args.configs}) < len(args.configs):
        raise UsageError('two configs have the same name, under which their results would be kept; rename one')
    if args.reference is not None and args.reference not in args.configs:
        raise UsageError(f'--reference {args.reference} is not among the configs; add it to them')
    cli.refuse_unwritable(args.out.with_suffix('.md'))
    shown = [c for c in args.configs if not is_first_stage(c)]
    bases = references(shown) if args.reference is None else dict.fromkeys(shown, args.reference)
    titles = [TITLES.get(metric, metric) for metric in args.metric]
    trials = trials_of(args.configs, args.seeds, args.out)
    run_trials(list(trials.values()), args.jobs, training_command(), print)
    models = {c.stem: build(c, args.out / c.stem / f'seed{args.seeds[0]}') for c in shown}
    costs = cost(models, args.shape)
    read = {c: cli.read_config(str(c)).to_dict() for c in shown}
    measured = {c: {m: [score(trials[c, seed], m) for seed in args.seeds] for m in args.metric} for c in shown}
    rows = []
    for config, reference in bases.items():
        name, against = config.stem, costs[reference.stem]
        scores, *others = measured[config].values()
        rows.append(
            dict(
                name=name,
                reference=reference.stem,
                family=family_of(read[config], read[reference]),
                **spread_of(scores),
                others=[spread_of(other) for other in others],
                **beside(scores, measured[reference][args.metric[0]]),
                training_ratio=costs[name]['training'] / against['training'],
                deployed_ratio=costs[name]['deployed'] / against['deployed'],
                **costs[name],
            )
        )
    rows.sort(key=lambda row: (row['reference'], row['name'] != row['reference'], -row['mean']))
    write_whole(args.out.with_suffix('.json'), json.dumps(rows, indent=1).encode())
    write_whole(args.out.with_suffix('.md'), table(rows, titles).encode())
    save_figure(draw(rows, titles[0]), args.out.with_suffix('.png'))
    print(table(rows, titles))


if __name__ == '__main__':
    cli.run(main)
