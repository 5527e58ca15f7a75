"""Measure every generated-kernel convolution beside the plain one of its shape, on one CPU thread.

    python tools/analysis_tools/benchmark_convs.py [--only family dcls] [--rounds 9] [--out work_dirs/benchmark_convs]

Three figures per layer, each a ratio of medians, contenders in turns in one process: the folded layer and the layer in eval
mode (its kernel cached) against the plain convolution that it folds to, and a training step (forward and backward) against a
plain convolution of the layer's own arguments. `dcls` compares DCLS's kernel construction with the PyPI package dcls 0.1.1,
where that is installed.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mmext.analysis.timing import Report, check, interleave, main
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

BATCH, CHANNELS, SIZE = 4, 64, 56


def arguments_of(layer: type[GeneratedConv2d]) -> dict:
    """Return the arguments of the layer's typical place, dense and 3 x 3 where it names none."""
    typical = dict(layer.typical)
    groups = CHANNELS if typical.pop('depthwise', False) else 1
    kernel = typical.setdefault('kernel_size', 3)
    return dict(stride=1, padding=kernel // 2, groups=groups, bias=False) | typical


def family(report: Report, rounds: int) -> None:
    """All registered layers with a generated kernel."""
    MODELS.import_from_location()
    names = sorted(n for n, c in MODELS.module_dict.items() if isinstance(c, type) and issubclass(c, GeneratedConv2d))
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE)
    for name in names:
        options, plain_arguments = arguments_of(MODELS.get(name)), inspect.signature(nn.Conv2d).parameters
        layer = MODELS.get(name)(CHANNELS, CHANNELS, **options).eval()
        stock = nn.Conv2d(CHANNELS, CHANNELS, **{k: v for k, v in options.items() if k in plain_arguments})
        folded = layer.fold()
        plain = copy.deepcopy(folded)
        with torch.no_grad():
            check(name, layer(x), folded.double()(x.double()))
            folded.float()
            times = interleave(
                {'plain': partial(plain, x), 'folded': partial(folded, x), 'eval': partial(layer, x)}, rounds
            )
        for form, limit in (('folded', 1.03), ('eval', 1.05)):
            ratio = times[form]['median'] / times['plain']['median']
            split = form == 'eval' and not layer.fold_in_deploy
            report.add(
                f'{name} {form}, times the plain layer',
                ratio,
                None if split else limit,
                split or ratio <= limit,
                by_minima=times[form]['min'] / times['plain']['min'],
            )
        layer.train()

        def step(module: nn.Module) -> None:
            module.zero_grad()
            module(x).square().mean().backward()

        times = interleave({'plain': partial(step, stock), 'layer': partial(step, layer)}, max(3, rounds // 2))
        report.add(
            f'{name} training step, times the plain layer',
            times['layer']['median'] / times['plain']['median'],
            None,
            True,
            milliseconds=times['layer']['median'],
        )


def dcls(report: Report, rounds: int) -> None:
    """Kernel construction of DCLS at 768 channels, 17 x 17, 34 points, against the package of its authors."""
    try:
        from DCLS.construct.modules import Dcls2d
    except ImportError:
        print('dcls is not installed: pip install --no-deps dcls==0.1.1 into a folder on PYTHONPATH to compare')
        return
    channels, kernel, count = 768, 17, 34
    targets = {'v0': (20, 12), 'v1': (20, 30), 'gauss': (80, 30)}
    for version, (forward_target, both_target) in targets.items():
        theirs = Dcls2d(
            channels,
            channels,
            kernel_count=count,
            dilated_kernel_size=kernel,
            padding=kernel // 2,
            groups=channels,
            version=version,
            use_implicit_gemm=False,
        )
        ours = MODELS.get('DCLSConv2d')(
            channels, channels, kernel, padding=kernel // 2, groups=channels, kernel_count=count, version=version
        )
        with torch.no_grad():
            ours.point_weight.copy_(theirs.weight)
            # Ours are always row and column; theirs only in v0.
            ours.P.copy_(theirs.P if version == 'v0' else theirs.P.flip(0))
            if version == 'gauss':
                ours.SIG.copy_(theirs.SIG.flip(0))
        contenders: dict[str, Callable[[], Tensor]] = {
            'ours': ours.generate_kernel,
            'theirs': partial(_construct, theirs),
        }
        exact = copy.deepcopy(ours).double().generate_kernel()
        check(f'DCLS {version}', contenders['ours'](), exact, 1e-6)
        check(f'dcls {version}', contenders['theirs'](), exact, 1e-5)
        with torch.no_grad():
            times = interleave(contenders, rounds)
        report.ratio(f'DCLS {version} kernel, forward', times['ours'], times['theirs'], forward_target)

        def step(make: Callable[[], Tensor]) -> None:
            make().square().sum().backward()

        times = interleave({n: partial(step, f) for n, f in contenders.items()}, max(3, rounds // 2))
        report.ratio(f'DCLS {version} kernel, forward+backward', times['ours'], times['theirs'], both_target)


def _construct(layer: nn.Module) -> Tensor:
    return layer.DCK(layer.weight, layer.P, layer.SIG if layer.version in ('max', 'gauss') else None)


SECTIONS = {'family': family, 'dcls': dcls}


if __name__ == '__main__':
    sys.exit(main(SECTIONS, __doc__.splitlines()[0], 'benchmark_convs', 7))
