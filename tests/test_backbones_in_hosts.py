"""Every backbone in three stock models: a config of ten lines takes a training step."""

import copy
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from registered import ARGUMENTS, members

import mmext  # noqa: F401 - teaches the config loader its scopes
from mmext.analysis.samples import batch_for, take_step
from mmext.contracts import TakesOneSize

AUTO = dict(in_channels='auto')
#: Stock configs, and what a user writes beside the backbone: 'auto' for channels. All other entries make the model small.
HOSTS = {
    'RetinaNet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(model='mmdet.RetinaNet', neck=dict(AUTO, out_channels=8), bbox_head=dict(AUTO, feat_channels=8)),
    ),
    'Mask R-CNN': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        dict(
            model='mmdet.MaskRCNN',
            neck=dict(AUTO, out_channels=8),
            rpn_head=dict(AUTO, feat_channels=8),
            roi_head=dict(
                bbox_roi_extractor=dict(out_channels='auto'),
                mask_roi_extractor=dict(out_channels='auto'),
                bbox_head=dict(AUTO, fc_out_channels=8),
                mask_head=dict(AUTO, conv_out_channels=8),
            ),
            train_cfg=dict(rpn_proposal=dict(nms_pre=20, max_per_img=10), rcnn=dict(sampler=dict(num=16))),
        ),
    ),
    'UPerNet': (
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        dict(
            model='mmseg.EncoderDecoder',
            pretrained=None,
            decode_head=dict(AUTO, channels=8),
            auxiliary_head=dict(AUTO, channels=8),
        ),
    ),
}
BACKBONES = members('backbones')


@cache
def stock(path):
    return Config.fromstring(f'_base_ = {path!r}', '.py')


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('name', BACKBONES)
def test_a_stock_model_learns_with_it(name, host):
    path, own = HOSTS[host]
    cfg, own = copy.deepcopy(stock(path)), copy.deepcopy(own)
    init_default_scope(cfg.default_scope)
    backbone = dict(type=f'mmext.{name}', **ARGUMENTS[name])
    alone = MODELS.build(backbone)
    maps = range(len(alone.out_strides))
    if len(set(alone.out_strides)) == 1:  # no pyramid by itself
        cfg.model.pop('neck', None)
        own['neck'] = dict(type='mmext.SimpleFPN', out_channels=8, num_outs=5, **AUTO)
    elif host == 'UPerNet':  # the stock heads read four maps, examples have fewer
        own['decode_head']['in_index'] = list(maps)
        own['auxiliary_head']['in_index'] = maps[-1]
    cfg.merge_from_dict(dict(model=dict(type='mmext.auto_channels', backbone=dict(_delete_=True, **backbone), **own)))
    side = alone.fixed_size[0] if isinstance(alone, TakesOneSize) else 64
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    model.init_weights()
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    log = take_step(model, cfg.optim_wrapper, batch_for(cfg.default_scope, size=side), side)
    assert torch.isfinite(torch.as_tensor(log['loss']))
    # All that is not zero moves, by its slope or its decay, unless no head sees it: RetinaNet leaves the largest map out.
    stuck = [n for n, p in model.backbone.named_parameters() if before[n].any() and torch.equal(p, before[n])]
    assert len(stuck) < 0.2 * len(before)
