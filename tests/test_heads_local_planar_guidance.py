"""BTS: planes, their depth, the loss, and a stock depth estimator that trains with the decoder."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmext.analysis.samples import batch_for, take_step
from mmext.heads.local_planar_guidance import (
    LocalPlanarGuidanceHead,
    ScaleInvariantLogLoss,
    depth_of_planes,
    planes_of_scores,
)
from mmext.hosts import build_model

CONFIG = 'configs/demo/depth/local_planar_guidance_scenes.py'


@pytest.mark.parametrize('ratio', [2, 4, 8])
def test_a_plane_that_faces_the_camera_has_one_depth(ratio):
    planes = torch.tensor([0.0, 0.0, 1.0, 3.5]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    assert torch.equal(depth_of_planes(planes, ratio), torch.full((1, 1, 2 * ratio, 3 * ratio), 3.5))


@pytest.mark.parametrize('ratio', [2, 8])
def test_a_plane_is_recovered_exactly(ratio):
    """The depth at (u, v) is that of the point where the ray (u, v, 1) meets the plane."""
    planes = planes_of_scores(torch.randn(2, 3, 3, 4).double(), 10.0)
    torch.testing.assert_close(planes[:, :3].norm(dim=1), torch.ones(2, 3, 4).double())
    assert planes[:, 2].min() >= 0.5  # at most 60 degrees
    depth = depth_of_planes(planes, ratio)
    for i in range(ratio):
        for j in range(ratio):
            v, u = ((k - (ratio - 1) / 2) / ratio for k in (i, j))
            d = depth[:, 0, i::ratio, j::ratio]
            points = torch.stack([u * d, v * d, d], 1)
            distance = (points * planes[:, :3]).sum(1)
            torch.testing.assert_close(distance, planes[:, 3])


def test_scores_of_zero_are_the_middle():
    want = [math.sin(math.pi / 6) * math.cos(math.pi), 0, math.cos(math.pi / 6), 4.0]
    got = planes_of_scores(torch.zeros(1, 3, 1, 1).double(), 8.0).flatten()
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_plane_along_the_line_of_sight_stays_finite():
    planes = torch.tensor([-0.86, 0.0, 0.5, 2.0]).view(1, 4, 1, 1).requires_grad_()
    depth = depth_of_planes(planes, 16)
    assert depth.isfinite().all()
    assert (depth > 0).all()
    assert torch.autograd.grad(depth.sum(), planes)[0].isfinite().all()


def test_the_loss_is_its_equation_over_pixels_with_a_depth():
    pred, target = torch.rand(2, 1, 4, 5).double() + 1, torch.rand(2, 1, 4, 5).double() + 1
    target[0, 0, 0] = 0
    g = (pred.log() - target.log())[target > 0.1]
    want = 10 * (g.square().mean() - 0.85 * g.mean().square()).sqrt()
    torch.testing.assert_close(ScaleInvariantLogLoss()(pred, target).double(), want, rtol=1e-6, atol=0)
    assert ScaleInvariantLogLoss()(pred.requires_grad_(), 0 * target) == 0


@pytest.mark.parametrize(('size', 'levels'), [((64, 96), 5), ((61, 35), 5), ((50, 37), 4)])
def test_any_size_with_and_without_the_map_at_stride_2(size, levels):
    head = LocalPlanarGuidanceHead([4] * levels, 32, dilations=(1, 2))
    side = [-(-s // 2) for s in size] if levels == 5 else [-(-s // 4) for s in size]
    maps = []
    for _ in range(levels):
        maps.append(torch.randn(2, 4, *side))
        side = [-(-s // 2) for s in side]
    depth = head(maps)
    assert depth.shape == (2, 1, *((10 - 2 * levels + 2) * s for s in maps[0].shape[2:]))
    assert ((depth > 0) & (depth < 10)).all()
    depth.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_a_depth_estimator_trains_and_predicts():
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmseg')
    model = build_model(cfg.model)
    model.init_weights()
    log = take_step(model.train(), cfg.optim_wrapper, batch_for('mmseg', size=64), 64)
    assert log['decode.loss_silog'] > 0
    with torch.no_grad():
        samples = model.eval().test_step(batch_for('mmseg', size=64))
    assert samples[0].pred_depth_map.data.shape == (1, 64, 64)


def test_bad_maps_are_refused():
    head = LocalPlanarGuidanceHead([4] * 4, 32)
    maps = [torch.randn(1, 4, 32 // 2**k, 32 // 2**k) for k in range(4)]
    for wrong in (maps[1:], [*maps[:3], maps[2]], [torch.randn(1, 5, 32, 32), *maps[1:]]):
        with pytest.raises(
            ValueError, match=r"in_channels=\(4, 4, 4, 4\) channels, each half .* backbone's out_indices"
        ):
            head(wrong)
    with pytest.raises(ValueError, match=r'in_channels as a sequence .*with four or five entries'):
        LocalPlanarGuidanceHead([4] * 3)
    with pytest.raises(ValueError, match='divisible by 32'):
        LocalPlanarGuidanceHead([4] * 4, 48)
