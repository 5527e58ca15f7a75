"""Detectors with boxes and NMS inside an ONNX file: they predict what their host does, at other batches and sizes."""

import pytest
import torch
from helpers import shake, tool
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmext import boxes
from mmext.boxes import Boxes, Detections, disagreement, export_boxes, predictions_of
from mmext.errors import UsageError
from mmext.export import example_inputs, read_onnx
from mmext.hosts import build_model

BACKBONE = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='BN'), style='pytorch')
NECK = dict(in_channels=[8, 16, 32, 64], out_channels=16)
HEAD = dict(num_classes=5, in_channels=16, feat_channels=16)

#: Stock config, and what makes it small.
DETECTORS = {
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': dict(
        bbox_head=dict(HEAD, stacked_convs=1), test_cfg=dict(nms_pre=50)
    ),
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': dict(
        bbox_head=dict(HEAD, stacked_convs=1, norm_cfg=None), test_cfg=dict(nms_pre=50)
    ),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': dict(bbox_head=dict(HEAD, feat_channels=64)),
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': None,
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': dict(
        rpn_head=dict(in_channels=16, feat_channels=16),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=5)
        ),
        test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=40)),
    ),
}


def detector(config: str) -> torch.nn.Module:
    init_default_scope('mmdet')
    cfg = Config(dict(model=get_config(config).model))
    small = DETECTORS[config]
    if small is not None:
        cfg.merge_from_dict(dict(model=dict(backbone=dict(BACKBONE, init_cfg=None), neck=NECK, **small)))
        cfg.model.backbone['init_cfg'] = None
    torch.manual_seed(0)
    model = shake(build_model(cfg.model.to_dict()), by=0.05 if small else 0.02)
    model.eval()
    return model


@pytest.mark.parametrize('config', DETECTORS)
def test_a_file_with_boxes_predicts_what_its_host_does(config, tmp_path):
    model = detector(config)
    own = boxes._threshold_of(model)['score_thr']
    error, axes, why = export_boxes(model, example_inputs(model, 64, 64), tmp_path / 'b.onnx', dynamic=True)
    assert (list(axes.values()), why) == (['batch', 'height', 'width'], '')
    assert error <= 0.02
    assert boxes._threshold_of(model)['score_thr'] == own
    # The file that is left has the model's own threshold; a batch and a size that the proof did not try.
    images = torch.randn(4, 3, 96, 160, generator=torch.Generator().manual_seed(9))
    found = Boxes(*read_onnx(tmp_path / 'b.onnx')(images))
    expected = predictions_of(model, images)
    assert found.boxes.shape[0] == 4
    assert disagreement(expected, found, 1e-3, (96, 160)) <= 0.02
    with torch.no_grad():
        # The same arithmetic on both sides: no share is left to rounding.
        assert disagreement(expected, Detections(model)(images), 1e-6, (96, 160)) == 0


def test_a_function_that_is_not_the_hosts_is_told_from_rounding(tmp_path, monkeypatch):
    model = detector('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    right = Detections.forward

    def moved(self, images):
        found = right(self, images)
        return found._replace(boxes=found.boxes + (torch.arange(found.boxes.shape[1]) < 1)[:, None])

    monkeypatch.setattr(Detections, 'forward', moved)
    with pytest.raises(RuntimeError, match='are not those of the host, in torch itself'):
        export_boxes(model, example_inputs(model, 64, 64), tmp_path / 'b.onnx')
    assert not list(tmp_path.iterdir())


def test_disagreement_counts_what_has_no_partner():
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0], [2.0, 2.0, 9.0, 9.0]])
    one = Boxes(box, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    rows = [part[None] for part in one]
    assert disagreement([one], Boxes(*rows), 1e-3, (10, 10)) == 0
    for index, other in ((0, box + 1), (1, torch.tensor([0.9, 0.5])), (2, torch.tensor([1, 3]))):
        changed = list(rows)
        changed[index] = other[None]
        assert disagreement([one], Boxes(*changed), 1e-3, (10, 10)) == (1.0 if index == 0 else 0.5)
    nothing = Boxes(rows[0], rows[1], torch.tensor([[1, -1]]))
    assert disagreement([one], nothing, 1e-3, (10, 10)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ('config', 'sentence'),
    [
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 'not for YOLOX with its YOLOXHead'),
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'one box head and no masks, not for the StandardRoIHead'),
        ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', 'not for the CascadeRoIHead'),
    ],
)
def test_other_detectors_are_refused_in_one_sentence(config, sentence):
    init_default_scope('mmdet')
    with pytest.raises(RuntimeError, match=sentence):
        Detections(build_model(get_config(config).model.to_dict()))


def test_soft_nms_and_classifiers_are_refused(tmp_path):
    init_default_scope('mmdet')
    model = detector('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    model.bbox_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(RuntimeError, match='uses soft_nms'):
        export_boxes(model, example_inputs(model, 64, 64), tmp_path / 'b.onnx')
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match='Linear is none'):
        Detections(torch.nn.Linear(1, 1))


def test_deploy_writes_the_file_and_says_what_was_proved(tmp_path, capsys):
    deploy = tool('deploy').main
    model = detector('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg = Config(dict(model=get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model, default_scope='mmdet'))
    cfg.merge_from_dict(
        dict(model=dict(backbone=BACKBONE, neck=NECK, **DETECTORS['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py']))
    )
    cfg.model.backbone['init_cfg'] = None
    cfg.dump(tmp_path / 'c.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'c.pth')
    out = tmp_path / 'o.pth'
    arguments = [str(tmp_path / 'c.py'), str(tmp_path / 'c.pth'), str(out), '--shape', '64', '64', '--boxes']
    deploy(arguments)
    said = capsys.readouterr().out
    assert 'o.boxes.onnx: ' in said
    assert "of its boxes are the host's own; free: batch" in said
    assert out.with_suffix('.boxes.onnx').is_file()
    with pytest.raises(UsageError, match=r'o\.pth exists'):
        deploy(arguments)
