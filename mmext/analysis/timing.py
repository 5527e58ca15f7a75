"""What the benchmarks share: contenders in turns on one CPU thread, a table, a JSON and a plot."""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmext.drawing import new_figure, save_figure
from mmext.ops import native_status

__all__ = ['Report', 'check', 'interleave', 'main', 'peak_beyond', 'plot', 'say', 'setting', 'shares', 'write']


def interleave(contenders: dict[str, Callable], rounds: int, seconds: float = 0.15) -> dict[str, dict[str, float]]:
    """Time every contender in turn, round by round; milliseconds of this thread."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            end, repeats = time.perf_counter() + seconds, 0
            while repeats < 2 or (time.perf_counter() < end and repeats < 20):
                start = time.thread_time()
                call()
                times[name].append((time.thread_time() - start) * 1e3)
                repeats += 1
    return {name: dict(min=min(t), median=statistics.median(t)) for name, t in times.items()}


@torch.no_grad()
def check(name: str, got: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    """Stop the benchmark if a contender does not compute what it should."""
    error = float((got.double() - exact).norm() / exact.norm())
    if not error <= tolerance:
        raise SystemExit(f'{name} is wrong: relative error {error:.1e}')


def peak_beyond(call: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory of the process rises above what it was, at the worst moment of a call."""

    def status(key: str) -> int:
        line = next(row for row in Path('/proc/self/status').read_text().splitlines() if row.startswith(key))
        return int(line.split()[1]) * 1024

    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps would hide what the call takes
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before = status('VmRSS')
    result = call()
    grown = status('VmHWM') - before
    del result
    return grown


def shares(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Return which operators take the time of a call and what part of it, the slowest first, without what they call."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        call()
    times = {row.key: row.self_cpu_time_total for row in seen.key_averages()}
    return [(name, time / sum(times.values())) for name, time in sorted(times.items(), key=lambda item: -item[1])]


class Report:
    """Rows of the table, one per figure."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def ratio(self, figure: str, ours: dict, theirs: dict, target: float) -> None:
        """Add a speed-up: of the medians, since that is what a user sees; the minima are kept beside it."""
        value = theirs['median'] / ours['median']
        self.add(
            figure, value, target, value >= target, ours=ours, theirs=theirs, by_minima=theirs['min'] / ours['min']
        )

    def add(self, figure: str, value: float, target: float | None, met: bool, **more: Any) -> None:
        self.rows.append(dict(figure=figure, value=value, target=target, met=bool(met), **more))
        row = self.rows[-1]
        detail = ''
        if 'ours' in row:
            detail = (
                f'{row["ours"]["median"]:9.2f} ms{row["theirs"]["median"]:10.2f} ms   (minima {row["by_minima"]:.1f}x)'
            )
        verdict = f'{"":9s}  ' if target is None else f'{target:9.2f}  {"met" if met else "MISSED"}'
        say(f'{figure:66s}{value:9.2f}{verdict}{detail}')


def plot(rows: list[dict], path: Path) -> None:
    """Draw the speed-ups and their targets, if there are any."""
    rows = [row for row in rows if 'ours' in row]
    if not rows:
        return
    figure = new_figure(9, 0.35 * len(rows) + 1.2)
    axis = figure.subplots()
    axis.barh([row['figure'] for row in rows], [row['value'] for row in rows], color='#4878a8', label='measured')
    axis.plot([row['target'] for row in rows], range(len(rows)), 'k|', markersize=14, label='target')
    axis.set(xscale='log', xlabel='times faster (medians)')
    axis.invert_yaxis()
    axis.legend()
    save_figure(figure, path, 120)


def say(line: str) -> None:
    """Write a line to the terminal at once: a benchmark is watched while it runs."""
    sys.stdout.write(f'{line}\n')
    sys.stdout.flush()


def setting() -> dict:
    """Describe the machine as far as it decides the figures."""
    return dict(
        torch=torch.__version__,
        isa=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        path=native_status()._asdict(),
    )


def write(report: Report, out: Path) -> None:
    """Write OUT.json, and OUT.png where two things were timed side by side."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix('.json').write_text(json.dumps(dict(setting=setting(), rows=report.rows), indent=1))
    plot(report.rows, out.with_suffix('.png'))


def main(
    sections: Mapping[str, Callable[[Report, int], None]],
    description: str,
    name: str,
    rounds: int,
    asked: Mapping[str, Callable[[Report, int], None]] | None = None,
) -> int:
    """Run the sections of a benchmark that were asked for, and return its exit status, 1 where a target is missed.

    Args:
        sections: What fills the report, given the number of rounds, by name.
        description: Of the benchmark.
        name: Of its files in ``work_dirs``, without suffix.
        rounds: By default.
        asked: Sections that run alone, each asked for by an option of its name.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--only', nargs='+', choices=sections, default=list(sections))
    parser.add_argument('--rounds', type=int, default=rounds)
    parser.add_argument('--out', type=Path, default=Path('work_dirs') / name)
    parser.set_defaults(alone=[])
    for option, section in (asked or {}).items():
        about = (section.__doc__ or '').partition('\n')[0]
        parser.add_argument(f'--{option}', dest='alone', action='append_const', const=option, help=about)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report()
    say(json.dumps(setting()))
    say(f'{"figure":66s}{"value":>9s}{"target":>9s}')
    every = {**sections, **(asked or {})}
    for section in arguments.alone or arguments.only:
        every[section](report, arguments.rounds)
    write(report, arguments.out)
    return 0 if all(row['met'] for row in report.rows) else 1
