"""Train a list of configs with the same budget and the same seeds, and set their accuracy and cost side by side.

    python tools/analysis_tools/compare.py configs/demo/compare/*.py --seeds 0 1 --out work_dirs/compare
    python tools/analysis_tools/compare.py configs/inr/small/*.py --seeds 0 1 2 --metric signal/PSNR --shape 64 64 \
        --reference configs/inr/small/relu_28x10_1k_camera-64.py --out work_dirs/compare_inr

A job whose result is there already is not run again, so the list may grow. A config that another one names as its `_base_` is
that one's reference, unless one is named for all. The metric is the last one of the log, mean and half the range over the
seeds. The cost of a training step and of a deployed forward is measured afterwards, in one process on one CPU thread, all
models in turns: 8 images and one, or the whole grid of a coordinate network. Writes OUT.md, OUT.json and OUT.png.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from mmengine.analysis import get_model_complexity_info
from torch import Tensor, nn

from mmext import cli
from mmext.analysis.timing import interleave
from mmext.contracts import FreezesStatistics, MakesInputs
from mmext.drawing import new_figure, save_figure
from mmext.errors import UsageError
from mmext.export import TensorMode, example_inputs
from mmext.folding import fold

ROOT = Path(__file__).parents[2]
TITLES = {'accuracy/top1': 'Top-1 (%)', 'signal/PSNR': 'PSNR (dB)'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', type=Path, help='configs to train')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--metric', default='accuracy/top1', help='what the log calls the metric to compare')
    parser.add_argument('--reference', type=Path, help='the config that all others are compared with')
    parser.add_argument('--jobs', type=cli.positive, default=max(1, (os.cpu_count() or 1)), help='trainings at a time')
    parser.add_argument(
        '--shape', type=cli.positive, nargs=2, default=(48, 48), metavar='SIDE', help='height and width that are timed'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='where to write, without suffix')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser.parse_args(argv)


def train(config: Path, seed: int, work_dir: Path, metric: str) -> float:
    """Run a job unless it is done, on one thread, and return its metric.

    Raises:
        UsageError: If the job fails, or does not log the metric.
    """
    result = work_dir / f'{metric.replace("/", "_")}.json'
    if result.is_file():
        return json.loads(result.read_text())
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir)]
    command += ['--cfg-options', f'randomness.seed={seed}', 'default_hooks.checkpoint.max_keep_ckpts=1']
    with open(work_dir / 'train.log', 'w') as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []
    found = [v for line in lines for k, v in line.items() if k.endswith(metric)]
    if done.returncode or not found:
        raise UsageError(f'{config} with seed {seed} did not finish with {metric}; see {work_dir / "train.log"}')
    result.write_text(json.dumps(found[-1]))
    return found[-1]


def build(config: Path, work_dir: Path) -> nn.Module:
    """Build a config's model on one processor, with what the training in ``work_dir`` has chosen for it."""
    written = work_dir / config.name
    return cli.load_subject(cli.read_config(str(written if written.is_file() else config)))


def parameters(model: nn.Module) -> int:
    """Count what learns."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def references(configs: Sequence[Path]) -> dict[Path, Path]:
    """Map each config to the one of the list that it names as its ``reference``, or to itself."""
    named = {path: cli.read_config(str(path)).get('reference') for path in configs}
    return {path: next((p for p in configs if p.name == name), path) for path, name in named.items()}


def step(model: nn.Module, batch: Tensor) -> None:
    """Run forward and backward."""
    model.zero_grad()
    sum(out.square().mean() for out in model(batch)).backward()


def cost(models: Mapping[str, nn.Module], shape: Sequence[int]) -> dict[str, dict[str, float]]:
    """Measure a training step and a deployed forward, in milliseconds."""
    torch.set_num_threads(1)
    forms, deployed, image = {}, {}, {}
    for name, model in models.items():
        inputs = example_inputs(model, *shape)
        image[name] = inputs[:1]
        # What a model makes itself is a whole batch.
        batch = inputs if isinstance(model, MakesInputs) else torch.randn(8, *inputs.shape[1:])
        forms[name] = partial(step, TensorMode(model.train(), batch), batch)
        plain = copy.deepcopy(model).eval()
        freezes = isinstance(plain, FreezesStatistics)
        if isinstance(plain, FreezesStatistics):
            plain.freeze_stats(inputs[0])
        with contextlib.suppress(RuntimeError):  # a layer without a plain form runs as it is
            plain = fold(plain, fuse_bn=freezes)
        deployed[name] = TensorMode(plain, image[name]).eval()
    training = interleave(forms, 3)
    with torch.no_grad():
        forward = interleave({name: partial(model, image[name]) for name, model in deployed.items()}, 5)
    return {
        name: dict(
            training=training[name]['median'],
            deployed=forward[name]['median'],
            parameters=parameters(models[name]),
            deployed_parameters=parameters(deployed[name]),
            flops=float(get_model_complexity_info(deployed[name], inputs=(image[name],), show_table=False)['flops']),
        )
        for name in models
    }


def table(rows: Sequence[dict], title: str) -> str:
    """Write the rows as Markdown, the metric under ``title``."""
    lines = [
        f'| Config | {title} | Parameters, trained -> deployed | MFLOPs, deployed | Training step (ms) | '
        'Deployed forward (ms) |',
        '| :-- | :-: | :-: | :-: | :-: | :-: |',
    ]
    for row in rows:
        count = f'{row["parameters"]:,} -> {row["deployed_parameters"]:,}'
        lines.append(
            f'| {row["name"]} | {row["mean"]:.1f} ± {row["spread"]:.1f} | {count} | {row["flops"] / 1e6:.2f} | '
            f'{row["training"]:.1f} ({row["training_ratio"]:.2f}x) | {row["deployed"]:.2f} ({row["deployed_ratio"]:.2f}x) |'
        )
    return '\n'.join(lines) + '\n'


def plot(rows: Sequence[dict], title: str, path: Path) -> None:
    """Draw the metric with its spread over the cost of a training step, a color for each reference."""
    # What all names end with tells nothing apart.
    first = rows[0]['name']
    endings = (first[i:] for i, letter in enumerate(first) if letter == '_')
    ending = next((e for e in endings if len(rows) > 1 and all(row['name'].endswith(e) for row in rows)), '')
    groups = list(dict.fromkeys(row['reference'] for row in rows))
    figure = new_figure(6 * len(groups), 5)
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        members = [row for row in rows if row['reference'] == group]
        for row in members:
            color = '#c44e52' if row['name'] == group else '#4878a8'
            axis.errorbar(row['training'], row['mean'], row['spread'], fmt='o', capsize=3, color=color)
            axis.annotate(
                row['name'].removesuffix(ending),
                (row['training'], row['mean']),
                xytext=(5, 4),
                textcoords='offset points',
                fontsize=8,
            )
        axis.set(xlabel='training step, one thread (ms)', ylabel=title, title=f'beside {group}')
        axis.grid(alpha=0.3)
        axis.margins(x=0.2)
    save_figure(figure, path, 110)


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
    bases = references(args.configs) if args.reference is None else dict.fromkeys(args.configs, args.reference)
    title = TITLES.get(args.metric, args.metric)
    accuracy: dict[str, list[float]] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        # References first: a second stage starts from the checkpoint of one.
        for group in ([c for c in args.configs if bases[c] == c], [c for c in args.configs if bases[c] != c]):
            jobs = [(config, seed, args.out / config.stem / f'seed{seed}') for config in group for seed in args.seeds]
            for (config, *_), score in zip(jobs, pool.map(lambda job: train(*job, args.metric), jobs), strict=True):
                accuracy.setdefault(config.stem, []).append(score)
    models = {c.stem: build(c, args.out / c.stem / f'seed{args.seeds[0]}') for c in args.configs}
    costs = cost(models, args.shape)
    rows = []
    for config, reference in bases.items():
        name, against = config.stem, costs[reference.stem]
        scores = accuracy[name]
        rows.append(
            dict(
                name=name,
                reference=reference.stem,
                mean=sum(scores) / len(scores),
                spread=(max(scores) - min(scores)) / 2,
                scores=scores,
                training_ratio=costs[name]['training'] / against['training'],
                deployed_ratio=costs[name]['deployed'] / against['deployed'],
                **costs[name],
            )
        )
    rows.sort(key=lambda row: (row['reference'], row['name'] != row['reference'], -row['mean']))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix('.json').write_text(json.dumps(rows, indent=1))
    args.out.with_suffix('.md').write_text(table(rows, title))
    plot(rows, title, args.out.with_suffix('.png'))
    print(table(rows, title))


if __name__ == '__main__':
    cli.run(main)
