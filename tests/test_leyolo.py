"""LeYOLO: the whole light detector, its parts apart, and the parts in stock detectors."""

import copy
import math
import pickle

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmext  # noqa: F401 - teaches the config loader its scopes
from mmext.analysis.samples import batch_for, take_step
from mmext.backbones.leyolo import LeYOLO
from mmext.boxes import Detections, disagreement, export_boxes, predictions_of
from mmext.deploy import deploy
from mmext.heads.leyolo import leyolo_dnin_head
from mmext.necks.leyolo import LeYOLOFPAN

OPTIM = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
TRAIN = dict(assigner=dict(type='TaskAlignedAssigner', topk=10), alpha=0.5, beta=6)
HIDDEN = {'nano': (64, 128, 192), 'small': (88, 176, 256), 'medium': (88, 176, 256)}
LEVELS = [torch.randn(2, c, *s) for c, s in ((8, (9, 11)), (8, (5, 6)), (16, (3, 3)))]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def published(arch, **neck):
    net = LeYOLO(arch)
    pyramid = LeYOLOFPAN(net.out_channels, hidden_channels=HIDDEN[arch], **neck)
    return net, pyramid, leyolo_dnin_head(80, pyramid.out_channels)


def small(classes=10, **head):
    """A whole detector of few channels."""
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 8, 12, 16), hidden=(8, 16, 16, 24), first_hidden=(8, 16, 16, 24))
    cfg = dict(
        type='SingleStageDetector',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, pad_size_divisor=32),
        backbone=dict(type='mmext.LeYOLO', arch=arch),
        neck=dict(type='mmext.LeYOLOFPAN', in_channels=(8, 12, 16)),
        bbox_head=dict(
            type='mmext.LeYOLODNiNHead', num_classes=classes, in_channels=(8, 12, 16), image_size=64, **head
        ),
        train_cfg=TRAIN,
        test_cfg=dict(nms_pre=100, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.6), max_per_img=20),
    )
    return ConfigDict(copy.deepcopy(cfg))


@pytest.mark.parametrize(
    ('arch', 'neck', 'count', 'taps'),
    [
        ('nano', {}, 1_120_464, (32, 64, 96)),
        ('small', {}, 1_917_424, (48, 88, 128)),
        ('medium', dict(deep=True, official_taps=True), 2_402_728, (48, 88, 256)),
        ('medium', dict(deep=True), 2_340_560, (48, 88, 128)),
    ],
)
def test_parameters_are_the_published(arch, neck, count, taps):
    parts = published(arch, **neck)
    assert sum(p.numel() for part in parts for p in part.parameters()) == count
    assert parts[1].out_channels == taps


def test_macs_of_nano_are_the_published():
    counted = []
    parts = nn.Sequential(*published('nano')).eval()
    for conv in filter(lambda m: isinstance(m, nn.Conv2d), parts.modules()):
        conv.register_forward_hook(
            lambda conv, args, out: counted.append(conv.weight.numel() * out.shape[2] * out.shape[3])
        )
    with torch.no_grad():
        parts(torch.zeros(1, 3, 320, 320))
    assert 2 * sum(counted) / 1e9 == pytest.approx(0.616, abs=1e-3)


def test_blocks_add_their_input_where_shapes_agree_and_the_first_does_not_widen():
    net = LeYOLO('nano')
    blocks = [block for stage in net.stages for block in stage.blocks]
    assert [getattr(b, 'residual', False) for b in blocks] == [
        *[False] * 2,
        True,
        False,
        *[True] * 4,
        False,
        *[True] * 3,
        False,
    ]
    assert isinstance(blocks[0].expand, nn.Identity)
    assert all(len(b.expand) == 3 for b in blocks[1:-1])
    assert {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.03)}
    assert len(LeYOLO('nano', pool_size=None).stages[-1].blocks) == 4


@pytest.mark.parametrize('deep', [False, True])
def test_the_neck_takes_any_sizes_and_number_of_levels(deep):
    for count in (2, 3, 4):
        maps = [torch.randn(1, 8, s, s + 1) for s in (17, 9, 5, 3)[:count]]
        neck = LeYOLOFPAN([8] * count, deep=deep)
        outs = neck(maps)
        assert [y.shape for y in outs] == [x.shape for x in maps]
        sum(y.sum() for y in outs).backward()
        assert all(p.grad is not None for p in neck.parameters())


def test_one_width_and_more_levels_for_hosts_that_share_a_head():
    outs = LeYOLOFPAN([8, 8, 16], out_channels=4, num_outs=5)(LEVELS)
    assert [tuple(y.shape[1:]) for y in outs] == [(4, 9, 11), (4, 5, 6), (4, 3, 3), (4, 2, 2), (4, 1, 1)]


def test_official_taps_leave_the_last_node_out():
    neck = LeYOLOFPAN([8, 8, 16], deep=True, official_taps=True)
    sum(y.sum() for y in neck(LEVELS)).backward()
    dead = {n for n, p in neck.named_parameters() if p.grad is None}
    assert dead == {n for n, p in neck.named_parameters() if not p.requires_grad}
    assert {n.rpartition('.')[0].split('.')[1] for n in dead} == {'1'}
    assert len(neck.bottom_up[-1]) == 4


def test_the_start_of_the_head():
    head = leyolo_dnin_head(80, (32, 64, 96))
    head.init_weights()
    assert head.cls_branches[1][-1].bias[0].item() == pytest.approx(math.log(5 / 80 / 40**2))
    assert (head.reg_branches[2][-1].bias == 1).all()
    assert [branch[0][0].out_channels for branch in (head.cls_branches[0], head.reg_branches[0])] == [80, 64]
    _, distances = head([torch.randn(1, c, 2, 2) for c in (32, 64, 96)])
    assert all((d > 0).all() and (d < 15 * s).all() for d, s in zip(distances, (8, 16, 32), strict=True))


def truth(boxes, labels):
    return InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.long))


def test_a_perfect_prediction_has_nearly_no_loss_of_boxes():
    head = leyolo_dnin_head(3, (8,), strides=(8,), train_cfg=TRAIN, times_batch=False)
    # From the center of pixel (2, 2): 12, 12, 20, 20. mmdet's CIoU has no value where a box is met to the last bit.
    box = truth([8.0, 8.0, 40.0, 40.01], [1])
    logits = torch.full((1, 4, 16, 6, 6), -30.0)
    logits[0, :2, 1:3, 2, 2] = logits[0, 2:, 2:4, 2, 2] = 30.0
    scores = torch.full((1, 3, 6, 6), -20.0)
    scores[0, 1, 2, 2] = 20.0
    losses = head.loss_by_feat([scores], [logits.flatten(1, 2)], [box], [{}])
    assert losses['loss_cls'] < 0.01
    assert losses['loss_bbox'] < 0.01
    # A distance halfway between two bins costs log 2 at least.
    assert losses['loss_dfl'].item() == pytest.approx(1.5 * math.log(2), rel=1e-2)
    worse = head.loss_by_feat([scores.flip(1)], [logits.flatten(1, 2).flip(1)], [box], [{}])
    assert worse['loss_bbox'] > 0.05


def test_targets_of_classes_are_overlaps_scaled_by_alignment():
    head = leyolo_dnin_head(3, (8,), strides=(8,), train_cfg=TRAIN)
    centers = torch.stack(torch.meshgrid(*[torch.arange(6) * 8.0 + 4] * 2, indexing='xy'), -1).view(-1, 2)
    priors = torch.cat([centers - 4, centers + 4], 1)
    boxes = torch.cat([centers - 14, centers + 14], 1)
    scores = torch.randn(36, 3)
    positive, gt, quality = head._assign(
        priors, boxes, scores, truth([[8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 24.0, 24.0]], [1, 2])
    )
    from mmdet.structures.bbox import bbox_overlaps

    for i, box in enumerate(([8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 24.0, 24.0])):
        own = gt == i
        overlap = bbox_overlaps(boxes[positive[own]], torch.tensor([box]))[:, 0]
        aligned = scores[positive[own], i + 1].sigmoid() ** 0.5 * overlap**6
        torch.testing.assert_close(quality[own], aligned / aligned.max() * overlap.max())


def test_the_loss_of_a_batch_is_that_of_its_images():
    outs = [torch.randn(2, 3, 6, 6)], [torch.randn(2, 64, 6, 6)]
    boxes = [truth([8.0, 8.0, 40.0, 40.0], [1]), truth([0.0, 0.0, 20.0, 30.0], [0])]
    mean, times = (
        leyolo_dnin_head(3, (8,), strides=(8,), train_cfg=TRAIN, times_batch=t).loss_by_feat(*outs, boxes, [{}, {}])
        for t in (False, True)
    )
    for name in mean:
        torch.testing.assert_close(times[name], 2 * mean[name])


def test_images_without_objects_train_every_parameter():
    model = MODELS.build(small()).train()
    batch = batch_for('mmdet')
    for sample in batch['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    log, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    assert torch.isfinite(log)
    log.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_predicts_and_copies():
    torch.manual_seed(0)
    model = MODELS.build(small(times_batch=False)).train()
    model.init_weights()
    batch = batch_for('mmdet')
    optim = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
    losses = [take_step(model, optim, copy.deepcopy(batch))['loss'].item() for _ in range(24)]
    assert losses[-1] < losses[0] / 2
    twin = copy.deepcopy(model).eval()
    found = model.eval().test_step(copy.deepcopy(batch))
    same = twin.test_step(copy.deepcopy(batch))
    for sample, other in zip(found, same, strict=True):
        assert sample.pred_instances.bboxes.shape[1] == 4
        assert torch.equal(sample.pred_instances.bboxes, other.pred_instances.bboxes)
    losses, predictions = model.bbox_head.loss_and_predict(
        model.extract_feat(torch.rand(2, 3, 64, 64)), model.data_preprocessor(batch)['data_samples']
    )
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    assert len(predictions) == 2
    assert pickle.loads(pickle.dumps(model.bbox_head.state_dict())).keys() == model.bbox_head.state_dict().keys()


def test_half_precision():
    model = MODELS.build(small()).train()
    with torch.autocast('cpu', torch.bfloat16):
        data = model.data_preprocessor(batch_for('mmdet'), True)
        total, _ = model.parse_losses(model(**data, mode='loss'))
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    total.backward()


def test_it_folds_and_its_file_predicts_the_same(tmp_path):
    torch.manual_seed(0)
    cfg = small(classes=3)
    model = MODELS.build(cfg)
    _, folded, _, error = deploy(cfg, model.state_dict(), (64, 64), fuse_bn=True)
    assert error < 1e-4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.rand(2, 3, 64, 96)
    folded.bbox_head.test_cfg['score_thr'] = 0.0
    assert disagreement(predictions_of(folded, images), Detections(folded)(images), 1e-4, (64, 96)) < 0.02
    pytest.importorskip('onnxruntime')
    error, axes, _ = export_boxes(folded, images[..., :64], tmp_path / 'boxes.onnx')
    assert error < 0.02
    assert axes[0] == 'batch'


@pytest.mark.parametrize(
    'base', ['retinanet/retinanet_r18_fpn_1x_coco.py', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']
)
def test_the_backbone_and_the_neck_serve_stock_detectors(base, tmp_path):
    (tmp_path / 'config.py').write_text(f"_base_ = 'mmdet::{base}'\n")
    cfg = Config.fromfile(tmp_path / 'config.py')
    arch = small().backbone.arch
    cfg.model.backbone = dict(type='mmext.LeYOLO', arch=arch, out_indices=(0, 1, 2, 3))
    cfg.model.neck = dict(type='mmext.LeYOLOFPAN', in_channels=(8, 8, 12, 16), out_channels=16, num_outs=5)
    if 'rpn_head' in cfg.model:
        cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
        cfg.model.roi_head.bbox_roi_extractor.out_channels = 16
        cfg.model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    else:
        cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
        cfg.model.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    model = MODELS.build(cfg.model).train()
    before = {n: p.detach().clone() for n, p in model.neck.named_parameters()}
    log = take_step(model, cfg.optim_wrapper, batch_for('mmdet'))
    assert torch.isfinite(torch.as_tensor(log['loss']))
    assert any(not torch.equal(p, before[n]) for n, p in model.neck.named_parameters())


@pytest.mark.parametrize(
    ('build', 'match'),
    [
        (lambda: LeYOLOFPAN([8]), 'in_channels of two or more'),
        (lambda: LeYOLOFPAN([8, 8], hidden_channels=[8]), r'as many hidden_channels, got \(8, 8\)'),
        (lambda: LeYOLOFPAN([8, 8, 8], num_outs=2), 'num_outs from 3 on, got 2'),
        (lambda: LeYOLOFPAN([8, 8], official_taps=True), 'set deep=True'),
        (lambda: LeYOLOFPAN([8, 8])([torch.zeros(1, 8, 2, 2)]), '2 levels, got 1 maps'),
        (lambda: LeYOLO('huge'), "knows the archs .*'huge'"),
        (lambda: leyolo_dnin_head(3, (8, 8), (8,)), 'a stride for each level, got 2 in_channels and 1 strides'),
        (lambda: leyolo_dnin_head(3, (8, 8), (8, 16))([torch.zeros(1, 8, 2, 2)]), '2 levels, got 1 maps'),
        (
            lambda: leyolo_dnin_head(3, (8,), (8,)).loss_by_feat([torch.zeros(1, 3, 1, 1)], [], [], []),
            'needs train_cfg=',
        ),
    ],
)
def test_bad_input_gets_one_sentence(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_a_missing_host_is_named(monkeypatch):
    monkeypatch.setattr('mmext.hosts.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'LeYOLODNiNHead derives from mmdet.BaseDenseHead, but the package mmdet'):
        leyolo_dnin_head(3, (8,), (8,))
