"""Blocks after, before and around layers of the hosts' stock models: start, undo, merge and deployment compute the same."""

import copy

import pytest
import torch
from helpers import shake
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmext.deploy import deploy, leftovers
from mmext.export import example_inputs, max_relative_error, outputs_of
from mmext.hosts import build_model
from mmext.surgery import merge_swap, undo_swap

BRANCH = dict(type='mmext.ParallelBranch', branch=dict(type='Conv2d', kernel_size=1))
BLOCK = dict(type='mmext.MetaBasicBlock', expansion=1)
CONV = dict(type='mmext.RefConv2d', kernel_size=3, padding=1)
PLAIN = dict(type='Conv2d', kernel_size=3, padding=1)
REF = dict(type='mmext.RefConv2d')

#: Stock config, the component that is rewired (empty for the whole model), and the rules.
MODELS = {
    'mmpretrain::resnet/resnet18_8xb16_cifar10.py': (
        'backbone',
        [
            dict(kernel_size=3, to=REF),
            dict(after='layer3', insert=BLOCK),
            dict(before=r'layer2\.0', insert=CONV),
            dict(around=r'layer\d\.1\.conv2', insert=BRANCH),
        ],
    ),
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py': (
        'backbone',
        [
            dict(depthwise=True, to=REF),
            dict(after=r'stages\.2', insert=BLOCK),
            dict(before=r'stages\.1\.0\.depthwise_conv', insert=CONV),
            dict(around=r'stages\.\d\.1\.depthwise_conv', insert=BRANCH),
        ],
    ),
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': (
        'backbone',
        [
            dict(kernel_size=3, groups=1, to=REF),
            dict(after='stage3', insert=BLOCK),
            dict(before=r'stage2\.0', insert=CONV),
            dict(around=r'stage4\.2\.final_conv\.conv', insert=BRANCH),
        ],
    ),
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': (
        '',
        [
            dict(kernel_size=3, stage=(3, 4), to=dict(type='mmext.DEConv2d')),
            dict(after=r'backbone\.layer3', insert=BLOCK),
            dict(before=r'backbone\.layer2\.0', insert=CONV),
            dict(around=r'bbox_head\.cls_convs\.0\.conv', insert=BRANCH),
            dict(after=r'neck\.fpn_convs\.0\.conv', insert=PLAIN),
        ],
    ),
    'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py': (
        'backbone',
        [
            dict(kernel_size=3, to=REF),
            dict(after='layer3', insert=BLOCK),
            dict(before=r'layer2\.0', insert=PLAIN),
            dict(around=r'layer4\.1\.conv2', insert=BRANCH),
        ],
    ),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': (
        '',
        [
            dict(depthwise=True, to=REF),
            dict(after=r'backbone\.layers\.2\.0\.projection', insert=CONV),
            dict(before=r'decode_head\.fusion_conv', insert=PLAIN),
            dict(around=r'backbone\.layers\.0\.1\.0\.ffn\.layers\.1', insert=BRANCH),
        ],
    ),
}


@pytest.mark.parametrize('config', MODELS)
def test_inserted_blocks_start_undo_merge_and_deploy(config):
    init_default_scope(config.partition('::')[0])
    place, rules = MODELS[config]
    stock_cfg = get_config(config).model.to_dict()
    cfg = copy.deepcopy(stock_cfg)
    if place:
        cfg[place] = dict(type='mmext.swap_layers', model=cfg[place], rules=rules)
    else:
        cfg = dict(type='mmext.swap_layers', model=cfg, rules=rules)
    torch.manual_seed(0)
    stock, model = shake(build_model(stock_cfg), by=0.01), build_model(cfg)
    assert not model.load_state_dict(stock.state_dict(), strict=False).unexpected_keys
    stock.eval()
    model.eval()
    inputs = example_inputs(model, 64, 64)
    plain = outputs_of(stock, inputs)
    assert max_relative_error(plain, outputs_of(model, inputs)) < 1e-5

    undone = undo_swap(copy.deepcopy(model))
    undone.eval()
    assert list(undone.state_dict()) == list(stock.state_dict())
    assert [type(m) for m in undone.modules()] == [type(m) for m in stock.modules()]
    assert max_relative_error(plain, outputs_of(undone, inputs)) < 1e-5

    shake(model, by=0.01)
    model.eval()
    trained = outputs_of(model, inputs)
    assert max_relative_error(plain, trained) > 0.01
    merged, stay = merge_swap(copy.deepcopy(model))
    assert max_relative_error(trained, outputs_of(merged, inputs)) < 1e-5
    assert all('inserted_' in name for name in stay)

    _, folded, new_cfg, error = deploy(cfg, model.state_dict(), (64, 64), fuse_bn=True)
    assert error < 1e-4
    again = build_model(Config.fromstring(Config(dict(model=new_cfg)).pretty_text, '.py').model)
    again.load_state_dict(folded.state_dict())
    again.eval()
    other = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    assert max_relative_error(outputs_of(model, other), outputs_of(again, other)) < 1e-4
    assert leftovers(new_cfg)
