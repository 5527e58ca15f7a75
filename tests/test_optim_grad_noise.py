import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmext.optim.grad_noise import GradNoiseOptimWrapper

SIZE = 200


def wrapper(model, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return GradNoiseOptimWrapper(optimizer, **{'mode': 'absolute', **kwargs})


def train(model, optim, steps, counts=1):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps * counts):
        x = torch.randn(4, model.in_features, generator=generator)
        optim.update_params(model(x).square().mean())


@pytest.mark.parametrize('clip', [None, dict(max_norm=0.1)])
@pytest.mark.parametrize('counts', [1, 3])
def test_without_strength_it_is_mmengines_wrapper(clip, counts):
    models = [nn.Linear(6, 5)]
    models.append(copy.deepcopy(models[0]))
    options = dict(clip_grad=clip, accumulative_counts=counts)
    train(models[0], wrapper(models[0], eta=0, **options), 4, counts)
    train(models[1], OptimWrapper(torch.optim.SGD(models[1].parameters(), lr=1.0), **options), 4, counts)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize(('step', 'sigma'), [(0, 0.5477), (100, 0.154), (10_000, 0.0435)])
def test_strength_is_the_formula(step, sigma):
    model = nn.Linear(SIZE, SIZE, bias=False)
    optim = wrapper(model, eta=0.3)
    optim.noisy_steps = step
    model.weight.grad = torch.zeros_like(model.weight)
    optim.optimizer.step()
    noise = model.weight.grad
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean().item()) < 0.02


def test_relative_noise_follows_the_gradient():
    model = nn.Linear(SIZE, SIZE, bias=False)
    optim = wrapper(model, eta=0.01, mode='relative')
    model.weight.grad = torch.full_like(model.weight, 7.0)
    optim.optimizer.step()
    assert (model.weight.grad - 7).std().item() == pytest.approx(0.7, rel=0.02)


def test_noise_is_fresh_for_each_step_and_parameter_and_leaves_torchs_generator_alone():
    model = nn.Sequential(nn.Linear(9, 9, bias=False), nn.Linear(9, 9, bias=False))
    optim = wrapper(model, eta=1.0)
    state, seen = torch.get_rng_state(), []
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optim.optimizer.step()
        seen += [parameter.grad.clone() for parameter in model.parameters()]
    assert len({tuple(g.flatten().tolist()) for g in seen}) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_draw_the_same():
    models = [nn.Linear(6, 5) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for number, model in enumerate(models):
        torch.manual_seed(number)
        train(model, wrapper(model), 3)
    assert torch.equal(models[0].weight, models[1].weight)


def test_steps_are_counted_and_a_resumed_run_continues():
    straight, stopped = nn.Linear(6, 5), nn.Linear(6, 5)
    stopped.load_state_dict(straight.state_dict())
    whole = wrapper(straight, accumulative_counts=2)
    train(straight, whole, 4, 2)
    assert whole.noisy_steps == 4
    first = wrapper(stopped, accumulative_counts=2)
    train(stopped, first, 4, 2)
    second = wrapper(stopped, accumulative_counts=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.noisy_steps == 4
    train(straight, whole, 1, 2)
    train(stopped, second, 1, 2)
    assert torch.equal(straight.weight, stopped.weight)


def test_a_checkpoint_without_noise_starts_counting():
    model = nn.Linear(6, 5)
    optim = wrapper(model)
    optim.load_state_dict(OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)).state_dict())
    assert optim.noisy_steps == 0


@pytest.mark.parametrize('clip', [None, dict(max_norm=0.1)])
def test_mixed_precision_unscales_once(monkeypatch, clip):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = nn.Linear(6, 5)
    cfg = dict(type='mmext.GradNoiseAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1), clip_grad=clip)
    optim = build_optim_wrapper(model, cfg)
    calls = []
    monkeypatch.setattr(optim.loss_scaler, 'unscale_', lambda optimizer: calls.append(optimizer))
    train(model, optim, 2)
    assert len(calls) == optim.noisy_steps == 2


@pytest.mark.parametrize('kwargs', [dict(eta=-1), dict(eta=float('nan')), dict(eta=float('inf')), dict(mode='loud')])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match='GradNoiseOptimWrapper'):
        wrapper(nn.Linear(2, 2), **kwargs)
