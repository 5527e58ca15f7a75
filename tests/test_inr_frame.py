"""What the frame of coordinate networks asks of operators and data sets: drawn items, volumes, statistics and penalties."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from mmext.inr import (
    MeasurementOperator,
    choose_frequencies,
    coordinate_grid,
    draw_samples,
    inside_of,
    overlap,
    shaded_view,
)
from mmext.norms.position_norm import constant_stats, freeze_stats
from mmext.registry import MODELS as OURS

NORMS = {
    'BN': dict(type='BN'),
    'LN': dict(type='LN'),
    'GN': dict(type='mmext.GlobalNorm'),
    'CN': dict(type='mmext.CrossNorm'),
    'CN cross': dict(type='mmext.CrossNorm', var='cross'),
}


def network(norm='BN', **args):
    torch.manual_seed(0)
    cfg = dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=16, depth=3, norm_cfg=NORMS[norm])
    built = MODELS.build({**cfg, **args})
    for name, p in built.named_parameters():
        if 'norms' in name and name.endswith('weight'):
            nn.init.uniform_(p, 0.5, 1.5)
    return built


def model(**args):
    torch.manual_seed(0)
    inner = dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=8, depth=2)
    return MODELS.build(dict(type='mmext.SignalModel', network={**inner, **args.pop('network', {})}, **args))


def drawn(points=20, seed=0, **info):
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand(points, 3, generator=generator)
    sample = BaseDataElement(metainfo=dict(signal='a', size=(4, 4, 4), **info))
    sample.measurement = torch.rand(points, 1, generator=generator).round()
    return coords, sample


def gradient(field, points):
    points = points.clone().requires_grad_()
    return torch.autograd.grad(field(points).sum(), points)[0]


# --- norms over positions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('norm', NORMS)
def test_gradients_at_positions_need_constant_statistics(norm):
    """Batch statistics tie positions together; the gradient of a sum of values is then not the one at each position."""
    field, points = network(norm).double(), torch.rand(200, 3).double()
    naive = gradient(field, points)
    with constant_stats(field):
        constant = gradient(field, points)
        values = field(points)
    torch.testing.assert_close(field(points), values, rtol=1e-9, atol=1e-9)
    exact = gradient(freeze_stats(field, points), points)
    torch.testing.assert_close(constant, exact, rtol=1e-9, atol=1e-9)
    error = (naive - exact).norm() / exact.norm()
    assert error < 1e-9 if norm == 'LN' else error > 0.01


def test_constant_statistics_leave_no_trace():
    field, points = network('BN'), torch.rand(50, 3)
    state = {k: v.clone() for k, v in field.state_dict().items()}
    with constant_stats(field), constant_stats(field):
        field(points)
    assert all(torch.equal(v, state[k]) for k, v in field.state_dict().items())
    assert not any('forward' in vars(m) for m in field.modules())
    field(points)
    assert any(not torch.equal(v, state[k]) for k, v in field.state_dict().items())


@pytest.mark.parametrize('norm', NORMS)
def test_of_several_passes_the_last_one_gives_the_statistics(norm):
    field, first, last = network(norm), torch.rand(30, 3), torch.rand(40, 3)
    expected = field.train()(last)
    freeze_stats(field, run=lambda: [field(first), field(last)])
    assert not field.training
    torch.testing.assert_close(field(last), expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_those_of_the_operators_pass():
    class Elsewhere(MeasurementOperator):
        def statistics_pass(self, field, coords):
            field(coords + 1)

    fitted, coords = model(network=dict(norm_cfg=dict(type='mmext.CrossNorm'))), torch.rand(30, 3)
    fitted.operator = Elsewhere()
    expected = fitted.image(coords + 1)
    torch.testing.assert_close(fitted.freeze_stats(coords).image(coords + 1), expected, rtol=1e-5, atol=1e-5)


# --- items ---------------------------------------------------------------------------------------------------------------


def test_the_first_draw_is_not_pinned():
    fitted = model()
    losses = []
    for seed in (1, 2):
        coords, sample = drawn(seed=seed)
        losses.append(fitted([coords], [sample], mode='loss')['loss'])
        torch.testing.assert_close(losses[-1], (fitted.image(coords) - sample.measurement).square().mean())
    assert losses[0] != losses[1]


def test_a_volume_is_one_item_and_a_leading_axis_of_one_a_batch():
    fitted, grid = model(), coordinate_grid(4, 3, 5)
    sample = BaseDataElement(metainfo=dict(size=(4, 3, 5)), measurement=torch.rand(4, 3, 5, 1))
    results = [
        fitted(x, y, mode='loss')['loss'] for x, y in ((grid, sample), ([grid], [sample]), (grid[None], [sample]))
    ]
    assert results[0] == results[1] == results[2]
    (found,) = fitted([grid], [sample], mode='predict')
    assert found.prediction.shape == (4, 3, 5, 1)
    with pytest.raises(ValueError, match='needs a batch of one, got 2'):
        fitted([grid, grid], [sample], mode='loss')


@pytest.mark.parametrize(
    ('features', 'shape'), [(1, (1, 3, 4, 1)), (2, (1, 3, 4, 2)), (3, (1, 3, 4, 3)), (6, (1, 3, 4, 6))]
)
def test_example_inputs_are_those_of_the_network(features, shape):
    inputs = model(network=dict(in_features=features)).example_inputs(3, 4)
    assert inputs.shape == shape
    assert inputs.abs().max() <= 1
    if features == 2:
        assert torch.equal(inputs[0], coordinate_grid(3, 4))
    if features == 6:
        torch.testing.assert_close(inputs[..., 3:].norm(dim=-1), torch.ones(1, 3, 4))


# --- losses --------------------------------------------------------------------------------------------------------------


def test_losses_by_name():
    coords, sample = drawn()
    sample.measurement = sample.measurement * 0.5
    expected = {
        'mse': lambda a, b: (a - b).square().mean(),
        'l1': lambda a, b: (a - b).abs().mean(),
        'bce': nn.functional.binary_cross_entropy_with_logits,
    }
    for kind, distance in expected.items():
        fitted = model(operator=dict(type='mmext.IdentityOperator', loss=kind))
        found = fitted([coords], [sample], mode='loss')
        torch.testing.assert_close(found['loss'], distance(fitted.image(coords), sample.measurement))
        assert ('fit_dB' in found) == (kind == 'mse')
        (result,) = fitted([coords], [sample], mode='predict')
        values = fitted.image(coords)
        torch.testing.assert_close(result.prediction, values.sigmoid() if kind == 'bce' else values)
    with pytest.raises(
        ValueError, match=r"RadonOperator measures several positions together, .*loss='bce'; pass loss="
    ):
        OURS.build(dict(type='mmext.RadonOperator', loss='bce'))


def test_the_logged_loss_is_the_sum_of_all_terms():
    """The runner takes a key named ``loss`` for the whole, also where there are others."""

    class Penalized(MeasurementOperator):
        simulates = False

        def predict(self, field, coords):
            return field(coords), {'loss_size': field(coords).square().mean()}

        def reconstruct(self, field, coords):
            return {'prediction': field(coords), 'depth': field(coords)[..., 0]}

        def measure(self, image):
            raise AssertionError('nothing is simulated')

    fitted = model()
    fitted.operator = Penalized()
    coords, sample = drawn()
    losses = fitted([coords], [sample], mode='loss')
    assert set(losses) == {'loss_fit', 'loss_size', 'fit_dB'}
    total, log = fitted.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss_fit'] + losses['loss_size'])
    torch.testing.assert_close(log['loss'], total)

    test = BaseDataElement(metainfo=dict(size=(4, 5)), target=torch.rand(4, 5, 1), depth=torch.rand(4, 5))
    test.baseline = torch.rand(4, 5, 1)
    (result,) = fitted([torch.rand(4, 5, 3)], [test], mode='predict')
    assert torch.equal(result.baseline, test.baseline)
    assert torch.equal(result.true_depth, test.depth)
    assert result.depth.shape == (4, 5)
    assert 'stored_bits' not in result


def test_frequencies_are_chosen_in_the_plane_only():
    cfg = dict(type='mmext.CoordMLP', in_features=3, encoding=dict(type='mmext.FourierFeatures'))
    with pytest.raises(
        ValueError, match='needs a network of two coordinates, got in_features=3; give the frequency a value'
    ):
        choose_frequencies(cfg, torch.rand(1, 16, 16))


# --- drawings ------------------------------------------------------------------------------------------------------------


def ball(size=24, radius=0.6):
    return coordinate_grid(size, size, size).norm(dim=-1, keepdim=True) - radius


def test_a_ball_is_shaded_as_a_ball():
    for smooth in (False, True):
        image, depth = shaded_view(-ball()[..., 0], 2, 0, 1, smooth=smooth)
        grid = coordinate_grid(24, 24)
        inside = grid.norm(dim=-1) < 0.55
        height = (0.36 - grid.square().sum(-1)).clamp_min(0).sqrt()
        torch.testing.assert_close(depth[inside], ((1 - height) / 2)[inside], rtol=0, atol=0.02)
        assert depth[grid.norm(dim=-1) > 0.65].isnan().all()
        assert (image[0, 0] == 1).all()
        # The light comes from above and from the left.
        assert image[15, 8].mean() > image[8, 15].mean() + 0.2


def test_overlap_of_two_balls():
    occupancy = (ball() < 0).float()
    sample = dict(target=occupancy, prediction=occupancy, kind='occupancy')
    assert overlap(sample) == 1
    half = occupancy.clone()
    half[:12] = 0
    assert overlap(dict(sample, prediction=half)) == 0.5
    assert overlap(dict(sample, target=occupancy * 0, prediction=occupancy * 0)) == 1
    assert overlap(dict(target=ball(), prediction=ball(radius=0.3), kind='sdf')) == pytest.approx(0.5**3, rel=0.1)
    assert (inside_of(ball(), 'sdf') > 0).equal(occupancy > 0.5)


def test_what_a_sample_is_decides_how_it_is_drawn():
    view = dict(target=torch.rand(6, 8, 3), prediction=torch.rand(6, 8, 3))
    titles = [
        a.get_title() for a in draw_samples([dict(view, depth=torch.rand(6, 8), normal=torch.rand(6, 8, 3))] * 2).axes
    ]
    names = [t.partition(':')[0] for t in titles]
    assert names == ['target', 'prediction', 'absolute error', 'depth', 'normals'] * 2
    shape = dict(target=ball(8), prediction=ball(8, 0.5), kind='sdf')
    titles = [a.get_title() for a in draw_samples([shape], 'a', dict(IoU=0.5)).axes]
    assert titles[:4] == ['target, from x', 'target, from -y', 'target, from above', 'prediction, from x']
