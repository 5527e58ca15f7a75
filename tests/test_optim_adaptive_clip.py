"""Adaptive clipping: its formula, and that without effect it is mmengine's own wrapper."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmext.optim.adaptive_clip import AdaptiveClipOptimWrapper


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 2))


def train(model, optim, steps=3, counts=1):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps * counts):
        optim.update_params(10 * model(torch.randn(4, 3, 5, 5, generator=generator)).square().mean())


@pytest.mark.parametrize('counts', [1, 2])
def test_without_effect_it_is_mmengines_wrapper(counts):
    first = network()
    second = copy.deepcopy(first)
    options = dict(accumulative_counts=counts, clip_grad=dict(max_norm=1.0))
    sgd = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (first, second)]
    train(first, AdaptiveClipOptimWrapper(sgd[0], clip_factor=1e30, **options), counts=counts)
    train(second, OptimWrapper(sgd[1], **options), counts=counts)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize('factor', [0.02, 0.5])
def test_units_are_clipped_by_the_formula(factor):
    model = network()
    optim = AdaptiveClipOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0), clip_factor=factor)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in model.parameters()]
    optim.optimizer.step()
    clipped = 0
    for p, gradient in zip(model.parameters(), before, strict=True):
        rows = (
            zip(p.detach().flatten(1), gradient.flatten(1), p.grad.flatten(1), strict=True)
            if p.ndim > 1
            else [(p, gradient, p.grad)]
        )
        for weight, was, now in rows:
            scale = min(1.0, factor * max(float(weight.norm()), 1e-3) / float(was.norm()))
            torch.testing.assert_close(now, was * scale)
            clipped += scale < 1
    assert clipped


def test_it_is_what_timm_does():
    timm = pytest.importorskip('timm.utils')
    first = network()
    second = copy.deepcopy(first)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        a.grad = torch.randn_like(a) * 0.1
        b.grad = a.grad.clone()
    AdaptiveClipOptimWrapper(torch.optim.SGD(first.parameters(), lr=0.0), clip_factor=0.02).optimizer.step()
    timm.adaptive_clip_grad(second.parameters(), clip_factor=0.02)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_mixed_precision_clips_what_is_unscaled(monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    cfg = dict(type='mmext.AdaptiveClipAmpOptimWrapper', clip_factor=0.5, optimizer=dict(type='SGD', lr=1.0))
    optim = build_optim_wrapper(model, cfg)
    optim.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    optim.update_params((100 * model(torch.ones(1, 4))).sum())
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 4), 0.5))


@pytest.mark.parametrize('wrong', [dict(clip_factor=0.0), dict(eps=-1.0)])
def test_refuses_what_is_not_positive(wrong):
    with pytest.raises(ValueError, match='positive'):
        AdaptiveClipOptimWrapper(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), **wrong)
