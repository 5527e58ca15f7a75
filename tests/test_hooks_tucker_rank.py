import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmext.convs.tucker import TuckerConv2d, hosvd
from mmext.hooks.tucker_rank import TuckerRankHook, augment, orthonormalize, truncate

RANK, START = (8, 6), (3, 2)


def make(**kwargs) -> TuckerConv2d:
    return TuckerConv2d(6, 8, 3, padding=1, bias=False, **{'rank': RANK, 'start_rank': START, **kwargs})


def precise(**kwargs) -> TuckerConv2d:
    layer = make(**kwargs).double()
    layer.init_weights()
    return layer


def stepped(layer: TuckerConv2d, kind=torch.optim.Adam) -> tuple:
    """Return an optimizer that has taken one step on the core, and the gradients of the factors at its end."""
    optimizer = kind([layer.core], lr=0.01) if kind is torch.optim.Adam else kind([layer.core], lr=0.01, momentum=0.9)
    layer(torch.randn(4, 6, 5, 5, dtype=layer.core.dtype)).square().sum().backward()
    optimizer.step()
    return optimizer, [f.grad for f in layer.factors[:2]]


def assert_orthonormal(layer, atol=1e-10):
    for factor, r in zip(layer.factors, layer.live_rank.tolist(), strict=True):
        live = factor[:, :r]
        torch.testing.assert_close(live.t() @ live, torch.eye(r).to(live), rtol=0, atol=atol)
        assert not factor[:, r:].any()
    rest = layer.core.clone()
    rest[tuple(slice(r) for r in layer.live_rank.tolist())] = 0
    assert not rest.any()


def as_kernel(tensor, layer):
    """Return what a core-shaped tensor is in the space of kernels."""
    return torch.einsum('abcd,oa,ib,uc,vd->oiuv', tensor, *layer.factors)


def test_augmenting_extends_the_bases_by_the_gradient_and_keeps_the_kernel():
    layer = precise()
    optimizer, gradients = stepped(layer)
    before = layer.generate_kernel()
    live = [f[:, :r].clone() for f, r in zip(layer.factors, START, strict=False)]
    augment(layer, [g[:, :r] for g, r in zip(gradients, START, strict=True)], optimizer)
    assert layer.live_rank.tolist() == [6, 4, 3, 3]
    torch.testing.assert_close(layer.generate_kernel(), before, rtol=1e-10, atol=1e-10)
    assert_orthonormal(layer)
    for factor, gradient, old in zip(layer.factors, gradients, live, strict=False):
        for inside in (old, gradient):
            torch.testing.assert_close(factor @ (factor.t() @ inside), inside, rtol=1e-8, atol=1e-8)


def test_augmenting_stops_at_the_rank_of_the_layer():
    layer = precise(start_rank=(6, 6))
    optimizer, gradients = stepped(layer)
    before = layer.generate_kernel()
    augment(layer, gradients, optimizer)
    assert layer.live_rank.tolist() == [8, 6, 3, 3]
    torch.testing.assert_close(layer.generate_kernel(), before, rtol=1e-10, atol=1e-10)


def test_moments_are_projected_with_the_core():
    layer = precise()
    optimizer, gradients = stepped(layer)
    state = optimizer.state[layer.core]
    first, second = as_kernel(state['exp_avg'], layer), state['exp_avg_sq'].sum()
    augment(layer, [g[:, :r] for g, r in zip(gradients, START, strict=True)], optimizer)
    torch.testing.assert_close(as_kernel(state['exp_avg'], layer), first, rtol=1e-10, atol=1e-10)
    assert (state['exp_avg_sq'] >= 0).all()
    torch.testing.assert_close(state['exp_avg_sq'].sum(), second, msg='the variances are re-distributed')
    layer = precise()
    optimizer, gradients = stepped(layer, torch.optim.SGD)
    momentum = as_kernel(optimizer.state[layer.core]['momentum_buffer'], layer)
    augment(layer, [g[:, :r] for g, r in zip(gradients, START, strict=True)], optimizer)
    torch.testing.assert_close(
        as_kernel(optimizer.state[layer.core]['momentum_buffer'], layer), momentum, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize('tolerance', [0.05, 0.3])
def test_truncation_keeps_the_fewest_that_meet_the_tolerance(tolerance):
    layer = precise(start_rank=RANK)
    optimizer, gradients = stepped(layer)
    before = layer.generate_kernel()
    values = torch.linalg.svdvals(before.flatten(1))
    turned = truncate(layer, tolerance, 1, optimizer, gradients)
    r = layer.live_rank[0].item()
    assert values[r:].norm() < tolerance * values.norm() <= values[r - 1 :].norm()
    assert (layer.generate_kernel() - before).norm() < 2**0.5 * tolerance * before.norm()
    assert_orthonormal(layer)
    assert [g.shape[1] for g in turned] == layer.live_rank[:2].tolist()


def test_truncation_finds_the_rank_of_a_low_rank_kernel():
    kernel = target(2, 3).double()
    layer = precise(start_rank=RANK)
    layer.set_factors(*hosvd(kernel, (*RANK, 3, 3)))
    truncate(layer, 1e-6, 1, torch.optim.SGD([layer.core], lr=1), [torch.zeros_like(f) for f in layer.factors[:2]])
    assert layer.live_rank.tolist() == [2, 3, 3, 3]
    torch.testing.assert_close(layer.generate_kernel(), kernel, rtol=1e-8, atol=1e-6)


def test_truncation_turns_the_gradients_with_the_bases():
    """They are then those of the truncated layer itself, where the truncation loses nothing."""
    layer = precise(start_rank=RANK)
    layer.set_factors(*hosvd(target(2, 3).double(), (*RANK, 3, 3)))
    x = torch.randn(4, 6, 5, 5).double()
    layer(x).square().sum().backward()
    turned = truncate(layer, 1e-6, 1, torch.optim.SGD([layer.core], lr=1), [f.grad for f in layer.factors[:2]])
    layer.zero_grad()
    layer(x).square().sum().backward()
    for factor, gradient, r in zip(layer.factors, turned, (2, 3), strict=False):
        torch.testing.assert_close(gradient, factor.grad[:, :r], rtol=1e-6, atol=1e-4)


def test_min_rank_is_kept():
    layer = precise(start_rank=RANK)
    optimizer, gradients = stepped(layer)
    truncate(layer, 0.99, 4, optimizer, gradients)
    assert layer.live_rank[:2].tolist() == [4, 4]


def test_orthonormalizing_keeps_the_kernel():
    layer = precise()
    live = layer.live_rank.tolist()
    layer.set_factors(torch.randn(live), [torch.randn(len(f), r) for f, r in zip(layer.factors, live, strict=True)])
    before = layer.generate_kernel()
    orthonormalize(layer)
    assert_orthonormal(layer)
    torch.testing.assert_close(layer.generate_kernel(), before, rtol=1e-10, atol=1e-10)
    state = copy.deepcopy(layer.state_dict())
    orthonormalize(layer)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), layer.state_dict().values(), strict=True))


class Regression(BaseModel):
    """Learns to convolve as a fixed kernel does."""

    def __init__(self, target, **kwargs):
        super().__init__()
        self.conv = make(**kwargs)
        self.register_buffer('target', target)

    def init_weights(self):
        pass  # the runner must not draw other weights than the test

    def forward(self, inputs, data_samples=None, mode='loss'):
        aim = nn.functional.conv2d(inputs, self.target, padding=1)
        return {'loss': (self.conv(inputs) - aim).square().mean()}


def target(r1, r2):
    core, factors = hosvd(torch.randn(8, 6, 3, 3), (r1, r2, 3, 3))
    return torch.einsum('abcd,oa,ib,uc,vd->oiuv', core, *factors)


class SameBatch(torch.utils.data.Dataset):
    """One batch again and again, so that a loss near zero is possible."""

    def __init__(self, iters):
        self.images = torch.randn(8, 6, 6, 6, generator=torch.Generator().manual_seed(3))
        self.iters = iters

    def __len__(self):
        return 8 * self.iters

    def __getitem__(self, i):
        return {'inputs': self.images[i % 8]}


def train(model, tmp_path, iters=60, save=None, hook=None, wrapper=None, **kwargs):
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            dataset=SameBatch(iters),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=8,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=wrapper or dict(optimizer=dict(type='Adam', lr=0.03)),
        custom_hooks=[dict(type='mmext.TuckerRankHook', **(hook or {}))],
        default_hooks=dict(checkpoint=dict(type='mmext.CheckpointHook', interval=save or iters, by_epoch=False)),
        default_scope='mmengine',
        experiment_name=f'{tmp_path.name}-{iters}',
        **kwargs,
    )
    runner.train()
    return runner


def loss_of(model):
    return model(SameBatch(1).images)['loss'].item()


def test_ranks_grow_to_what_the_task_needs(tmp_path):
    model = Regression(target(6, 5))
    runner = train(model, tmp_path, iters=153, hook=dict(tolerance=0.05, min_rank=1))
    assert model.conv.live_rank.tolist() == [6, 5, 3, 3]
    assert loss_of(model) < 0.02
    assert_orthonormal(model.conv, atol=1e-4)
    assert runner.message_hub.get_scalar('train/tucker_rank').current() == 5.5
    # The optimizer is left alone after the training.
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_post_hooks
    saved = torch.load(tmp_path / 'iter_153.pth', weights_only=False)
    assert saved['state_dict']['conv.live_rank'].tolist() == [6, 5, 3, 3]


def test_ranks_shrink_to_what_the_task_needs_with_gradient_accumulation_and_sgd(tmp_path):
    model = Regression(target(2, 2), start_rank=RANK)
    wrapper = dict(optimizer=dict(type='SGD', lr=0.3, momentum=0.9), accumulative_counts=2)
    train(model, tmp_path, iters=120, wrapper=wrapper, hook=dict(tolerance=0.1, min_rank=1))
    assert model.conv.live_rank.tolist() == [2, 2, 3, 3]
    assert loss_of(model) < 0.05
    assert_orthonormal(model.conv, atol=1e-4)


@pytest.mark.parametrize('save', [17, 14], ids=['between two adaptations', 'while bases wait to be augmented'])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, save):
    whole = Regression(target(6, 5))
    resumed = copy.deepcopy(whole)
    hook = dict(tolerance=0.05, min_rank=1, interval=7)
    train(whole, tmp_path / 'whole', iters=31, save=save, hook=hook)
    train(
        resumed,
        tmp_path / 'resumed',
        iters=31,
        hook=hook,
        load_from=str(tmp_path / 'whole' / f'iter_{save}.pth'),
        resume=True,
    )
    assert resumed.conv.live_rank.tolist() == whole.conv.live_rank.tolist()
    torch.testing.assert_close(resumed.conv.generate_kernel(), whole.conv.generate_kernel(), rtol=1e-4, atol=1e-5)


def test_a_step_that_does_not_happen_changes_nothing(tmp_path):
    """As when the loss scaler found an overflow, or the layer is frozen."""
    model = Regression(target(6, 5))
    for factor in model.conv.parameters():
        factor.requires_grad_(False)
    model.other = nn.Parameter(torch.zeros(()))
    before = copy.deepcopy(model.conv.state_dict())
    model.forward = lambda inputs, data_samples=None, mode='loss': {
        'loss': model.other.square() + model.conv(inputs).sum()
    }
    train(model, tmp_path, iters=3, hook=dict(interval=1))
    for key, value in model.conv.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_model_without_such_layers_is_refused(tmp_path):
    model = Regression(target(6, 5))
    model.conv = nn.Conv2d(6, 8, 3, padding=1)
    with pytest.raises(ValueError, match=r'TuckerRankHook found no mmext\.TuckerConv2d in the model'):
        train(model, tmp_path, iters=1)


@pytest.mark.parametrize('kwargs', [dict(tolerance=0), dict(tolerance=1), dict(min_rank=0), dict(interval=0)])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match='TuckerRankHook needs 0 < tolerance < 1, min_rank >= 1 and interval >= 1'):
        TuckerRankHook(**kwargs)
