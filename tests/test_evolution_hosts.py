"""Every operator in stock models of the three hosts, by one rule: they take a step in half precision and all of it learns."""

import pytest
import torch
from conv_layers import OPERATORS, own_arguments
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

from mmext.analysis.samples import batch_for, take_step
from mmext.registry import MODELS

BACKBONE = """
backbone = dict(
    type='mmext.swap_layers',
    depth=18,
    base_channels=8,
    stem_channels=8,
    init_cfg=None,
    rules=[dict(match=r'layer\\d.0.conv2', to=dict(padding=1, dilation=1, **operator))],
)
"""
DETECTOR = "backbone.update(model='ResNet', frozen_stages=-1, norm_eval=False)\n"
SMALL_FPN = 'neck=dict(in_channels=[8, 16, 32, 64], out_channels=16)'
SMALL_HEAD = "in_channels=64, channels=16, norm_cfg=dict(type='BN')"
HOSTS = {
    'classifier': (
        'mmpretrain',
        "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'\n"
        "backbone.update(model='ResNet')\nmodel = dict(backbone=backbone, head=dict(in_channels=64))\n",
    ),
    'one stage': (
        'mmdet',
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        f'{DETECTOR}model = dict(backbone=backbone, {SMALL_FPN}, bbox_head=dict(in_channels=16, feat_channels=16))\n',
    ),
    'two stages': (
        'mmdet',
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        f'{DETECTOR}model = dict(backbone=backbone, {SMALL_FPN}, rpn_head=dict(in_channels=16, feat_channels=16), '
        'roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=32)))\n',
    ),
    'segmentor': (
        'mmseg',
        "_base_ = 'mmseg::upernet/upernet_r18_4xb4-80k_ade20k-512x512.py'\n"
        "backbone.update(model='ResNetV1c', norm_cfg=dict(type='BN'))\n"
        'model = dict(pretrained=None, backbone=backbone, decode_head=dict(in_channels=[8, 16, 32, 64], channels=16, '
        "norm_cfg=dict(type='BN')), auxiliary_head=None)\n",
    ),
}


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('name', [n for n in OPERATORS if 'other sizes' not in MODELS.get(n).refuses])
def test_a_stock_model_learns_with_it(name, host, tmp_path):
    scope, text = HOSTS[host]
    operator = dict(type=f'mmext.{name}', **own_arguments(name))
    (tmp_path / 'config.py').write_text(f'operator = {operator!r}\n{BACKBONE}\n{text}')
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(scope)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = ROOT_MODELS.build(cfg.model)
    model.init_weights()
    if scope == 'mmseg':  # the stock one pads to what it is trained with
        model.data_preprocessor.size = (64, 64)
    layers = [m for m in model.modules() if type(m) is MODELS.get(name)]
    assert len(layers) == 4
    learning = {k: p for layer in layers for k, p in layer.named_parameters() if p.requires_grad}
    before = {k: p.detach().clone() for k, p in learning.items()}
    # mmcv's suppression of boxes knows no half precision on a CPU.
    with torch.autocast('cpu', torch.bfloat16, enabled=host != 'two stages'):
        log = take_step(model.train(), cfg.optim_wrapper, batch_for(scope))
    assert torch.isfinite(torch.as_tensor(log['loss']))
    # oneDNN's half precision gradient of a plain convolution on the last level, of 1 x 1, is not always finite.
    assert all(p.isfinite().all() for p in learning.values())
    assert any(not torch.equal(p, before[k]) for k, p in learning.items())
