"""A loss of the parameters in a real mmengine run, with each thing that stands between a model's losses and a step."""

import logging
from contextlib import contextmanager

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmext.hooks.auxiliary_loss import AuxiliaryLossHook


class Norm(AuxiliaryLossHook):
    """The mean square of the weights, and what it saw."""

    key = 'loss_norm'

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def loss(self, model):
        self.seen.append((type(model).__name__, torch.is_autocast_enabled('cpu')))
        return {self.key: model.layer.weight.square().mean()}


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        y = self.layer(inputs)
        return dict(loss_fit=y.float().square().mean()) if mode == 'loss' else [y]


class Recorder(Hook):
    """What every iteration returned for the log."""

    priority = 'LOWEST'

    def __init__(self):
        self.logs = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logs.append({k: float(v) for k, v in outputs.items()})


def run(tmp_path, hook, model=None, optim_wrapper=None, train_cfg=None, default_hooks=None, **kwargs):
    recorder = Recorder()
    model = Toy() if model is None else model
    loader = dict(
        dataset=[torch.full((3,), float(i)) for i in range(4)],
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        collate_fn=lambda items: dict(inputs=torch.stack(items)),
    )
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=loader,
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=2),
        optim_wrapper=optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[*(hook if isinstance(hook, list) else [hook]), recorder],
        default_hooks={**dict.fromkeys(('checkpoint', 'timer', 'logger', 'param_scheduler')), **(default_hooks or {})},
        experiment_name=f'{tmp_path.name}_{id(recorder)}',
        log_level=logging.ERROR,
        **kwargs,
    )
    runner.train()
    return recorder.logs, model


def steps_by_hand(weight, start, iterations=4):
    """The same training in plain torch."""
    model = Toy()
    logs = []
    for i in range(iterations):
        x = torch.tensor([[0.0] * 3, [1.0] * 3]) + 2 * (i % 2)
        fit = model.layer(x).square().mean()
        norm = weight * model.layer.weight.square().mean()
        total = fit + norm if i >= start else fit
        model.zero_grad()
        total.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        logs.append(dict(loss=total.item(), loss_fit=fit.item()) | (dict(loss_norm=norm.item()) if i >= start else {}))
    return logs, model


@pytest.mark.parametrize(('kwargs', 'start'), [({}, 0), (dict(start_epoch=1), 2), (dict(start_iter=3), 3)])
def test_trains_as_by_hand_and_appears_in_the_log(tmp_path, kwargs, start):
    torch.manual_seed(1)
    expected, by_hand = steps_by_hand(0.5, start)
    torch.manual_seed(1)
    model = Toy()
    logs, _ = run(tmp_path, Norm(weight=0.5, **kwargs), model)
    assert [log.keys() for log in logs] == [log.keys() for log in expected]
    for got, want in zip(logs, expected, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(model.layer.weight, by_hand.layer.weight)


def test_leaves_nothing_behind_and_starts_again(tmp_path):
    hook, model = Norm(), Toy()
    run(tmp_path, hook, model)
    assert not model._forward_hooks
    assert model(torch.ones(1, 3), mode='loss').keys() == {'loss_fit'}
    logs, _ = run(tmp_path, hook, model)
    assert all('loss_norm' in log for log in logs)


class AtEachStep(Hook):
    """Call a function with the runner before each step."""

    priority = 'LOWEST'

    def __init__(self, call):
        self.call = call

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.call(runner)


def interrupt(runner):
    raise KeyboardInterrupt


def test_an_interrupted_run_does_not_add_twice(tmp_path):
    hook, model = Norm(), Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [hook, AtEachStep(interrupt)], model)
    assert len(model._forward_hooks) == 1
    logs, _ = run(tmp_path, hook, model)
    assert len(hook.seen) == len(logs)


def test_only_training_losses_are_touched(tmp_path):
    hook, others = Norm(), []

    def predict(runner):
        others.append(runner.model(torch.ones(1, 3), mode='predict'))
        others.append(runner.model(torch.ones(1, 3)))

    logs, _ = run(tmp_path, [hook, AtEachStep(predict)])
    assert all(isinstance(output, list) for output in others)
    assert len(hook.seen) == len(logs)


class CpuAmp(OptimWrapper):
    """mmengine's AMP refuses a machine without a GPU; this is the part of it that concerns a loss."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def test_under_amp_the_terms_are_in_full_precision(tmp_path):
    hook, model = Norm(), Toy()
    wrapper = CpuAmp(torch.optim.SGD(model.parameters(), lr=0.1))
    logs, _ = run(tmp_path, hook, model, wrapper)
    assert hook.seen == [('Toy', False)] * len(logs)


def test_gradient_accumulation_averages_the_terms_too(tmp_path):
    class OnlyTheTerm(Toy):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return dict(loss_fit=0 * self.layer(inputs).sum())

    class Weights(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            weights.append(model.layer.weight.detach().clone())

    model = OnlyTheTerm()
    weights = [model.layer.weight.detach().clone()]
    wrapper = dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=0.1))
    run(tmp_path, [Norm(), Weights()], model, wrapper, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert torch.equal(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0] - 0.1 * 2 * weights[0] / 3)


def test_a_resumed_run_starts_the_terms_where_the_first_would_have(tmp_path):
    torch.manual_seed(1)
    expected, by_hand = steps_by_hand(1.0, 3)
    by_iter = dict(by_epoch=False, max_iters=2)
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
    torch.manual_seed(1)
    run(tmp_path, Norm(start_iter=3), Toy(), train_cfg=by_iter, default_hooks=saving)
    model = Toy()
    again = dict(load_from=str(tmp_path / 'iter_2.pth'), resume=True)
    logs, _ = run(tmp_path, Norm(start_iter=3), model, train_cfg=dict(by_iter, max_iters=4), **again)
    assert [log.keys() for log in logs] == [log.keys() for log in expected[2:]]
    torch.testing.assert_close(model.layer.weight, by_hand.layer.weight)


def test_an_iteration_based_loop_counts_iterations(tmp_path):
    by_iter = dict(by_epoch=False, max_iters=3)
    logs, _ = run(tmp_path, Norm(start_iter=2), train_cfg=by_iter)
    assert ['loss_norm' in log for log in logs] == [False, False, True]
    with pytest.raises(ValueError, match=r'Norm would never reach start_epoch=1.*start_iter'):
        run(tmp_path, Norm(start_epoch=1), train_cfg=by_iter)


@pytest.mark.parametrize('key', ['norm', 'loss_fit'])
def test_a_key_that_would_not_count_is_refused(tmp_path, key):
    hook = Norm()
    hook.key = key
    with pytest.raises(
        ValueError, match=rf"needs keys that begin with loss and are not among \['loss_fit'\], got \['{key}'\]"
    ):
        run(tmp_path, hook)


def test_a_model_that_trains_in_another_way_is_refused(tmp_path):
    class Own(Toy):
        def train_step(self, data, optim_wrapper):
            return dict(loss=self.layer.weight.sum().detach())

    with pytest.raises(RuntimeError, match=r"Norm adds its terms where .*mode='loss'.* and Own trained without it"):
        run(tmp_path, Norm(), Own())


def test_works_in_a_compiled_step(tmp_path):
    eager, _ = run(tmp_path, Norm(start_iter=1), seeded())
    compiled, _ = run(tmp_path, Norm(start_iter=1), seeded(), cfg=dict(compile=dict(backend='eager')))
    for got, want in zip(compiled, eager, strict=True):
        assert got == pytest.approx(want)


def seeded():
    torch.manual_seed(3)
    return Toy()


def test_the_base_says_what_to_define():
    with pytest.raises(NotImplementedError, match=r'AuxiliaryLossHook must define loss\(model\)'):
        AuxiliaryLossHook().loss(Toy())


def test_under_ddp_the_terms_are_inside_of_the_wrapper(tmp_path):
    """Where DDP sees them in the output that it synchronizes the gradients of."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    outputs = []
    try:
        wrapped = MMDistributedDataParallel(seeded())
        wrapped.register_forward_hook(lambda model, args, losses: outputs.append(losses))
        hook = Norm()
        logs, _ = run(tmp_path, hook, wrapped)
    finally:
        torch.distributed.destroy_process_group()
    plain, _ = run(tmp_path, Norm(), seeded())
    assert {name for name, _ in hook.seen} == {'Toy'}
    assert all(losses.keys() == {'loss_fit', 'loss_norm'} for losses in outputs)
    for got, want in zip(logs, plain, strict=True):
        assert got == pytest.approx(want)
