import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

import mmext  # noqa: F401  teaches the config loader where mmseg:: bases live
from mmext.activations.leni import LENI
from mmext.convs.refconv import RefConv2d
from mmext.export import export_onnx
from mmext.folding import fold
from mmext.registry import named
from mmext.surgery import CallSites, distance, merge_swap, swap_layers, undo_swap, verdict
from mmext.surgery.insert import misfit
from mmext.surgery.layout import ChannelsLast, channel_axis

REFCONV = dict(to=dict(type='mmext.RefConv2d'))
LENI_RULE = dict(layer='ReLU', to=dict(type='mmext.LENI'))
RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False)

STOCK = {
    'mmdet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmseg': 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmpretrain': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
}


def swapped(rules, **kwargs):
    return ROOT_MODELS.build(dict(type='mmext.swap_layers', model=RESNET, rules=rules, **kwargs))


@pytest.mark.parametrize('host', STOCK)
def test_a_stock_model_takes_refconv_and_leni_by_config_and_computes_the_same(host):
    cfg = get_config(STOCK[host])
    init_default_scope(host)
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.init_cfg = None
    if host == 'mmseg':
        cfg.model.backbone.norm_cfg.type = cfg.model.decode_head.norm_cfg.type = 'BN'
        cfg.model.auxiliary_head = None
    stock = ROOT_MODELS.build(copy.deepcopy(cfg.model))
    cfg.merge_from_dict(
        {
            'model.backbone.type': 'mmext.swap_layers',
            'model.backbone.model': cfg.model.backbone.type,
            'model.backbone.rules': [dict(kernel_size=3, **REFCONV), LENI_RULE],
        }
    )
    model = ROOT_MODELS.build(cfg.model)
    assert type(model.backbone) is type(stock.backbone)
    stem = 3 if host == 'mmseg' else 0  # ResNetV1c replaces the 7x7 of the stem by three 3x3
    assert sum(isinstance(m, RefConv2d) for m in model.backbone.modules()) == 16 + stem
    assert any(isinstance(m, LENI) for m in model.backbone.modules())

    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected
    new = {f'backbone.{n}.' for n, m in model.backbone.named_modules() if isinstance(m, (RefConv2d, LENI))}
    assert all(any(key.startswith(prefix) for prefix in new) for key in missing)
    x = torch.randn(1, 3, 64, 64)
    stock.eval()
    model.eval()
    for a, b in zip(stock.backbone(x), model.backbone(x), strict=True):
        assert torch.equal(a, b)


def test_shared_relu_gets_one_instance_per_call():
    model = ROOT_MODELS.build(
        dict(
            type='mmext.swap_layers', model=dict(type='mmpretrain.ResNet', depth=50, base_channels=8), rules=[LENI_RULE]
        )
    )
    sites = model.layer2[0].relu
    assert isinstance(sites, CallSites)
    assert [s.num_channels for s in sites] == [16, 16, 64]
    assert isinstance(model.relu, LENI)


def lively(**kwargs):
    """A residual network whose call sites all differ and matter."""
    rules = [dict(layer='ReLU', to=dict(type='mmext.LENI', init_neg=1.0, norm_cfg=None))]
    model = swap_layers(dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8, **kwargs), rules)
    model.eval()
    return shake(model)


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('deployed', [False, True])
def test_threads_that_run_one_model_get_what_each_would_get_alone(deployed):
    model = lively()
    model = fold(model, fuse_bn=True) if deployed else model
    images = [torch.randn(1, 3, 48, 48) for _ in range(4)]
    with torch.no_grad():
        alone = [model(x)[-1] for x in images]

    def work(i):
        with torch.no_grad():
            return sum(not torch.equal(alone[i], model(images[i])[-1]) for _ in range(15))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4


def test_an_interrupted_and_a_nested_forward_leave_nothing_out_of_step():
    model = lively()
    block, x = model.layer1[0], torch.randn(1, 8, 8, 8)
    expected = block(x)
    for wrong in (torch.randn(1, 9, 8, 8), None):
        with pytest.raises((RuntimeError, AttributeError, TypeError)):
            block(wrong)
        assert torch.equal(block(x), expected)
    # Between two of its calls the block runs once more, as a shared block or a recursive one does.

    def once_more(*_):
        handle.remove()
        block(x)

    handle = block.conv2.register_forward_pre_hook(once_more)
    assert torch.equal(block(x), expected)


def test_copies_and_pickles_compute_the_same():
    model = lively()
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)[-1]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x)[-1], expected)
        for parameter in other.parameters():
            parameter.data.zero_()
    assert torch.equal(model(x)[-1], expected), 'a copy shares nothing'
    assert type(model.layer1[0]).__name__ == 'BasicBlock'
    assert isinstance(model.layer1[0], type(ROOT_MODELS.build(dict(type='mmpretrain.ResNet', depth=18)).layer1[0]))


def test_compilers_and_exporters_see_every_call_site(tmp_path):
    model = nn.Sequential(lively().layer2[0])
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
    assert export_onnx(model, x, tmp_path / 'model.onnx') < 1e-5


@pytest.mark.parametrize('reentrant', [False, True])
def test_activation_checkpointing_recomputes_with_the_right_instances(reentrant, monkeypatch):
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        'torch.utils.checkpoint.checkpoint', lambda *args, **_: checkpoint(*args, use_reentrant=reentrant)
    )
    cfg = dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=True)
    rules = [dict(layer='ReLU', to=dict(type='mmext.LENI', norm_cfg=None, init_neg=0.3))]
    plain = swap_layers(dict(cfg), rules)
    checkpointed = swap_layers(dict(cfg, with_cp=True), rules)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for model in (plain, checkpointed):
        model.train()
        for retain in (True, False):
            loss = model(x.clone().requires_grad_())[-1].square().sum()
            if retain:
                loss.backward(retain_graph=True)
            loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize(
    ('rule', 'names'),
    [
        (dict(match=r'layer4\.1\.conv'), ['layer4.1.conv1', 'layer4.1.conv2']),
        (dict(stage=2, stride=2, kernel_size=3), ['layer2.0.conv1']),
        (dict(stage=(3, 4), kernel_size=3, first=1), ['layer3.0.conv1']),
        (dict(kernel_size=(3, 3), stage=1, skip=r'\.1\.'), ['layer1.0.conv1', 'layer1.0.conv2']),
        (dict(kernel_size=7), ['conv1']),
        (dict(groups=1, stage=1, match='0.conv1'), ['layer1.0.conv1']),
    ],
)
def test_rules_choose_layers(rule, names):
    model = swapped([{**rule, **REFCONV}])
    assert [n for n, m in model.named_modules() if isinstance(m, RefConv2d)] == names


def test_depthwise_rule_on_a_stock_mobilenet():
    cfg = dict(type='mmpretrain.MobileNetV2', widen_factor=0.25)
    model = swap_layers(cfg, [dict(depthwise=True, **REFCONV)])
    replaced = [m for m in model.modules() if isinstance(m, RefConv2d)]
    assert len(replaced) == 17
    assert all(m.groups == m.in_channels for m in replaced)


def test_relu6_is_not_mistaken_for_relu_and_conv_modules_need_no_trial_run():
    cfg = dict(type='mmpretrain.MobileNetV2', widen_factor=0.25)
    with pytest.raises(ValueError, match='found no layer'):
        swap_layers(cfg, [LENI_RULE])
    model = swap_layers(cfg, [dict(layer='ReLU6', match='layer1', to=dict(type='mmext.LENI'))])
    assert any(isinstance(m, LENI) for m in model.modules())


def test_an_activation_before_its_convolution_sees_the_input_channels():
    module = ConvModule(4, 8, 3, padding=1, norm_cfg=dict(type='BN'), order=('norm', 'act', 'conv'))
    model = swap_layers(nn.Sequential(module), [LENI_RULE])
    assert model[0].activate.num_channels == 4
    assert model(torch.randn(1, 4, 8, 8)).shape == (1, 8, 8, 8)


def test_layers_that_are_no_convolutions_keep_their_weights_too():
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    norm.running_mean.normal_()
    rule = dict(layer='BatchNorm2d', to=dict(type='BN2d', num_features=4))
    new = swap_layers(nn.Sequential(nn.Conv2d(3, 4, 1), norm), [rule])[1]
    assert new is not norm
    assert all(torch.equal(v, norm.state_dict()[k]) for k, v in new.state_dict().items())


def test_works_on_necks_heads_and_whole_models():
    neck = dict(type='mmdet.FPN', in_channels=[8, 16], out_channels=8, num_outs=2)
    assert isinstance(swap_layers(neck, [dict(match='fpn_convs', **REFCONV)]).fpn_convs[0].conv, RefConv2d)
    init_default_scope('mmdet')
    cfg = get_config(STOCK['mmdet']).model
    cfg.backbone.init_cfg = None
    head = ROOT_MODELS.build(dict(cfg.bbox_head, type='mmext.swap_layers', model='RetinaHead', rules=[LENI_RULE]))
    assert isinstance(head.cls_convs[0].activate, LENI)
    detector = ROOT_MODELS.build(
        dict(cfg, type='mmext.swap_layers', model='RetinaNet', rules=[dict(match='bbox_head.*cls_convs', **REFCONV)])
    )
    assert isinstance(detector.bbox_head.cls_convs[0].conv, RefConv2d)


def test_frozen_stages_freeze_the_new_layers_before_the_optimizer_is_built():
    model = swap_layers(dict(RESNET, frozen_stages=1), [dict(kernel_size=3, **REFCONV), LENI_RULE])
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2.parameters())


def test_weights_of_a_built_model_are_kept_and_init_weights_keeps_the_map():
    plain = ROOT_MODELS.build(RESNET)
    x = torch.randn(1, 3, 32, 32)
    plain.eval()
    expected = plain(x)
    model = swap_layers(plain, [dict(kernel_size=3, **REFCONV)])
    for a, b in zip(model(x), expected, strict=True):
        assert torch.equal(a, b)
    model.init_weights()
    assert not any(m.map_weight.any() for m in model.modules() if isinstance(m, RefConv2d))


def test_a_layer_in_several_places_is_replaced_once():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = swap_layers(nn.Sequential(conv, nn.ReLU(), conv), [dict(match='^2$', **REFCONV)])
    assert isinstance(model[0], RefConv2d)
    assert model[0] is model[2]


def test_log_tells_what_was_replaced(caplog):
    import logging

    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('surgery', logger_name='surgery', log_level='INFO')
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    swapped([dict(kernel_size=7, **REFCONV)])
    assert any(
        'changed ResNet' in r and 'conv1  Conv2d -> RefConv2d' in r and 'checkpoint: exact' in r for r in records
    )


@pytest.mark.parametrize(
    ('rules', 'error', 'message'),
    [
        ([dict(match='layr4.1.conv1', **REFCONV)], ValueError, r"found no layer.*nearest names are \['layer4.1.conv1'"),
        ([dict(kernel_size=5, **REFCONV)], ValueError, "found no layer.*'kernel_size': 5"),
        ([dict(to=dict(type='mmext.LENI'))], ValueError, "layer='ReLU'"),
        (
            [dict(LENI_RULE, layer='MaxPool2d')],
            ValueError,
            r'what keeps the shape, and maxpool .* does not: it makes \(2',
        ),
        ([dict(layer='ReLU', **REFCONV)], ValueError, 'a ReLU does not say in_channels, out_channels, kernel_size'),
        ([dict(regex='conv', **REFCONV)], ValueError, r"rules take \['channel_axis'"),
        ([dict(match='conv')], ValueError, 'needs to=dict'),
        ([dict(match='layer(', **REFCONV)], ValueError, r"regular expression as match, and 'layer\(' is none"),
        ([], ValueError, 'at least one rule'),
        (REFCONV, ValueError, 'needs a list'),
        ([dict(LENI_RULE, layer='Relu')], ValueError, r"no layer of class Relu in ResNet.*\['ReLU'"),
        ([dict(layer='ReLU', to=dict(type='mmext.LENI', mode='concat'))], ValueError, 'turn 8 channels into 16'),
        (
            [dict(to=dict(type='mmext.RefConv2d', map_size=3))],
            ValueError,
            'no argument map_size; it takes .*map_kernel_size',
        ),
        ([dict(to=dict(type='mmext.RefConv'))], KeyError, 'mmext.RefConv2d'),
        (
            [dict(match='^conv1', to=dict(type='mmext.RefConv2d', map_kernel_size=9))],
            ValueError,
            'cannot put .* of conv1',
        ),
    ],
)
def test_bad_rules(rules, error, message):
    with pytest.raises(error, match=message):
        swapped(rules)


def test_a_rule_that_finds_only_layers_that_are_never_called_is_refused():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x):
            return self.conv(x)

    with pytest.raises(ValueError, match=r"replaced nothing in Host: its forward never calls \['unused'\]"):
        swap_layers(Host(), [LENI_RULE])


def test_a_missing_host_is_named(monkeypatch):
    monkeypatch.setattr('mmext.hosts.find_spec', lambda name: None)
    with pytest.raises(
        ImportError, match=r'swap_layers builds mmdet.ResNet, but the package mmdet .* onedl-mmdetection'
    ):
        swapped([dict(kernel_size=7, **REFCONV)])


def test_trial_run_that_fails_says_how_to_help():
    with pytest.raises(ValueError, match='input_shape'):
        swapped([LENI_RULE], input_shape=(5, 32, 32))


def test_a_generated_kernel_starts_as_the_old_one_where_that_has_learned_something():
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    x, kernel = torch.randn(1, 8, 6, 6), plain[0].weight.detach().clone()
    expected = plain(x)
    to = dict(type='mmext.RepSO2d', branches=('kxk',))
    kept = swap_layers(copy.deepcopy(plain), rules=[dict(to=to)]).eval()
    torch.testing.assert_close(kept(x), expected)
    own = swap_layers(copy.deepcopy(plain), rules=[dict(to=to, keep_weights=False)])
    assert not torch.allclose(own[0].fold().weight, kernel)
    fresh = ROOT_MODELS.build(
        dict(type='mmext.RepSO2d', in_channels=8, out_channels=8, kernel_size=3, branches=('kxk',))
    )
    std = fresh.fold().weight.std()
    swapped = swap_layers('ConvModule', rules=[dict(to=to)], in_channels=8, out_channels=8, kernel_size=3)
    assert 0.7 < swapped.conv.fold().weight.std() / std < 1.4, 'a host that was just built has nothing to keep'


def test_an_averaged_copy_and_a_compiled_model_hold_the_new_layers():
    from mmengine.model import ExponentialMovingAverage

    model = swap_layers('mmpretrain.ResNet', rules=[dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))], depth=18)
    averaged = ExponentialMovingAverage(model, momentum=0.5)
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    averaged.update_parameters(model)
    assert sum(isinstance(m, RefConv2d) for m in averaged.modules()) == 16
    assert any(not torch.equal(a, b) for a, b in zip(averaged.module.parameters(), model.parameters(), strict=True))
    x = torch.randn(1, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(compiled(x)[0], model(x)[0])


def test_pretrained_weights_of_the_config_reach_layers_that_keep_no_kernel(tmp_path):
    stock = ROOT_MODELS.build(dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8))
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    model = swap_layers(
        'mmpretrain.ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.RepSO2d', branches=('kxk', '1x1')))],
        depth=18,
        base_channels=8,
        stem_channels=8,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth')),
    )
    model.init_weights()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model.eval()
        stock.eval()  # not chained: mmpretrain's train() returns None
        torch.testing.assert_close(model(x)[0], stock(x)[0], rtol=1e-4, atol=1e-5)


# --- where the channels are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('shapes', 'axis'),
    [
        ([(1, 8, 16, 16), (1, 8, 24, 24)], 1),
        ([(1, 16, 16, 16), (1, 24, 24, 16)], 3),
        ([(1, 17, 192), (1, 37, 192)], 2),
        ([(1, 8, 1, 1), (1, 8, 1, 1)], 1),
        ([(4, 256, 7, 7)], 1),
        ([(4, 7, 7, 256)], 3),
        ([(1, 8)], 1),
        ([(1, 7, 7, 7)], None),
        ([(1, 300, 256)], None),
        ([(1, 8, 16, 16), (1, 16, 8, 8)], None),
        ([(1, 8, 16, 16), (1, 8, 16)], None),
    ],
)
def test_the_axis_of_the_channels_is_the_one_that_stays(shapes, axis):
    assert channel_axis(shapes) == axis


@pytest.mark.parametrize('size', [64, 96, 160])
def test_an_activation_with_the_channels_last_is_transposed(size, tmp_path):
    cfg = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 16, 16]), out_indices=(3,))
    model = swap_layers(cfg, [dict(layer='GELU', first=2, to=dict(type='mmext.LENI', init_neg=1.0))])
    act = model.stages[0][0].act
    assert isinstance(act, ChannelsLast)
    assert act.layer.num_channels == 32
    model.eval()
    shake(model)
    x = torch.randn(2, 3, size, size)
    expected = model(x)[-1]
    torch.testing.assert_close(fold(model)(x)[-1], expected, rtol=1e-4, atol=1e-5)
    assert export_onnx(model, x, tmp_path / 'model.onnx') < 1e-4


def test_tokens_are_refused_by_name_where_a_map_is_needed():
    vit = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64)
    shape = r'given tokens of the shape \(1, 17, 768\): it takes maps, \(N, C, H, W\), and no .*skip='
    with pytest.raises(ValueError, match=rf'place of layers\.0\.ffn\..*{shape}'):
        swap_layers(vit, [dict(layer='GELU', first=1, to=dict(type='mmext.LENI'))])


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def _lawful(x):
    raise ValueError('it needs an even number of rows')


@pytest.mark.parametrize(
    ('layer', 'shape', 'sentence'),
    [
        (ChannelsLast(LENI(8)), (1, 16, 8), 'it takes maps, (N, C, H, W), and no tensors of that many axes'),
        (ChannelsLast(nn.Conv2d(8, 8, 3, padding=1)), (2, 5, 8), 'it takes maps, (N, C, H, W), and no tensors of '),
        (nn.BatchNorm2d(8), (1, 8, 16), 'it takes maps, (N, C, H, W), and no tensors of that many axes'),
        (nn.Sequential(nn.Conv2d(8, 8, 7), nn.Upsample(5)), (1, 8, 5, 5), 'it takes maps of 8 x 8, and none of '),
        (nn.InstanceNorm2d(8), (1, 8, 1, 1), 'it takes maps of 8 x 8, and none of these sizes'),
        (nn.InstanceNorm2d(8), (1, 8, 2, 1), ''),
        (nn.Linear(5, 5), (1, 8, 4, 4), 'its forward raises RuntimeError on them, and on maps of as many channels'),
        (nn.Conv2d(8, 4, 1), (1, 8, 4, 4), 'it makes (2, 4, 4, 4) of (2, 8, 4, 4), which what follows does not '),
        (Applies(_lawful), (1, 8, 5, 5), 'it needs an even number of rows'),
    ],
)
def test_why_a_layer_fails_is_said_in_our_words(layer, shape, sentence):
    said = misfit(layer, [[shape]])
    assert said.startswith(sentence)
    assert bool(said) == bool(sentence)
    assert 'expected' not in said.lower()


def test_an_activation_that_two_modules_hold_is_replaced_where_it_is_called():
    cfg = dict(type='mmseg.MixVisionTransformer', embed_dims=8, num_layers=[1] * 4, num_heads=[1, 2, 4, 8])
    model = swap_layers(cfg, [dict(layer='GELU', to=dict(type='mmext.LENI', init_neg=1.0))])
    ffn = model.layers[0][1][0].ffn
    assert isinstance(ffn.layers[2], LENI)
    assert ffn.layers[2].num_channels == 32
    assert len(model(torch.randn(1, 3, 64, 64))) == 4


def test_calls_in_a_loop_share_a_layer_if_they_see_the_same_channels():
    class Host(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(channels))
            self.act = nn.ReLU()

        def forward(self, x):
            for conv in self.convs:
                x = self.act(conv(x))
            return self.act(x)

    model = swap_layers(Host((3, 8, 8)), [LENI_RULE])
    assert [layer.num_channels for layer in model.act] == [8, 8]
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 8, 8, 8)
    with pytest.raises(
        ValueError, match=r'cannot tell which axis of what act .* shapes \[\(1, 8, 64, 64\), \(1, 4, 64, 64\)'
    ):
        swap_layers(Host((3, 8, 4)), [LENI_RULE])


HEADS = {
    'two stages': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        dict(match='roi_head', layer='ReLU', to=dict(type='PReLU')),
    ),
    'two stages, backbone': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        dict(match='backbone', layer='ReLU', to=dict(type='mmext.LENI')),
    ),
    'mask head': (
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        dict(match='mask_head', layer='ReLU', to=dict(type='mmext.LENI')),
    ),
    'queries': (
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        dict(match='encoder.*ffn', layer='ReLU', to=dict(type='PReLU')),
    ),
}


@pytest.mark.parametrize('name', HEADS)
def test_a_whole_detector_is_tried_with_made_samples(name):
    config, rule = HEADS[name]
    cfg = get_config(config)
    init_default_scope('mmdet')
    cfg.model.backbone.update(init_cfg=None, depth=18 if 'bottleneck' in name else 50, base_channels=4, stem_channels=4)
    cfg.model.neck.in_channels = [16 * 2**i for i in range(len(cfg.model.neck.in_channels))]
    if name == 'queries':
        cfg.model.neck.in_channels = [128]
    model = swap_layers(cfg.model, rules=[rule])
    new = {n for n, m in model.named_modules() if isinstance(m, (LENI, nn.PReLU))}
    assert new
    assert all(any(part in n for part in ('roi_head', 'backbone', 'encoder')) for n in new)


def test_heads_of_vectors_are_tried_alone_and_others_name_what_helps():
    init_default_scope('mmpretrain')
    neck = dict(type='NonLinearNeck', in_channels=16, hid_channels=32, out_channels=8, with_avg_pool=False)
    assert any(
        isinstance(m, nn.PReLU) for m in swap_layers(neck, [dict(layer='ReLU', to=dict(type='PReLU'))]).modules()
    )
    with pytest.raises(ValueError, match=r'given tensors of the shape \(1, 32\).*skip='):
        swap_layers(neck, [LENI_RULE])

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 8, 1), nn.ReLU()

        def forward(self, features, proposals):
            return self.act(self.conv(features))

    with pytest.raises(ValueError, match=r'whole model.* or write num_channels in to'):
        swap_layers(Odd(), [LENI_RULE])
    told = swap_layers(Odd(), [dict(layer='ReLU', channel_axis=1, to=dict(type='mmext.LENI', num_channels=8))])
    assert told(torch.randn(1, 3, 4, 4), None).shape == (1, 8, 4, 4)


# --- rules -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('rule', 'message'),
    [
        (None, 'takes dictionaries as rules'),
        ([REFCONV], 'takes dictionaries as rules'),
        (dict(to=None), 'needs to=dict'),
        (dict(to='mmext.RefConv2d'), 'needs to=dict'),
        *((dict(REFCONV, match=v), 'regular expression in quotes as match') for v in (3, ['a'], b'a')),
        (dict(REFCONV, match='a' * 3 + '('), 'regular expression as match'),
        (dict(REFCONV, skip=3), 'regular expression in quotes as skip'),
        *((dict(REFCONV, kernel_size=v), 'as kernel_size') for v in (3.0, float('nan'), '3', (3, 3, 3), 0, True)),
        *((dict(REFCONV, stage=v), 'as stage') for v in ('1', 1.5, (1, '2'), -1)),
        *((dict(REFCONV, first=v), 'as first') for v in (-1, '2', 1.5, 0)),
        (dict(REFCONV, keep_weights='no'), 'True or False as keep_weights'),
        (dict(REFCONV, groups=1.5), 'as groups'),
        (dict(REFCONV, channel_axis=2), '1 or -1 as channel_axis'),
        *((dict(to=dict(type='mmext.RefConv2d', **{k: 16})), f'another {k}') for k in ('in_channels', 'out_channels')),
        (dict(kernel_size=3, to=dict(type='mmext.RefConv2d', stride=4)), 'another stride .*leave stride out'),
        (
            dict(kernel_size=3, to=dict(type='mmext.RefConv2d', kernel_size=5)),
            '2 and 2 pixels smaller; give the padding',
        ),
        (dict(insert=dict(type='mmext.LENI')), 'one of after, before, around'),
        (dict(insert=dict(type='mmext.LENI'), after='layer1', before='layer1'), 'one of after, before, around'),
        (dict(insert=dict(type='mmext.LENI'), after='layr1'), r"found nothing .*nearest names are \['layer1'"),
        (dict(insert=dict(type='mmext.LENI'), after='layer1', to=1), 'rules take'),
        (dict(insert=dict(type='Conv2d', kernel_size=3), after='layer1'), r'Conv2d after layer1 .*it makes'),
    ],
)
def test_every_malformed_rule_is_one_sentence(rule, message):
    with pytest.raises(ValueError, match=message) as caught:
        swapped([rule])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('model', [None, 3, {}, dict(depth=18), ''])
def test_a_model_that_is_none_is_refused(model):
    with pytest.raises((ValueError, KeyError), match=r"needs model='TypeName'|is not"):
        swap_layers(model, [REFCONV])


@pytest.mark.parametrize('shape', [3, (3, 64), (3, 64, 0), (3, 64, 6.4), 'abc'])
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match=r'takes \(C, H, W\)'):
        swapped([REFCONV], input_shape=shape)


def test_a_rule_whose_layers_are_taken_says_so_and_shows_what_was_written():
    late = dict(match='layer4', kernel_size=3, to=dict(type='mmext.DEConv2d'))
    with pytest.raises(ValueError, match=r'earlier rule.* took all 4 layers .*put the narrower rule first') as caught:
        swapped([dict(kernel_size=3, **REFCONV), late])
    assert 'keep_weights' not in str(caught.value)
    assert sum(type(m).__name__ == 'DEConv2d' for m in swapped([late, dict(kernel_size=3, **REFCONV)]).modules()) == 4


# --- blocks beside what is there -------------------------------------------------------------------------------------------

BRANCH = dict(type='mmext.ParallelBranch', branch=dict(type='Conv2d', kernel_size=3, padding=1))
INSERTIONS = [
    dict(after='layer3', insert=dict(type='mmext.MetaBasicBlock', expansion=1)),
    dict(before='layer2', insert=dict(type='mmext.PartialSO')),
    dict(after=r'layer[14]\.0\.conv1', insert=dict(type='Conv2d', kernel_size=3, padding=1)),
    dict(around=r'layer\d\.1\.conv2', insert=BRANCH),
    dict(after='layer3', insert=dict(type='Conv2d', kernel_size=1)),
    dict(before='relu', insert=dict(type='mmext.LENI', init_neg=0.5)),
]


@pytest.mark.parametrize('rule', INSERTIONS)
def test_a_block_is_inserted_and_everything_else_keeps_name_and_value(rule):
    stock = shake(ROOT_MODELS.build(RESNET))
    stock.eval()
    model = swapped([rule])
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all('inserted_' in key for key in missing)
    assert set(dict(model.named_parameters())) == {k for k in model.state_dict() if k in dict(model.named_parameters())}
    model.eval()
    x = torch.randn(1, 3, 48, 64)
    for a, b in zip(stock(x), model(x), strict=True):
        torch.testing.assert_close(a, b)
    # It learns: the gradient reaches the block, and once it moved the outputs differ.
    sum(y.sum() for y in model(x)).backward()
    assert any(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if 'inserted_' in n and p.grad is not None)
    shake(model)
    expected = model(x)[-1]
    assert not torch.allclose(expected, stock(x)[-1])
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fold(copy.deepcopy(model))):
            torch.testing.assert_close(other(x)[-1], expected, rtol=1e-4, atol=1e-4)
    other = swapped([rule])
    other.load_state_dict(model.state_dict())
    other.eval()
    assert torch.equal(other(x)[-1], expected)


def test_compilers_and_exporters_see_inserted_blocks(tmp_path):
    model = shake(swapped([INSERTIONS[i] for i in (1, 2, 3, 4)]))
    model.eval()
    for part, x in ((model.layer1, torch.randn(1, 8, 8, 8)), (model.layer3, torch.randn(1, 16, 8, 8))):
        with torch.no_grad():
            compiled = torch.compile(part, fullgraph=True, backend='aot_eager')
            torch.testing.assert_close(compiled(x), part(x))
        assert export_onnx(part, x, tmp_path / 'model.onnx') < 1e-4


def test_blocks_may_start_as_they_are_and_stand_behind_a_layer_that_folds():
    own = swapped([dict(after='layer3', identity=False, insert=dict(type='Conv2d', kernel_size=1))])
    assert isinstance(own.layer3.inserted_after, nn.Conv2d)
    assert len(own.layer3) == 2
    assert len(list(own.layer3)) == 2
    both = [
        dict(kernel_size=3, **REFCONV),
        dict(after=r'layer1\.0\.conv1', insert=dict(type='mmext.RefConv2d', kernel_size=3, padding=1)),
    ]
    model = shake(swapped(both))
    model.eval()
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)[-1]
    for fuse in (False, True):
        folded = fold(copy.deepcopy(model), fuse_bn=fuse)
        assert not any(isinstance(m, RefConv2d) for m in folded.modules())
        torch.testing.assert_close(folded(x)[-1], expected, rtol=1e-3, atol=1e-4)


def test_the_fusions_of_the_hosts_do_not_pass_over_a_block():
    from mmcv.cnn import fuse_conv_bn

    model = swapped([dict(after=r'layer1\.0\.conv1', insert=dict(type='Conv2d', kernel_size=1))])
    model.eval()
    model.layer1[0].bn1.running_var.fill_(4.0)
    with pytest.raises(RuntimeError, match=r'has a block of mmext\.swap_layers beside it'):
        fuse_conv_bn(model)
    model.layer1[0].conv1.weight = nn.Parameter(torch.randn_like(model.layer1[0].conv1.weight))


def test_a_swap_is_taken_back_and_made_permanent():
    stock = shake(ROOT_MODELS.build(RESNET))
    stock.eval()
    x = torch.randn(1, 3, 32, 32)
    expected = stock(x)[-1]
    rules = [dict(kernel_size=3, **REFCONV), LENI_RULE, *INSERTIONS[1:4]]
    model = swap_layers(copy.deepcopy(stock), rules)
    undone = undo_swap(copy.deepcopy(model))
    assert list(undone.state_dict()) == list(stock.state_dict())
    assert [type(m) for m in undone.modules()] == [type(m) for m in stock.modules()]
    torch.testing.assert_close(undone(x)[-1], expected)
    with pytest.raises(ValueError, match='undo_swap found nothing'):
        undo_swap(undone)
    shake(model)
    model.eval()
    expected = model(x)[-1]
    merged, stay = merge_swap(model)
    torch.testing.assert_close(merged(x)[-1], expected, rtol=1e-3, atol=1e-3)
    assert any('relu' in name for name in stay)
    assert not any(isinstance(m, RefConv2d) for m in merged.modules())


def test_rules_with_classes_survive_in_a_dumped_config(tmp_path):
    from mmengine.config import Config

    rules = [dict(after='layer3', insert=dict(type=LENI)), dict(kernel_size=3, to=dict(type=RefConv2d))]
    cfg = Config(dict(model=named(dict(type=swap_layers, model=RESNET, rules=rules))))
    cfg.dump(tmp_path / 'cfg.py')
    again = Config.fromfile(tmp_path / 'cfg.py')
    keys = [list(ROOT_MODELS.build(c).state_dict()) for c in (again.model, dict(cfg.model, rules=rules))]
    assert keys[0] == keys[1]


# --- what is taken over ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('to', 'taken'),
    [
        (dict(type='mmext.RefConv2d'), 'exact'),
        (dict(type='mmext.RepSO2d'), 'exact'),
        (dict(type='mmext.OneWayConv2d'), 'none'),
    ],
)
def test_the_log_tells_how_a_checkpoint_is_taken(to, taken, monkeypatch):
    lines = []
    monkeypatch.setattr('mmext.surgery.swap.print_log', lambda text, **_: lines.extend(text.splitlines()))
    swapped([dict(stage=1, kernel_size=3, to=to)])
    found = [line.rpartition(': ')[2] for line in lines[1:]]
    assert len(found) == 4
    assert all(f.startswith(taken) for f in found), found


def test_the_distance_is_that_of_the_outputs_and_changes_nothing():
    old, new = nn.Conv2d(4, 4, 3, padding=1), RefConv2d(4, 4, 3, padding=1)
    before = copy.deepcopy(new.state_dict())
    assert verdict(distance(old, new)) == 'exact'
    assert all(torch.equal(v, before[k]) for k, v in new.state_dict().items())
    assert verdict(distance(nn.ReLU(), LENI(4), (1, 4, 8, 8))) == 'exact'
    assert verdict(distance(nn.GELU(), LENI(4), (1, 4, 8, 8))).startswith('near (0.')
    assert verdict(distance(old, nn.Conv2d(4, 4, 3))) == 'none'


@pytest.mark.parametrize('name', ['RefConv2d', 'DEConv2d', 'WeightedConv2d', 'RepSO2d', 'DilatedReparamConv2d'])
@pytest.mark.parametrize('bias', [True, False])
def test_a_layer_of_a_built_model_that_grows_computes_as_before(name, bias):
    groups = 8 if name in ('RepSO2d', 'DilatedReparamConv2d') else 1
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=bias)).eval()
    x = torch.randn(1, 8, 12, 12)
    y = net(x)
    swap_layers(net, rules=[dict(kernel_size=3, to=dict(type=f'mmext.{name}', kernel_size=5, padding=2))])
    assert net[0].kernel_size == (5, 5)
    torch.testing.assert_close(net.eval()(x), y, rtol=1e-4, atol=1e-5)


def roi_head(bbox_head):
    extractor = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=16,
        featmap_strides=[4, 8, 16, 32],
    )
    sizes = dict(in_channels=16, fc_out_channels=32, roi_feat_size=7, num_classes=5)
    head = dict(sizes, bbox_coder=dict(type='DeltaXYWHBBoxCoder'), loss_cls=dict(type='CrossEntropyLoss'))
    return dict(type='StandardRoIHead', bbox_roi_extractor=extractor, bbox_head={**head, **bbox_head})


def test_a_second_stage_alone_is_tried_with_maps_and_boxes():
    init_default_scope('mmdet')
    leni = dict(layer='ReLU', to=dict(type='mmext.LENI'))
    convs = roi_head(dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=16))
    # As they come, without a word from the module that holds them: the trial must tell the channels.
    head = ROOT_MODELS.build(convs)
    for module in head.bbox_head.shared_convs:
        module.__class__ = type(
            'OwnConvModule', (nn.Module,), dict(forward=lambda self, x: self.activate(self.conv(x)))
        )
    swap_layers(head, rules=[dict(leni, match='convs')])
    assert [m.activate.num_channels for m in head.bbox_head.shared_convs] == [16] * 4
    with pytest.raises(
        ValueError, match=r'LENI in the place of bbox_head\.relu .*given tensors of the shape \(\d+, 32\)'
    ):
        ROOT_MODELS.build(dict(type='mmext.swap_layers', model=roi_head(dict(type='Shared2FCBBoxHead')), rules=[leni]))
