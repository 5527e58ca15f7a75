"""PairHead: the host's own dense heads, untouched, on pairs of maps and inside stock detectors."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmext.heads.pair_head import Pick

STOCK = {
    'RetinaHead': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FreeAnchorRetinaHead': 'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'FSAFHead': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'FCOSHead': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSSHead': 'atss/atss_r50_fpn_1x_coco.py',
    'PAAHead': 'paa/paa_r50_fpn_1x_coco.py',
    'GFLHead': 'gfl/gfl_r50_fpn_1x_coco.py',
}
SEPC = {'type': 'mmext.SEPC', 'in_channels': 16, 'out_channels': 16}
FULL = {**SEPC, 'ibn': True, 'lcconv_deform': True, 'pconv_deform': True}


def diff_on_stock(config, neck, **bbox_head):
    """A stock config with an R18 and 16 channels, ``neck`` behind its FPN, and its head changed by a diff."""
    model = get_config(f'mmdet::{config}').model
    fpn = dict(model.neck, in_channels=[64, 128, 256, 512], out_channels=16)
    diff = {
        'backbone': {'depth': 18, 'init_cfg': None, 'norm_cfg': {'type': 'BN'}, 'style': 'pytorch'},
        'neck': [fpn, neck],
    }
    if bbox_head:
        diff['bbox_head'] = {'num_classes': 3, 'in_channels': 16, **bbox_head}
    cfg = Config({'model': model})
    cfg.merge_from_dict({'model': diff})
    return cfg.model


def batch():
    """Two images of 128 x 128 with boxes from small to image-sized, and their annotations."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[4, 4, 30, 34], [20, 40, 100, 110], [70, 10, 90, 30], [0, 0, 128, 128], [50, 50, 112, 98.0]])
    samples = []
    for _ in range(2):
        meta = {
            'img_shape': (128, 128),
            'ori_shape': (128, 128),
            'pad_shape': (128, 128),
            'scale_factor': (1, 1),
            'img_id': 0,
        }
        gt = InstanceData(bboxes=boxes.clone(), labels=torch.tensor([0, 1, 2, 0, 1]))
        samples.append(DetDataSample(metainfo=meta, gt_instances=gt))
    rng = np.random.default_rng(0)
    return {
        'inputs': [torch.from_numpy(rng.integers(0, 255, (3, 128, 128), np.uint8)) for _ in range(2)],
        'data_samples': samples,
    }


def train_and_predict(model):
    """One backward pass, then predictions of the same images."""
    data = model.data_preprocessor(batch(), training=True)
    loss, logged = model.parse_losses(model(**data, mode='loss'))
    assert torch.isfinite(loss), logged
    loss.backward()
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch()), mode='predict')
    assert all(r.pred_instances.bboxes.shape[1] == 4 for r in results)


@pytest.mark.parametrize('head', STOCK)
def test_stock_detectors_train_and_predict_on_pairs(head):
    cfg = diff_on_stock(STOCK[head], FULL, type='mmext.PairHead', head=head)
    init_default_scope('mmdet')
    model = MODELS.build(cfg)
    model.init_weights()
    assert type(model.bbox_head).__name__ == head
    assert not any('_convs' in key for key in model.bbox_head.state_dict())
    train_and_predict(model)
    assert [n for n, p in model.neck.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [n for n, p in model.bbox_head.named_parameters() if p.grad is None] == []


def test_a_pconv_neck_serves_a_two_stage_detector():
    neck = {'type': 'mmext.PConvNeck', 'in_channels': 16, 'out_channels': 16}
    cfg = diff_on_stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', neck)
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    cfg.roi_head.bbox_roi_extractor.out_channels = 16
    cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    init_default_scope('mmdet')
    model = MODELS.build(cfg)
    model.init_weights()
    train_and_predict(model)
    assert [n for n, p in model.neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_each_branch_sees_its_own_map():
    head = MODELS.build({'type': 'mmext.PairHead', 'head': 'mmdet.RetinaHead', 'num_classes': 3, 'in_channels': 8})
    levels = [(torch.randn(2, 8, s, s), torch.randn(2, 8, s, s)) for s in (16, 8, 4, 2, 1)]
    scores, deltas = head(levels)
    for (cls, reg), score, delta in zip(levels, scores, deltas, strict=True):
        assert torch.equal(score, head.retina_cls(cls))
        assert torch.equal(delta, head.retina_reg(reg))


def test_a_plain_map_serves_both_branches_and_keys_are_the_hosts():
    args = {'num_classes': 3, 'in_channels': 8, 'feat_channels': 8, 'stacked_convs': 0}
    pair = MODELS.build({'type': 'mmext.PairHead', 'head': {'type': 'mmdet.FCOSHead'}, **args})
    plain = MODELS.build({'type': 'mmdet.FCOSHead', **args})
    plain.load_state_dict(pair.state_dict())
    levels = [torch.randn(2, 8, s, s) for s in (16, 8, 4, 2, 1)]
    for got, want in zip(pair(levels), plain(levels), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_what_the_heads_own_config_says_takes_precedence():
    head = {'type': 'mmdet.RetinaHead', 'num_classes': 7}
    built = MODELS.build({'type': 'mmext.PairHead', 'head': head, 'num_classes': 3, 'in_channels': 8})
    assert built.num_classes == 7
    assert head == {'type': 'mmdet.RetinaHead', 'num_classes': 7}


def test_pick():
    pair = (torch.zeros(1), torch.ones(1))
    assert Pick(1)(pair) is pair[1]
    assert Pick(1)(pair[0]) is pair[0]
    assert repr(Pick(1)) == 'Pick(1)'


def test_an_optimizer_sees_the_hosts_parameters_only():
    head = MODELS.build({'type': 'mmext.PairHead', 'head': 'mmdet.RetinaHead', 'num_classes': 3, 'in_channels': 8})
    wrapper = build_optim_wrapper(head, {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}})
    assert sum(len(g['params']) for g in wrapper.param_groups) == 4


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            {'head': 'mmdet.RetinaHead'},
            "needs in_channels, the width of the maps that the neck gives, got .*'num_classes'",
        ),
        ({'head': 'mmdet.YOLOXHead', 'in_channels': 8}, 'loops over cls_convs.*YOLOXHead holds None; take RetinaHead'),
        ({'head': 'mmdet.RetinaSepBNHead', 'num_ins': 5, 'in_channels': 8}, 'RetinaSepBNHead holds ModuleList'),
        ({'head': 'mmdet.RepPointsHead', 'in_channels': 8}, 'RepPointsHead cannot take a pair: it reads the dtype'),
        ({'head': 'mmdet.DDODHead', 'in_channels': 8}, 'DDODHead cannot take a pair: it initializes'),
    ],
)
def test_heads_that_cannot_take_a_pair_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'mmext.PairHead', 'num_classes': 3, **cfg})


def test_a_missing_host_is_named(monkeypatch):
    monkeypatch.setattr('mmext.hosts.find_spec', lambda name: None if name == 'mmdet' else find_spec(name))
    with pytest.raises(
        ImportError, match=r'builds mmdet.RetinaHead, but the package mmdet is not installed; pip install onedl-'
    ):
        MODELS.build({'type': 'mmext.PairHead', 'head': 'mmdet.RetinaHead', 'num_classes': 3, 'in_channels': 8})


def test_importing_the_module_imports_no_host():
    code = (
        'import sys, mmext.heads.pair_head, mmext.heads.interflow, mmext.necks.sepc;'
        "print(*{'mmdet', 'mmpretrain', 'mmseg'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
