"""Set systems side by side: accuracy over seeds, with what a difference is worth, and the cost of a step and of a forward."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn

from mmext.analysis.timing import interleave
from mmext.contracts import FreezesStatistics, MakesInputs
from mmext.drawing import new_figure
from mmext.export import TensorMode, example_inputs
from mmext.folding import fold
from mmext.norms.position_norm import freeze_stats
from mmext.registry import resolve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['beside', 'cost', 'draw', 'family_of', 'spread_of', 'table']

#: One color for each kind of component, in the order of their first appearance.
COLORS = ('#4878a8', '#dd8452', '#55a868', '#8172b3', '#937860', '#da8bc3', '#ccb974', '#64b5cd')
REFERENCE = '#c44e52'


def parameters(model: nn.Module) -> int:
    """Count what learns."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, image: Tensor) -> float:
    """Count the multiply-adds of a forward, without a word on operators that have none."""
    count = FlopAnalyzer(model, (image,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(count.total())


def _step(model: nn.Module, batch: Tensor) -> None:
    """Run forward and backward."""
    model.zero_grad()
    sum(out.square().mean() for out in model(batch)).backward()


def cost(models: Mapping[str, nn.Module], shape: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Measure a training step of 8 images and a deployed forward of one, in milliseconds, all models in turns on one thread.

    What a model makes its inputs of itself is a whole batch.
    """
    torch.set_num_threads(1)
    forms: dict[str, Callable] = {}
    deployed, image = {}, {}
    for name, model in models.items():
        inputs = example_inputs(model, *shape)
        image[name] = inputs[:1]
        batch = inputs if isinstance(model, MakesInputs) else torch.randn(8, *inputs.shape[1:])
        forms[name] = partial(_step, TensorMode(model.train(), batch), batch)
        plain = copy.deepcopy(model).eval()
        freezes = isinstance(plain, FreezesStatistics)
        if freezes:
            freeze_stats(plain, inputs[0])
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
            flops=multiply_adds(deployed[name], image[name]),
        )
        for name in models
    }


def family_of(cfg: Any, reference: Any) -> str:
    """Return the kind of the first component of this pack that a config has and its reference has not; ``stock`` for none."""
    known = {kind for kind in _kinds(reference)}
    return next((kind.split('.')[1] for kind in _kinds(cfg) if kind not in known), 'stock')


def _kinds(node: Any) -> Iterator[str]:
    """Go through the modules of this pack's components in a config."""
    if isinstance(node, Mapping):
        found = resolve(node) if isinstance(node.get('type'), str) and node['type'].startswith('mmext.') else None
        if found is not None and not _is_frame(node):
            yield found.__module__
        for value in node.values():
            yield from _kinds(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _kinds(value)


def _is_frame(node: Mapping[str, Any]) -> bool:
    """Tell whether a component only holds others, as the rules of surgery do."""
    return 'rules' in node


def beside(scores: Sequence[float], reference: Sequence[float]) -> dict[str, float | bool | None]:
    """Compare the scores of a system over seeds with those of its reference.

    Returns:
        ``difference`` of the means. ``p``: the probability of one so large by chance, by Welch's test of two sides, None
        with a single seed. ``beyond_spread``: whether the two ranges of scores do not overlap.
    """
    difference = statistics.fmean(scores) - statistics.fmean(reference)
    apart = min(scores) > max(reference) or max(scores) < min(reference)
    p = None
    if min(len(scores), len(reference)) > 1:
        from scipy.stats import ttest_ind

        if statistics.pvariance(scores) or statistics.pvariance(reference):
            p = float(ttest_ind(scores, reference, equal_var=False).pvalue)
        else:
            p = 1.0 if difference == 0 else 0.0
    return dict(difference=difference, p=p, beyond_spread=apart)


def spread_of(scores: Sequence[float]) -> dict[str, Any]:
    """Return the mean of scores over seeds and half their range."""
    return dict(mean=statistics.fmean(scores), spread=(max(scores) - min(scores)) / 2, scores=list(scores))


def table(rows: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> str:
    """Write the rows as Markdown, the metrics under ``titles``; the first is the one that is compared."""
    lines = [
        f'| Config | {" | ".join(titles)} | {titles[0]} beside the reference | Parameters, trained -> deployed | '
        'MFLOPs, deployed | Training step (ms) | Deployed forward (ms) |',
        '| :-- |' + ' :-: |' * (5 + len(titles)),
    ]
    for row in rows:
        count = f'{row["parameters"]:,} -> {row["deployed_parameters"]:,}'
        scores = ' | '.join(f'{m["mean"]:.1f} ± {m["spread"]:.1f}' for m in (row, *row['others']))
        lines.append(
            f'| {row["name"]} | {scores} | {_worth(row)} | {count} | '
            f'{row["flops"] / 1e6:.2f} | {row["training"]:.1f} ({row["training_ratio"]:.2f}x) | '
            f'{row["deployed"]:.2f} ({row["deployed_ratio"]:.2f}x) |'
        )
    seeds = len(rows[0]['scores'])
    lines += ['', f'Mean and half the range over {seeds} seed{"s" * (seeds > 1)}.']
    if seeds > 1:
        lines[-1] += " p is of Welch's test. A star: no seed of one is as good as any seed of the other."
    return '\n'.join(lines) + '\n'


def _worth(row: Mapping[str, Any]) -> str:
    if row['name'] == row['reference']:
        return 'the reference'
    text = f'{row["difference"]:+.1f}'
    if row['p'] is not None:
        text += (f', p = {row["p"]:.2f}' if row['p'] >= 0.005 else ', p < 0.01') + ' *' * bool(row['beyond_spread'])
    return text


def draw(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the metric with its spread over the cost of a training step: a panel for each reference, a color for each kind."""
    groups = list(dict.fromkeys(row['reference'] for row in rows))
    families = list(dict.fromkeys(row['family'] for row in rows if row['name'] != row['reference']))
    color = {family: COLORS[i % len(COLORS)] for i, family in enumerate(families)}
    short = _shorten([row['name'] for row in rows])
    figure = new_figure(8 * len(groups), 6.5)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    labels: list[tuple[Any, list[tuple[float, float, float, str]]]] = []
    for axes, group in zip(panels, groups, strict=True):
        members = [row for row in rows if row['reference'] == group]
        for row in members:
            is_reference = row['name'] == group
            axes.errorbar(
                row['training'],
                row['mean'],
                row['spread'],
                fmt='D' if is_reference else 'o',
                markersize=8 if is_reference else 5,
                capsize=3,
                color=REFERENCE if is_reference else color[row['family']],
            )
            if is_reference:
                axes.axhline(row['mean'], color=REFERENCE, linewidth=0.8, alpha=0.5)
        axes.set(xlabel='training step, one thread (ms)', ylabel=title, title=f'beside {short[group]}')
        if max(row['training'] for row in members) > 4 * min(row['training'] for row in members):
            axes.set_xscale('log')
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.12)
        for family in dict.fromkeys(row['family'] for row in members if row['name'] != group):
            axes.plot([], [], 'o', color=color[family], label=family)
        axes.plot([], [], 'D', color=REFERENCE, label='reference')
        axes.legend(loc='best', fontsize=8)
        labels.append((axes, [(row['training'], row['mean'], row['spread'], short[row['name']]) for row in members]))
    place_labels(figure, labels)
    return figure


def _shorten(names: Sequence[str]) -> dict[str, str]:
    """Leave out what all names end with, which tells nothing apart."""
    first = names[0]
    endings = (first[i:] for i, letter in enumerate(first) if letter == '_')
    ending = next((e for e in endings if len(names) > 1 and all(name.endswith(e) for name in names)), '')
    return {name: name.removesuffix(ending) for name in names}


def place_labels(figure: Figure, labels: Sequence[tuple[Any, Sequence[tuple[float, float, float, str]]]]) -> list[Any]:
    """Write a name beside every point so that none covers another name, a point or an error bar; far ones get a line.

    Args:
        figure: The figure, otherwise complete: its layout is settled here.
        labels: Axes, and (x, y, half the length of the error bar, name) of each point in them.

    Returns:
        The annotations.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine('none')  # what is placed now must not move again
    renderer, notes = canvas.get_renderer(), []
    for axes, points in labels:
        area = axes.get_window_extent(renderer)
        at = [tuple(axes.transData.transform((x, y))) for x, y, *_ in points]
        taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in at]
        for (x, y, spread, _), (px, _) in zip(points, at, strict=True):
            low, high = (axes.transData.transform((x, y + way * spread))[1] for way in (-1, 1))
            taken.append((px - 2, low, px + 2, high))
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent(renderer)
            taken.append((box.x0, box.y0, box.x1, box.y1))
        for (x, y, _, name), (px, py) in zip(points, at, strict=True):
            note = axes.annotate(name, (x, y), xytext=(0, 0), textcoords='offset pixels', fontsize=8)
            box = note.get_window_extent(renderer)
            dx, dy = _free_place((px, py), box.width, box.height, taken, (area.x0, area.y0, area.x1, area.y1))
            note.remove()
            line = dict(arrowstyle='-', color='0.6', linewidth=0.6, shrinkA=0, shrinkB=3)
            note = axes.annotate(
                name,
                (x, y),
                # In points, so that the picture may be saved in any resolution.
                xytext=(dx * 72 / figure.dpi, dy * 72 / figure.dpi),
                textcoords='offset points',
                fontsize=8,
                arrowprops=line if math.hypot(dx + box.width / 2, dy) > box.width / 2 + 25 else None,
            )
            taken.append((px + dx, py + dy, px + dx + box.width, py + dy + box.height))
            notes.append(note)
    return notes


Box = tuple[float, float, float, float]


def _free_place(
    point: tuple[float, float], width: float, height: float, taken: Sequence[Box], area: Box
) -> tuple[float, float]:
    """Return the nearest offset at which a label overlaps nothing; beside the point where there is none."""
    beside_it = (7.0, -height / 2)
    for radius in (7, 12, 18, 26, 36, 48, 62, 78, 96, 116, 140, 170, 200):
        for turn in range(24):
            angle = 2 * math.pi * turn / 24
            # The label's nearest corner or side lies on the circle.
            dx = radius * math.cos(angle) - width * (1 - math.cos(angle)) / 2
            dy = radius * math.sin(angle) - height * (1 - math.sin(angle)) / 2
            box = (point[0] + dx, point[1] + dy, point[0] + dx + width, point[1] + dy + height)
            inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
            if inside and not any(_overlap(box, other) for other in taken):
                return dx, dy
    return beside_it


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
