import json
import math
import sys

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from mmext.inr import ReconstructionMetric, psnr, reconstruction_quality, ssim, stored_bits


def picture(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64).to(dtype)


def sample(prediction, **values) -> BaseDataElement:
    meta = {k: values.pop(k) for k in ('stored_bits',) if k in values}
    size = tuple(prediction.shape[:2])
    return BaseDataElement(metainfo=dict(signal='x', size=size, **meta), prediction=prediction, **values)


def evaluate(*samples: BaseDataElement, **metric) -> dict:
    evaluator = Evaluator(dict(type='mmext.ReconstructionMetric', **metric))
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


# --- PSNR and SSIM -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
def test_both_are_those_of_scikit_image(channels):
    a, b = picture(19, 26, channels), picture(19, 26, channels)
    x, y = a.numpy(), b.numpy()
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), rel=1e-12)
    # scikit-image has windows of 7 x 7 by default.
    expected = structural_similarity(x, y, data_range=1.0, channel_axis=-1)
    assert ssim(a, b) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_a_known_error():
    a = torch.full((4, 5, 3), 0.5)
    assert psnr(a, a + 0.125) == pytest.approx(20 * math.log10(8))
    assert psnr(a, torch.where(torch.arange(3) == 1, a + 0.125, a)) == pytest.approx(
        20 * math.log10(8) + 10 * math.log10(3)
    )


def test_ssim_by_its_formula():
    """Means, variances and covariance over all windows of 7 x 7, with sums in a loop."""
    a, b = picture(9, 10), picture(9, 10)
    found = []
    for row in range(3):
        for column in range(4):
            x, y = (t[row : row + 7, column : column + 7].flatten() for t in (a, b))
            covariance = torch.cov(torch.stack((x, y)))
            c1, c2 = 0.01**2, 0.03**2
            above = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
            found.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))
    assert ssim(a, b) == pytest.approx(torch.stack(found).mean().item(), rel=1e-9)
    assert ssim(a[..., None], b[..., None]) == pytest.approx(ssim(a, b), rel=1e-12)


@pytest.mark.parametrize(('size', 'window'), [((7, 7), 7), ((6, 12), 5), ((12, 5), 5), ((4, 4), 3), ((3, 20), 3)])
def test_the_window_of_ssim_is_the_largest_odd_one_that_fits(size, window):
    a, b = picture(*size, 3), picture(*size, 3)
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=1.0, channel_axis=-1, win_size=window)
    assert ssim(a, b) == pytest.approx(expected, rel=1e-12)


def test_identical_images_have_a_number():
    a = picture(8, 8, 3)
    assert psnr(a, a) == pytest.approx(480 * math.log10(2))
    assert ssim(a, a) == 1
    # Beyond what float32 tells apart, but not before.
    assert psnr(a, a + 1e-9) == psnr(a, a)
    assert psnr(a, a + 1e-6) == pytest.approx(120, abs=1e-3)
    assert math.isfinite(json.loads(json.dumps(evaluate(sample(a, target=a))))['signal/PSNR'])


def test_a_diverged_network_is_reported_as_such():
    quality = reconstruction_quality(sample(picture(8, 8, 1) * float('nan'), target=picture(8, 8, 1)))
    assert math.isnan(quality['PSNR'])
    assert math.isnan(quality['SSIM'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_everything_is_computed_in_double_precision(dtype):
    a, b = picture(16, 16, 3, dtype=dtype), picture(16, 16, 3)
    assert psnr(a, b) == psnr(a.double(), b)
    assert ssim(a, b) == ssim(a.double(), b)


def test_bad_images_are_refused(monkeypatch):
    for function in (psnr, ssim):
        with pytest.raises(ValueError, match=rf'^{function.__name__} compares .* \(8, 8, 1\) and \(8, 8\); a gray'):
            function(picture(8, 8, 1), picture(8, 8))
    with pytest.raises(ValueError, match=r'^ssim needs images of at least 3 x 3 pixels, got \(2, 9, 1\)'):
        ssim(picture(2, 9, 1), picture(2, 9, 1))
    monkeypatch.setitem(sys.modules, 'skimage.metrics', None)
    with pytest.raises(ImportError, match='pip install scikit-image'):
        ssim(picture(8, 8), picture(8, 8))


# --- the metric ----------------------------------------------------------------------------------------------------------


def test_predictions_are_limited_to_the_range_of_images():
    target = picture(12, 14, 3)
    prediction = target + 3 * torch.randn(target.shape)
    found = evaluate(sample(prediction, target=target))
    assert found == {
        'signal/PSNR': psnr(prediction.clamp(0, 1), target),
        'signal/SSIM': ssim(prediction.clamp(0, 1), target),
    }
    assert found['signal/PSNR'] > psnr(prediction, target) + 3


def test_the_baseline_and_the_bits_are_reported_where_they_are_known():
    target, baseline = picture(10, 16, 1), 2 * picture(10, 16, 1) - 0.5
    network = nn.Linear(2, 1)
    found = evaluate(sample(target.clone(), target=target, baseline=baseline, stored_bits=stored_bits(network)))
    assert found['signal/baseline_PSNR'] == psnr(baseline.clamp(0, 1), target)
    assert found['signal/baseline_SSIM'] == ssim(baseline.clamp(0, 1), target)
    assert found['signal/bpp'] == 3 * 32 / 160


def test_several_samples_are_averaged():
    samples = [sample(picture(8, 9, 1), target=picture(8, 9, 1)) for _ in range(3)]
    samples[1].baseline = picture(8, 9, 1)
    found, singles = evaluate(*samples, prefix='test'), [reconstruction_quality(s) for s in samples]
    assert set(found) == {'test/PSNR', 'test/SSIM', 'test/baseline_PSNR', 'test/baseline_SSIM'}
    assert found['test/PSNR'] == pytest.approx(np.mean([s['PSNR'] for s in singles]))
    assert found['test/baseline_SSIM'] == singles[1]['baseline_SSIM']


def test_a_second_evaluation_knows_nothing_of_the_first():
    metric = ReconstructionMetric()
    for _ in range(2):
        one = sample(picture(8, 8, 1), target=picture(8, 8, 1))
        metric.process({}, [one.to_dict()])
        assert metric.evaluate(1)['signal/PSNR'] == reconstruction_quality(one)['PSNR']


def test_a_sample_without_target_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError,
        match=r'^ReconstructionMetric compares with a target and got .* none; [^.]+ val_evaluator=\[\] and [^.]+$',
    ):
        evaluate(sample(picture(8, 8, 1)))
    assert reconstruction_quality(sample(picture(8, 8, 1), stored_bits=128)) == {'bpp': 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_images_on_the_gpu():
    a, b = picture(9, 9, 3), picture(9, 9, 3)
    assert evaluate(sample(a.cuda(), target=b.cuda())) == evaluate(sample(a, target=b))
