"""Surfaces from views: the weights of NeuS, the start of its network, and the field with its gradient."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmext.folding import fold
from mmext.inr import (
    SDFMLP,
    SDFField,
    SurfaceHook,
    SurfaceRenderer,
    ViewDataset,
    block_distance,
    camera_rays,
    crossing_weights,
    orbit,
    ray_weights,
    section_opacity,
    simple_lens,
    spaced,
    unit_ball,
)

DOUBLE = torch.float64
TINY = dict(
    sdf=dict(type='mmext.SDFMLP', out_features=5, width=16, depth=2, skips=()),
    color=dict(type='mmext.CoordMLP', width=8, depth=1),
)


def along_ball(samples=256, number=40):
    """Return ends of sections and the true distance there, of rays that meet a ball of radius 0.6 well."""
    torch.manual_seed(0)
    offset = torch.rand(number, 2, dtype=DOUBLE) * 0.5 - 0.25
    origin = torch.cat((offset, torch.full((number, 1), 3.0, dtype=DOUBLE)), -1)
    rays = torch.cat((origin, torch.tensor([0.0, 0, -1]).double().expand(number, 3)), -1)
    near, far = unit_ball(rays)
    edges = spaced(near, far, samples)
    points = rays[:, None, :3] + edges[..., None] * rays[:, None, 3:]
    entry = 3 - (0.36 - offset.square().sum(-1)).sqrt()
    return edges, points.norm(dim=-1) - 0.6, entry


@pytest.mark.parametrize(('sharpness', 'opacity'), [(64.0, 0.98), (256.0, 0.999)])
def test_the_surface_is_seen_where_it_is(sharpness, opacity):
    edges, distance, entry = along_ball()
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    alpha = section_opacity(distance[:, :-1], distance[:, 1:], sharpness)
    weights = crossing_weights(alpha)
    depth = (weights * middle).sum(-1) / weights.sum(-1)
    assert (depth - entry).mean().abs() < 2e-3
    assert weights.sum(-1).mean() > opacity
    # The density of the logistic distribution, used as the density of a volume, is seen too far behind.
    s = torch.sigmoid(distance[:, :-1] * sharpness)
    naive = ray_weights(sharpness * s * (1 - s), edges.diff(dim=-1))
    biased = (naive * middle).sum(-1) / naive.sum(-1)
    assert (biased - entry).mean() > 0.05


def test_opacity_telescopes_while_the_distance_falls():
    values = torch.linspace(1, -1, 30, dtype=DOUBLE)
    alpha = section_opacity(values[:-1], values[1:], 20.0)
    whole = 1 - torch.sigmoid(values[-1] * 20) / torch.sigmoid(values[0] * 20)
    torch.testing.assert_close(crossing_weights(alpha).sum(), whole, rtol=0, atol=1e-3)


def test_slopes_settle():
    renderer = SurfaceRenderer(settle=10)
    cosine = torch.tensor([-1.0, -0.2, 0.0, 0.6])
    torch.testing.assert_close(renderer._slope(cosine), torch.tensor([-1.0, -0.6, -0.5, -0.2]))
    renderer.step += 10
    torch.testing.assert_close(renderer._slope(cosine), torch.tensor([-1.0, -0.2, 0.0, 0.0]))
    renderer.step -= 10
    torch.testing.assert_close(renderer.eval()._slope(cosine), torch.tensor([-1.0, -0.2, 0.0, 0.0]))


@pytest.mark.parametrize('encoding', [None, dict(type='mmext.PositionalEncoding', num_octaves=4)])
def test_the_network_starts_as_a_sphere(encoding):
    torch.manual_seed(0)
    found = []
    for _ in range(4):
        network = SDFMLP(out_features=1, width=64, depth=4, skips=(), encoding=encoding)
        points = torch.randn(400, 3)
        points = points / points.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            found.append([network(r * points).mean() for r in (0.25, 0.5, 0.9)])
    mean = torch.tensor(found).mean(0)
    torch.testing.assert_close(mean, torch.tensor([-0.25, 0.0, 0.4]), rtol=0, atol=0.1)


def test_the_encoding_says_nothing_at_the_start():
    torch.manual_seed(0)
    plain = SDFMLP(out_features=1, width=64, depth=4, skips=(), encoding=None)
    encoded = SDFMLP(out_features=1, width=64, depth=4, skips=(), encoding=dict(type='mmext.PositionalEncoding'))
    with torch.no_grad():
        for a, b in zip(plain.linears, encoded.linears, strict=True):
            b.weight[:, : a.in_features].copy_(a.weight)
        encoded.head.weight.copy_(plain.head.weight)
        points = torch.rand(50, 3)
        torch.testing.assert_close(encoded(points), plain(points))


def test_a_network_with_a_norm_starts_as_a_sphere_too():
    torch.manual_seed(0)
    network = SDFMLP(out_features=3, width=16, depth=2, skips=(), norm_cfg=dict(type='LN'))
    points = torch.randn(30, 3)
    with torch.no_grad():
        torch.testing.assert_close(network(points)[:, 0], points.norm(dim=-1) - 0.5, rtol=0, atol=0.02)


def test_published_sizes():
    field = SDFField(
        sdf=dict(type='mmext.SDFMLP'),
        color=dict(type='mmext.CoordMLP', width=256, depth=4),
        view_encoding=dict(type='mmext.PositionalEncoding', num_octaves=4),
        weight_norm=True,
    )
    assert sum(p.numel() for p in field.sdf.parameters()) == 529_076
    assert sum(p.numel() for p in field.color.parameters()) == 273_414


@pytest.mark.parametrize('norm', [None, 'LN', 'BN', 'mmext.GlobalNorm', 'mmext.CrossNorm'])
def test_the_gradient_is_that_of_each_point_and_learns(norm):
    torch.manual_seed(0)
    cfg = dict(TINY, sdf=dict(TINY['sdf'], norm_cfg=norm and dict(type=norm)))
    field = SDFField(**cfg).double()
    points = (torch.rand(60, 3) * 1.2 - 0.6).double()
    values = field(points)
    gradient = values[:, 4:]
    field.freeze_stats(points)
    eps = 1e-5 * torch.eye(3, dtype=DOUBLE)
    with torch.no_grad():
        sides = [(field.distance(points + e) - field.distance(points - e)) / 2e-5 for e in eps]
    assert torch.cosine_similarity(gradient, torch.stack(sides, -1)).min() > 0.999
    torch.testing.assert_close(field(points)[:, 3], field.distance(points))
    field.train()
    (field(points)[:, 4:].norm(dim=-1) - 1).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in field.sdf.parameters())
    with torch.no_grad():
        assert not field(points).requires_grad


def test_weight_norm_starts_as_the_plain_field_and_folds():
    torch.manual_seed(0)
    plain = SDFField(**TINY)
    torch.manual_seed(0)
    field = SDFField(**TINY, weight_norm=True)
    points = torch.rand(20, 3)
    torch.testing.assert_close(field(points), plain(points))
    with torch.no_grad():
        for p in field.parameters():
            p.add_(0.01 * torch.randn_like(p))
    field.eval()
    expected = field(points).detach()
    folded = fold(field)
    torch.testing.assert_close(folded(points).detach(), expected)
    assert {type(m) for m in folded.modules() if isinstance(m, torch.nn.Linear)} == {torch.nn.Linear}
    again = SDFField(**TINY, weight_norm=True)
    again.init_weights()
    for linear in again.sdf.linears:
        torch.testing.assert_close(linear.kernel(), linear.weight)


def true_field(points, only_distance=False):
    position = points[..., :3].detach().requires_grad_()
    with torch.enable_grad():
        distance = block_distance(position)
        (gradient,) = torch.autograd.grad(distance.sum(), position)
    if only_distance:
        return distance.detach()[..., None]
    return torch.cat((torch.zeros_like(gradient), distance.detach()[..., None], gradient), dim=-1)


@pytest.mark.parametrize('options', [{}, dict(skip=0.0), dict(samples=32, rounds=4)])
def test_a_true_distance_gives_the_true_picture(options):
    data = ViewDataset(split='test', held_out=1, size=32)
    item = data[0]
    sample = item['data_samples']
    renderer = SurfaceRenderer(**{**dict(samples=96), **options}, sharpness=0.5, chunk=300).eval()
    found = renderer.reconstruct(true_field, item['inputs'])
    whole = sample.mask > 0.99
    assert (found['depth'] - sample.true_depth).abs()[whole].median() < 0.01
    hit, solid = found['opacity'] > 0.5, sample.mask > 0.5
    assert (hit & solid).sum() / (hit | solid).sum() > 0.95
    # Seen surfaces face the camera.
    facing = -(found['normal'] * item['inputs'][..., 3:]).sum(-1)[whole]
    assert (facing > 0).float().mean() > 0.98


def test_what_is_left_out_is_not_seen():
    torch.manual_seed(0)
    field = MODELS.build(dict(type='mmext.SDFField', **TINY)).eval()
    rays = camera_rays(orbit(torch.tensor(1.0), 24, 3.0), (16, 16), simple_lens((16, 16), 0.5))
    whole = SurfaceRenderer(samples=24, skip=0.0).eval().reconstruct(field, rays)
    sparse = SurfaceRenderer(samples=24, chunk=50).eval().reconstruct(field, rays)
    for name in ('prediction', 'opacity'):
        torch.testing.assert_close(sparse[name], whole[name], rtol=0, atol=0.02)


def test_losses_are_those_of_color_mask_and_slope():
    torch.manual_seed(0)
    field, renderer = MODELS.build(dict(type='mmext.SDFField', **TINY)), SurfaceRenderer(samples=6, eikonal=0.2)
    item = ViewDataset(views=2, size=8, rays=20)[0]
    measured = item['data_samples'].measurement
    prediction, penalties = renderer.predict(field, item['inputs'])
    assert set(penalties) == {'loss_eikonal'}
    losses = renderer.loss(prediction, measured)
    torch.testing.assert_close(losses['loss_render'], (prediction - measured)[:, :3].abs().mean())
    clipped = prediction[:, 3].clamp(1e-3, 1 - 1e-3)
    entropy = -(measured[:, 3] * clipped.log() + (1 - measured[:, 3]) * (1 - clipped).log()).mean()
    torch.testing.assert_close(losses['loss_mask'], 0.1 * entropy)
    (losses['loss_render'] + losses['loss_mask'] + penalties['loss_eikonal']).backward()
    assert renderer.log_sharpness.grad.abs() > 0
    assert all(p.grad is not None for p in field.parameters())


@pytest.mark.parametrize(('offset', 'limit'), [(0.0, 0.005), (0.05, 0.1)])
def test_the_surface_is_compared_with_the_true_one(offset, limit):
    def field(points, only_distance=False):
        return block_distance(points)[..., None] - offset

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.operator, self.image = SurfaceRenderer(samples=2), field

    dataset = dict(type='mmext.ViewDataset', split='test', size=8, held_out=1)
    scalars = {}
    runner = SimpleNamespace(
        cfg=Config(dict(test_dataloader=dict(dataset=dataset))),
        model=Model(),
        message_hub=SimpleNamespace(update_scalar=scalars.__setitem__),
    )
    metrics = {}
    SurfaceHook(resolution=48).after_test_epoch(runner, metrics)
    floor = metrics['surface/chamfer_floor']
    assert offset * 0.8 - 1e-3 <= metrics['surface/chamfer'] - floor < limit
    assert metrics['surface/normal_consistency'] > 0.85
    assert scalars == {f'test/{name}': value for name, value in metrics.items()}


def test_says_what_it_needs():
    with pytest.raises(ValueError, match='hidden layers 1 to 3 to skip to'):
        SDFMLP(depth=4, width=64, skips=(4,))
    with pytest.raises(ValueError, match='starts with them'):
        SDFMLP(encoding=dict(type='mmext.FourierFeatures'))
    with pytest.raises(ValueError, match='needs a field of 7 values, got 4'):
        SurfaceRenderer(samples=3).predict(lambda x: torch.zeros(*x.shape[:-1], 4), torch.rand(5, 6))
