"""How much of a plain layer its successor takes over: measured, and told where a layer that is frozen loses some."""

import copy
import logging

import pytest
import torch
from conv_layers import LAYERS, image, own_arguments
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmext import takeover
from mmext.registry import MODELS as OURS
from mmext.surgery import swap_layers
from mmext.takeover import EXACT

SENTENCE = 'frozen, and not the layer of the checkpoint'


@pytest.fixture
def said(monkeypatch):
    """Return the warnings that are logged."""
    lines = []

    def note(message, logger=None, level=logging.INFO):
        if level >= logging.WARNING:
            lines.append(message)

    monkeypatch.setattr(takeover, 'print_log', note)
    monkeypatch.setattr('mmext.surgery.swap.print_log', note)
    return lines


def built(name, depthwise):
    geometry = dict(kernel_size=3, padding=1, groups=8 if depthwise else 1)
    return OURS.get(name)(8, 8, **geometry, **own_arguments(name)), nn.Conv2d(8, 8, **geometry)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict], ids=['torch', 'mmengine'])
@pytest.mark.parametrize('depthwise', [False, True], ids=['dense', 'depthwise'])
@pytest.mark.parametrize('name', LAYERS)
def test_a_frozen_layer_says_what_it_loses_and_no_other_does(name, depthwise, load, said):
    try:
        layer, plain = built(name, depthwise)
    except (TypeError, ValueError):
        pytest.skip('the layer has no such form')
    learning = copy.deepcopy(layer)
    learning.is_copy = False
    load(learning, plain.state_dict(), strict=False)
    assert not said
    net = nn.Sequential(layer).requires_grad_(False).eval()
    load(net, {f'0.{k}': v for k, v in plain.state_dict().items()}, strict=False)
    x = image()
    with torch.no_grad():
        error = (plain(x) - layer(x)).norm() / plain(x).norm()
    lost = error > EXACT and not (layer.weight_is_kernel and layer.keeps_weight)
    assert len(said) == lost
    assert all(line.startswith('0: ') and SENTENCE in line and name in line for line in said)
    said.clear()
    load(net, net.state_dict(), strict=False)  # its own checkpoint
    assert not said


@pytest.mark.parametrize('how', ['swap_layers', 'conv_cfg'])
def test_a_frozen_stage_is_told_by_name_with_what_was_measured(how, said, tmp_path):
    init_default_scope('mmdet')
    part = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, frozen_stages=1)
    torch.save(dict(state_dict=MODELS.build(part).state_dict()), tmp_path / 'pre.pth')
    part['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'pre.pth'))
    to = dict(type='mmext.OneWayConv2d')
    rules = [dict(kernel_size=3, to=to)]
    cfg = {**part, 'type': 'mmext.swap_layers', 'model': 'ResNet', 'rules': rules}
    net = MODELS.build(cfg if how == 'swap_layers' else {**part, 'conv_cfg': to})
    net.init_weights()
    stem = [] if how == 'swap_layers' else ['conv1']
    names = stem + [f'layer1.{block}.conv{i}' for block in (0, 1) for i in (1, 2)]
    assert [line.partition(':')[0] for line in said] == names
    distances = [float(line.partition('outputs are ')[2].partition(' away')[0]) for line in said]
    assert all(d > 0.3 for d in distances)


def test_the_average_of_a_model_is_no_frozen_model(said):
    net = nn.Sequential(OURS.get('OneWayConv2d')(8, 8, 3, padding=1))
    average = ExponentialMovingAverage(net)
    load_state_dict(average.module, {'0.weight': torch.randn(8, 8, 3, 3)}, strict=False)
    assert not said


def test_a_frozen_activation_that_computes_anew_is_told_when_it_is_built(said):
    init_default_scope('mmdet')
    part = dict(type='mmext.swap_layers', model='ResNet', depth=18, base_channels=8, stem_channels=8)
    rules = [dict(layer='ReLU', match=r'layer[12]\.0', to=dict(type='mmext.LENI', init_neg=1.0))]
    MODELS.build(dict(part, rules=rules))
    assert not said
    MODELS.build(dict(part, rules=rules, frozen_stages=1))
    (line,) = said
    assert line.startswith('layer1.0.relu: frozen from the start')
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    swap_layers(whole, rules=[dict(layer='ReLU', to=dict(type='mmext.LENI', init_neg=1.0))])
    assert len(said) == 1


def test_an_activation_that_works_in_place_does_not_change_what_it_is_compared_on():
    assert takeover.distance(nn.ReLU(inplace=True), nn.Identity(), (1, 8, 4, 4)) > 0.5
