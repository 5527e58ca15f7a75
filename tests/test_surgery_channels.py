import pytest
import torch
from helpers import trained_state
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

import mmext  # noqa: F401  (teaches mmengine where mmseg:: bases live)
from mmext.cli import host_of
from mmext.deploy import deploy
from mmext.surgery import auto_channels, fill_channels

REFCONV = dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))
WIDTHS = [32, 40, 40, 40]
BACKBONE = dict(type='mmext.RDNet', arch=dict(channels=8, growths=(8, 8, 8, 8), halvings=(1, 2, 3)))


def model_of(base, **changes):
    """Return the model of a stock config with a backbone of ours and what else is changed, and set its scope."""
    cfg = Config.fromstring(f'_base_ = {base!r}', '.py')
    init_default_scope(cfg.default_scope)
    model = cfg.model
    model.backbone = ConfigDict(BACKBONE)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    for path, value in changes.items():
        *holders, last = path.split('__')
        node = model
        for name in holders:
            node = node[name]
        node[last] = value
    model.model = f'{cfg.default_scope}.{model.pop("type")}'
    return model


def test_a_detector_with_an_fpn():
    model = model_of(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', neck__in_channels='auto', bbox_head__in_channels='auto'
    )
    net = MODELS.build(ConfigDict(type='mmext.auto_channels', **model))
    assert type(net).__name__ == 'RetinaNet'
    assert net.neck.in_channels == WIDTHS
    assert net.bbox_head.in_channels == 256


def test_a_two_stage_detector_down_to_its_extractor():
    names = ('rpn_head__in_channels', 'roi_head__bbox_head__in_channels', 'roi_head__mask_head__in_channels')
    names += ('neck__in_channels', 'roi_head__bbox_roi_extractor__out_channels')
    model = model_of('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', **dict.fromkeys(names, 'auto'))
    net = auto_channels(**model)
    assert net.neck.in_channels == WIDTHS
    assert net.roi_head.bbox_roi_extractor.out_channels == net.rpn_head.in_channels == 256


def test_a_segmentor_by_in_index():
    model = model_of(
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        decode_head__in_channels='auto',
        auxiliary_head__in_channels='auto',
        auxiliary_head__in_index=1,
        pretrained=None,
    )
    net = auto_channels(**model)
    assert list(net.decode_head.in_channels) == WIDTHS
    assert net.auxiliary_head.in_channels == WIDTHS[1]


def test_a_classifier_behind_its_pooling():
    model = model_of('mmpretrain::resnet/resnet50_8xb32_in1k.py', head__in_channels='auto', backbone__out_indices=(3,))
    assert auto_channels(**model).head.fc.in_features == 40


def test_a_backbone_of_a_host_and_a_query_detector():
    model = model_of('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', neck__in_channels='auto')
    model.backbone = dict(type='ResNet', depth=18, out_indices=(1, 2, 3))
    filled = fill_channels(dict(type=model.pop('model'), **model))
    assert filled['neck']['in_channels'] == [128, 256, 512]


def test_the_random_numbers_go_on_as_without_it():
    base = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    torch.manual_seed(0)
    auto = auto_channels(**model_of(base, neck__in_channels='auto'))
    torch.manual_seed(0)
    plain = model_of(base, neck__in_channels=WIDTHS)
    built = MODELS.build(ConfigDict(type=plain.pop('model'), **plain))
    for a, b in zip(auto.parameters(), built.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_number_for_several_widths_is_refused_with_the_list():
    model = model_of('mmpretrain::resnet/resnet50_8xb32_in1k.py', head__in_channels='auto')
    with pytest.raises(
        ValueError, match=r'cannot choose head\.in_channels: the maps .* have \[32, 40, 40, 40\] channels'
    ):
        auto_channels(**model)


def test_channels_without_a_backbone_are_refused():
    with pytest.raises(ValueError, match=r'no backbone beside a\.in_channels'):
        fill_channels(dict(type='torch.nn.Identity', a=dict(in_channels='auto')))


def test_a_backbone_that_takes_no_small_picture_names_the_remedy():
    model = model_of('mmpretrain::resnet/resnet50_8xb32_in1k.py', head__in_channels='auto')
    model.backbone = dict(type='mmpretrain.VisionTransformer', arch='deit-t', img_size=256, out_type='raw')
    model.neck = None
    model.head.in_channels = 'auto'
    with pytest.raises(ValueError, match=r'name the shape of one that it takes, input_shape=\(C, H, W\)'):
        auto_channels(**dict(model, input_shape=(4, 8, 8)))


def test_the_deployed_config_says_the_numbers():
    """A stock model with channels that were filled in is a stock model again; the numbers stay."""
    model = model_of('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', neck__in_channels='auto')
    model.backbone = ConfigDict(type='mmext.swap_layers', model='mmpretrain.ResNet', depth=18, base_channels=8)
    model.backbone.update(stem_channels=8, out_indices=(0, 1, 2, 3), rules=[REFCONV])
    cfg = dict(type='mmext.auto_channels', **model)
    _, _, deployed, error = deploy(cfg, trained_state(cfg), (64, 64))
    assert error < 1e-4
    assert deployed['neck']['in_channels'] == [8, 16, 32, 64]
    assert deployed['type'] == 'mmdet.RetinaNet'
    assert 'mmext' not in str(deployed)


def test_the_host_of_a_run_is_that_of_the_model_inside():
    cfg = Config(dict(default_scope=None, model=dict(type='mmext.auto_channels', model='mmseg.EncoderDecoder')))
    assert host_of(cfg) == 'mmseg'
