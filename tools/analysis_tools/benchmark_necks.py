"""Measure necks beside mmdet's FPN and PAFPN, and SCNN's messages beside the loop over rows.

    python tools/analysis_tools/benchmark_necks.py [--only messages necks] [--rounds 5] [--out work_dirs/benchmark_necks]

The necks are those of ``configs/demo/compare_necks/retinanet_*.py``, each once, with the maps that its backbone makes of one
image of 320 x 480. All of them run in turns, on one CPU thread. "x MACs" compares the multiply-adds of a forward with FPN's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmext.analysis.timing import Report, check, interleave, main
from mmext.blocks.scnn import SCNNBlock
from mmext.hosts import without_pretrained

CONFIGS = Path(__file__).parents[2] / 'configs/demo/compare_necks'
IMAGE = (320, 480)
REFERENCES = ('fpn', 'pafpn')
#: SCNN's own width, at a stride of 8.
CHANNELS, STRIDE = 128, 8


def flat(outs: Any) -> list[Tensor]:
    """Return all tensors that come out of a neck."""
    return [outs] if isinstance(outs, Tensor) else [x for out in outs for x in flat(out)]


def train(model: Callable[[Any], Any], inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run forward and backward, and return the gradients of the inputs and the parameters."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    loss = sum(out.square().mean() for out in flat(model(inputs)))
    return torch.autograd.grad(loss, [*inputs, *parameters], allow_unused=True)


def forward(model: Callable[[Any], Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run without gradients."""
    with torch.no_grad():
        return flat(model(inputs))


def row_by_row(block: SCNNBlock, inputs: Sequence[Tensor]) -> Tensor:
    """Pass the messages by one convolution for each row or column, as the authors' code does."""
    (x,) = inputs
    for number, one in enumerate(block):
        axis, backward = 2 + number // 2, number % 2
        weight = one.weight.unsqueeze(axis)
        padding = (0, one.kernel_size // 2) if axis == 2 else (one.kernel_size // 2, 0)
        slices = list(x.split(1, axis))[:: -1 if backward else 1]
        passed = slices[:1]
        for own in slices[1:]:
            passed.append(own + F.conv2d(passed[-1], weight, padding=padding).relu())
        x = torch.cat(passed[:: -1 if backward else 1], axis)
    return x


def messages(report: Report, rounds: int) -> None:
    """SCNN's four passes against the loop over rows, forward and with the backward pass."""
    block = SCNNBlock(CHANNELS)
    x = [torch.randn(1, CHANNELS, *(side // STRIDE for side in IMAGE))]
    forms = dict(ours=lambda inputs: block(inputs[0]), loop=partial(row_by_row, block))
    # In double precision: rounding decides whether a message near zero passes its gradient on.
    wide = [x[0].double()]
    weights = list(block.double().parameters())
    exact = forward(partial(row_by_row, block), wide)[0]
    for ours, theirs in zip(*(train(call, wide, weights) for call in forms.values()), strict=True):
        check('gradients of messages', ours, theirs, 1e-9)
    block.float()
    for call in forms.values():
        check('messages', forward(call, x)[0], exact)
    times = interleave({name: partial(forward, call, x) for name, call in forms.items()}, rounds)
    report.ratio('messages forward against the loop over rows', times['ours'], times['loop'], 3)
    weights = list(block.parameters())
    times = interleave({name: partial(train, call, x, weights) for name, call in forms.items()}, rounds)
    report.ratio('messages forward+backward against the loop over rows', times['ours'], times['loop'], 2)


def subjects() -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """Return each neck and its maps, by the name of the config behind ``retinanet_``; the references come first."""
    found: dict[str, tuple[nn.Module, list[Tensor]]] = {}
    necks: list[Any] = []
    paths = {path.stem.removeprefix('retinanet_'): path for path in sorted(CONFIGS.glob('retinanet_*.py'))}
    for name in (*REFERENCES, *(name for name in paths if name not in REFERENCES)):
        cfg = Config.fromfile(paths[name])
        init_default_scope(cfg.default_scope)
        model = without_pretrained(cfg.model.to_dict())
        if model['neck'] in necks:
            continue
        necks.append(copy.deepcopy(model['neck']))
        backbone = MODELS.build(model['backbone'])
        backbone.eval()  # not chained: the train() of some hosts' models returns None
        found[name] = MODELS.build(model['neck']), forward(backbone, torch.randn(1, 3, *IMAGE))
    return found


def multiply_adds(neck: nn.Module, maps: Sequence[Tensor]) -> float:
    """Return millions of multiply-adds of a forward."""
    with FlopCounterMode(display=False) as counter:
        forward(neck, maps)
    return counter.get_total_flops() / 2e6


def necks(report: Report, rounds: int) -> None:
    """Every neck's forward and training step, beside those of the references."""
    found = subjects()
    for neck, _ in found.values():
        neck.eval()
    work = {name: multiply_adds(neck, maps) for name, (neck, maps) in found.items()}
    evaluated = interleave({name: partial(forward, neck, maps) for name, (neck, maps) in found.items()}, rounds)
    for neck, _ in found.values():
        neck.train()
    steps = {
        name: partial(train, neck, maps, [p for p in neck.parameters() if p.requires_grad])
        for name, (neck, maps) in found.items()
    }
    trained = interleave(steps, max(2, rounds // 2))
    for label, times in (('forward', evaluated), ('training step', trained)):
        for name in found:
            for reference in REFERENCES[: None if name not in REFERENCES else REFERENCES.index(name)]:
                value = times[name]['median'] / times[reference]['median']
                figure = f'{name} {label}, {work[name] / work[reference]:.2f}x MACs: times {reference}'
                minima = times[name]['min'] / times[reference]['min']
                report.add(figure, value, None, True, ours=times[name], theirs=times[reference], by_minima=minima)


if __name__ == '__main__':
    sys.exit(main(dict(messages=messages, necks=necks), __doc__.splitlines()[0], 'benchmark_necks', 5))
