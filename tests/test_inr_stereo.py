"""Disparity from two photographs: the warp, block matching, and the real pair."""

import pytest
import torch

from mmext.inr import StereoDataset, StereoMetric, WarpOperator, match_blocks, warp


def test_a_picture_moves_by_whole_and_broken_pixels():
    image = torch.arange(8.0).square().view(1, 8, 1)
    for moved, expected in (
        (2.0, [0, 0, 0, 1, 4, 9, 16, 25]),
        (0.5, [0, 0.5, 2.5, 6.5, 12.5, 20.5, 30.5, 42.5]),
        (-3.0, [9, 16, 25, 36, 49, 49, 49, 49]),
    ):
        found = warp(image, torch.full((1, 8), moved))
        torch.testing.assert_close(found[0, :, 0], torch.tensor(expected).float())
    disparity = (torch.rand(1, 8, dtype=torch.float64) * 3 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: warp(image.double(), d), (disparity,))


def test_blocks_find_a_constant_disparity():
    torch.manual_seed(0)
    right = torch.rand(20, 40, 3)
    left = warp(right, torch.full((20, 40), 4.0))
    assert (match_blocks(left, right, 8)[:, 8:-4] == 4).all()


def test_the_real_pair_agrees_with_its_true_disparity():
    sample = StereoDataset(size=125)[0]['data_samples']
    left, right = sample.measurement.split(3, dim=-1)
    known = sample.mask > 0
    assert sample.size == (125, 185)
    assert known.float().mean() > 0.85
    true = sample.target[..., 0] * sample.max_disparity
    assert true[known].min() > 1.7
    assert true[known].max() < 15.1
    error = [(warp(right, d) - left).abs().mean(-1)[known].mean() for d in (true, torch.zeros_like(true), -true)]
    assert error[0] < 0.035
    assert error[1] > 0.1
    assert error[2] > 0.1
    metric = StereoMetric()
    metric.process(
        None,
        [
            dict(
                prediction=sample.target + 1 / 18,
                **{k: sample.get(k) for k in ('target', 'mask', 'baseline')},
                max_disparity=18,
            )
        ],
    )
    found = metric.compute_metrics(metric.results)
    assert found['EPE'] == pytest.approx(1, abs=1e-4)
    assert found['baseline_EPE'] < 1.5
    assert 0 < found['baseline_bad1'] < 0.4


def test_the_loss_is_least_at_the_true_disparity():
    torch.manual_seed(0)
    right = torch.rand(12, 30, 3)
    left = warp(right, torch.full((12, 30), 3.0))
    operator = WarpOperator(max_disparity=6.0, blur=0.0, smoothness=0.0)
    measured = torch.cat((left, right), dim=-1)
    losses = {
        share: float(operator.loss(torch.full((12, 30, 1), share), measured)['loss_photo']) for share in (0.3, 0.5, 0.7)
    }
    assert losses[0.5] < 2e-3 < 0.1 < min(losses[0.3], losses[0.7])
    slanted = torch.linspace(0, 1, 30).expand(12, 30)[..., None]
    smooth = WarpOperator(max_disparity=6.0, smoothness=0.1).loss(slanted, measured)['loss_smooth']
    torch.testing.assert_close(smooth, torch.tensor(0.1 * 6 * 12 / (12 * 30)))


def test_the_blur_falls_to_none():
    operator = WarpOperator(blur=3.0, blur_steps=4)
    prediction, measured = torch.full((9, 20, 1), 0.1), torch.rand(9, 20, 6)
    losses = [float(operator.loss(prediction, measured)['loss_photo']) for _ in range(6)]
    assert losses[0] < losses[2] < losses[4]
    assert losses[4] == losses[5]
    assert operator.state_dict()['step'] == 6
    operator.eval().loss(prediction, measured)
    assert operator.step == 6


def test_says_what_it_needs():
    with pytest.raises(ValueError, match='set out_features=1'):
        WarpOperator().loss(torch.rand(4, 5, 3), torch.rand(4, 5, 6))
    with pytest.raises(ValueError, match='simulates no photographs'):
        WarpOperator().measure(torch.rand(4, 4, 3))
    with pytest.raises(ValueError, match='largest disparity above 0'):
        WarpOperator(max_disparity=0.0)
    with pytest.raises(ValueError, match='without target or mask'):
        StereoMetric().process(None, [{}])
    with pytest.raises(IndexError):
        StereoDataset(size=50)[1]
