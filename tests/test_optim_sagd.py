import copy
import itertools
import json
import math
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from torch import nn

import mmext.optim.sagd as sagd
from mmext.optim import SAGD, SAGDAmpOptimWrapper, SAGDOptimWrapper, transition_probability

EULER = 0.5772156649015329
# Any change of the loss makes P vanish, so that the probability of an ascent is exactly its cap.
HOT = dict(T0=1e-30)
ALWAYS = dict(HOT, max_ascent_prob=1.0)


@pytest.fixture(autouse=True)
def _own_message_hub(request):
    MessageHub.get_instance(request.node.name)


def params(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (4,), (2, 3))
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def set_grads(ps, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def signs(optimizer, losses):
    """The decisions, True for an ascent."""
    result = []
    for loss in losses:
        before = optimizer.progress.ascents
        optimizer.step(loss=loss)
        result.append(optimizer.progress.ascents > before)
    return result


# --- P -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('delta', 'n', 't0', 'lr', 'expected'),
    [
        (0.5, 0, 15, 0.1, 0.618227759),
        (0.5, 10, 15, 0.1, 0.874464831),
        (0.1, 50, 15, 0.1, 0.983269216),
        (0.05, 100, 19, 0.01, 0.944689158),
    ],
)
def test_simple_probability(delta, n, t0, lr, expected):
    assert transition_probability(delta, n, t0, lr) == pytest.approx(expected, abs=1e-9)
    assert transition_probability(delta, n, t0 * lr, 7.0, 'no_lr') == pytest.approx(expected, abs=1e-9)
    assert transition_probability(delta**0.5, n, t0, lr, k=2.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ('delta', 'n', 't0', 'gamma', 'expected'),
    [
        (0.5, 0, 15, 0.98, 0.488305954),
        (0.5, 10, 15, 0.98, 0.905385805),
        (0.1, 50, 19, 0.98, 0.995762498),
        (0.05, 100, 17, 0.95, math.exp(-100)),
    ],
)
def test_double_probability(delta, n, t0, gamma, expected):
    assert transition_probability(delta, n, t0, 0.1, 'double', gamma) == pytest.approx(expected, abs=1e-9, rel=1e-6)
    assert transition_probability(delta, n, t0, 0.1 * gamma**n, 'double') == pytest.approx(expected, abs=1e-9, rel=1e-6)


@pytest.mark.parametrize('mode', ['simple', 'no_lr', 'double'])
def test_probability_is_bounded_and_falls_with_the_change(mode):
    for n in (0, 1, 10, 10**6):
        values = [transition_probability(d, n, 15.0, 0.1, mode) for d in (0.0, 1e-300, 1e-3, 0.1, 1.0, 10.0, 1e300)]
        assert values[0] == 1.0
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(math.exp(-100))
    assert transition_probability(0.1, 3, 15.0, 0.0, 'simple') == pytest.approx(math.exp(-100))


def test_simple_probability_grows_with_temperature_rate_and_count():
    for grow in (lambda v: (1, v, 0.1), lambda v: (1, 15, v), lambda v: (int(100 * v), 15, 0.1)):
        values = [transition_probability(0.5, *grow(v)) for v in (0.01, 0.1, 1.0, 3.0)]
        assert all(a < b for a, b in itertools.pairwise(values))


# --- steps ---------------------------------------------------------------------------------------------------------

SETTINGS = [
    dict(),
    dict(weight_decay=0.1),
    dict(momentum=0.9),
    dict(momentum=0.9, dampening=0.3),
    dict(momentum=0.9, nesterov=True, weight_decay=0.1),
    dict(momentum=0.9, weight_decay=0.1, maximize=True),
]
PATHS = [dict(foreach=False), dict(foreach=True), dict(fused=True)]


@pytest.mark.parametrize('path', PATHS, ids=str)
@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_without_ascents_it_is_sgd_bit_for_bit(setting, path):
    ours, theirs = params(torch.float32), params(torch.float32)

    def groups(ps):
        return [dict(params=ps[:1], lr=0.3), dict(params=ps[1:], weight_decay=0.01)]

    optimizer = SAGD(groups(ours), lr=0.1, max_ascent_prob=0, **setting, **path)
    reference = torch.optim.SGD(groups(theirs), lr=0.1, **setting, **path)
    random_state = torch.get_rng_state()
    for i in range(6):
        set_grads(ours, i)
        set_grads(theirs, i)
        optimizer.step(loss=float(i * i))
        reference.step()
        assert all(map(torch.equal, ours, theirs))
    assert torch.equal(torch.get_rng_state(), random_state)
    state, expected = optimizer.state_dict(), reference.state_dict()
    assert state['param_groups'] == expected['param_groups']
    for i, entry in expected['state'].items():
        torch.testing.assert_close(state['state'][i]['momentum_buffer'], entry['momentum_buffer'], rtol=0, atol=0)


@pytest.mark.parametrize('path', PATHS, ids=str)
@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_an_ascent_is_the_turned_step_and_keeps_the_buffer(setting, path):
    ours, theirs = params(), params()
    optimizer = SAGD(ours, lr=0.25, sigma=2.0, **ALWAYS, **setting, **path)
    reference = torch.optim.SGD(theirs, lr=0.25, **setting, **path)
    for i in range(4):
        with torch.no_grad():
            for p, q in zip(ours, theirs, strict=True):
                q.copy_(p)
        before = [p.detach().clone() for p in ours]
        set_grads(ours, i)
        set_grads(theirs, i)
        optimizer.step(loss=i + 1.0)
        reference.step()
        for p, q, start in zip(ours, theirs, before, strict=True):
            torch.testing.assert_close(p - start, -2.0 * (q - start), rtol=1e-12, atol=1e-14)
            if 'momentum' in setting:
                buffers = optimizer.state[p]['momentum_buffer'], reference.state[q]['momentum_buffer']
                torch.testing.assert_close(*buffers, rtol=0, atol=0)
    assert optimizer.progress.ascents == 4
    assert optimizer.param_groups[0]['lr'] == 0.25


def test_an_ascent_without_momentum_is_exact():
    # Sums of few powers of two, so that nothing rounds.
    p = nn.Parameter(torch.tensor([1.0, -2.5, 0.75]))
    p.grad = torch.tensor([0.5, 1.25, -3.0])
    SAGD([p], lr=0.125, sigma=3.0, **ALWAYS).step(loss=1.0)
    assert torch.equal(p, torch.tensor([1.0, -2.5, 0.75]) + 3 * 0.125 * p.grad)


def test_a_tensor_as_learning_rate_is_given_back_untouched():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    lr = torch.tensor(0.5)
    optimizer = SAGD([p], lr=lr, foreach=False, **ALWAYS)
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]['lr'] is lr
    assert lr == 0.5
    assert torch.equal(p, torch.full((2,), 1.5))


@pytest.mark.parametrize(('cap', 'slope'), [(0.0, 0.5), (1.0, 1.5)])
def test_a_differentiable_step_has_a_gradient(cap, slope):
    w = torch.ones(3, requires_grad=True)
    p = w.clone()
    p.grad = 2 * w
    SAGD([p], lr=0.25, differentiable=True, foreach=False, max_ascent_prob=cap, **HOT).step(loss=1.0)
    p.sum().backward(inputs=[w])
    assert torch.equal(w.grad, torch.full((3,), slope))


def test_the_rate_is_given_back_when_the_step_fails():
    ps = params()
    optimizer = SAGD(ps, lr=0.5, **ALWAYS)
    set_grads(ps, 0)
    optimizer.param_groups[0]['weight_decay'] = 'none'
    with pytest.raises(TypeError):
        optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]['lr'] == 0.5


def test_a_closure_gives_the_loss_with_its_gradient():
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = SAGD([p], lr=0.5, max_ascent_prob=0)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 9.0
    assert optimizer.progress.energy == 9.0
    assert p.item() == 0.0


def test_hooks_run_once_although_sgd_itself_is_hooked():
    torch.optim.SGD(params(), lr=0.1)
    optimizer = SAGD(params(), lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append('pre'))
    optimizer.register_step_post_hook(lambda *args: calls.append('post'))
    optimizer.step(loss=1.0)
    assert calls == ['pre', 'post']


# --- decisions -----------------------------------------------------------------------------------------------------


def noise(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_cap_holds_and_is_reached():
    optimizer = SAGD([nn.Parameter(torch.zeros(1))], lr=0.1, seed=3, max_ascent_prob=0.2, **HOT)
    count = 10_000
    rate = sum(signs(optimizer, noise(count))) / count
    error = (0.2 * 0.8 / count) ** 0.5
    assert abs(rate - 0.2) <= 4 * error
    assert optimizer.ascent_rate == rate


def test_the_seed_makes_the_decisions():
    def run(seed):
        return signs(SAGD(params(), lr=0.1, seed=seed, **HOT), noise(64))

    assert run(1) == run(1)
    assert run(1) != run(2)
    torch.manual_seed(5)
    assert run(None) == run(5)


@pytest.mark.parametrize(
    ('setting', 'probability'),
    [
        (dict(), lambda d, n: 1 - transition_probability(d, n, 15, 0.02)),
        (dict(mode='no_lr', T0=0.3), lambda d, n: 1 - transition_probability(d, n, 0.3, 0.0, 'no_lr')),
        (dict(mode='double'), lambda d, n: 1 - transition_probability(d, n, 15, 0.02, 'double')),
        (dict(mode='double', gamma=0.9), lambda d, n: 1 - transition_probability(d, n, 15, 0.02, 'double', 0.9)),
        (dict(prob_means='ascent'), lambda d, n: transition_probability(d, n, 15, 0.02)),
        (dict(anneal_by='iter'), lambda d, n: 1 - transition_probability(d, n, 15, 0.02)),
    ],
    ids=['simple', 'no_lr', 'double', 'gamma', 'ascent', 'iter'],
)
def test_decisions_follow_the_formula(setting, probability, monkeypatch):
    optimizer = SAGD(
        [dict(params=params()[:1], lr=0.02), dict(params=params())], lr=0.5, max_ascent_prob=0.6, **setting
    )
    draw = {}
    monkeypatch.setattr(sagd.random, 'Random', lambda key: type('Draw', (), dict(random=lambda self: draw['a']))())
    previous = 0.0
    for i, loss in enumerate((2.0, 1.9, 1.3, 1.32, 1.0)):
        epoch = 7 + i
        p_up = min(probability(abs(loss - previous), i if 'anneal_by' in setting else epoch), 0.6)
        # One draw just below p_up and one just above it, from the same state.
        for a, expected in ((p_up * (1 - 1e-9), True), (p_up * (1 + 1e-9), False)):
            state = copy.deepcopy(optimizer.progress)
            draw['a'] = a
            optimizer.step(loss=loss, epoch=epoch)
            assert (optimizer.progress.ascents > state.ascents) is expected
            if expected:
                optimizer.progress = state
        previous = loss


def test_gamma_counts_from_the_initial_rate(monkeypatch):
    seen = []
    monkeypatch.setattr(sagd, 'transition_probability', lambda *args, lr, **kwargs: seen.append(lr) or 1.0)
    for gamma in (None, 0.9):
        optimizer = SAGD(params(), lr=0.5, mode='double', gamma=gamma)
        optimizer.param_groups[0].update(initial_lr=0.5, lr=0.25)
        optimizer.step(loss=1.0)
    assert seen[1::2] == [0.25, 0.5]


def test_steps_are_counted_where_no_epoch_is_told(monkeypatch):
    seen = []
    monkeypatch.setattr(sagd, 'transition_probability', lambda delta, n, **kwargs: seen.append(n) or 1.0)
    optimizer = SAGD(params(), lr=0.1)
    signs(optimizer, [1.0, 2.0, 3.0])
    optimizer.step(loss=4.0, epoch=9)
    assert seen[1:] == [0, 1, 2, 9]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), torch.tensor(float('nan'))])
def test_a_loss_that_is_not_finite_descends_and_is_forgotten(bad):
    optimizer = SAGD(params(), lr=0.1, **ALWAYS)
    assert signs(optimizer, [1.0, bad, 1.0, 2.0]) == [True, False, False, True]
    assert optimizer.progress.steps == 4


def test_the_first_change_is_the_whole_loss_unless_skipped():
    assert signs(SAGD(params(), lr=0.1, **ALWAYS), [1.0, 2.0]) == [True, True]
    assert signs(SAGD(params(), lr=0.1, skip_first=True, **ALWAYS), [1.0, 2.0]) == [False, True]


def escapes(cap, sigma, noise_std, seed):
    """Whether x leaves the upper well of x^4 - 2 x^2 + 0.3 x within 3000 steps."""
    generator = torch.Generator().manual_seed(seed)
    x = nn.Parameter(torch.tensor([0.9], dtype=torch.float64))
    optimizer = SAGD([x], lr=0.05, sigma=sigma, max_ascent_prob=cap, seed=seed, foreach=False, **HOT)
    jitter = (noise_std * torch.randn(3000, 1, generator=generator, dtype=torch.float64)).unbind()
    for i, extra in enumerate(jitter):
        value = x.item()
        if value < -0.3:
            return True
        x.grad = extra + (4 * value**3 - 4 * value + 0.3)
        optimizer.step(loss=float(i % 2))
    return False


def test_ascents_and_noise_together_leave_the_well():
    assert all(escapes(0.33, 2.0, 1.0, seed) for seed in range(8))
    assert not any(escapes(0.0, 2.0, 1.0, seed) for seed in range(3))
    assert not escapes(0.33, 2.0, 0.0, 0)


# --- state ---------------------------------------------------------------------------------------------------------


def trained(optimizer, ps, first, last):
    losses = noise(last)
    for i in range(first, last):
        set_grads(ps, i)
        optimizer.step(loss=losses[i])
    return ps


def test_saved_and_loaded_it_continues_bit_for_bit(tmp_path):
    config = dict(lr=0.1, momentum=0.9, **HOT)
    whole = params()
    uninterrupted = SAGD(whole, seed=11, **config)
    trained(uninterrupted, whole, 0, 30)
    assert 0 < uninterrupted.progress.ascents < 30

    half = params()
    optimizer = SAGD(half, seed=11, **config)
    trained(optimizer, half, 0, 13)
    torch.save(optimizer.state_dict(), tmp_path / 'state.pth')

    resumed = SAGD(half, seed=12, **config)
    resumed.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    trained(resumed, half, 13, 30)
    assert all(map(torch.equal, whole, half))
    assert resumed.progress == uninterrupted.progress


def test_a_copy_continues_alike():
    ps = params()
    optimizer = SAGD(ps, lr=0.1, seed=1, **HOT)
    trained(optimizer, ps, 0, 5)
    twin = copy.deepcopy(optimizer)
    assert twin.progress is not optimizer.progress
    losses = noise(40, seed=1)
    assert signs(twin, losses) == signs(optimizer, losses)


def test_the_state_of_plain_sgd_loads():
    ps = params()
    plain = torch.optim.SGD(ps, lr=0.1, momentum=0.9)
    set_grads(ps, 0)
    plain.step()
    optimizer = SAGD(ps, lr=0.2, momentum=0.9, seed=4)
    optimizer.load_state_dict(plain.state_dict())
    assert torch.equal(optimizer.state[ps[0]]['momentum_buffer'], plain.state[ps[0]]['momentum_buffer'])
    assert optimizer.progress.seed == 4


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(T0=0), 'positive T0, got T0=0'),
        (dict(T0=float('nan')), 'SAGD needs T0 as a finite number, got T0=nan; leave it out for 15.0'),
        (dict(sigma=-1.0), r'positive sigma, got sigma=-1\.0'),
        (dict(max_ascent_prob=1.5), r'max_ascent_prob <= 1, got max_ascent_prob=1\.5'),
        (dict(mode='triple'), "'simple', 'no_lr' or 'double', got mode='triple'"),
        (dict(gamma=0.9), "mode='double', got gamma=0.9, mode='simple'"),
        (dict(gamma=1.1, mode='double'), '0 < gamma <= 1'),
        (dict(k=0), 'positive k'),
        (dict(k=2, mode='double'), "1 with mode='double', got k=2"),
        (dict(prob_means='luck'), "'descent' or 'ascent', got prob_means='luck'"),
        (dict(anneal_by='day'), "'epoch' or 'iter', got anneal_by='day'"),
    ],
)
def test_bad_arguments(setting, message):
    with pytest.raises(ValueError, match=message):
        SAGD(params(), lr=0.1, **setting)


def test_a_step_needs_a_loss_of_one_element():
    optimizer = SAGD(params(), lr=0.1)
    with pytest.raises(ValueError, match=r"got none; call step\(loss=loss\).*'mmext.SAGDOptimWrapper'"):
        optimizer.step()
    with pytest.raises(ValueError, match=r'one element .* got shape=\(2,\)'):
        optimizer.step(loss=torch.ones(2))
    with pytest.raises(ValueError, match=r"'mmext.SAGDOptimWrapper'"):
        OptimWrapper(optimizer).update_params(torch.ones((), requires_grad=True))


@pytest.mark.parametrize(('cap', 'sigma', 'warns'), [(0.33, 1, 0), (0.5, 1, 1), (0.33, 2, 0), (0.33, 3, 1)])
def test_a_cap_that_climbs_on_average_is_warned_about_once(cap, sigma, warns, monkeypatch):
    messages = []
    monkeypatch.setattr(sagd, 'print_log', lambda message, **kwargs: messages.append(message))
    signs(SAGD(params(), lr=0.1, max_ascent_prob=cap, sigma=sigma), [1.0, 2.0])
    assert len(messages) == warns
    assert all('may climb on average' in m for m in messages)


# --- the wrapper ---------------------------------------------------------------------------------------------------


def wrapper_cfg(kind='mmext.SAGDOptimWrapper', optimizer=(), **kwargs):
    return dict(type=kind, optimizer=dict(type='mmext.SAGD', lr=0.1, seed=2, **dict(optimizer)), **kwargs)


def test_the_wrapper_builds_from_a_config_with_groups():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    cfg = wrapper_cfg(paramwise_cfg=dict(custom_keys={'0': dict(lr_mult=0.5)}))
    wrapper = build_optim_wrapper(model, cfg)
    assert isinstance(wrapper, SAGDOptimWrapper)
    assert [g['lr'] for g in wrapper.optimizer.param_groups] == [0.05, 0.05, 0.1, 0.1]
    wrapper.update_params(model(torch.ones(1, 2)).sum())
    state = wrapper.state_dict()
    assert {'base_param_settings', 'sagd'} <= state.keys()
    twin = build_optim_wrapper(model, cfg)
    twin.load_state_dict(state)
    assert twin.optimizer.progress == wrapper.optimizer.progress


def test_the_wrapper_refuses_other_optimizers():
    with pytest.raises(TypeError, match=r"'mmext\.SAGD', got Adam; .* type='OptimWrapper'"):
        SAGDOptimWrapper(torch.optim.Adam(params()))


def test_one_decision_per_real_step_from_the_mean_of_the_unscaled_losses():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = SAGD([p], lr=0.25, **ALWAYS)
    wrapper = SAGDOptimWrapper(optimizer, accumulative_counts=3)
    wrapper.initialize_count_status(nn.Identity(), 0, 5)
    for factor in (1.0, 2.0, 6.0):
        assert optimizer.progress.steps == 0
        wrapper.update_params((factor * p).sum())
    assert optimizer.progress.steps == 1
    assert optimizer.progress.energy == 6.0
    assert p.item() == 2.0 + 0.25 * 3.0
    # The last two batches are what remains of five.
    wrapper.update_params(p.sum())
    wrapper.update_params(3 * p.sum())
    assert optimizer.progress.steps == 2
    assert optimizer.progress.energy == 2 * 2.75
    assert MessageHub.get_current_instance().get_scalar('train/ascent_rate').current() == 1.0


def test_a_model_that_steps_itself_gives_the_loss():
    p = nn.Parameter(torch.tensor([2.0]))
    wrapper = SAGDOptimWrapper(SAGD([p], lr=0.25, max_ascent_prob=0))
    loss = p.sum()
    wrapper.backward(loss)
    with pytest.raises(ValueError, match='got none'):
        wrapper.step()
    wrapper.step(loss=loss)
    assert p.item() == 1.75


def test_gradients_are_clipped_before_the_ascent():
    p = nn.Parameter(torch.tensor([2.0, 0.0]))
    wrapper = SAGDOptimWrapper(SAGD([p], lr=0.5, **ALWAYS), clip_grad=dict(max_norm=1.0))
    wrapper.update_params((30 * p).sum())
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, 0.0]) + 0.5 * torch.full((2,), 0.5**0.5))
    assert MessageHub.get_current_instance().get_scalar('train/grad_norm').current() == pytest.approx(30 * 2**0.5)


@pytest.mark.parametrize(('max_epochs', 'counter'), [(5, 3), (1, 0), (None, 0)])
def test_the_epoch_comes_from_the_loop_if_it_counts_epochs(max_epochs, counter, monkeypatch):
    seen = []
    p = nn.Parameter(torch.tensor([2.0]))
    wrapper = SAGDOptimWrapper(SAGD([p], lr=0.25))
    monkeypatch.setattr(sagd, 'transition_probability', lambda delta, n, **kwargs: seen.append(n) or 1.0)
    if max_epochs is not None:
        MessageHub.get_current_instance().update_info_dict(dict(epoch=3, max_epochs=max_epochs))
    wrapper.update_params(p.sum())
    assert seen == [counter]


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine builds an AMP wrapper only where it sees an accelerator."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)


@pytest.mark.usefixtures('amp_on_cpu')
@pytest.mark.parametrize('fused', [False, True])
def test_amp_gives_the_unscaled_loss_and_an_overflow_is_no_step(fused):
    model = nn.Linear(4, 1)
    cfg = wrapper_cfg('mmext.SAGDAmpOptimWrapper', dict(ALWAYS, fused=fused), dtype='bfloat16', accumulative_counts=2)
    wrapper = build_optim_wrapper(model, cfg)
    assert isinstance(wrapper, SAGDAmpOptimWrapper)
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=256.0)
    start = model.weight.detach().clone()
    x = torch.randn(8, 4)

    def update(factor=1.0):
        with wrapper.optim_context(model):
            out = model(x)
        assert out.dtype == torch.bfloat16
        loss = out.float().square().mean()
        wrapper.update_params(loss * factor)
        return loss.item()

    update()
    update(float('inf'))
    assert torch.equal(model.weight, start)
    assert wrapper.optimizer.progress.steps == 0
    assert wrapper.loss_scaler.get_scale() == 128.0

    first, second = update(), update()
    assert wrapper.optimizer.progress.energy == pytest.approx((first + second) / 2)
    assert wrapper.optimizer.progress.ascents == 1
    assert not torch.equal(model.weight, start)
    assert update() > first

    twin = build_optim_wrapper(model, cfg)
    twin.load_state_dict(wrapper.state_dict())
    assert twin.optimizer.progress == wrapper.optimizer.progress


# --- two processes -------------------------------------------------------------------------------------------------


def worker(rank, port, folder, both_done):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    wrapper = SAGDOptimWrapper(SAGD(model.parameters(), lr=0.02, momentum=0.5, T0=1.0), accumulative_counts=2)
    energies, rates, losses = [], [], []
    for i in range(40):
        with wrapper.optim_context(model):
            loss = model(torch.randn(4, 3)).square().mean()
        losses.append(loss.item())
        wrapper.update_params(loss)
        if i % 2:
            energies.append(wrapper.optimizer.progress.energy)
            rates.append(wrapper.optimizer.ascent_rate)
    half = torch.tensor(1 + rank / 128, dtype=torch.bfloat16)
    wrapper.optimizer.step(loss=half)
    assert half == 1 + rank / 128
    assert wrapper.optimizer.progress.energy == 1 + 1 / 256
    weight = model.module.weight.detach()
    torch.save(dict(energies=energies, rates=rates, losses=losses, weight=weight), f'{folder}/{rank}.pth')
    # Leave together and at once: gloo's tear-down can wait forever for a peer that is gone.
    both_done.wait(60)
    os._exit(0)


def test_two_processes_with_different_data_and_seeds_decide_alike(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path), mp.get_context('spawn').Barrier(2)), nprocs=2)
    a, b = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert a['losses'] != b['losses']
    assert a['energies'] == b['energies']
    assert a['rates'] == b['rates']
    assert 0 < a['rates'][-1] < 1
    assert torch.equal(a['weight'], b['weight'])
    both = torch.tensor([a['losses'], b['losses']]).mean(0).reshape(-1, 2).mean(1)
    torch.testing.assert_close(both, torch.tensor(a['energies']))


# --- a real runner -------------------------------------------------------------------------------------------------


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, inputs, mode='loss'):
        return dict(loss=(self.layer(inputs) - inputs.sum(1, keepdim=True)).square().mean())


def runner(work_dir, name, wrapper, **kwargs):
    torch.manual_seed(0)
    data = [dict(inputs=x) for x in torch.randn(24, 4, generator=torch.Generator().manual_seed(9))]
    loader = dict(
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_size=4,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
    )
    return Runner(
        Toy(),
        work_dir=str(work_dir),
        experiment_name=name,
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=wrapper,
        param_scheduler=dict(type='ExponentialLR', gamma=0.9),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=2)
        ),
        randomness=dict(seed=1),
        log_level='WARNING',
        **kwargs,
    )


@pytest.mark.parametrize('amp', [False, True])
def test_a_resumed_runner_continues_bit_for_bit(tmp_path, amp, request):
    if amp:
        request.getfixturevalue('amp_on_cpu')
        cfg = wrapper_cfg('mmext.SAGDAmpOptimWrapper', dict(momentum=0.9, T0=0.5), dtype='bfloat16')
    else:
        cfg = wrapper_cfg(optimizer=dict(momentum=0.9, T0=0.5), accumulative_counts=2, clip_grad=dict(max_norm=5.0))
    whole = runner(tmp_path / 'whole', f'whole_{amp}', cfg)
    whole.train()
    progress = whole.optim_wrapper.optimizer.progress
    assert progress.steps == (24 if amp else 12)
    assert 0 < progress.ascents < progress.steps

    checkpoint = str(tmp_path / 'whole' / 'epoch_2.pth')
    resumed = runner(tmp_path / 'resumed', f'resumed_{amp}', cfg, load_from=checkpoint, resume=True)
    resumed.train()
    assert resumed.optim_wrapper.optimizer.progress == progress
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())

    log = next((tmp_path / 'whole').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert json.loads(log[-1])['ascent_rate'] == pytest.approx(progress.ascents / progress.steps)


def test_without_annealing_a_runner_trains_as_with_sgd(tmp_path):
    ours = runner(tmp_path / 'ours', 'ours', wrapper_cfg(optimizer=dict(momentum=0.9, max_ascent_prob=0)))
    sgd = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
    theirs = runner(tmp_path / 'theirs', 'theirs', sgd)
    ours.train()
    theirs.train()
    assert all(map(torch.equal, ours.model.parameters(), theirs.model.parameters()))
