"""Configs with ``read_base()``, classes as types and no default scope: every tool, as written, as dumped and as deployed."""

import pytest
from helpers import tool
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmext import cli
from mmext.datasets import DigitScenes, create
from mmext.surgery.rules import parse

COMMON = """
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD
default_scope = None
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1), logger=dict(type=LoggerHook, interval=1))
env_cfg = dict(dist_cfg=dict(backend='nccl'))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01, momentum=0.9))
val_cfg, test_cfg = dict(type=ValLoop), dict(type=TestLoop)
log_level = 'WARNING'
"""

CLS = """
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead,
                               ResNet)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
model = dict(type=ImageClassifier, neck=dict(type=GlobalAveragePooling),
             data_preprocessor=dict(type=ClsDataPreprocessor, mean=[127] * 3, std=[64] * 3, to_rgb=True, num_classes=10),
             backbone=dict(type=ResNet, depth=18, stem_channels=8, base_channels=8),
             head=dict(type=LinearClsHead, num_classes=10, in_channels=64, loss=dict(type=CrossEntropyLoss)))
pipeline = [dict(type=LoadImageFromFile), dict(type=PackInputs)]
dataset = dict(type=CustomDataset, data_root='{data}/cls/val', pipeline=pipeline, indices=16)
val_evaluator = dict(type=Accuracy, topk=(1,))
"""

DET = """
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, FocalLoss, ResNet, RetinaHead, RetinaNet
from mmdet.models.losses import L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from torch.nn import BatchNorm2d
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[127.0] * 3, std=[64.0] * 3, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=18, base_channels=8, norm_cfg=dict(type=BatchNorm2d)),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
                              strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder), loss_cls=dict(type=FocalLoss), loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=10))
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True), dict(type=Resize, scale=(64, 64)),
            dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
dataset = dict(type=CocoDataset, data_root='{data}/det', ann_file='annotations/val.json', data_prefix=dict(img='val/'),
               metainfo=dict(classes=tuple('0123456789')), pipeline=pipeline)
val_evaluator = dict(type=CocoMetric, ann_file='{data}/det/annotations/val.json', metric='bbox')
"""

SEG = """
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, ResNetV1c, SegDataPreProcessor
train_cfg = dict(type=IterBasedTrainLoop, max_iters=1, val_interval=1)
default_hooks['checkpoint'].update(by_epoch=False)
model = dict(type=EncoderDecoder,
             data_preprocessor=dict(type=SegDataPreProcessor, mean=[127] * 3, std=[64] * 3, size=(64, 64)),
             backbone=dict(type=ResNetV1c, depth=18, stem_channels=8, base_channels=8),
             decode_head=dict(type=FCNHead, in_channels=64, channels=8, in_index=3, num_classes=11, num_convs=1),
             test_cfg=dict(mode='whole'))
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
dataset = dict(type=BaseSegDataset, data_root='{data}', img_suffix='.png', seg_map_suffix='.png', pipeline=pipeline,
               data_prefix=dict(img_path='det/val', seg_map_path='seg/val'),
               metainfo=dict(classes=('background', *'0123456789'), palette=[[k, k, k] for k in range(11)]))
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
"""

LOADERS = """
train_dataloader = dict(batch_size={batch}, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True), dataset=dataset)
val_dataloader = dict(batch_size={batch}, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False), dataset=dataset)
test_dataloader, test_evaluator = val_dataloader, val_evaluator
"""

NEW = """
from mmengine.config import read_base
with read_base():
    from .base import *
from mmext.activations import LENI
from mmext.blocks import MetaBasicBlock
from mmext.convs import DCLSConv2d
from mmext.convs.refconv import RefConv2d
from mmext.hooks.checkpoint_guard import CheckpointGuardHook
from mmext.hooks.projection import ProjectionHook
from mmext.hooks.switch_to_deploy import SwitchToDeployHook
from mmext.optim import SAGD, SAGDOptimWrapper
from mmext.surgery import swap_layers
from torch.nn import Conv2d, ReLU
"""

REWIRED = {
    'mmpretrain': """
model.backbone = dict(type=swap_layers, model=model.backbone, rules=[
    dict(layer=Conv2d, kernel_size=3, to=dict(type=RefConv2d)), dict(layer=ReLU, stage=4, to=dict(type=LENI))])
custom_hooks = [dict(type=CheckpointGuardHook), dict(type=SwitchToDeployHook)]
""",
    'mmdet': """
model.backbone = dict(type=swap_layers, model=model.backbone, rules=[dict(kernel_size=3, to=dict(type=DCLSConv2d))])
model.bbox_head.update(conv_cfg=dict(type=RefConv2d))
custom_hooks = [dict(type=ProjectionHook)]
optim_wrapper = dict(type=SAGDOptimWrapper, optimizer=dict(type=SAGD, lr=0.01, momentum=0.9))
""",
    'mmseg': """
model = dict(type=swap_layers, model=model, rules=[
    dict(kernel_size=3, match='backbone', to=dict(type=RefConv2d)),
    dict(after=r'backbone\\.layer3', insert=dict(type=MetaBasicBlock))])
""",
}
BASES = {'mmpretrain': (CLS, 8), 'mmdet': (DET, 2), 'mmseg': (SEG, 1)}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digit_scenes'
    create(DigitScenes(train=2, val=2, size=64, cls_size=32, cls_views=1), out)
    return out


@pytest.fixture
def written(tmp_path, data, monkeypatch):
    """Return a function that writes the config of a host; names are looked up in no scope."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)())

    def write(host: str) -> str:
        text, batch = BASES[host]
        base = (COMMON + text + LOADERS).replace('{data}', str(data)).replace('{batch}', str(batch))
        (tmp_path / 'base.py').write_text(base)
        (tmp_path / 'new.py').write_text(NEW + REWIRED[host])
        return str(tmp_path / 'new.py')

    return write


@pytest.mark.parametrize('host', BASES)
def test_every_tool_takes_it_as_written_as_dumped_and_as_deployed(written, tmp_path, capsys, host):
    train, test, deploy, show = (tool(n).main for n in ('train', 'test', 'deploy', 'analysis_tools/show_swap'))
    config, work = written(host), tmp_path / 'work'
    assert train([config, '--work-dir', str(work)]).iter == (2 if host == 'mmpretrain' else 1)
    dumped = str(work / 'new.py')
    (saved,) = work.glob('*_1.pth')
    longer = 'train_cfg.max_iters=2' if host == 'mmseg' else 'train_cfg.max_epochs=2'
    assert train([dumped, '--work-dir', str(work), '--resume', '--cfg-options', longer]).iter >= 2
    out = tmp_path / 'deployed' / 'model.pth'
    deploy([dumped, str(saved), str(out), '--shape', '64', '64', '--fuse-bn'])
    for kind, (cfg, weights) in dict(
        new=(config, saved), old=(dumped, saved), out=(out.with_suffix('.py'), out)
    ).items():
        predictions = tmp_path / ('maps' if host == 'mmseg' else 'p.pkl')
        test([str(cfg), str(weights), '--work-dir', str(work), '--out', str(predictions), '--force'])
        assert predictions.is_dir() == (host == 'mmseg')
        capsys.readouterr()
        show([str(cfg), '--shape', '64', '64', '--no-flops'])
        assert 'layers change' in capsys.readouterr().out, kind


@pytest.mark.parametrize('host', BASES)
def test_amp_takes_the_class_and_its_path(written, tmp_path, monkeypatch, host):
    train = tool('train')
    monkeypatch.setattr(train, 'is_cuda_available', lambda: True)
    cfg = cli.read_config(written(host))
    cfg.dump(tmp_path / 'dumped.py')
    wanted = 'mmext.SAGDAmpOptimWrapper' if host == 'mmdet' else 'AmpOptimWrapper'
    for read in (cfg, cli.read_config(str(tmp_path / 'dumped.py'))):
        train.enable_amp(read)
        assert read.optim_wrapper.type == wanted
        assert cli.host_of(read) == host
    deployed = Config(dict(model=dict(type='mmext.folded', model=cfg.model)))
    assert cli.host_of(deployed) == host


@pytest.mark.parametrize('layer', ['Conv2d', 'torch.nn.Conv2d', 'torch.nn.modules.conv.Conv2d'])
def test_a_rule_takes_the_path_of_a_class(layer):
    assert parse(dict(layer=layer, to=dict(type='mmext.RefConv2d'))).layer == 'Conv2d'
