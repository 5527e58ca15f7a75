import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmext.convs.refconv import RefConv2d
from mmext.hooks.switch_to_deploy import SwitchToDeployHook


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(RefConv2d(3, 4, 3, map_init='default'), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
        y = self.net(x)
        return dict(loss=y.square().mean()) if mode == 'loss' else [y] if mode == 'predict' else y


class Mean(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(data_samples[0].double().mean().item())

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results))


class Look(Hook):
    """Remembers the kinds of layers that each stage runs."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.seen = {}

    def _kinds(self, name, runner):
        self.seen[name] = [type(m).__name__ for m in runner.model.net]

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._kinds('val', runner)

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self._kinds('test', runner)

    def after_val_epoch(self, runner, metrics=None):
        self._kinds('after', runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._kinds('train', runner)
        assert runner.model.training


def run(tmp_path, name, *hooks, ema=False):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 12, 12)
    data = [dict(inputs=image, data_samples=0) for image in images]
    loader = dict(dataset=data, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=2, num_workers=0)
    look = Look()
    runner = Runner(
        Model(),
        str(tmp_path / name),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type=Mean),
        test_evaluator=dict(type=Mean),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[*hooks, look, *([dict(type='EMAHook', momentum=0.5)] if ema else [])],
        default_scope='mmengine',
        experiment_name=f'{tmp_path.name}-{name}',
    )
    runner.train()
    return runner, look.seen, runner.test()['mean']


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('fuse_bn', [False, True])
def test_validation_and_test_run_the_folded_form(fuse_bn, ema, tmp_path):
    plain, seen, expected = run(tmp_path, 'plain', ema=ema)
    trained = ['RefConv2d', 'BatchNorm2d', 'ReLU']
    assert set(map(tuple, seen.values())) == {tuple(trained)}
    hook = SwitchToDeployHook(fuse_bn, shape=(12, 12))
    runner, seen, found = run(tmp_path, 'folded', hook, ema=ema)
    folded = ['Conv2d', 'Identity' if fuse_bn else 'BatchNorm2d', 'ReLU']
    assert seen == dict(train=trained, val=folded, after=trained, test=folded)
    assert found == pytest.approx(expected, rel=1e-4)
    for (name, a), (_, b) in zip(plain.model.state_dict().items(), runner.model.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    saved = [torch.load(tmp_path / n / 'epoch_2.pth', weights_only=False)['state_dict'] for n in ('plain', 'folded')]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.parametrize('shape', [(0, 4), (4,), (4.0, 4)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r'SwitchToDeployHook needs (a )?shape'):
        SwitchToDeployHook(shape=shape)
