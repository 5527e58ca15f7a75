"""Measure the operators side by side with what they replace, on one CPU thread, against the targets of the project.

    python tools/analysis_tools/benchmark_ops.py [--only aggregate weight-gradient ...] [--rounds 9] [--out work_dirs/bench]

One process, contenders interleaved round by round, thread CPU time (other processes disturb it least), minima and medians.
Every contender is compared with float64 first. Writes OUT.json and OUT.png and prints one table; the exit status is 1 where
a target is missed, so look at the machine's load before you believe it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.analysis.timing import Report, check, interleave, main, peak_beyond
from mmext.ops import (
    depthwise_conv2d,
    neighborhood_aggregate,
    neighborhood_correlate,
    neighborhood_mask,
    tap_softmax,
)
from mmext.ops.neighborhood import reference
from mmext.ops.neighborhood.geometry import resolve

BATCH, CHANNELS, GROUPS, SIZE = 4, 64, 4, 56


def aggregate(report: Report, rounds: int) -> None:
    """Neighborhood aggregation against unfold, the loop over taps, and that loop compiled."""
    for kernel, targets, both in ((7, (60, 4, 2), (45, 12, 6)), (3, (20, 3, 2), None)):
        window = resolve(kernel, 1, 1, 'same', 'zero', 'block')
        value = torch.randn(BATCH, CHANNELS, SIZE, SIZE)
        weight = torch.randn(BATCH, GROUPS, kernel**2, SIZE, SIZE)
        z = torch.randn_like(value)

        def unfold(v: Tensor, w: Tensor, kernel: int = kernel) -> Tensor:
            columns = F.unfold(v, kernel, padding=kernel // 2).view(BATCH, GROUPS, -1, kernel**2, SIZE, SIZE)
            return (columns * w[:, :, None]).sum(3).view_as(v)

        def taps(v: Tensor, w: Tensor, window=window) -> Tensor:
            return reference.aggregate(v, w, window)

        def native(v: Tensor, w: Tensor, kernel: int = kernel) -> Tensor:
            return neighborhood_aggregate(v, w, kernel)

        torch._dynamo.reset()
        functions = {'native': native, 'unfold': unfold, 'taps': taps, 'torch.compile': torch.compile(taps)}
        exact = taps(value.double(), weight.double())
        for name, function in functions.items():
            check(name, function(value, weight), exact)
        times = interleave({n: partial(f, value, weight) for n, f in functions.items()}, rounds)
        for other, target in zip(('unfold', 'taps', 'torch.compile'), targets, strict=True):
            report.ratio(f'aggregate forward K={kernel} against {other}', times['native'], times[other], target)
        if both is None:
            continue
        value.requires_grad_()
        weight.requires_grad_()

        def train(f: Callable, value: Tensor = value, weight: Tensor = weight, z: Tensor = z) -> tuple:
            return torch.autograd.grad(f(value, weight), (value, weight), z)

        times = interleave({n: partial(train, f) for n, f in functions.items()}, max(3, rounds // 2))
        for other, target in zip(('unfold', 'taps', 'torch.compile'), both, strict=True):
            report.ratio(
                f'aggregate forward+backward K={kernel} against {other}', times['native'], times[other], target
            )


def tap_weights(report: Report, rounds: int) -> None:
    """The softmax over the taps inside, against a filled mask and torch's softmax; and what attention becomes by it."""
    kernel = 7
    query, key, value = torch.randn(3, BATCH, CHANNELS, SIZE, SIZE)
    logits = neighborhood_correlate(query, key, GROUPS, kernel)
    inside = neighborhood_mask((SIZE, SIZE), kernel)

    def masked(x: Tensor) -> Tensor:
        return x.masked_fill(~inside, torch.finfo(x.dtype).min).softmax(2)

    def native(x: Tensor) -> Tensor:
        return tap_softmax(x, inside)

    functions = {'native': native, 'masked': masked}
    exact = masked(logits.double())
    for name, function in functions.items():
        check(name, function(logits), exact)
    times = interleave({n: partial(f, logits) for n, f in functions.items()}, rounds)
    report.ratio('softmax over taps forward K=7 against mask and softmax', times['native'], times['masked'], 1.3)

    def attend(weigh: Callable) -> Tensor:
        return neighborhood_aggregate(value, weigh(neighborhood_correlate(query, key, GROUPS, kernel)), kernel)

    times = interleave({n: partial(attend, f) for n, f in functions.items()}, rounds)
    report.ratio('attention over neighbors forward K=7 against the same', times['native'], times['masked'], 1.1)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    z = torch.randn(BATCH, CHANNELS, SIZE, SIZE)

    def train(weigh: Callable) -> tuple:
        return torch.autograd.grad(attend(weigh), inputs, z)

    times = interleave({n: partial(train, f) for n, f in functions.items()}, max(3, rounds // 2))
    report.ratio(
        'attention over neighbors forward+backward K=7 against the same', times['native'], times['masked'], 1.1
    )


def memory(report: Report, rounds: int) -> None:
    """Memory of a forward, and of a forward and backward, beyond the tensors that go in and come out."""
    kernel = 7
    value = torch.randn(16 * BATCH, CHANNELS, SIZE, SIZE)
    weight = torch.randn(16 * BATCH, GROUPS, kernel**2, SIZE, SIZE)
    z = torch.randn_like(value)

    def size(*tensors: Tensor) -> int:
        return sum(4 * t.numel() for t in tensors)

    taken = peak_beyond(lambda: neighborhood_aggregate(value, weight, kernel)) - size(value)
    extra = max(0, taken) / size(value, weight, value)
    report.add('aggregate forward K=7: memory beyond inputs and outputs', extra, 0.1, extra <= 0.1)
    value.requires_grad_()
    weight.requires_grad_()

    def train() -> tuple:
        out = neighborhood_aggregate(value, weight, kernel)
        return out, torch.autograd.grad(out, (value, weight), z)

    train()  # the first one reads pages of torch's libraries, which are not the operator's
    taken = peak_beyond(train) - size(value, value, weight)
    extra = max(0, taken) / size(value, weight, z, value, value, weight)
    report.add('aggregate forward+backward K=7: memory beyond inputs and outputs', extra, 0.1, extra <= 0.1)


def memory_bound(report: Report, rounds: int) -> None:
    """How many times as long as the bare transport of their bytes the operators take (no target, K=7)."""
    kernel, large = 7, torch.randn(64, 1024, 1024)
    copy = torch.empty_like(large)
    value = torch.randn(BATCH, CHANNELS, SIZE, SIZE, requires_grad=True)
    weight = torch.randn(BATCH, GROUPS, kernel**2, SIZE, SIZE, requires_grad=True)
    z = torch.randn_like(value)

    def forward() -> Tensor:
        with torch.no_grad():
            return neighborhood_aggregate(value, weight, kernel)

    def train() -> tuple:
        return torch.autograd.grad(neighborhood_aggregate(value, weight, kernel), (value, weight), z)

    times = interleave({'copy': lambda: copy.copy_(large), 'forward': forward, 'forward+backward': train}, rounds)
    bandwidth = 2 * 4 * large.numel() / times['copy']['min']
    # Forward: value, weight, out. Each of the two backward operators moves as much.
    transport = 4 * (2 * value.numel() + weight.numel()) / bandwidth
    for name, factor in (('forward', 1), ('forward+backward', 3)):
        report.add(
            f'aggregate {name} K=7: times its memory bound', times[name]['min'] / (factor * transport), None, True
        )


def _depthwise(kernel: int, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE).to(memory_format=layout)
    return (
        x,
        torch.randn(CHANNELS, 1, kernel, kernel),
        torch.randn(BATCH, CHANNELS, SIZE, SIZE).to(memory_format=layout),
    )


def weight_gradient(report: Report, rounds: int) -> None:
    """The routed weight gradient of a depthwise convolution against the stock one, NCHW."""
    for kernel, target in ((7, 6), (13, 12), (31, 15)):
        x, w, z = _depthwise(kernel, torch.contiguous_format)
        w.requires_grad_()
        ours = depthwise_conv2d(x, w, None, 1, kernel // 2)
        stock = F.conv2d(x, w, None, 1, kernel // 2, 1, CHANNELS)
        wide = w.detach().double().requires_grad_()
        exact = torch.autograd.grad(F.conv2d(x.double(), wide, None, 1, kernel // 2, 1, CHANNELS), wide, z.double())[0]

        def gradient(out: Tensor, w: Tensor = w, z: Tensor = z) -> Tensor:
            return torch.autograd.grad(out, w, z, retain_graph=True)[0]

        check('routed weight gradient', gradient(ours), exact)
        times = interleave({'ours': partial(gradient, ours), 'stock': partial(gradient, stock)}, rounds)
        report.ratio(f'depthwise weight gradient K={kernel}', times['ours'], times['stock'], target)


def depthwise_forward(report: Report, rounds: int) -> None:
    """The routed depthwise convolution against the faster of the two stock layouts, and against stock NCHW."""
    layouts = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}
    for kernel in range(7, 33, 2):
        inputs = {name: _depthwise(kernel, layout)[:2] for name, layout in layouts.items()}

        def stock(x: Tensor, w: Tensor, kernel: int = kernel) -> Tensor:
            return F.conv2d(x, w, None, 1, kernel // 2, 1, CHANNELS)

        def routed(x: Tensor, w: Tensor, kernel: int = kernel) -> Tensor:
            return depthwise_conv2d(x, w, None, 1, kernel // 2)

        contenders = {}
        for name, (x, w) in inputs.items():
            check(f'routed {name}', routed(x, w), stock(x.double(), w.double()))
            contenders[f'stock {name}'] = partial(stock, x, w)
            contenders[f'routed {name}'] = partial(routed, x, w)
        times = interleave(contenders, rounds, 0.05)
        best = min((times[f'stock {name}'] for name in layouts), key=lambda t: t['min'])
        for name in layouts:
            slower = times[f'routed {name}']['min'] / best['min']
            report.add(
                f'depthwise forward K={kernel} {name}: times the faster stock layout', slower, 1.7, slower <= 1.7
            )
        if kernel >= 15:
            report.ratio(f'depthwise forward K={kernel} NCHW', times['routed NCHW'], times['stock NCHW'], 15)


def replknet(report: Report, rounds: int) -> None:
    """mmpretrain's RepLKNet-31B at 224, its depthwise layers swapped by one surgery rule, against stock."""
    from mmengine.registry import MODELS

    from mmext.surgery import swap_layers

    config = dict(type='mmpretrain.RepLKNet', arch='31B', out_indices=(3,))
    stock = MODELS.build(config)
    routed = swap_layers(config, rules=[dict(depthwise=True, to=dict(type='mmext.DepthwiseConv2d'))])
    routed.load_state_dict(stock.state_dict())
    x = torch.randn(1, 3, 224, 224)
    for model in (stock, routed):
        model.eval()  # drop path would make the outputs differ
    with torch.no_grad():
        check('routed RepLKNet', routed(x)[-1], stock(x)[-1].double(), 1e-6)

    def step(model: torch.nn.Module) -> None:
        model.zero_grad()
        model(x)[-1].square().mean().backward()

    times = interleave({'routed': partial(step, routed), 'stock': partial(step, stock)}, max(2, rounds // 3), 0)
    report.ratio('RepLKNet-31B forward+backward at 224', times['routed'], times['stock'], 2.5)


def unseen_sizes(report: Report, rounds: int) -> None:
    """The first call on a size that was never seen against the steady median: nothing is compiled per shape."""
    ratios = []
    for n in range(50):
        height, width = 40 + n, 90 - n
        value, weight = torch.randn(1, 32, height, width), torch.randn(1, 2, 49, height, width)
        start = time.thread_time()
        neighborhood_aggregate(value, weight, 7)
        first = time.thread_time() - start
        steady = []
        for _ in range(15):
            start = time.thread_time()
            neighborhood_aggregate(value, weight, 7)
            steady.append(time.thread_time() - start)
        ratios.append(first / statistics.median(steady))
    value = statistics.median(ratios)
    report.add('first call on 50 unseen sizes, times the steady median', value, 1.5, value <= 1.5, worst=max(ratios))


SECTIONS = {
    'aggregate': aggregate,
    'tap-softmax': tap_weights,
    'memory': memory,
    'memory-bound': memory_bound,
    'weight-gradient': weight_gradient,
    'depthwise-forward': depthwise_forward,
    'replknet': replknet,
    'unseen-sizes': unseen_sizes,
}


if __name__ == '__main__':
    sys.exit(main(SECTIONS, __doc__.splitlines()[0], 'benchmark_ops', 7))
