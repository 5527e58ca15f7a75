"""Measure the operators of dynamic kernels, and models of them, against the usual form that unfolds the image.

    python tools/analysis_tools/benchmark_evolution.py [--only operators layers ...] [--rounds 5] [--out work_dirs/bench]

The usual form of an operator holds every window of the image as a tensor of patches and contracts it by an einsum. Here the
very same layer or model is run in both forms, in turns, on one CPU thread, and both are compared first. Figures without a
target are for information.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.analysis.timing import Report, check, interleave, main, peak_beyond, say
from mmext.contracts import example_of
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel
from mmext.evolution.positions import Positions
from mmext.ops import neighborhood_aggregate, neighborhood_aggregate_adjoint, neighborhood_correlate
from mmext.registry import MODELS

#: Maps at a stride of 8: of an image of 224 x 224, and a quarter of those of one of 800 x 1344, whose patches fill a memory.
SIZES = ((28, 28), (50, 84))
CHANNELS, KERNEL = 128, 7


def patches(x: Tensor, here: Positions) -> Tensor:
    """Return every window of ``x``, (B, C, N, Ho, Wo), as the usual forms make them."""
    if here.border != 'shift':
        size = here.output_size(x.shape[-2:])
        seen = F.unfold(here.padded(x), here.kernel_size, here.dilation, 0, here.stride)
        return seen.unflatten(1, (x.shape[1], here.taps)).unflatten(3, size)
    reach = [d * (k - 1) for d, k in zip(here.dilation, here.kernel_size, strict=True)]
    inner = [n - r for n, r in zip(x.shape[-2:], reach, strict=True)]
    seen = F.unfold(x, here.kernel_size, here.dilation).unflatten(2, inner)
    sides = (reach[1] // 2, reach[1] // 2, reach[0] // 2, reach[0] // 2)
    return F.pad(seen, sides, mode='replicate').unflatten(1, (x.shape[1], here.taps))


def unfolded(kernel: TapKernel, x: Tensor) -> Tensor:
    """Aggregate in the usual form."""
    seen, groups = patches(x, kernel.positions), kernel.weight.shape[1]
    weight = kernel.weight.to(x.dtype).expand(x.shape[0], *kernel.weight.shape[1:])
    if kernel.positions.group_map == 'interleave':
        seen = seen.unflatten(1, (-1, groups)).transpose(1, 2)
        return torch.einsum('bgnyx,bgrnyx->brgyx', weight, seen).flatten(1, 2)
    return torch.einsum('bgnyx,bgrnyx->bgryx', weight, seen.unflatten(1, (groups, -1))).flatten(1, 2)


@contextmanager
def usual_form() -> Iterator[None]:
    """Let every layer aggregate in the usual form."""
    ours = TapKernel.aggregate
    TapKernel.aggregate = unfolded  # type: ignore[method-assign]
    try:
        yield
    finally:
        TapKernel.aggregate = ours  # type: ignore[method-assign]


def both(call: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """Return the contenders: a call, and the same in the usual form."""

    def usual() -> Any:
        with usual_form():
            return call()

    return dict(ours=call, usual=usual)


def train(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model forward and backward, and return the gradient of the input."""
    x = x.detach().requires_grad_()
    outs = model(x)
    loss = sum(out.square().mean() for out in (outs if isinstance(outs, (tuple, list)) else [outs]))
    return torch.autograd.grad(loss, [x, *getattr(model, 'weights', model.parameters())])[0]


def compare(report: Report, name: str, model: nn.Module, x: Tensor, rounds: int, targets: tuple = (None, None)) -> None:
    """Measure a model forward, and forward and backward."""

    @torch.no_grad()
    def forward() -> Tensor:
        outs = model(x)
        return outs if isinstance(outs, Tensor) else outs[-1]

    for label, call, target in zip(
        ('forward', 'forward+backward'), (forward, partial(train, model, x)), targets, strict=True
    ):
        contenders = both(call)
        exact = contenders['usual']().double()
        check(f'{name} {label}', contenders['ours'](), exact, 1e-3)
        times = interleave(contenders, rounds, 0)
        value = times['usual']['median'] / times['ours']['median']
        more = dict(ours=times['ours'], theirs=times['usual'], by_minima=times['usual']['min'] / times['ours']['min'])
        report.add(f'{name} {label}', value, target, target is None or value >= target, **more)


def operators() -> Iterator[tuple[str, EvolutionOperator2d, int]]:
    """Go through the operators whose kernel has weights of taps for every pixel, with the side of their window."""
    MODELS.import_from_location()
    for name, operator in sorted(MODELS.module_dict.items()):
        if not (isinstance(operator, type) and issubclass(operator, EvolutionOperator2d)):
            continue
        own = {**example_of(operator), **getattr(operator, 'typical', {})}
        kernel = max(own.pop('kernel_size'), KERNEL)
        place = dict(in_channels=CHANNELS, out_channels=CHANNELS, kernel_size=kernel, padding=kernel // 2, bias=False)
        layer = operator(**{**own, **place}).eval()
        if 'other sizes' in layer.refuses:
            continue
        with torch.no_grad():
            made = layer.evolution_kernel(torch.randn(1, CHANNELS, 16, 16))
        if all(isinstance(part, TapKernel) for part in parts_of(made)):
            yield name, layer, kernel


def parts_of(kernel: Any) -> list[Any]:
    """Return the kernels of the parts of the channels, or the one of all."""
    return list(getattr(kernel, 'parts', [kernel]))


class Aggregation(nn.Module):
    """The aggregation of an operator, with a kernel that is there already."""

    def __init__(self, layer: EvolutionOperator2d, x: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            self.kernel = layer.evolution_kernel(x)
        self.weights = [part.weight.requires_grad_() for part in parts_of(self.kernel)]

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.aggregate(x)


def aggregations(report: Report, rounds: int) -> None:
    """The aggregation of every operator, given its kernel."""
    for name, layer, kernel in operators():
        for size in SIZES:
            x = torch.randn(1, CHANNELS, *size)
            label = f'{name} K={kernel} aggregation at {size[0]}x{size[1]}'
            compare(report, label, Aggregation(layer, x), x, rounds, (15, 12))


#: Where published networks aggregate: name, channels, groups, side of the window, stride, border, group map, and the size of
#: the map in images of 224 x 224 and 800 x 1344.
SITES = (
    ('RedNet, stem', 32, 2, 3, 1, 'zero', 'block', (112, 112), (400, 672)),
    ('RedNet-50, stage 1', 64, 4, 7, 1, 'zero', 'block', (56, 56), (200, 336)),
    ('RedNet-50, stage 2, first', 128, 8, 7, 2, 'zero', 'block', (56, 56), (200, 336)),
    ('RedNet-50, stage 2', 128, 8, 7, 1, 'zero', 'block', (28, 28), (100, 168)),
    ('RedNet-50, stage 3', 256, 16, 7, 1, 'zero', 'block', (14, 14), (50, 84)),
    ('RedNet-50, stage 4', 512, 32, 7, 1, 'zero', 'block', (7, 7), (25, 42)),
    ('involution FPN, P2', 256, 16, 7, 1, 'zero', 'block', (56, 56), (200, 336)),
    ('involution FPN, P3', 256, 16, 7, 1, 'zero', 'block', (28, 28), (100, 168)),
    ('LSNet-T, stage 2', 128, 16, 3, 1, 'zero', 'interleave', (14, 14), (50, 84)),
    ('LSNet-T, stage 3', 256, 32, 3, 1, 'zero', 'interleave', (7, 7), (25, 42)),
    ('LSNet-B, stage 1', 128, 16, 3, 1, 'zero', 'interleave', (28, 28), (100, 168)),
    ('OverLoCK-T, stage 3, large', 128, 8, 13, 1, 'shift', 'block', (14, 14), (50, 84)),
    ('OverLoCK-T, stage 3, small', 128, 8, 5, 1, 'shift', 'block', (14, 14), (50, 84)),
    ('OverLoCK-T, stage 4, large', 256, 16, 7, 1, 'shift', 'block', (7, 7), (25, 42)),
    ('OverLoCK-S, stage 3, large', 160, 16, 13, 1, 'shift', 'block', (14, 14), (50, 84)),
    ('OverLoCK-B, stage 3, large', 192, 12, 13, 1, 'shift', 'block', (14, 14), (50, 84)),
    ('IDF, the image', 3, 1, 3, 1, 'zero', 'block', (224, 224), (800, 1344)),
)
MOST_PATCHES = 2**30  # bytes: where the usual form would hold more, only ours runs


def sites(report: Report, rounds: int) -> None:
    """The aggregations of published networks where they stand, one image, with the memory that they take.

    The memory is the peak of a call, in parts of the tensors that go in and come out; the gradients are among those.
    """
    for name, channels, groups, side, stride, border, group_map, *sizes in SITES:
        for size in sizes:
            here = Positions((side, side), (stride, stride), border=border, group_map=group_map)
            if border != 'shift':
                here = Positions((side, side), (stride, stride), (1, 1), (side // 2,) * 2, border, group_map)
            x = torch.randn(1, channels, *size, requires_grad=True)
            weight = torch.randn(1, groups, here.taps, *here.output_size(size), requires_grad=True)
            kernel = TapKernel(weight=weight, positions=here)
            z = torch.randn(1, channels, *weight.shape[-2:])

            @torch.no_grad()
            def forward(kernel: TapKernel = kernel, x: Tensor = x) -> Tensor:
                return kernel.aggregate(x)

            def step(kernel: TapKernel = kernel, x: Tensor = x, z: Tensor = z) -> tuple[Tensor, ...]:
                out = kernel.aggregate(x)
                return out, *torch.autograd.grad(out, (x, kernel.weight), z)

            feasible = 4 * channels * here.taps * z[0, 0].numel() <= MOST_PATCHES
            for label, call, target in (('forward', forward, 15), ('forward+backward', step, 12)):
                figure = f'{name} at {size[0]}x{size[1]} {label}'
                given = (
                    sum(t.nbytes for t in (x, weight, z))
                    if label == 'forward'
                    else 2 * (x.nbytes + weight.nbytes) + 2 * z.nbytes
                )
                made = given - x.nbytes - weight.nbytes - (0 if label == 'forward' else z.nbytes)
                call()
                peak = (given + max(0, peak_beyond(call) - made)) / given
                if not feasible:
                    ours = interleave(dict(ours=call), rounds, 0)['ours']
                    say(f'{figure:66s} patches beyond {MOST_PATCHES >> 20} MiB; ours {ours["median"]:.2f} ms')
                else:
                    times = interleave(both(call), rounds, 0)
                    report.ratio(figure, times['ours'], times['usual'], target)
                report.add(f'{figure}: memory', peak, 1.2, peak <= 1.2)


def bounds(report: Report, rounds: int) -> None:
    """The parts of a step with a kernel for each channel and place, beside the time that moving its weights alone takes.

    Weights are read, which is half of a copy, or their gradient is written into new memory.
    """
    for size in SIZES:
        x, z = (torch.randn(1, CHANNELS, *size) for _ in range(2))
        weight = torch.randn(1, CHANNELS, KERNEL**2, *size)
        room = torch.empty_like(weight)

        def fill(weight: Tensor = weight) -> Tensor:
            return torch.empty_like(weight).fill_(1.0)

        parts: dict[str, Callable[[], Any]] = {
            'forward': partial(neighborhood_aggregate, x, weight, KERNEL),
            'adjoint': partial(neighborhood_aggregate_adjoint, z, weight, size, KERNEL),
            'gradient of the weights': partial(neighborhood_correlate, z, x, CHANNELS, KERNEL),
        }
        times = interleave({**parts, 'copy': partial(room.copy_, weight), 'fill': fill}, rounds, 0)
        read = {key: value / 2 for key, value in times['copy'].items()}
        for part in parts:
            ours, bound = times[part], times['fill'] if part.startswith('gradient') else read
            more = dict(ours=ours, theirs=bound, by_minima=ours['min'] / bound['min'])
            figure = f'a kernel for each channel and place at {size[0]}x{size[1]}, {part}: times its bound'
            report.add(figure, ours['median'] / bound['median'], None, True, **more)


def layers(report: Report, rounds: int) -> None:
    """Every operator as a whole layer, the making of its kernel included."""
    for name, layer, kernel in operators():
        compare(report, f'{name} K={kernel} layer', layer, torch.randn(1, CHANNELS, *SIZES[0]), rounds)


#: A model of each backbone, and how much faster its step has to be.
BACKBONES = (('RedNet', dict(arch=50), 3), ('LSNet', dict(arch='T'), 1.2), ('OverLoCK', dict(arch='XT'), 2))


def backbones(report: Report, rounds: int) -> None:
    """Networks of the operators at 224 x 224."""
    MODELS.import_from_location()
    for name, arguments, target in BACKBONES:
        model = ROOT_MODELS.build(dict(type=f'mmext.{name}', **arguments)).eval()
        compare(
            report,
            f'{name} {arguments["arch"]}',
            model,
            torch.randn(1, 3, 224, 224),
            max(2, rounds // 2),
            (None, target),
        )


def detector(report: Report, rounds: int) -> None:
    """A training step of RetinaNet R18 with involution in its pyramid, against plain 3 x 3 convolutions there."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mmext.analysis.samples import batch_for
    from mmext.hosts import build_model

    init_default_scope('mmdet')
    path = 'configs/involution/det/retinanet_r18-fpn-involution_1x_coco.py'
    cfg = Config.fromfile(path)
    plain = cfg.model.to_dict()
    plain['neck'].update(type='FPN')
    for key in ('model', 'rules'):
        plain['neck'].pop(key)
    batch = batch_for('mmdet', size=320)
    contenders = {}
    for name, model_cfg in (('involution', cfg.model.to_dict()), ('plain', plain)):
        model = build_model(model_cfg).train()
        contenders[name] = partial(_step, model, batch)
    times = interleave(contenders, max(2, rounds // 2), 0)
    value = times['plain']['median'] / times['involution']['median']
    more = dict(
        ours=times['involution'], theirs=times['plain'], by_minima=times['plain']['min'] / times['involution']['min']
    )
    report.add('RetinaNet R18, involution in the FPN, step against plain', value, None, True, **more)


def halo(report: Report, rounds: int) -> None:
    """Halo attention against dense attention with the mask of its windows; the target is that of 64 x 64."""
    for size, target in ((64, 3.0), (32, None)):
        layer = MODELS.get('HaloAttention2d')(64, 64, 7, padding=3, block_size=8, num_heads=4, masked=True).eval()
        for table in (layer.rel_rows, layer.rel_columns):  # the mask of the dense form has no places
            nn.init.zeros_(table)
        place = torch.arange(size)
        start = place // 8 * 8 - 3
        near = (place >= start[:, None]) & (place < start[:, None] + layer.window[0])
        mask = (near[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)

        def dense(x: Tensor, layer: Any = layer, mask: Tensor = mask) -> Tensor:
            parts = (conv(x).flatten(2).unflatten(1, (4, -1)).mT for conv in (layer.query, layer.key, layer.value))
            return F.scaled_dot_product_attention(*parts, attn_mask=mask).mT.flatten(1, 2).view_as(x)

        x = torch.randn(1, 64, size, size)
        with torch.no_grad():
            check('halo attention', layer(x), dense(x).double())
            times = interleave({'halo': partial(layer, x), 'dense': partial(dense, x)}, rounds)
        figure = f'halo attention forward at {size} x {size}, against masked dense attention'
        if target:
            report.ratio(figure, times['halo'], times['dense'], target)
        else:
            value = times['dense']['median'] / times['halo']['median']
            report.add(figure, value, None, True, ours=times['halo'], theirs=times['dense'], by_minima=value)


def _step(model: nn.Module, batch: Any) -> None:
    data = model.data_preprocessor(batch, True)
    model.zero_grad()
    losses, _ = model.parse_losses(model(**data, mode='loss'))  # type: ignore[operator]
    losses.backward()


SECTIONS = {
    'operators': aggregations,
    'sites': sites,
    'bounds': bounds,
    'layers': layers,
    'backbones': backbones,
    'detector': detector,
    'halo': halo,
}


if __name__ == '__main__':
    sys.exit(main(SECTIONS, __doc__.splitlines()[0], 'benchmark_evolution', 5))
