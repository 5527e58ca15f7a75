"""FalconNet: architecture, the backbone contract, refocusing, deployment, and its shipped configs in stock models."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import shake_norms
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

import mmext  # noqa: F401 - teaches the config loader its scopes
from mmext.backbones import FalconNet
from mmext.blocks import LIGHT_BLOCKS
from mmext.convs import RefConv2d, RepSO2d
from mmext.folding import fold

CONFIGS = Path(__file__).parents[1] / 'configs' / 'falconnet'
TINY = dict(depths=(1, 1, 2, 1), channels=(16, 16, 32, 32))
PLAIN = dict(type='mmext.MetaLightBlock', spatial=dict(type='Conv2d'))


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- architecture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((200, 333), [(50, 84), (25, 42), (13, 21), (7, 11)]),
        ((333, 501), [(84, 126), (42, 63), (21, 32), (11, 16)]),
        ((5, 1), [(2, 1), (1, 1), (1, 1), (1, 1)]),
        ((29, 31), [(8, 8), (4, 4), (2, 2), (1, 1)]),
    ],
)
def test_maps_at_any_size(size, expected):
    model = FalconNet().eval()
    outs = model(torch.randn(1, 3, *size))
    assert isinstance(outs, tuple)
    assert [tuple(o.shape[1:]) for o in outs] == [(c, *s) for c, s in zip((32, 64, 128, 256), expected, strict=True)]
    assert model.out_channels == (32, 64, 128, 256)
    assert model.out_strides == (4, 8, 16, 32)


def test_fixed_parts():
    """Regression values of this implementation, not of the paper."""
    model = FalconNet(head_channels=1280)
    assert count(model.stem) == 2720
    assert sum(count(stage.subsample) for stage in model.stages[1:]) == 2688
    assert count(model.head) + count(nn.Linear(1280, 1000)) == 1_611_240


def classifier_cost(expansion, groups, spatial, head_channels=1280):
    """Parameters, and multiplications of the convolutions and the classifier at 224 x 224, for 1000 classes."""
    block = dict(
        type='mmext.MetaLightBlock',
        expansion=expansion,
        spatial=spatial,
        channel=dict(type='mmext.RefCO', groups=groups),
    )
    with torch.device('meta'):
        model = FalconNet(block=block, head_channels=head_channels, out_indices=-1).eval()
        classifier = nn.Linear(model.out_channels[-1], 1000)
        macs = [classifier.weight.numel()]

        def add(conv, _, out):
            macs.append(conv.weight.numel() * out.shape[-2:].numel())

        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(add)
        model(torch.empty(1, 3, 224, 224))
    return count(model) + count(classifier), sum(macs)


@pytest.mark.parametrize(
    ('expansion', 'groups', 'params', 'mega_macs'),
    [
        (2, 1, 3_116_168, 290.0),
        (3, 2, 2_785_448, 238.6),
        (4, 1, 4_611_272, 534.0),
        (4, 4, 2_454_728, 187.2),
        (4, 8, 2_095_304, 129.4),
        (6, 2, 3_949_832, 431.3),
        (6, 8, 2_332_424, 171.2),
    ],
)
def test_cost_of_expansions_and_groups(expansion, groups, params, mega_macs):
    """Regression values of this implementation with a plain spatial operator, not of the paper."""
    measured, macs = classifier_cost(expansion, groups, dict(type='Conv2d'))
    assert measured == params
    assert macs / 1e6 == pytest.approx(mega_macs, abs=0.06)


def test_cost_of_heads_and_spatial_operators():
    """Regression values of this implementation at expansion 4 and dense channel operators, not of the paper."""
    plain = dict(type='Conv2d')
    heads = [classifier_cost(4, 1, plain, head)[0] for head in (None, 512, 1024)]
    assert heads == [3_257_032, 3_645_128, 4_289_224]
    params, macs = classifier_cost(4, 1, None)
    assert params == 4_514_120
    assert macs / 1e6 == pytest.approx(508.3, abs=0.06)
    branched = FalconNet(block=dict(type='mmext.MetaLightBlock', channel=dict(type='Conv2d')), head_channels=1280)
    assert count(branched) + count(nn.Linear(1280, 1000)) == 4_655_432


def test_subsampling_keeps_channels_apart():
    conv = FalconNet().stages[1].subsample.conv
    assert conv.weight.shape == (64, 1, 2, 2)
    x = torch.zeros(1, 32, 4, 4)
    x[:, 5] = 1
    assert conv(x).abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [10, 11]


def test_stem_shortcut_is_where_it_says():
    x = torch.randn(1, 3, 32, 32)
    model = FalconNet(arch=TINY).eval()
    stem = model.stem
    first = stem.conv(x)
    middle = stem.pointwise(stem.depthwise(first))
    assert torch.equal(stem(x), stem.subsample(first + middle))
    stem.shortcut = FalconNet(arch=TINY, stem_shortcut=False).stem.shortcut
    assert torch.equal(stem(x), stem.subsample(middle))


# --- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('block', ['falconnet', *LIGHT_BLOCKS])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (0, 2)])
def test_every_parameter_gets_a_gradient(block, out_indices):
    model = FalconNet(
        arch=TINY, block=LIGHT_BLOCKS.get(block, dict(type='mmext.MetaLightBlock')), out_indices=out_indices
    )
    outs = model(torch.randn(4, 3, 64, 61))
    sum(o.square().mean() for o in outs).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    # A parameter whose effect a following batch norm of the same batch removes has a zero gradient by right.
    dead = [name for name, p in model.named_parameters() if p.dim() == 4 and not p.grad.any()]
    assert not dead


def test_blocks_by_name_by_config_and_per_stage():
    model = FalconNet(arch=TINY, block=['convnext', PLAIN, PLAIN, 'mobilenet_v2'])
    assert model.stages[0].blocks[0].operators.so1.conv.kernel_size == (7, 7)
    assert model.stages[3].blocks[0].operators.so2.conv.in_channels == 6 * 32
    groups = [dict(type='mmext.MetaLightBlock', channel=dict(type='mmext.RefCO', groups=g)) for g in (2, 4, (4, 8), 8)]
    model = FalconNet(arch=TINY, block=groups)
    assert model.stages[2].blocks[1].operators.co2.pointwise.conv.groups == 8


def test_out_indices_are_resolved_on_a_copy():
    given = [-3, -1]
    model = FalconNet(arch=TINY, out_indices=given)
    assert given == [-3, -1]
    assert model.out_indices == (1, 3)
    assert model.out_channels == (16, 32)
    assert model.out_strides == (8, 32)
    assert [o.shape[-1] for o in model(torch.randn(1, 3, 64, 64))] == [8, 2]
    assert FalconNet(arch=TINY, out_indices=-1).out_indices == (3,)


def test_stages_that_nobody_asked_for_are_not_built():
    model = FalconNet(arch=TINY, out_indices=(0, 1))
    assert len(model.stages) == 2
    assert model(torch.randn(1, 3, 16, 16))[1].shape == (1, 16, 2, 2)


def test_head_is_on_the_last_map_only():
    model = FalconNet(arch=TINY, head_channels=48)
    assert model.out_channels == (16, 16, 32, 48)
    assert [o.shape[1] for o in model(torch.randn(2, 3, 64, 64))] == [16, 16, 32, 48]


def test_outputs_are_normed_behind_the_head():
    plain = FalconNet(arch=TINY, head_channels=48).eval()
    normed = FalconNet(arch=TINY, head_channels=48, out_norm=dict(type='GN', num_groups=1)).eval()
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    assert normed.out_channels == plain.out_channels
    for a, b in zip(normed(x), plain(x), strict=True):
        torch.testing.assert_close(a, nn.functional.group_norm(b, 1))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_freezing_holds_through_train(frozen_stages):
    model = FalconNet(arch=TINY, frozen_stages=frozen_stages)
    parts = [model.stem, *model.stages]
    for _ in range(2):
        for i, part in enumerate(parts):
            frozen = i <= frozen_stages
            assert all(p.requires_grad != frozen for p in part.parameters())
            assert all(m.training != frozen for m in part.modules())
        model.train()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert ('stem' in changed) == (frozen_stages < 0)


def test_norm_eval_keeps_statistics():
    model = FalconNet(arch=TINY, norm_eval=True).train()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_drop_path_rises_linearly():
    model = FalconNet(arch=TINY, drop_path_rate=0.4)
    rates = [b.drop_path.drop_prob for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    partial = FalconNet(arch=TINY, drop_path_rate=0.4, out_indices=(0, 1))
    assert [b.drop_path.drop_prob for stage in partial.stages for b in stage.blocks] == pytest.approx([0, 0.1])


def test_checkpointing_computes_the_same():
    plain, cheap = FalconNet(arch=TINY), FalconNet(arch=TINY, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, cheap):
        sum(o.square().mean() for o in model(x)).backward()
    grads = [{k: p.grad for k, p in m.named_parameters()} for m in (plain, cheap)]
    torch.testing.assert_close(*grads)


def test_layer_depth():
    model = FalconNet(arch=TINY)
    depth = model.get_layer_depth
    assert depth('stem.conv.conv.weight') == (0, 7)
    assert depth('stages.0.blocks.0.operators.co1.pointwise.conv.weight') == (1, 7)
    assert depth('backbone.stages.2.subsample.conv.weight', 'backbone.') == (3, 7)
    assert depth('backbone.stages.2.blocks.1.operators.co2.pointwise.bn.bias', 'backbone.') == (4, 7)
    assert depth('backbone.stages.3.blocks.0.operators.co1.pointwise.conv.weight', 'backbone.') == (5, 7)
    assert depth('backbone.head.conv.weight', 'backbone.') == (6, 7)
    assert depth('head.fc.weight', 'backbone.') == (6, 7)
    names = [n for n, _ in model.named_parameters()]
    assert [depth(n)[0] for n in names] == sorted(depth(n)[0] for n in names)


def test_init_weights_keeps_special_layers_and_loads_pretrained(tmp_path):
    kaiming = [dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', layer='BatchNorm2d', val=1)]
    model = FalconNet(arch=TINY, act_cfg=dict(type='mmext.LENI'), init_cfg=kaiming)
    so = model.stages[0].blocks[0].operators.so2.conv
    kernel = so.branches[0].weight.detach().clone()
    model.init_weights()
    assert torch.equal(so.branches[0].weight, kernel)
    assert (model.stem.conv.activate.neg_scale == 0).all()

    torch.save({'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}}, tmp_path / 'net.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'net.pth'), prefix='backbone.')
    other = FalconNet(arch=TINY, act_cfg=dict(type='mmext.LENI'), init_cfg=pretrained)
    other.init_weights()
    x = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_activation_that_counts_channels_is_relu_at_first():
    leni, relu = FalconNet(arch=TINY, act_cfg=dict(type='mmext.LENI')), FalconNet(arch=TINY)
    leni.load_state_dict(relu.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(leni.eval()(x), relu.eval()(x))


# --- refocusing and deployment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('block', [PLAIN, *LIGHT_BLOCKS], ids=str)
def test_a_plain_network_is_the_basis_of_its_refocused_one(block, tmp_path):
    plain = shake_norms(FalconNet(arch=TINY, block=block))
    refocused = FalconNet(arch=TINY, block=block, conv_cfg=dict(type='mmext.RefConv2d'))
    extra = set(refocused.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(refocused.state_dict())
    assert extra
    assert all(key.endswith('.map_weight') for key in extra)
    torch.save(plain.state_dict(), tmp_path / 'stage1.pth')
    load_checkpoint(refocused, str(tmp_path / 'stage1.pth'), map_location='cpu')
    x = torch.randn(2, 3, 48, 48)
    expected = plain.eval()(x)
    torch.testing.assert_close(refocused.eval()(x), expected)

    for m in refocused.modules():
        if isinstance(m, RefConv2d):
            nn.init.normal_(m.map_weight, std=0.1)
    moved = refocused.eval()(x)
    assert not torch.allclose(moved[0], expected[0], atol=1e-3)
    refocused.switch_to_deploy()
    torch.testing.assert_close(refocused(x), moved, atol=1e-4, rtol=1e-4)
    assert set(refocused.state_dict()) == set(plain.state_dict())
    plain.load_state_dict(refocused.state_dict())


def test_conv_cfg_reaches_spatial_convolutions_only():
    model = FalconNet(arch=TINY, block=PLAIN, conv_cfg=dict(type='mmext.RefConv2d'), head_channels=64)
    refocused = [n for n, m in model.named_modules() if isinstance(m, RefConv2d)]
    assert len(refocused) == 3 + 5
    kept = [m.kernel_size for m in model.modules() if type(m) is nn.Conv2d]
    assert set(kept) == {(1, 1), (2, 2)}
    default = FalconNet(arch=TINY, conv_cfg=dict(type='mmext.RefConv2d'))
    assert sum(isinstance(m, RefConv2d) for m in default.modules()) == 3
    assert sum(isinstance(m, RepSO2d) for m in default.modules()) == 5


@pytest.mark.parametrize('fuse_bn', [False, True])
def test_deployed_network_computes_the_same(fuse_bn):
    model = shake_norms(FalconNet(arch=TINY, head_channels=24)).eval()
    x = torch.randn(2, 3, 50, 45)
    before = model(x)
    if fuse_bn:
        fold(model, fuse_bn=True)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    else:
        model.switch_to_deploy()
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    so = model.stages[0].blocks[0].operators.so2
    assert so.conv.bias is not None
    assert not so.with_norm
    keys = set(model.state_dict())
    model.switch_to_deploy()
    assert set(model.state_dict()) == keys
    twin = FalconNet(arch=TINY, head_channels=24).eval()
    fold(twin, fuse_bn=fuse_bn).load_state_dict(model.state_dict())
    assert torch.equal(twin(x)[-1], model(x)[-1])


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), r"knows the archs \['base'\], got 'huge'"),
        (dict(arch=dict(depths=(1, 1))), r"needs arch=dict\(depths=..., channels=...\), got the keys \['depths'\]"),
        (dict(arch=dict(depths=(1, 1), channels=(8,))), 'one width per stage'),
        (dict(arch=dict(depths=(1, 0), channels=(8, 8))), 'depths as a sequence .each an integer >= 1'),
        (dict(arch=dict(depths=(1, 1), channels=(16, 24))), 'multiple of the one before'),
        (dict(arch=dict(depths=(1, 1.5), channels=(8, 8))), r'FalconNet needs depths as .*, got depths=\(1, 1.5\)'),
        (dict(arch=dict(depths=(1, 10**9), channels=(8, 8))), 'FalconNet needs depths as .* <= 4096'),
        (dict(arch=dict(depths=None, channels=(8, 8))), 'FalconNet needs depths as a sequence'),
        (dict(arch=dict(depths=(1, 1), channels='ab')), "FalconNet needs channels as a sequence .*, got channels='ab'"),
        (dict(arch={1: 2}), 'FalconNet needs arch=dict'),
        (dict(out_indices=(0, 4)), r'out_indices within its 4 stages, got \(0, 4\)'),
        (dict(out_indices=()), 'within its 4 stages'),
        (dict(out_indices=(2, 1)), 'ascending out_indices'),
        (dict(out_indices=(3, -1)), 'ascending out_indices'),
        (dict(frozen_stages=5), 'frozen_stages from -1 to 4'),
        (dict(out_indices=1, frozen_stages=3), 'frozen_stages from -1 to 2'),
        (dict(out_indices=1, head_channels=64), 'add it to out_indices or drop head_channels'),
        (dict(block='resnet'), "knows the blocks .*'convnext'.*got 'resnet'"),
        (dict(block=['convnext'] * 3), 'one block or one per stage, got 3 for 4'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FalconNet(**arguments)


@pytest.mark.parametrize('deployed', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_torch_fx_traces_it_for_every_size(training, deployed):
    model = FalconNet(arch=TINY).train(training)
    model = fold(model) if deployed else model
    traced = torch.fx.symbolic_trace(model)
    for size in ((64, 28), (75, 67)):
        x = torch.randn(2, 3, *size)
        for ours, theirs in zip(traced(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('size', [(333, 501), (75, 67)])
def test_a_path_aggregation_pyramid_fits_behind_it_at_odd_sizes(size):
    neck = ROOT_MODELS.build(dict(type='mmdet.PAFPN', in_channels=[16, 16, 32, 32], out_channels=8, num_outs=4))
    with torch.no_grad():
        outs = neck(FalconNet(arch=TINY).eval()(torch.randn(1, 3, *size)))
    assert [tuple(out.shape[2:]) for out in outs] == [
        tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)
    ]


# --- shipped configs -----------------------------------------------------------------------------------------------------

HOSTS = [
    ('cls/falconnet_8xb128_in1k.py', 'mmpretrain'),
    ('det/retinanet_falconnet_fpn_1x_coco.py', 'mmdet'),
    ('seg/falconnet_upernet_8xb2-80k_ade20k-512x512.py', 'mmseg'),
]


def build_host(path, scope):
    cfg = Config.fromfile(CONFIGS / path)
    assert cfg.default_scope == scope
    DefaultScope.get_instance('test', scope_name=scope)
    return ROOT_MODELS.build(revert_sync(cfg.model))


def revert_sync(cfg):
    """SyncBN does not run without a process group."""
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            cfg[key] = 'BN' if value == 'SyncBN' else revert_sync(value)
    elif isinstance(cfg, (list, tuple)):
        return type(cfg)(revert_sync(v) for v in cfg)
    return cfg


@pytest.mark.parametrize(('path', 'scope'), HOSTS)
def test_config_builds_offline_and_folds(path, scope):
    model = build_host(path, scope)
    assert isinstance(model.backbone, FalconNet)
    model.init_weights()
    x = torch.randn(1, 3, 75, 66)
    shake_norms(model.backbone)
    model.eval()
    before = model.extract_feat(x)
    model.backbone.switch_to_deploy()
    torch.testing.assert_close(model.extract_feat(x), before, atol=1e-4, rtol=1e-3)
    assert not any(isinstance(m, RepSO2d) for m in model.modules())


def test_a_stock_detector_trains_every_parameter():
    from mmdet.testing import demo_mm_inputs

    model = build_host('det/retinanet_falconnet_fpn_1x_coco.py', 'mmdet')
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 101, 90], [3, 80, 96]]), training=True)
    losses = model(**data, mode='loss')
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
