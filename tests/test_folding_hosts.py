"""Layers of this pack inside the hosts' own re-parameterized blocks: they fold first, then the host merges its branches."""

import copy

import pytest
import torch
from helpers import shake
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from registered import members

from mmext.contracts import example_of
from mmext.deploy import deploy, leftovers
from mmext.export import max_relative_error, outputs_of
from mmext.folding import fold
from mmext.registry import MODELS

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

#: Small forms of every host backbone that switches, with the names of what only its training form has.
HOSTS = {
    'RepVGG': (
        dict(
            arch=dict(num_blocks=[1, 1, 1, 1], width_factor=[0.25] * 4, group_layer_map=None, se_cfg=None),
            out_indices=(3,),
        ),
        'branch_3x3',
    ),
    'MobileOne': (
        dict(
            arch=dict(
                num_blocks=[1, 1, 1, 1],
                width_factor=[0.25] * 4,
                num_conv_branches=[2, 1, 1, 1],
                num_se_blocks=[0, 0, 0, 1],
            )
        ),
        'branch_conv_list',
    ),
    'RepLKNet': (
        dict(
            arch=dict(
                large_kernel_sizes=[9, 9, 7, 5],
                layers=[1, 1, 1, 1],
                channels=[8, 8, 8, 8],
                small_kernel=5,
                dw_ratio=1,
            )
        ),
        'small_conv',
    ),
    'RIFormer': (
        dict(
            arch=dict(
                layers=[1, 1, 1, 1],
                embed_dims=[8, 8, 8, 8],
                mlp_ratios=[2] * 4,
                layer_scale_init_value=0.1,
            )
        ),
        'token_mixer',
    ),
}
LAYERS = [n for n in members('convs') if n not in ('XNORConv2d', 'PartialConv2d')]
DEPTHWISE = {n for n in LAYERS if example_of(MODELS.get(n)).get('groups', 1) > 1}
#: RepVGG has no depthwise layer.
PLACES = [(host, n) for host in ('RepVGG', 'MobileOne') for n in LAYERS if host == 'MobileOne' or n not in DEPTHWISE]


def shaken(model):
    model = shake(model)
    model.eval()
    return model


def rules_for(name):
    """The layer in every place of a host's block that it takes, of those that its example describes."""
    example = example_of(MODELS.get(name))
    own = {
        k: v for k, v in example.items() if k not in ('in_channels', 'out_channels', 'kernel_size', 'groups', 'stride')
    }
    return [dict(depthwise=name in DEPTHWISE, to=dict(type=f'mmext.{name}', **own))]


@pytest.mark.parametrize(('host', 'name'), PLACES)
def test_layers_inside_a_hosts_block_fold_before_the_host_switches(host, name):
    init_default_scope('mmpretrain')
    cfg = dict(type=host, **HOSTS[host][0])
    model = ROOT_MODELS.build(dict(type='mmext.swap_layers', model=cfg, rules=rules_for(name)))
    before = outputs_of(shaken(model), IMAGES)
    folded = fold(copy.deepcopy(model))
    assert max_relative_error(before, outputs_of(folded, IMAGES)) < 1e-4
    assert max_relative_error(before, outputs_of(fold(folded), IMAGES)) < 1e-4, 'folding twice changes nothing'


@pytest.mark.parametrize('host', HOSTS)
def test_stock_backbones_that_switch_keep_what_they_compute(host):
    init_default_scope('mmpretrain')
    arguments, training_only = HOSTS[host]
    model = shaken(ROOT_MODELS.build(dict(type=host, **arguments)))
    before = outputs_of(model, IMAGES)
    assert any(training_only in n for n, _ in model.named_modules())
    folded = fold(model)
    assert max_relative_error(before, outputs_of(folded, IMAGES)) < 1e-4
    assert not any(training_only in n for n, _ in folded.named_modules())


@pytest.mark.parametrize('slot', [dict(type='mmext.DEConv2d'), dict(type='mmext.RepSO2d', branches=('kxk',))])
def test_the_hosts_own_slot_is_folded_too(slot):
    """A block with ``conv_cfg`` builds what it merges into from the same config, which must then be a plain layer."""
    init_default_scope('mmpretrain')
    model = shaken(ROOT_MODELS.build(dict(type='RepVGG', conv_cfg=slot, **HOSTS['RepVGG'][0])))
    before = outputs_of(model, IMAGES)
    folded = fold(model)
    assert max_relative_error(before, outputs_of(folded, IMAGES)) < 1e-4
    assert not any(type(m).__module__.startswith('mmext.') for m in folded.modules())


def test_a_block_that_cannot_merge_what_is_inside_stays_and_says_so(monkeypatch):
    init_default_scope('mmpretrain')
    lines = []
    monkeypatch.setattr('mmext.folding.print_log', lambda line, *_: lines.append(line))
    for to in (dict(type='mmext.PartialConv2d'), dict(type='mmext.GaussianConv2d')):
        rules = [dict(kernel_size=3, to=to)]
        cfg = dict(type='mmext.swap_layers', model='RepVGG', rules=rules, **HOSTS['RepVGG'][0])
        model = shaken(ROOT_MODELS.build(cfg))
        before = outputs_of(model, IMAGES)
        assert max_relative_error(before, outputs_of(fold(model), IMAGES)) < 1e-5
        assert any('branch_3x3' in n for n, _ in model.named_modules())
        assert lines.pop().startswith('RepVGG keeps its branches, its own switch cannot merge them: ')
    assert not lines


def test_the_function_itself_refuses_what_does_not_compute_the_same(monkeypatch):
    from mmpretrain.models.backbones.repvgg import RepVGGBlock

    init_default_scope('mmpretrain')
    merge = RepVGGBlock.reparameterize
    monkeypatch.setattr(RepVGGBlock, 'reparameterize', lambda self: tuple(1.1 * t for t in merge(self)))
    with pytest.raises(RuntimeError, match=r'the folded model differs from the trained one by .* relative'):
        fold(shaken(ROOT_MODELS.build(dict(type='RepVGG', **HOSTS['RepVGG'][0]))))


@pytest.mark.parametrize('host', ['RepVGG', 'MobileOne'])
@pytest.mark.parametrize('fuse_bn', [False, True])
def test_a_switched_host_is_deployed_into_its_own_config(host, fuse_bn):
    init_default_scope('mmpretrain')
    rules = [dict(kernel_size=3, groups=1, to=dict(type='mmext.DEConv2d'))]
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='mmext.swap_layers', model=host, rules=rules, **HOSTS[host][0]),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=128 if host == 'RepVGG' else 256),
    )
    cfg['head']['in_channels'] = outputs_of(ROOT_MODELS.build(dict(cfg['backbone'])), IMAGES)[-1].shape[1]
    state = shaken(ROOT_MODELS.build(copy.deepcopy(cfg))).state_dict()
    _, _, new_cfg, error = deploy(cfg, state, IMAGES, fuse_bn)
    assert error < 1e-4
    assert leftovers(new_cfg) == []
    assert new_cfg['backbone'] == dict(type=host, deploy=True, **HOSTS[host][0])
