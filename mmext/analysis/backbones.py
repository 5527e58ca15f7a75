"""What backbones cost: parameters, multiply-adds, maps and time, of every variant of the pack and of some of the hosts."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmext.analysis.timing import interleave
from mmext.backbones.base import Backbone
from mmext.contracts import TakesOneSize
from mmext.deploy import route
from mmext.drawing import new_figure, save_figure
from mmext.errors import reason
from mmext.folding import fold
from mmext.registry import MODELS

__all__ = [
    'HOSTS_OWN',
    'TITLES',
    'Cost',
    'cells',
    'cost',
    'draw',
    'first_variants',
    'matching',
    'try_cost',
    'variants',
]

#: Backbones of the hosts to compare with, by the name in the table.
HOSTS_OWN: dict[str, dict[str, Any]] = {
    'mmpretrain ResNet-50': dict(type='mmpretrain.ResNet', depth=50, out_indices=(0, 1, 2, 3)),
    'mmpretrain Swin-T': dict(type='mmpretrain.SwinTransformer', arch='tiny', out_indices=(0, 1, 2, 3)),
    'mmpretrain ConvNeXt-T': dict(
        type='mmpretrain.ConvNeXt', arch='tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False
    ),
    'mmpretrain MobileNetV2': dict(type='mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 6)),
}
#: Height and width of a picture for classification and for detection.
SIZES = ((224, 224), (800, 1344))
TITLES = ('backbone', 'params (M)', 'deployed (M)', 'GMACs at 224', 'GMACs at 800 x 1344', 'strides', 'channels', 'ms')


class Cost(NamedTuple):
    """One row of the table.

    Args:
        name: Class and variant.
        parameters: Their number.
        deployed: Their number in the deployed form.
        operations: Multiply-adds of convolutions, linear layers and products of matrices, for each of the sizes; None where
            the network takes no picture of that size.
        strides: Of the returned maps.
        channels: Of the returned maps.
        milliseconds: Forward of one picture of 224 on one thread in the deployed form; None if it was not measured.
    """

    name: str
    parameters: int
    deployed: int
    operations: tuple[float | None, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    milliseconds: float | None = None


def variants() -> dict[str, dict[str, Any]]:
    """Return the configs of all named variants of the pack's backbones."""
    MODELS.import_from_location()
    found: dict[str, dict[str, Any]] = {}
    for name, cls in sorted(MODELS.module_dict.items()):
        if inspect.isclass(cls) and issubclass(cls, Backbone):
            entry = next((p for p in ('arch', 'depth') if p in inspect.signature(cls).parameters), 'arch')
            found |= {f'{name}-{arch}': {'type': f'mmext.{name}', entry: arch} for arch in cls.arch_zoo}
    return found


def first_variants() -> dict[str, dict[str, Any]]:
    """Return the config of the first variant of each backbone of the pack; they are small ones."""
    first: dict[Any, tuple[str, dict[str, Any]]] = {}
    for name, cfg in variants().items():
        first.setdefault(cfg['type'], (name, cfg))
    return dict(first.values())


def cost(name: str, cfg: dict[str, Any], seconds: float = 0.0) -> Cost:
    """Measure a backbone.

    Counting runs without data, on the meta device. The whole of what ``switch_to_deploy`` folds is folded.

    Args:
        name: What to call it.
        cfg: Its config.
        seconds: How long to measure the time; 0 leaves it out.
    """
    net = _without_data(cfg)
    parameters = _count(net)
    deployed = fold(copy.deepcopy(net))
    maps: Sequence[Tensor] | None = None
    operations: list[float | None] = []
    for size in SIZES:
        outs, macs = _operations(deployed, size)
        maps = outs if maps is None else maps
        operations.append(macs)
    strides = getattr(net, 'out_strides', None) or tuple(round(SIZES[0][0] / m.shape[-1]) for m in maps or ())
    channels = getattr(net, 'out_channels', None)
    if not isinstance(channels, (tuple, list)):
        channels = tuple(m.shape[1] for m in maps or ())
    time = _milliseconds(cfg, seconds) if seconds and operations[0] is not None else None
    return Cost(name, parameters, _count(deployed), tuple(operations), tuple(strides), tuple(channels), time)


def cells(row: Cost) -> list[str]:
    """Return the entries of a row as text, under :data:`TITLES`."""
    return [
        row.name,
        f'{row.parameters / 1e6:.2f}',
        f'{row.deployed / 1e6:.2f}',
        *('-' if macs is None else f'{macs:.2f}' for macs in row.operations),
        ', '.join(map(str, row.strides)),
        ', '.join(map(str, row.channels)),
        '-' if row.milliseconds is None else f'{row.milliseconds:.0f}',
    ]


def draw(rows: Sequence[Cost], path: str | Path) -> None:
    """Draw parameters and, where they were measured, times over multiply-adds, one line for the variants of each network."""
    rows = [row for row in rows if row.operations[0] is not None]
    drawn: dict[str, dict[str, float]] = {
        'parameters (millions), deployed': {row.name: row.deployed / 1e6 for row in rows},
        'forward (ms), deployed, one thread': {
            row.name: row.milliseconds for row in rows if row.milliseconds is not None
        },
    }
    drawn = {label: values for label, values in drawn.items() if values}
    styles = _styles(rows)
    figure = new_figure(8 * len(drawn) + 2.5, 6)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (label, values) in zip(panels, drawn.items(), strict=True):
        _draw_families(axes, label, values, {row.name: row.operations[0] or 0 for row in rows}, styles)
    # Beside the panels, where it hides no point.
    panels[-1].legend(
        *panels[0].get_legend_handles_labels(), loc='upper left', bbox_to_anchor=(1.01, 1), fontsize='small'
    )
    save_figure(figure, path)


def _family(name: str) -> str:
    return name if name in HOSTS_OWN else name.partition('-')[0]


def _styles(rows: Sequence[Cost]) -> dict[str, dict[str, Any]]:
    """Return color and marker of each family; those of the hosts are black. No two families look alike."""
    families = list(dict.fromkeys(_family(row.name) for row in rows))
    own = [family for family in families if family not in HOSTS_OWN]
    styles = {
        family: dict(color=f'C{i % 10}', marker='osv^'[i // 10 % 4], linestyle='-') for i, family in enumerate(own)
    }
    hosts = [family for family in families if family in HOSTS_OWN]
    return styles | {family: dict(color='k', marker='*PXD'[i % 4], linestyle='') for i, family in enumerate(hosts)}


def _draw_families(
    axes: Any, label: str, values: dict[str, float], operations: dict[str, float], styles: dict[str, dict[str, Any]]
) -> None:
    for family, style in styles.items():
        names = sorted((name for name in values if _family(name) == family), key=operations.__getitem__)
        axes.plot([operations[name] for name in names], [values[name] for name in names], label=family, **style)
    axes.set(xscale='log', yscale='log', xlabel='GMACs at 224 x 224', ylabel=label)
    axes.grid(alpha=0.3)


def _without_data(cfg: dict[str, Any]) -> nn.Module:
    """Build on the meta device, or move there what asks its constructor for numbers."""
    try:
        with torch.device('meta'):
            net = ROOT_MODELS.build(copy.deepcopy(cfg))
    except (RuntimeError, NotImplementedError):
        net = ROOT_MODELS.build(copy.deepcopy(cfg)).to('meta')
    net.eval()  # not chained: the train() of some hosts' models returns None
    return net


def _operations(net: nn.Module, size: tuple[int, int]) -> tuple[Sequence[Tensor] | None, float | None]:
    """Return the maps for a picture of this size, and multiply-adds in billions; None where it is refused."""
    if isinstance(net, TakesOneSize) and tuple(net.fixed_size) != size:
        return None, None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outs = net(torch.empty(1, 3, *size, device='meta'))
    return outs, counter.get_total_flops() / 2e9


def _milliseconds(cfg: dict[str, Any], seconds: float) -> float:
    net = ROOT_MODELS.build(copy.deepcopy(cfg))
    net.eval()
    net = route(fold(net))
    image = torch.randn(1, 3, *SIZES[0])
    with torch.no_grad():
        return interleave({'net': lambda: net(image)}, 1, seconds)['net']['median']


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def matching(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and configs of the variants, and of the hosts' own, whose name has the pattern in it."""
    for name, cfg in {**variants(), **HOSTS_OWN}.items():
        if re.search(pattern, name):
            yield name, cfg


def try_cost(name: str, cfg: dict[str, Any], seconds: float = 0.0) -> Cost | str:
    """Return the row, or why a host's backbone has none."""
    try:
        return cost(name, cfg, seconds)
    except (ImportError, KeyError) as error:
        return reason(error)
