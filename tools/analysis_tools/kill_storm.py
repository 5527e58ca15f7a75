"""Kill a training at random moments, resume it until it ends, and compare its last checkpoint bit by bit with an unkilled one.

The network is tiny and made on the spot. It has all that a resume can get wrong: augmentation in worker processes, dropout,
mixed batches, an average of weights, accumulated gradients, two schedules, validation with a best checkpoint. Kills are
SIGKILL: in start-up, anywhere, in a validation, or while a file is written.

Example:
    python tools/analysis_tools/kill_storm.py --kills 40 --out work_dirs/kill_storm
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mmext import cli
from mmext.checkpoints import read_checkpoint
from mmext.errors import UsageError

TOOLS = Path(__file__).resolve().parents[1]
MOMENTS = ('start', 'anywhere', 'validation', 'writing')
PARTS = """
import random
import time

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn


@MODELS.register_module()
class StormNet(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 256),
                                 nn.ReLU(), nn.Linear(256, 1))

    def forward(self, inputs, targets=None, mode='tensor'):
        if mode == 'loss':
            inputs = inputs + np.random.beta(1, 1) * random.random() * inputs[torch.randperm(len(inputs))]
        out = self.net(inputs)[:, 0]
        return {'loss': (out - targets).square().mean()} if mode == 'loss' else list(out)


@DATASETS.register_module()
class StormData(torch.utils.data.Dataset):
    metainfo = {}

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        time.sleep(0.01)
        x = torch.linspace(-1, 1, 16) * (index + 1) / self.size
        x = x + 0.1 * torch.randn(16) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return {'inputs': x, 'targets': torch.tensor(index / self.size)}


@METRICS.register_module()
class StormMetric(BaseMetric):
    default_prefix = 'storm'

    def process(self, data_batch, data_samples):
        self.results += [float(o) for o in data_samples]

    def compute_metrics(self, results):
        return {'score': float(np.mean(results))}
"""
COMMON = """
custom_imports = dict(imports=['storm_parts'])
default_scope = 'mmengine'
model = dict(type='StormNet')
loader = dict(num_workers=2, persistent_workers=True, collate_fn=dict(type='default_collate'))
val_dataloader = dict(batch_size=4, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='StormData', size=16), **loader)
val_evaluator = dict(type='StormMetric')
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=4, clip_grad=dict(max_norm=1.0))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
randomness = dict(seed=3)
log_level = 'ERROR'
"""
CONFIGS = {
    'epochs': """
train_dataloader = dict(batch_size=4, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='StormData', size=24), **loader)
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
param_scheduler = [dict(type='OneCycleLR', eta_max=0.05, total_steps=48, by_epoch=False),
                   dict(type='ReduceOnPlateauLR', monitor='storm/score', rule='greater', patience=1, factor=0.5)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='storm/score', rule='greater',
                                     max_keep_ckpts=3))
""",
    'inside epochs': """
train_dataloader = dict(batch_size=4, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='StormData', size=24), **loader)
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=2)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=8, by_epoch=True)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=5, by_epoch=False, save_best='storm/score',
                                     rule='greater'))
""",
    'iterations': """
train_dataloader = dict(batch_size=4, sampler=dict(type='InfiniteSampler', shuffle=True),
                        dataset=dict(type='StormData', size=24), **loader)
train_cfg = dict(by_epoch=False, max_iters=48, val_interval=9)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=30, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=5, by_epoch=False, save_best='storm/score',
                                     rule='greater'))
""",
}


def command(config: Path, work: Path) -> list[str]:
    """Return the command that starts a run and that goes on with it."""
    return [sys.executable, str(TOOLS / 'train.py'), str(config), '--work-dir', str(work), '--resume']


def start(config: Path, work: Path) -> subprocess.Popen:
    """Start or go on, in a session of its own; what is printed goes beside the run."""
    paths = os.pathsep.join([str(config.parent), *filter(None, [os.environ.get('PYTHONPATH')])])
    with work.with_suffix('.log').open('a') as log:
        return subprocess.Popen(
            command(config, work),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
        )


def finish(config: Path, work: Path) -> None:
    """Run to the end.

    Raises:
        UsageError: If the tool fails.
    """
    if code := start(config, work).wait():
        raise UsageError(f'the training in {work} ended with {code}; see {work.with_suffix(".log")}')


def kill(config: Path, work: Path, moment: str, draw: random.Random, seconds: float) -> bool:
    """Start a run, kill it at a moment, and tell whether it was still running."""
    process = start(config, work)
    begin, delay = time.monotonic(), draw.random()
    checkpoints = len(list(work.glob('*.pth'))) + draw.randrange(1, 4)
    while process.poll() is None:
        spent = time.monotonic() - begin
        if moment == 'start':
            hit = spent > 0.4 * delay * seconds
        elif moment == 'anywhere':
            hit = spent > (0.3 + 0.7 * delay) * seconds
        elif moment == 'writing':
            hit = len(list(work.glob('*.pth'))) >= checkpoints - 1 and any(work.glob('*.partial'))
        else:  # a checkpoint has just been written: its validation runs, or the training behind it
            hit = len(list(work.glob('*.pth'))) >= checkpoints
            time.sleep(0.05 * delay if hit else 0)
        if hit or spent > 20 * seconds:
            break
        time.sleep(0.0005)
    alive = process.poll() is None
    (os.killpg if draw.random() < 0.7 else os.kill)(process.pid, signal.SIGKILL) if alive else None
    process.wait()
    return alive


def differences(a: Any, b: Any, place: str = '') -> list[str]:
    """Name what differs between two nests of tensors and plain values, by as little as a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f'{place}.{k}' for k in a.keys() ^ b.keys()]
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f'{place}.{k}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f'{place}[{i}]')]
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [place]
    return [] if a == b else [place]


def result(work: Path) -> dict[str, Any]:
    """Return what a run ended with: all of its last checkpoint that does not tell times or folders."""
    last = read_checkpoint((work / 'last_checkpoint').read_text())
    kept = {k: last[k] for k in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}
    scalars = last['message_hub']['log_scalars']
    return {
        **kept,
        'random': last['mmext']['random'],
        'progress': [last['meta'][k] for k in ('epoch', 'iter')],
        'best': last['message_hub']['runtime_info'].get('best_score'),
        'loss': scalars['train/loss'],
    }


def chain(name: str, number: int, kills: int, out: Path, seconds: float, seed: int) -> tuple[Counter, list[str]]:
    """Kill one run several times, let it end, and compare; return how many kills hit what, and what differs."""
    draw, counts = random.Random(f'{seed}:{name}:{number}'), Counter()
    config, work = out / f'{name.replace(" ", "_")}.py', out / f'{name.replace(" ", "_")}_{number}'
    for _ in range(kills):
        moment = draw.choice(MOMENTS)
        if kill(config, work, moment, draw, seconds):
            counts[moment] += 1
    finish(config, work)
    return counts, differences(result(out / f'{config.stem}_whole'), result(work))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, kill, resume, compare and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=cli.positive, default=40, help='how many kills, over all runs')
    parser.add_argument('--per-run', type=cli.positive, default=4, help='kills of one run')
    parser.add_argument('--jobs', type=cli.positive, default=2, help='runs side by side')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--out', required=True, help='folder for the runs; a new one')
    args = parser.parse_args(argv)
    out = Path(args.out).resolve()
    if out.exists() and any(out.iterdir()):
        raise UsageError(f'{out} is not empty; choose a new folder')
    out.mkdir(parents=True, exist_ok=True)
    (out / 'storm_parts.py').write_text(PARTS)
    shares = [min(args.per_run, args.kills - i) for i in range(0, args.kills, args.per_run)]
    runs = [(list(CONFIGS)[i % len(CONFIGS)], i, kills) for i, kills in enumerate(shares)]
    seconds = {}
    for name in dict.fromkeys(name for name, *_ in runs):
        config = out / f'{name.replace(" ", "_")}.py'
        config.write_text(COMMON + CONFIGS[name])
        begin = time.monotonic()
        finish(config, out / f'{config.stem}_whole')
        seconds[name] = time.monotonic() - begin
    with ThreadPoolExecutor(args.jobs) as pool:
        ends = list(pool.map(lambda run: chain(*run, out, seconds[run[0]], args.seed), runs))
    total: Counter = sum((counts for counts, _ in ends), Counter())
    for (name, number, _), (counts, different) in zip(runs, ends, strict=True):
        hits = ', '.join(f'{count} {moment}' for moment, count in sorted(counts.items())) or 'none hit'
        print(
            f'{name} {number}: kills: {hits}; ' + (f'DIFFERS in {different[:5]}' if different else 'equal bit by bit')
        )
    equal = sum(not different for _, different in ends)
    hits = ', '.join(f'{total[moment]} {moment}' for moment in MOMENTS)
    print(
        f'{total.total()} of {args.kills} kills hit a running training ({hits}); {equal} of {len(runs)} runs ended equal'
    )
    if equal < len(runs):
        raise UsageError(f'{len(runs) - equal} runs did not end as the unkilled one; their files are in {out}')


if __name__ == '__main__':
    cli.run(main)
