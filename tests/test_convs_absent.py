"""Hosts whose ``init_weights`` draws every ``nn.Conv2d`` anew run with any layer of the pack, which keeps what it has."""

import copy

import pytest
import torch
from conv_layers import LAYERS, make
from mmengine.model import BaseModule, constant_init, kaiming_init, normal_init
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmext.convs.absent import ForeignWeightError
from mmext.convs.base import ExtConv2d
from mmext.surgery import swap_layers


def own_state(module):
    """Return what belongs to a layer alone: the kernels and biases of plain forms are the host's."""
    convs = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    drawn = {f'{name}.{key}'.lstrip('.') for name in convs for key in ('weight', 'bias')}
    return {key: value.clone() for key, value in module.state_dict().items() if key not in drawn}


def is_same(state, module):
    now = module.state_dict()
    return all(torch.equal(value, now[key]) for key, value in state.items())


class Drawing(BaseModule):
    """The loops of ShuffleNet, PIDNet, Conformer, FCNMaskHead and ATSSVLFusionHead, one after another."""

    def __init__(self, layer):
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(layer), nn.Conv2d(3, 4, 3)])

    def init_weights(self):
        super().init_weights()
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                normal_init(m, mean=0, std=50.0 / m.weight.shape[1])
                kaiming_init(m)
                constant_init(m, 7.0)
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
                nn.init.trunc_normal_(m.weight, std=9.0)
                m.weight.data.fill_(3.0)
                nn.init.uniform_(m.weight.data[:, :1], 4, 5)
                m.weight.data.view(len(m.weight), -1)[0].zero_()


@pytest.mark.parametrize('name', LAYERS)
def test_every_layer_outlives_a_host_that_draws_all_convolutions(name):
    net = Drawing(make(name))
    layer = net.parts[0][0]
    net.init_weights()
    before = own_state(layer)
    net.init_weights()
    assert is_same(before, layer)
    again = copy.deepcopy(net)
    again.init_weights()
    assert is_same(before, again.parts[0][0])
    assert (net.parts[1].weight[1:, 1:] == 3).all()
    assert (net.parts[1].weight[1:, :1] >= 4).all()


def test_a_plain_weight_is_drawn_as_in_the_stock_layer():
    nets = [
        Drawing(kind(8, 8, 3, groups=8)) for kind in (nn.Conv2d, lambda *a, **k: make('DepthwiseConv2d', padding=0))
    ]
    for net in nets:
        net.init_weights()
    states = []
    for net in nets:
        torch.manual_seed(3)
        net.init_weights()
        states.append(net.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_it_says_what_a_weight_would_say_and_refuses_to_be_read():
    layer = make('TuckerConv2d').double()
    weight = layer.weight
    assert weight.shape == (8, 8, 3, 3)
    assert weight.dtype == torch.float64
    assert weight.device == torch.device('cpu')
    assert 'weight' not in layer.state_dict()
    assert layer.to('meta').weight.device.type == 'meta'
    other = torch.empty(8, 8, 3, 3, dtype=torch.float64)
    for read in (weight.sum, weight.data.mean, lambda: other.copy_(weight), weight.clone, lambda: 2 * weight):
        with pytest.raises(ForeignWeightError, match='TuckerConv2d has no weight: it generates its kernel'):
            read()


#: Stock parts that draw ``m.weight`` of all convolutions, small ones.
HOSTS = {
    'mmpretrain': [
        dict(type='ShuffleNetV2', out_indices=(0, 3)),
        dict(type='ShuffleNetV1', groups=3),
        dict(type='Conformer', arch=dict(embed_dims=32, depths=3, num_heads=2, channel_ratio=1), out_indices=2),
    ],
    'mmseg': [dict(type='PIDNet', channels=8, ppm_channels=8, num_stem_blocks=1, num_branch_blocks=1)],
    'mmdet': [
        dict(type='CTResNetNeck', in_channels=16, num_deconv_filters=(8,), num_deconv_kernels=(4,), use_dcn=False)
    ],
}


@pytest.mark.parametrize(('scope', 'cfg'), [(scope, cfg) for scope, cfgs in HOSTS.items() for cfg in cfgs], ids=str)
def test_stock_parts_that_draw_all_convolutions(scope, cfg):
    init_default_scope(scope)
    net = swap_layers(
        copy.deepcopy(cfg), [dict(layer='Conv2d', kernel_size=3, groups=1, to=dict(type='mmext.PHConv2d', n=1))]
    )
    layers = {n: m for n, m in net.named_modules() if isinstance(m, ExtConv2d)}
    assert layers
    net.init_weights()
    before = {name: own_state(layer) for name, layer in layers.items()}
    net.init_weights()  # what mmengine does is done once; the loop of the host runs again
    assert all(is_same(before[name], layer) for name, layer in layers.items())


def test_a_whole_model_initializes_a_part_that_took_the_layer_in_its_slot():
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='ShuffleNetV1', groups=3, conv_cfg=dict(type='mmext.RandomBasisConv2d')),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=960),
        init_cfg=dict(type='Normal', layer='Conv2d', std=100.0),
    )
    model = copy.deepcopy(ROOT_MODELS.build(cfg))
    model.init_weights()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ExtConv2d)}
    assert len(layers) > 30
    assert all(p.abs().max() < 10 for layer in layers.values() for p in layer.parameters())
    model.eval()
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()
