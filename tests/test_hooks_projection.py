"""What must stay in a set does, in a run with momentum that drives it out."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import Runner
from torch import nn

from mmext.convs.dcls import DCLSConv2d
from mmext.convs.gaussian_conv import GaussianConv2d
from mmext.convs.smpconv import SMPConv2d
from mmext.hooks.projection import ProjectionHook


class Driven(BaseModel):
    """Its loss pushes every parameter up without end."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=-sum(p.sum() for p in self.parameters()))


class Watch(Hook):
    """What an EMA hook or a checkpoint would see."""

    priority = 'NORMAL'

    def __init__(self, look):
        self.look = look
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(self.look())


def run(tmp_path, model, *hooks, **kwargs):
    Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(dataset=[torch.zeros(1)] * 3, sampler=dict(type='DefaultSampler'), batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=5.0, momentum=0.9)),
        custom_hooks=list(hooks),
        default_hooks=dict(checkpoint=None, timer=None, logger=None, param_scheduler=None, sampler_seed=None),
        experiment_name=f'{tmp_path.name}_{id(model)}',
        log_level='ERROR',
        **kwargs,
    ).train()


def test_every_system_that_projects_is_kept_inside(tmp_path):
    dcls, smp = DCLSConv2d(2, 2, (5, 3)), SMPConv2d(2, 2, 5)
    gaussian = GaussianConv2d(2, 2, 3, max_sigma=1.5)
    watch = Watch(
        lambda: (
            dcls.P[0].max().item(),
            dcls.P[1].max().item(),
            smp.radius.max().item(),
            gaussian.log_sigma.exp().item(),
        )
    )
    model = Driven(dcls, smp, gaussian, DCLSConv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    run(tmp_path, model, dict(type='mmext.ProjectionHook'), watch)
    assert watch.seen == [pytest.approx((2, 1, 1, 1.5))] * 3
    assert smp.weight_coord.min() > 3, 'what is free moves'


def test_ema_averages_what_is_projected(tmp_path):
    layer = DCLSConv2d(2, 2, 5)
    ema = dict(type='EMAHook', momentum=0.5)
    averages = []

    class Look(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
            averages.append(hook.ema_model.module.layers[0].P.max().item())

    run(tmp_path, Driven(layer), ema, Look(), dict(type='mmext.ProjectionHook'))
    assert max(averages) <= 2
    assert averages[-1] == pytest.approx(2)


def test_sees_through_ddp(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        layer = DCLSConv2d(2, 2, 5)
        run(tmp_path, MMDistributedDataParallel(Driven(layer)), ProjectionHook())
    finally:
        torch.distributed.destroy_process_group()
    assert layer.P.max() == 2


def test_a_loaded_checkpoint_is_projected_before_the_first_step(tmp_path):
    layer = DCLSConv2d(2, 2, 5)
    model = Driven(layer)
    with torch.no_grad():
        layer.P.fill_(9)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'far.pth')
    first = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            first.append(layer.P.max().item())

    run(tmp_path, model, ProjectionHook(), Look(), load_from=str(tmp_path / 'far.pth'))
    assert first[0] == 2


def test_nothing_to_project_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r'ProjectionHook found no module with project_parameters\(\) in Driven; remove'
    ):
        run(tmp_path, Driven(nn.Conv2d(2, 2, 1)), ProjectionHook())
