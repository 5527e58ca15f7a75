import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

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
from mmext.surgery import CallSites, swap_layers

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
    model = lively()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)[-1]
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(compiled(x)[-1], expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x)[-1], expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x)[-1], expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(x)[-1], expected)
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
    assert any('replaced 1 layers of ResNet' in r and 'conv1  Conv2d -> RefConv2d' in r for r in records)


@pytest.mark.parametrize(
    ('rules', 'error', 'message'),
    [
        ([dict(match='layr4.1.conv1', **REFCONV)], ValueError, r"found no layer.*nearest names are \['layer4.1.conv1'"),
        ([dict(kernel_size=5, **REFCONV)], ValueError, "found no layer.*'kernel_size': 5"),
        ([dict(to=dict(type='mmext.LENI'))], ValueError, "layer='ReLU'"),
        ([dict(regex='conv', **REFCONV)], ValueError, r"rules take \['depthwise'"),
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
