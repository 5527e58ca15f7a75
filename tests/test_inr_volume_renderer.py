"""Rendering of color and density: against the truth of an embedded scene, and what its options promise."""

import pytest
import torch
from mmengine.registry import MODELS

from mmext.inr import SCENES, ShapeDataset, ViewDataset, VolumeRenderer, block_distance, camera_rays, orbit, simple_lens

FIELD = dict(
    type='mmext.CoordMLP',
    in_features=3,
    out_features=4,
    width=12,
    depth=2,
    encoding=dict(type='mmext.PositionalEncoding', num_octaves=2),
)


def true_field(points, **options):
    """Solid inside of the scene 'blocks', and red."""
    density = torch.where(block_distance(points) < 0, 101.0, -99.0)
    return torch.cat((torch.full_like(points, -20).index_fill(-1, torch.tensor(0), 20), density[..., None]), dim=-1)


def rays(number=None, side=24, seed=0):
    found = camera_rays(orbit(torch.tensor(2.0), 24, 3.0), (side, side), simple_lens((side, side), 0.5236))
    if number is None:
        return found
    torch.manual_seed(seed)
    return found.reshape(-1, 6)[torch.randperm(side**2)[:number]]


@pytest.mark.parametrize('samples', [48, 96])
def test_a_true_field_gives_the_true_picture(samples):
    renderer = VolumeRenderer(samples=samples).eval()
    found = renderer.reconstruct(true_field, rays(side=48))
    _, depth = SCENES['blocks'].trace(rays(side=48).reshape(-1, 6))
    solid = depth.isfinite().view(48, 48)
    assert (found['depth'] - depth.view(48, 48)).abs()[solid].median() < 1.2 / samples
    hit = found['opacity'] > 0.5
    assert (hit & solid).sum() / (hit | solid).sum() > 0.97
    torch.testing.assert_close(found['prediction'][~hit & ~solid], torch.ones_like(found['prediction'][~hit & ~solid]))
    inner = found['prediction'][hit & solid & (found['opacity'] > 0.999)]
    torch.testing.assert_close(inner, torch.tensor([1.0, 0, 0]).expand_as(inner), rtol=0, atol=2e-3)


@pytest.mark.parametrize('options', [{}, dict(resamples=8), dict(skip=0.0)])
@pytest.mark.parametrize('chunk', [7, 100])
def test_the_chunk_changes_nothing(options, chunk):
    torch.manual_seed(0)
    field = MODELS.build(FIELD).eval()
    whole = VolumeRenderer(samples=12, **options).eval().reconstruct(field, rays(side=10))
    parts = VolumeRenderer(samples=12, chunk=chunk, **options).eval().reconstruct(field, rays(side=10))
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-5, atol=1e-6)


def test_what_is_left_out_is_not_seen():
    looked = []

    def field(points, **options):
        looked.append(points[..., 0].numel())
        return true_field(points)

    whole, sparse = ({} for _ in range(2))
    for skip, found in ((0.0, whole), (1e-3, sparse)):
        looked.clear()
        found.update(VolumeRenderer(samples=96, skip=skip).eval().reconstruct(field, rays(side=32)))
        found['points'] = sum(looked)
    assert sparse['points'] < 0.5 * whole['points']
    # A group of samples that no probe meets is left out; of solids no pixel is.
    assert (sparse['prediction'] - whole['prediction']).abs().mean() < 2e-3
    assert ((sparse['opacity'] > 0.5) == (whole['opacity'] > 0.5)).float().mean() > 0.995


def test_rays_past_the_scene_show_the_background_alone():
    past = torch.tensor([[0.0, 2.0, 3.0, 0.0, 0.0, -1.0]])
    renderer = VolumeRenderer(samples=4, background=0.25)
    pixels, penalties = renderer.predict(lambda points, **_: torch.ones(*points.shape[:-1], 4), past)
    torch.testing.assert_close(pixels, torch.tensor([[0.25, 0.25, 0.25, 0.0]]))
    assert penalties == {}
    found = renderer.reconstruct(lambda points: 1 / 0, past[None])
    torch.testing.assert_close(found['prediction'], torch.full((1, 1, 3), 0.25))
    assert found['depth'].shape == found['opacity'].shape == (1, 1)


def test_training_jitters_and_evaluation_does_not():
    torch.manual_seed(0)
    field, renderer = MODELS.build(FIELD), VolumeRenderer(samples=6)
    given = rays(40)
    first, second = (renderer.predict(field, given)[0] for _ in range(2))
    assert not torch.equal(first, second)
    renderer.eval()
    first, second = (renderer.predict(field, given)[0] for _ in range(2))
    assert torch.equal(first, second)
    renderer.train()
    first.sum().backward()
    assert all(p.grad is not None for p in field.parameters())


def test_a_shared_proposal_takes_no_gradient_and_an_own_one_is_trained():
    torch.manual_seed(0)
    pair = MODELS.build(dict(type='mmext.FieldPair', coarse=FIELD))
    measurement = torch.rand(30, 3)
    pixels, _ = VolumeRenderer(samples=6, resamples=6).predict(pair, rays(30))
    assert pixels.shape == (30, 4)
    pixels.sum().backward()
    assert all(p.grad is None for p in pair.coarse.parameters())
    renderer = VolumeRenderer(samples=6, resamples=6, coarse='own')
    pixels, _ = renderer.predict(pair, rays(30))
    assert pixels.shape == (2, 30, 4)
    losses = renderer.loss(pixels, measurement)
    expected = (pixels[:, :, :3] - measurement).square().mean((1, 2))
    torch.testing.assert_close(torch.stack((losses['loss_coarse'], losses['loss_render'])), expected)
    losses['loss_coarse'].backward()
    assert all(p.grad is not None for p in pair.coarse.parameters())


@pytest.mark.parametrize('operator', [dict(type='mmext.VolumeRenderer', samples=4), dict(type='mmext.PointOperator')])
@pytest.mark.parametrize(
    'network',
    [
        dict(type='mmext.MFN', width=8, depth=2, input_scale=8.0),
        dict(type='mmext.MFN', width=8, depth=2, filter_type='fourier'),
        dict(act_cfg=dict(type='mmext.WaveletActivation')),
        dict(act_cfg=dict(type='mmext.FinerActivation')),
        dict(act_cfg=dict(type='mmext.SineActivation')),
        dict(act_cfg=dict(type='mmext.GaussianActivation')),
        dict(norm_cfg=dict(type='LN')),
        dict(norm_cfg=dict(type='mmext.GlobalNorm')),
        dict(norm_cfg=dict(type='mmext.CrossNorm')),
    ],
    ids=str,
)
def test_every_network_fits_in(operator, network):
    torch.manual_seed(0)
    views = operator['type'] == 'mmext.VolumeRenderer'
    base = {} if 'type' in network else dict(type='mmext.CoordMLP', width=8, depth=2)
    cfg = {**base, **network, 'in_features': 3, 'out_features': 4 if views else 1}
    model = MODELS.build(dict(type='mmext.SignalModel', network=cfg, operator=operator))
    data = ViewDataset(views=2, size=8, rays=16) if views else ShapeDataset('blocks', size=8, points=64)
    item = data[0]
    losses = model([item['inputs']], [item['data_samples']], mode='loss')
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    gradients = [p.grad for p in model.network.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model.freeze_stats(data.statistics_sample())
    test = (
        ViewDataset(views=2, size=8, split='test', held_out=1)
        if views
        else ShapeDataset('blocks', size=8, split='test')
    )
    (found,) = model([test[0]['inputs']], [test[0]['data_samples']], mode='predict')
    assert found.prediction.shape == test[0]['data_samples'].target.shape
    assert found.prediction.isfinite().all()


def test_placed_samples_alone_see_the_same_surface_at_less_cost():
    looked = []

    def field(points, **options):
        looked.append(points.shape[1])
        return true_field(points)

    seen = {}
    for keep in (True, False):
        looked.clear()
        renderer = VolumeRenderer(samples=48, resamples=24, keep_first=keep).eval()
        seen[keep] = renderer.reconstruct(field, rays(side=32))
        assert looked == [48, 72 if keep else 24]
    solid = (seen[True]['opacity'] > 0.5) & (seen[False]['opacity'] > 0.5)
    assert solid.sum() > 0.98 * (seen[True]['opacity'] > 0.5).sum()
    assert (seen[True]['depth'] - seen[False]['depth'])[solid].abs().median() < 1 / 48


def test_background_is_held_empty_where_it_is_known():
    renderer = VolumeRenderer(background_weight=0.5)
    prediction, measurement = torch.rand(6, 4), torch.rand(6, 4)
    measurement[:, 3] = torch.tensor([0.0, 0, 1, 1, 1, 0.5])
    losses = renderer.loss(prediction, measurement)
    torch.testing.assert_close(losses['loss_background'], 0.5 * prediction[:2, 3].square().mean())
    assert 'loss' not in losses
    assert 'loss_background' not in renderer.loss(prediction, measurement[:, :3])
    l1 = VolumeRenderer(loss='l1').loss(prediction, measurement)
    torch.testing.assert_close(l1['loss_render'], (prediction - measurement)[:, :3].abs().mean())


def test_annealing_starts_near_the_middle_and_ends_with_the_whole_ray():
    renderer = VolumeRenderer(samples=4, anneal=(10, 0.2, 0.5))
    given = rays(20)
    whole = VolumeRenderer().bounds(given)
    near, far = renderer.bounds(given)
    torch.testing.assert_close(far - near, 0.2 * (whole[1] - whole[0]))
    torch.testing.assert_close(far + near, whole[0] + whole[1])
    for _ in range(10):
        renderer.predict(lambda points, **_: torch.zeros(*points.shape[:-1], 4), given)
    torch.testing.assert_close(renderer.bounds(given), whole)
    assert renderer.state_dict()['step'] == 10


@pytest.mark.parametrize('density', ['softplus', 'relu', 'exp'])
def test_densities_are_not_negative(density):
    values = torch.randn(5, 4) * 9
    assert (VolumeRenderer(density=density, density_scale=2.0).densities(values) >= 0).all()


def test_directions_are_given_where_they_are_asked_for():
    seen = []
    VolumeRenderer(samples=3, directions=True).predict(
        lambda x: seen.append(x) or torch.zeros(*x.shape[:-1], 4), rays(5)
    )
    assert seen[0].shape == (5, 3, 6)
    torch.testing.assert_close(seen[0][..., 3:].norm(dim=-1), torch.ones(5, 3))
    assert seen[0][..., :3].norm(dim=-1).max() <= 1 + 1e-5


def test_says_what_it_needs():
    with pytest.raises(ValueError, match='needs a field of 4 values, got 3; set out_features'):
        VolumeRenderer(samples=3).predict(lambda x: x, rays(5))
    with pytest.raises(ValueError, match='simulates no measurement'):
        VolumeRenderer().measure(torch.rand(4, 4, 3))
    with pytest.raises(ValueError, match='keep_first=False has nothing to render without resamples'):
        VolumeRenderer(keep_first=False)
    with pytest.raises(ValueError, match="coarse='own' needs resamples"):
        VolumeRenderer(coarse='own')


def test_a_short_training_beats_the_nearest_picture():
    """Whole views from few steps: what is rendered is in the right place."""
    torch.manual_seed(0)
    data = ViewDataset(views=8, size=16, rays=192)
    field = MODELS.build(dict(FIELD, width=32, norm_cfg=dict(type='BN')))
    renderer = VolumeRenderer(samples=16)
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for step in range(80):
        item = data[step]
        loss = renderer.loss(renderer.predict(field, item['inputs'])[0], item['data_samples'].measurement)[
            'loss_render'
        ]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    renderer.eval()
    errors = []
    with torch.no_grad():
        for item in (ViewDataset(views=8, size=16, split='test', held_out=2)[k] for k in range(2)):
            sample = item['data_samples']
            pixels = renderer.predict(field, item['inputs'].reshape(-1, 6))[0][:, :3].view(16, 16, 3)
            errors.append([(image - sample.target).square().mean() for image in (pixels, sample.baseline)])
    ours, nearest = torch.tensor(errors).sum(0)
    assert ours < nearest / 2
