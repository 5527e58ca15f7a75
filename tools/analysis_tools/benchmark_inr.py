"""Measure the parts of coordinate networks side by side, on one CPU thread, against the targets of the project.

    python tools/analysis_tools/benchmark_inr.py [--only train fold] [--rounds 5] [--out work_dirs/benchmark_inr]

Medians of thread CPU time, contenders in turns in one process, each compared with float64 first:

- train: a full-batch step (forward, mean squared error, backward, Adam) of the 28 x 10 perceptron on 512 x 512, each norm
  against batch norm;
- fold: Conv-INR 32 x 10 on 256 x 256, folded from each re-parameterization, against the plain network of that form;
- eval: the 28 x 10 perceptron with frozen statistics on 512 x 512, and with its norms fused, against the one without norms;
- radon: forward and backward of mmext.RadonOperator on 256 x 256, against sampling a rotated image for each view;
- views: a training step and a rendered picture of a scene, mmext.VolumeRenderer against the loop that one writes down first,
  with the same perceptron 64 x 4;
- points: a training step on 8,192 points that are drawn of a shape, with the data set and the model, against the same
  perceptron 64 x 4 on points that lie ready; and which points of a grid of 64 per axis are inside of a mesh of about 10,000
  triangles, against a test of every triangle with every column.

The allocator is told to keep the pages that it has: where glibc returns them after a step and takes them again in the next one
is a matter of luck, which made up to a third of a step for one network and nothing for another, and changed from run to run.
The exit status is 1 where a target is missed, so look at the machine's load before you believe it.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import math
import platform
import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.analysis.timing import Report, check, interleave, main
from mmext.folding import fold
from mmext.inr import (
    ConvINR,
    CoordMLP,
    Mesh,
    ShapeDataset,
    ViewDataset,
    VolumeRenderer,
    block_distance,
    coordinate_grid,
    extract_mesh,
    resample,
    unit_ball,
)
from mmext.registry import MODELS

NORMS = {'BN': 'BN', 'LN': 'LN', 'GN': 'mmext.GlobalNorm', 'CN': 'mmext.CrossNorm'}
# At most so many times slower than batch norm, and a folded network than the plain one of the same layers.
TARGETS = {'CN': 1.5}
FOLDED = 1.03
# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_pages() -> None:
    """Tell glibc not to return freed memory to the system; other C libraries are left as they are."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def perceptrons() -> dict[str, nn.Module]:
    """Return the 28 x 10 network with each norm."""
    return {name: CoordMLP(norm_cfg=dict(type=kind)) for name, kind in NORMS.items()}


def against(report: Report, what: str, times: dict, name: str, base: str, limit: float | None) -> None:
    """Add how many times longer ``name`` takes than ``base``, by the medians."""
    ours, theirs = times[name], times[base]
    value = ours['median'] / theirs['median']
    report.add(
        f'{what}, times {base}',
        value,
        limit,
        limit is None or value <= limit,
        milliseconds=ours['median'],
        by_minima=ours['min'] / theirs['min'],
    )


def train(report: Report, rounds: int) -> None:
    """Training steps on all positions of a picture."""
    small, grid, target = coordinate_grid(48, 48), coordinate_grid(512, 512), torch.rand(512, 512, 3)
    steps = {}
    for name, network in perceptrons().items():
        exact = copy.deepcopy(network).double()(small.double())
        check(name, network(small), exact, 1e-4)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

        def step(network: nn.Module = network, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            (network(grid) - target).square().mean().backward()
            optimizer.step()

        steps[name] = step
    times = interleave(steps, 2 * rounds)
    for name in NORMS:
        against(report, f'training step {name}', times, name, 'BN', TARGETS.get(name))


@torch.no_grad()
def folded(report: Report, rounds: int) -> None:
    """Convolutional networks after training."""
    grid = coordinate_grid(256, 256)
    networks = {'plain': ConvINR(norm_cfg=None).eval()}
    for name in (None, 'structural', 'static', 'dynamic'):
        trained = ConvINR(reparam=name)
        trained.freeze_stats(coordinate_grid(64, 64))
        expected = trained(grid[:64, :64])
        trained.switch_to_deploy()
        check(f'Conv-INR {name}', trained(grid[:64, :64]), expected.double(), 1e-4)
        networks[f'folded {name}' if name else 'fused norms'] = trained
    # They differ by nothing but noise, which more rounds make smaller.
    times = interleave({name: partial(network, grid) for name, network in networks.items()}, 2 * rounds)
    for name in networks:
        if name != 'plain':
            against(report, f'Conv-INR {name}', times, name, 'plain', FOLDED)


@torch.no_grad()
def evaluate(report: Report, rounds: int) -> None:
    """Evaluation of trained networks."""
    small, grid = coordinate_grid(48, 48), coordinate_grid(512, 512)
    networks: dict[str, nn.Module] = {'plain': CoordMLP().eval()}
    for name, network in perceptrons().items():
        whole = copy.deepcopy(network).double()(small.double())
        network.freeze_stats(small)
        check(f'{name} frozen', network(small), whole, 1e-4)
        networks[f'{name} frozen'] = network
        if name in ('BN', 'GN'):
            fused = fold(copy.deepcopy(network), fuse_bn=True)
            check(f'{name} fused', fused(small), whole, 1e-4)
            networks[f'{name} fused'] = fused
    times = interleave({name: partial(network, grid) for name, network in networks.items()}, rounds)
    for name in networks:
        if name != 'plain':
            against(report, f'evaluation {name}', times, name, 'plain', None)


def radon(report: Report, rounds: int) -> None:
    """The operator of computed tomography."""
    views = 60
    operator = MODELS.build(dict(type='mmext.RadonOperator', views=views))
    image = torch.rand(256, 256, 1, requires_grad=True)
    check('Radon', operator(image), rotated_sums(image.double(), views))

    def both(transform) -> None:
        image.grad = None
        transform(image).square().mean().backward()

    contenders = {'ours': partial(both, operator), 'theirs': partial(both, partial(rotated_sums, views=views))}
    times = interleave(contenders, rounds)
    figure = f'Radon transform, {views} views, forward+backward, against a rotation each'
    report.ratio(figure, times['ours'], times['theirs'], 1.0)


def rotated_sums(image: Tensor, views: int) -> Tensor:
    """Return the sums over the columns of the rotated image, divided by its side, as one writes it down first."""
    side = len(image)
    angle = (torch.arange(views).to(image) * (math.pi / views)).view(-1, 1, 1)
    offset = torch.arange(side).to(image) - side // 2
    column, row = offset.expand(side, side), offset[:, None].expand(side, side)
    x = column * angle.cos() + row * angle.sin()
    y = row * angle.cos() - column * angle.sin()
    grid = (torch.stack((x, y), -1) + side // 2) * (2 / (side - 1)) - 1
    maps = image.movedim(-1, 0).expand(views, -1, -1, -1)
    return F.grid_sample(maps, grid, align_corners=True).sum(2).movedim(1, -1) / side


def views(report: Report, rounds: int) -> None:
    """Training steps and pictures of fields of color and density."""
    data, network = ViewDataset(), solid_field()
    item = data[0]
    rays, colors = item['inputs'], item['data_samples'].measurement[:, :3]
    for name, samples, resamples, keep, target in (
        ('48 even samples', 48, 0, True, 0.9),
        ('32 samples and 64 more', 32, 64, True, 1.2),
        ('64 placed by 32 samples', 32, 64, False, 1.2),
    ):
        renderer = VolumeRenderer(samples=samples, resamples=resamples, keep_first=keep)

        def ours(renderer: VolumeRenderer = renderer) -> None:
            network.zero_grad()
            renderer.loss(renderer.predict(network, rays)[0], item['data_samples'].measurement)[
                'loss_render'
            ].backward()

        def theirs(samples: int = samples, resamples: int = resamples) -> None:
            network.zero_grad()
            passes = plain_loop(network, rays, samples, resamples)
            sum((pixels - colors).square().mean() for pixels in passes).backward()

        times = interleave({'ours': ours, 'theirs': theirs}, rounds)
        report.ratio(f'training step, 512 rays, {name}, against a plain loop', times['ours'], times['theirs'], target)
        for contender, spent in times.items():
            report.add(f'  rays per second, {contender}', len(rays) / spent['median'] * 1e3, None, True)

    network.eval()
    renderer = VolumeRenderer(samples=96).eval()
    view = ViewDataset(split='test')[0]['inputs']
    pixels = [partial(renderer.reconstruct, network, view), partial(plain_picture, network, view)]
    check('rendering', pixels[0]()['prediction'], pixels[1]().double(), 1e-2)
    times = interleave(dict(zip(('ours', 'theirs'), pixels, strict=True)), rounds)
    report.ratio('rendering 64 x 64, 96 samples, against a plain loop', times['ours'], times['theirs'], 1.5)
    for contender, spent in times.items():
        report.add(f'  rays per second, {contender}', view[..., 0].numel() / spent['median'] * 1e3, None, True)


def solid_field() -> nn.Module:
    """Return a field that is about as transparent and as opaque as a trained one: fitted to the solids of a scene."""
    encoding = dict(type='mmext.PositionalEncoding', num_octaves=6)
    network = CoordMLP(in_features=3, out_features=4, width=64, depth=4, encoding=encoding)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(300):
        points = 2 * torch.rand(2048, 3) - 1
        raw = (-100 * block_distance(points)).clamp(-8, 8)
        optimizer.zero_grad()
        (network(points)[:, 3] - raw).square().mean().backward()
        optimizer.step()
    return network


def plain_loop(network: nn.Module, rays: Tensor, samples: int, resamples: int = 0) -> list[Tensor]:
    """Return the colors of both passes, as one writes rendering down first: everything with gradient, by cumprod."""
    near, far = (bound[:, None] for bound in unit_ball(rays))
    distances = near + (far - near) * (torch.arange(samples) + torch.rand(len(rays), samples)) / samples
    found = []
    for last in (True,) if not resamples else (False, True):
        points = rays[:, None, :3] + distances[..., None] * rays[:, None, 3:]
        values = network(points.reshape(-1, 3)).view(*distances.shape, 4)
        lengths = torch.cat((distances[:, 1:], far), dim=1) - distances
        alpha = 1 - torch.exp(-10 * F.softplus(values[..., 3] - 1) * lengths)
        passed = torch.cumprod(torch.cat((torch.ones(len(rays), 1), 1 - alpha + 1e-10), dim=1), dim=1)[:, :-1]
        weights = alpha * passed
        found.append((weights[..., None] * values[..., :3].sigmoid()).sum(1) + 1 - weights.sum(1, keepdim=True))
        if not last:
            edges = near + (far - near) * torch.linspace(0, 1, samples + 1)
            distances = torch.cat((distances, resample(edges, weights, resamples, True)), dim=1).sort(1).values
    return found


@torch.no_grad()
def plain_picture(network: nn.Module, view: Tensor, samples: int = 96) -> Tensor:
    """Render a picture with all samples of all rays."""
    rays = view.reshape(-1, 6)
    near, far = (bound[:, None] for bound in unit_ball(rays))
    distances = near + (far - near) * (torch.arange(samples) + 0.5) / samples
    found = []
    for part, t, end in zip(rays.split(4096), distances.split(4096), far.split(4096), strict=True):
        values = network(part[:, None, :3] + t[..., None] * part[:, None, 3:])
        alpha = 1 - torch.exp(-10 * F.softplus(values[..., 3] - 1) * (torch.cat((t[:, 1:], end), dim=1) - t))
        passed = torch.cumprod(torch.cat((torch.ones(len(part), 1), 1 - alpha + 1e-10), dim=1), dim=1)[:, :-1]
        weights = alpha * passed
        found.append((weights[..., None] * values[..., :3].sigmoid()).sum(1) + 1 - weights.sum(1, keepdim=True))
    return torch.cat(found).view(*view.shape[:2], 3)


def points(report: Report, rounds: int) -> None:
    """The points of shapes, and what is inside of a mesh."""
    data = ShapeDataset(shape='blocks', size=64)
    cfg = dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=64, depth=4)
    model = MODELS.build(dict(type='mmext.SignalModel', network=cfg, operator=dict(type='mmext.PointOperator')))
    plain = copy.deepcopy(model.network)
    ready = data[0]
    coords, values = ready['inputs'], ready['data_samples'].measurement
    numbers = itertools.count()

    def framed() -> None:
        item = data[next(numbers) % len(data)]
        model.zero_grad()
        model([item['inputs']], [item['data_samples']], mode='loss')['loss'].backward()

    def bare() -> None:
        plain.zero_grad()
        F.binary_cross_entropy_with_logits(plain(coords), values).backward()

    check(
        'points', model([coords], [ready['data_samples']], mode='loss')['loss'], bare_loss(plain, coords, values), 1e-4
    )
    times = interleave({'drawn points': framed, 'ready points': bare}, 2 * rounds)
    against(report, 'training step, drawn points', times, 'drawn points', 'ready points', None)

    mesh = extract_mesh(lambda p: 0.7 - (p * p.new_tensor((1.0, 1.3, 0.9))).norm(dim=-1), 48)
    if not (mesh.voxels(24) == crossed(mesh, 24)).all():
        raise RuntimeError('the two ways differ on what is inside of the mesh')
    times = interleave({'ours': partial(mesh.voxels, 64), 'theirs': partial(crossed, mesh, 64)}, rounds)
    report.ratio(
        f'inside of {len(mesh.faces):,} triangles, 64 per axis, against every pair', times['ours'], times['theirs'], 5.0
    )


def bare_loss(network: nn.Module, coords: Tensor, values: Tensor) -> Tensor:
    """Return the loss in float64."""
    exact = copy.deepcopy(network).double()
    return F.binary_cross_entropy_with_logits(exact(coords.double()), values.double())


def crossed(mesh: Mesh, size: int) -> np.ndarray:
    """Return which points of a grid are inside, testing each triangle with all columns."""
    axis = np.linspace(-1, 1, size)
    x, y = np.meshgrid(axis + 1.234e-7, axis + 2.718e-7, indexing='ij')
    odd = np.zeros((size, size, size), bool)
    for a, b, c in mesh.corners:
        areas = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((b, c), (c, a), (a, b))]
        met = np.all([w > 0 for w in areas], 0) | np.all([w < 0 for w in areas], 0)
        if met.any():
            height = sum(w[met] * p[2] for w, p in zip(areas, (a, b, c), strict=True)) / sum(w[met] for w in areas)
            odd[met] ^= axis > height[:, None]
    return odd


SECTIONS = {'train': train, 'fold': folded, 'eval': evaluate, 'radon': radon, 'views': views, 'points': points}


if __name__ == '__main__':
    keep_pages()
    sys.exit(main(SECTIONS, __doc__.splitlines()[0], 'benchmark_inr', 5))
