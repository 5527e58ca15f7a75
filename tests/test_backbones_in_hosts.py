"""Networks of idea 2 in stock detectors and segmentors: each takes a training step by config alone."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

import mmext  # noqa: F401 - teaches the config loader its scopes
from mmext.analysis.samples import batch_for, take_step

SIDE = 128
#: Backbones of four scales, small.
NETWORKS = {
    'XMLP': dict(arch=dict(depths=(1, 1, 1, 1), channels=(8, 16, 16, 24)), img_size=SIDE),
    'RedNet': dict(
        arch=dict(depths=(1, 1, 1, 1), channels=(64, 64, 128, 128)), stem_channels=32, zero_init_residual=False
    ),
    'LSNet': dict(arch=dict(depths=(0, 2, 2, 2), channels=(16, 16, 24, 32), heads=2)),
    'OverLoCK': dict(
        arch=dict(
            depths=(1, 1, 1, 1), focus_depths=(1, 1), channels=(16, 16, 16, 32), kernels=(7, 7, 7, 5), heads=(2, 4)
        )
    ),
}
HOSTS = {
    'Faster R-CNN': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'UPerNet': 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
}


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('name', NETWORKS)
def test_a_stock_model_learns_with_it(name, host, tmp_path):
    (tmp_path / 'config.py').write_text(f'_base_ = {HOSTS[host]!r}\n')
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    cfg.model.pop('pretrained', None)
    cfg.model.backbone = dict(type=f'mmext.{name}', **NETWORKS[name])
    widths = list(MODELS.build(cfg.model.backbone).out_channels)
    if cfg.default_scope == 'mmdet':
        cfg.model.neck.in_channels = widths
    else:
        cfg.model.decode_head.update(in_channels=widths, channels=32)
        cfg.model.auxiliary_head.update(in_channels=widths[2], channels=16)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    model.init_weights()
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    log = take_step(model, cfg.optim_wrapper, batch_for(cfg.default_scope, size=SIDE), SIDE)
    assert torch.isfinite(torch.as_tensor(log['loss']))
    changed = [n for n, p in model.backbone.named_parameters() if not torch.equal(p, before[n])]
    # What stands behind a branch that starts at zero has no slope in the first step.
    assert len(changed) > 0.8 * len(before)
