"""DCLS in a stock classifier, detector and segmentor, with all that accompanies it, by config alone."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmext.analysis.samples import SAMPLES
from mmext.convs.dcls import DCLSConv2d

COMMON = """
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [
    dict(type='mmext.ProjectionHook'),
    dict(type='mmext.RepulsionHook', start_epoch=0),
    dict(type='EMAHook'),
]
to = dict(type='mmext.DCLSConv2d', kernel_size=5, padding=2, dilation=1, kernel_count=4)
rules = [dict(kernel_size=3, stride=1, to=to)]
"""
HOSTS = {
    'mmpretrain': """
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet_CIFAR',
        rules=rules,
        stem_channels=8,
        base_channels=8,
        zero_init_residual=False,  # else the first step moves nothing in the blocks
    ),
    head=dict(in_channels=64),
)
train_cfg = dict(max_epochs=1)
""",
    'mmdet': """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=rules,
        depth=18,
        stem_channels=8,
        base_channels=8,
        frozen_stages=-1,
        init_cfg=None,
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
train_cfg = dict(max_epochs=1)
""",
    'mmseg': """
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(type='mmext.swap_layers', model='ResNetV1c', rules=rules, depth=18, stem_channels=8, base_channels=8),
    decode_head=dict(in_channels=64, channels=16),
    auxiliary_head=dict(in_channels=32, channels=8),
)
train_cfg = dict(max_iters=1)
""",
}


class Watch(Hook):
    """The log and the positions after the only step, before anything could hide them."""

    priority = 'ABOVE_NORMAL'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {id(m): m.P.clone() for m in runner.model.modules() if isinstance(m, DCLSConv2d)}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.log = {k: float(v) for k, v in outputs.items()}
        self.rates = {id(p): group for group in runner.optim_wrapper.param_groups for p in group['params']}


@pytest.mark.parametrize('host', HOSTS)
def test_one_iteration_by_config(host, tmp_path):
    (tmp_path / 'config.py').write_text(HOSTS[host].replace('model =', f'{COMMON}\nmodel =', 1))
    cfg = Config.fromfile(tmp_path / 'config.py')
    for key in [key for key in cfg if key.startswith(('val_', 'test_'))]:
        cfg[key] = None
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = tmp_path.name
    samples = [dict(zip(('inputs', 'data_samples'), SAMPLES[host](i, 64, None), strict=True)) for i in range(2)]
    watch = Watch()
    runner = Runner.from_cfg(cfg)
    runner._train_dataloader = DataLoader(samples, batch_size=2, collate_fn=pseudo_collate)
    runner.register_hook(watch)
    layers = [m for m in runner.model.modules() if isinstance(m, DCLSConv2d)]
    assert layers
    runner.train()

    assert watch.log['loss_repulsion'] > 0
    if host != 'mmpretrain':  # whose own loss is called 'loss' and hides the sum
        terms = sum(v for k, v in watch.log.items() if 'loss' in k and k != 'loss')
        assert watch.log['loss'] == pytest.approx(terms, rel=1e-5)
    assert torch.tensor(list(watch.log.values())).isfinite().all()
    logged = runner.message_hub.get_scalar('train/loss_repulsion').current()
    assert logged == pytest.approx(watch.log['loss_repulsion'])
    base = cfg.optim_wrapper.optimizer.lr
    for layer in layers:
        assert watch.rates[id(layer.P)]['initial_lr'] == pytest.approx(5 * base)
        assert watch.rates[id(layer.point_weight)]['initial_lr'] == pytest.approx(base)
        assert watch.rates[id(layer.SIG)]['weight_decay'] == 0
        assert not torch.equal(layer.P, watch.before[id(layer)])
        assert layer.P.abs().max() <= 2
    assert not runner.model._forward_hooks
