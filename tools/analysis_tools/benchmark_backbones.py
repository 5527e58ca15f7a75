"""Measure backbones at 224 x 224: routed against unrouted, folded against unfolded, and beside the hosts' own.

    python tools/analysis_tools/benchmark_backbones.py [--only forms hosts equal folded] [--rounds 5] [--out work_dirs/bench]
    python tools/analysis_tools/benchmark_backbones.py --profile

One image, in turns, on one CPU thread. Two forms of a network are compared before they are timed. Networks of one size are put
beside a host's as they are, and small ones beside a MobileNetV2 whose ``widen_factor`` gives it their multiply-adds.
``--profile`` shows which operators take the time of the networks that are slowest for their multiply-adds.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.analysis.backbones import HOSTS_OWN, cost, first_variants, variants
from mmext.analysis.timing import Report, check, interleave, main, say, shares
from mmext.deploy import route
from mmext.folding import fold
from mmext.ops import depthwise

SIZE = (224, 224)
#: Networks whose training step is put beside that of mmpretrain's ConvNeXt-T.
LARGE = ('FFNet-1', 'InceptionNeXt-T')
#: Networks that are put beside a MobileNetV2 of their multiply-adds.
SMALL = ('EMOv2-5M', 'FalconNet-base')
SLOWEST, OPERATORS = 5, 8


def config(name: str, **more: Any) -> dict[str, Any]:
    """Return the config of a variant by its name in the table of backbones."""
    return {**copy.deepcopy({**variants(), **HOSTS_OWN}[name]), **more}


def build(cfg: dict[str, Any]) -> nn.Module:
    """Build a network in eval mode, with statistics and scales as after a training."""
    net = MODELS.build(cfg)
    net.eval()  # not chained: the train() of some hosts' models returns None
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim < 2 and not name.endswith('bias'):
                parameter.uniform_(0.5, 1)  # scales of layers start so small that a wrong one would not be seen
        for module in net.modules():
            if isinstance(module, _BatchNorm) and module.running_var is not None:
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net


def deployed(net: nn.Module) -> nn.Module:
    """Return the form that ``tools/deploy.py`` writes, and leave the network as it is."""
    return route(fold(copy.deepcopy(net)))


@torch.no_grad()
def forward(net: nn.Module, x: Tensor) -> Tensor:
    """Return the last map."""
    return net(x)[-1]


def step(net: nn.Module, x: Tensor) -> Tensor:
    """Run forward and backward, and return the gradients of all parameters in one row."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    loss = sum(out.square().mean() for out in net(x))
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)  # MobileNetV2 has a layer behind its maps
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@contextmanager
def unrouted() -> Iterator[None]:
    """Let every depthwise convolution be torch's own."""
    with mock.patch.object(depthwise, '_MEASURED_HERE', False):
        yield


def beside(report: Report, figure: str, ours: dict, theirs: dict) -> None:
    """Add how many times as long ours takes, for information."""
    minima = ours['min'] / theirs['min']
    report.add(figure, ours['median'] / theirs['median'], None, True, ours=ours, theirs=theirs, by_minima=minima)


def forms(report: Report, rounds: int) -> None:
    """UniRepLKNet-T routed and unrouted, and SWNet-T in the forms of training and of deployment."""
    x = torch.randn(1, 3, *SIZE)
    net = build(config('UniRepLKNet-T')).train()

    def stock() -> Tensor:
        with unrouted():
            return step(net, x)

    check('routed UniRepLKNet-T', step(net, x), stock().double(), 1e-3)
    times = interleave(dict(routed=partial(step, net, x), stock=stock), max(2, rounds // 2), 0)
    report.ratio('UniRepLKNet-T forward+backward, routed against unrouted', times['routed'], times['stock'], 1.5)

    net = build(config('SWNet-T', norm_eval=True))
    folded = deployed(net)
    # The form of training with the statistics of evaluation computes what the folded one does. Timed is the one that trains.
    check('folded SWNet-T', forward(folded, x), forward(net.train(), x).double(), 1e-3)
    net.norm_eval = False
    net.train()
    times = interleave(dict(folded=partial(forward, folded, x), training=partial(forward, net, x)), rounds, 0)
    report.ratio('SWNet-T forward, folded against its form of training', times['folded'], times['training'], 3)


def hosts(report: Report, rounds: int) -> None:
    """Training steps beside mmpretrain's ConvNeXt-T."""
    x, reference = torch.randn(1, 3, *SIZE), 'mmpretrain ConvNeXt-T'
    names = (*LARGE, reference)
    work = {name: cost(name, config(name)).operations[0] for name in names}
    nets = {name: build(config(name)) for name in names}
    for net in nets.values():
        net.train()
    times = interleave({name: partial(step, net, x) for name, net in nets.items()}, max(2, rounds // 2), 0)
    for name in LARGE:
        figure = f'{name} step, {_times(work[name], work[reference])}x MACs: times ConvNeXt-T'
        beside(report, figure, times[name], times[reference])


def of_equal_work(name: str) -> tuple[dict[str, Any], float]:
    """Return the config of a MobileNetV2 with about the multiply-adds of a network, and how many times as many it has."""
    wanted = cost(name, config(name)).operations[0] or 0
    low, high = 10, 400  # widen_factor in hundredths
    while high - low > 1:
        middle = (low + high) // 2
        found = cost('', config('mmpretrain MobileNetV2', widen_factor=middle / 100)).operations[0] or 0
        low, high = (low, middle) if found > wanted else (middle, high)
    cfg = config('mmpretrain MobileNetV2', widen_factor=low / 100)
    return cfg, (cost('', cfg).operations[0] or 0) / wanted


def equal(report: Report, rounds: int) -> None:
    """Small networks beside a MobileNetV2 of their multiply-adds, deployed and in training."""
    x = torch.randn(1, 3, *SIZE)
    for name in SMALL:
        cfg, share = of_equal_work(name)
        label = f'times MobileNetV2 x{cfg["widen_factor"]}, {share:.2f}x MACs'
        nets = dict(ours=build(config(name)), theirs=build(cfg))
        folded = {key: partial(forward, deployed(net), x) for key, net in nets.items()}
        times = interleave(folded, rounds)
        beside(report, f'{name} forward: {label}', times['ours'], times['theirs'])
        for net in nets.values():
            net.train()
        times = interleave({key: partial(step, net, x) for key, net in nets.items()}, rounds)
        beside(report, f'{name} step: {label}', times['ours'], times['theirs'])


def folded(report: Report, rounds: int) -> None:
    """Every network that folds, in its first variant: the folded form against the unfolded."""
    x = torch.randn(1, 3, *SIZE)
    for name, cfg in first_variants().items():
        net = build(cfg)
        plain = deployed(net)
        if {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in net.named_modules()}:
            continue
        check(f'folded {name}', forward(plain, x), forward(net, x).double(), 1e-3)
        times = interleave(dict(folded=partial(forward, plain, x), unfolded=partial(forward, net, x)), rounds)
        report.ratio(f'{name} forward, folded against unfolded', times['folded'], times['unfolded'], 1)


def profile(report: Report, rounds: int) -> None:
    """Show the time of a deployed forward for its multiply-adds, and where the five slowest networks spend it."""
    x = torch.randn(1, 3, *SIZE)
    found: list[tuple[float, str, Callable[[], Any]]] = []
    for name, cfg in {**first_variants(), **HOSTS_OWN}.items():
        work = cost(name, cfg).operations[0]
        if work is None:
            continue
        call = partial(forward, deployed(build(copy.deepcopy(cfg))), x)
        value = interleave({name: call}, max(1, rounds // 2))[name]['median'] / work
        report.add(f'{name}, deployed forward: ms for a GMAC', value, None, True)
        if name not in HOSTS_OWN:
            found.append((value, name, call))
    for value, name, call in sorted(found, key=lambda row: -row[0])[:SLOWEST]:
        say(f'{name}, {value:.0f} ms for a GMAC')
        for operator, share in shares(call)[:OPERATORS]:
            say(f'    {share:6.1%}  {operator}')


def _times(a: float | None, b: float | None) -> str:
    return f'{(a or 0) / (b or 1):.2f}'


SECTIONS = {'forms': forms, 'hosts': hosts, 'equal': equal, 'folded': folded}


if __name__ == '__main__':
    MMLogger.get_instance('benchmark_backbones', logger_name='mmext', log_level=logging.ERROR)
    sys.exit(main(SECTIONS, __doc__.splitlines()[0], 'benchmark_backbones', 5, dict(profile=profile)))
