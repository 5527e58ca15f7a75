import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from registered import ARGUMENTS, members
from torch import nn

CONVNEXT = dict(
    type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 10, 1], channels=[8, 8, 8, 8]), gap_before_final_norm=False
)
ADAMW = dict(type='AdamW', lr=0.1, weight_decay=0.05)
OURS = 'mmext.LayerDecayOptimWrapperConstructor'


def options(model, constructor=OURS, **paramwise):
    """Return (lr, weight_decay) of every parameter by name."""
    cfg = dict(constructor=constructor, optimizer=dict(ADAMW), paramwise_cfg=dict(layer_decay_rate=0.8, **paramwise))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    return {names[id(p)]: (g['lr'], g['weight_decay']) for g in groups for p in g['params']}


@pytest.fixture
def classifier():
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', in_channels=8, num_classes=3)
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=CONVNEXT, head=head))


@pytest.mark.parametrize('paramwise', [{}, dict(norm_decay_mult=0.0, flat_decay_mult=0.0, bias_decay_mult=0.0)])
def test_a_classifier_gets_what_the_host_gives(classifier, paramwise):
    theirs = options(classifier, 'mmpretrain.LearningRateDecayOptimWrapperConstructor', **paramwise)
    ours = options(classifier, **paramwise)
    assert set(ours) == set(theirs)
    for name, (lr, decay) in theirs.items():
        assert ours[name] == (pytest.approx(lr), pytest.approx(decay)), name
    assert len({lr for lr, _ in ours.values()}) > 8


@pytest.mark.parametrize(
    'model',
    [
        dict(
            type='mmdet.RetinaNet',
            backbone=dict(CONVNEXT, out_indices=(2, 3)),
            neck=dict(type='mmdet.FPN', in_channels=[8, 8], out_channels=8, num_outs=2),
            bbox_head=dict(type='mmdet.RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
        ),
        dict(
            type='mmseg.EncoderDecoder',
            backbone=CONVNEXT,
            decode_head=dict(type='mmseg.FCNHead', in_channels=8, channels=8, num_classes=2),
            test_cfg=dict(mode='whole'),
        ),
    ],
)
def test_detectors_and_segmentors_get_the_rates_of_a_classifier(classifier, model):
    init_default_scope(model['type'].partition('.')[0])
    ours, known = options(MODELS.build(model)), options(classifier)
    for name, (lr, _) in ours.items():
        # Norms of the outputs are outside of the depths.
        assert lr == pytest.approx(known.get(name, (0.1, 0))[0] if name.startswith('backbone.') else 0.1), name
    assert {lr for lr, _ in known.values()} == {lr for lr, _ in ours.values()}


@pytest.mark.parametrize('name', members('backbones'))
def test_every_backbone_of_the_pack(name):
    model = nn.Module()
    model.backbone = MODELS.build({'type': f'mmext.{name}', **ARGUMENTS.get(name, {})})
    model.head = nn.Linear(2, 2)
    rates = {key: lr for key, (lr, _) in options(model).items()}
    number = model.backbone.get_layer_depth('x')[1]
    assert min(rates.values()) == pytest.approx(0.1 * 0.8 ** (number - 1))
    assert rates['head.weight'] == pytest.approx(0.1)


def test_what_layers_ask_for_is_multiplied():
    model = nn.Module()
    model.backbone = MODELS.build(
        dict(ARGUMENTS['RDNet'], type='mmext.RDNet', conv_cfg=dict(type='mmext.DCLSConv2d', kernel_count=9))
    )
    found = options(model)
    name = 'backbone.stages.0.0.depthwise.'
    assert found[f'{name}P'] == (pytest.approx(5 * found[f'{name}bias'][0]), 0)


def test_frozen_parameters_stay_out(classifier):
    classifier.backbone.downsample_layers[0].requires_grad_(False)
    assert not any('downsample_layers.0' in name for name in options(classifier, norm_decay_mult=0.0))


def test_a_model_without_depths_is_refused():
    with pytest.raises(ValueError, match=r'needs a backbone with get_layer_depth\(\), Linear has none'):
        options(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(), r"with the key 'layer_decay_rate'"),
        (dict(layer_decay_rate=0), '> 0'),
        (dict(layer_decay_rate=1.5), '<= 1'),
        (dict(layer_decay_rate=0.5, decay_type='layer_wise'), 'reads custom_keys, .*, got decay_type'),
    ],
)
def test_bad_options(paramwise, message):
    cfg = dict(constructor=OURS, optimizer=ADAMW, paramwise_cfg=paramwise)
    with pytest.raises(ValueError, match=f'LayerDecayOptimWrapperConstructor.*{message}'):
        build_optim_wrapper(nn.Linear(2, 2), cfg)


def test_a_step_is_that_of_the_rates(classifier):
    cfg = dict(constructor=OURS, optimizer=dict(type='SGD', lr=0.5), paramwise_cfg=dict(layer_decay_rate=0.5))
    wrapper = build_optim_wrapper(classifier, cfg)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    for p in classifier.parameters():
        p.grad = torch.ones_like(p)
    wrapper.step()
    for name, p in classifier.named_parameters():
        depth, number = classifier.backbone.get_layer_depth(name, 'backbone.')
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 0.5 * 0.5 ** (number - 1 - depth)))
