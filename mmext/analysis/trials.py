"""Trainings of several configs with several seeds: each is run once, goes on after a kill, and is never taken for another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path

from mmext import cli
from mmext.errors import UsageError
from mmext.files import write_whole
from mmext.hosts import HOSTS

__all__ = ['Trial', 'cores', 'run_trials', 'training_command']

PACKAGE = Path(__file__).parents[1]
RECORD = 'trial.json'


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@cache
def _code() -> str:
    """Return a hash of this pack's code and of the versions of what it stands on."""
    seen = hashlib.sha256()
    for path in sorted(PACKAGE.rglob('*.py')):
        seen.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    for name in ('torch', *(name for names in HOSTS.values() for name in names)):
        try:
            seen.update(f'{name} {version(name)}'.encode())
        except PackageNotFoundError:
            continue
    return seen.hexdigest()


@dataclass
class Trial:
    """One training.

    Args:
        config: The config file.
        seed: The seed.
        work_dir: Where it is kept.
        after: A training that this one may start from; it is a part of what tells this one from others.
    """

    config: Path
    seed: int
    work_dir: Path
    after: Trial | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def resolved(self) -> str:
        """Return the config with all that it inherits, as text."""
        return json.dumps(cli.read_config(str(self.config)).to_dict(), sort_keys=True, default=repr)

    def digest(self) -> str:
        """Return a hash of all that decides the result: the resolved config, the seed, the code, and what it starts from."""
        parts = [self.resolved(), str(self.seed), _code(), self.after.digest() if self.after else '']
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def value(self, metric: str) -> float:
        """Return a metric by the end of its name.

        Raises:
            UsageError: If the log had none.
        """
        found = [value for name, value in self.metrics.items() if name.endswith(metric)]
        if not found:
            raise UsageError(
                f'{self.config} with seed {self.seed} did not log {metric}, but {", ".join(self.metrics) or "nothing"}; '
                'name one of them'
            )
        return found[-1]

    def run(self, command: Sequence[str], say: Callable[[str], object]) -> str | None:
        """Train, or read the result of having done so; return what went wrong.

        A folder of other code, another config or another seed is kept under another name.
        """
        digest, record = self.digest(), self.work_dir / RECORD
        saved = json.loads(record.read_text()) if record.is_file() else {}
        if self.work_dir.is_dir() and any(self.work_dir.iterdir()) and saved.get('digest') != digest:
            kept = _free(self.work_dir.with_name(f'{self.work_dir.name}.{saved.get("digest", "unknown")[:8]}'))
            self.work_dir.rename(kept)
            say(
                f'{self.work_dir} is of other code or of another config: it is kept as {kept.name}, and the training run anew'
            )
            saved = {}
        if 'metrics' not in saved:
            saved = dict(digest=digest, config=str(self.config), seed=self.seed)
            write_whole(record, json.dumps(saved, indent=1).encode())
            with open(self.work_dir / 'train.log', 'a') as log:
                options = ['--cfg-options', f'randomness.seed={self.seed}', 'default_hooks.checkpoint.max_keep_ckpts=1']
                call = [*command, str(self.config), '--work-dir', str(self.work_dir), '--resume', *options]
                done = subprocess.run(call, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
            if done.returncode:
                return f'{self.config} with seed {self.seed} did not finish; see {self.work_dir / "train.log"}'
            saved['metrics'] = _last_values(self.work_dir)
            write_whole(record, json.dumps(saved, indent=1).encode())
        self.metrics = saved['metrics']
        return None


def _free(path: Path) -> Path:
    """Return ``path``, or the first of ``path.1``, ``path.2``, ... that is not there."""
    names = chain([path.name], (f'{path.name}.{i}' for i in count(1)))
    return next(p for p in map(path.with_name, names) if not p.exists())


def _last_values(work_dir: Path) -> dict[str, float]:
    """Return the last value of everything that the runs in a folder have logged; a resumed run has several logs."""
    values: dict[str, float] = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            logged: Mapping[str, object] = json.loads(line)
            values |= {k: float(v) for k, v in logged.items() if isinstance(v, (int, float))}
    return values


def run_trials(
    trials: Sequence[Trial], jobs: int, command: Sequence[str], say: Callable[[str], object] = lambda line: None
) -> None:
    """Run trainings, ``jobs`` at a time, those first that others start from.

    Args:
        trials: The trainings; their ``metrics`` are filled in.
        jobs: How many at a time, each on one thread.
        command: The training tool.
        say: Is told what is run anew.

    Raises:
        UsageError: If any of them fails, when all others are done.
    """
    failures: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        for group in ([t for t in trials if not t.after], [t for t in trials if t.after]):
            failures += [failure for failure in pool.map(lambda t: t.run(command, say), group) if failure]
    if failures:
        raise UsageError('; '.join(failures))


def training_command() -> list[str]:
    """Return the command of the training tool of a source tree."""
    return [sys.executable, str(PACKAGE.parent / 'tools' / 'train.py')]
