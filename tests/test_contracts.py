"""What every backbone and every activation promises; a new one is tested by being registered."""

import copy
import inspect

import pytest
import torch
from helpers import shake
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from registered import ARGUMENTS, members
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.blocks.squeeze_excite import SqueezeExcite
from mmext.contracts import TakesOneSize
from mmext.convs import RefConv2d

BACKBONES = members('backbones')
# A network of another library is built of that library's own layers.
OF_OUR_LAYERS = [n for n in BACKBONES if 'conv_cfg' in inspect.signature(MODELS.get(f'mmext.{n}')).parameters]
OF_OUR_NORMS = [n for n in BACKBONES if 'norm_cfg' in inspect.signature(MODELS.get(f'mmext.{n}')).parameters]
ACTIVATIONS = [n for n in members('activations') if 'inplace' in inspect.signature(MODELS.get(f'mmext.{n}')).parameters]


def build(name, **kwargs):
    return MODELS.build({'type': f'mmext.{name}', **ARGUMENTS.get(name, {}), **kwargs})


def assert_same(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# --- backbones -----------------------------------------------------------------------------------------------------------


def sizes(name):
    model = build(name)
    return [model.fixed_size] if isinstance(model, TakesOneSize) else [(64, 96), (75, 67)]


@pytest.mark.parametrize(('name', 'size'), [(name, size) for name in BACKBONES for size in sizes(name)])
def test_backbone_tells_its_maps_beforehand(name, size):
    model = build(name).eval()
    channels, strides = model.out_channels, model.out_strides
    with torch.no_grad():
        outs = model(torch.randn(2, 3, *size))
    assert isinstance(outs, tuple)
    assert len(outs) == len(channels) == len(strides) > 1
    for out, width, stride in zip(outs, channels, strides, strict=True):
        assert out.shape[:2] == (2, width)
        for side, whole in zip(out.shape[2:], size, strict=True):
            assert whole // stride <= side <= -(-whole // stride)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_trains_every_parameter_of_the_stages_it_returns(name):
    number = len(build(name).out_strides)
    for out_indices in (tuple(range(number)), (0,), (number - 1,)):
        model = build(name, out_indices=out_indices)
        sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None], out_indices


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_computes_the_same_with_checkpointing(name):
    plain = build(name)
    saving = build(name, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    calls = []
    for module in saving.modules():
        if type(module) is nn.Conv2d or isinstance(module, (RefConv2d, nn.Linear)):
            module.register_forward_hook(lambda *_: calls.append(1))
    outs, others = plain(x), saving(x)
    assert_same(others, outs)
    forward = len(calls)
    sum(out.square().mean() for out in outs).backward()
    sum(out.square().mean() for out in others).backward()
    assert len(calls) > forward, 'nothing was recomputed'
    assert_same([p.grad for p in saving.parameters()], [p.grad for p in plain.parameters()], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_freezes_in_the_constructor_and_in_train(name):
    frozen_counts = []
    for frozen_stages in range(-1, len(build(name).out_strides) + 1):
        model = build(name, frozen_stages=frozen_stages)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        model.train()
        assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
        for module_name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                assert module.training != (f'{module_name}.weight' in frozen), module_name
        depths = {n: model.get_layer_depth(n)[0] for n, _ in model.named_parameters()}
        if frozen and len(frozen) < len(depths):
            assert max(depths[n] for n in frozen) < min(d for n, d in depths.items() if n not in frozen)
        frozen_counts.append(len(frozen))
    assert frozen_counts[0] == 0
    assert frozen_counts == sorted(set(frozen_counts)), 'each further stage freezes more'


@pytest.mark.parametrize('name', OF_OUR_NORMS)
def test_backbone_keeps_its_norms_in_eval_mode_with_norm_eval(name):
    model = build(name, norm_eval=True, norm_cfg=dict(type='BN')).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(m.training for m in norms)
    assert model.training


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_survives_saving_and_copying(name, tmp_path):
    model = shake(build(name), 0.1).eval()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    loaded = build(name).eval()
    loaded.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outs = model(x)
        assert_same(loaded(x), outs, rtol=0, atol=0)
        assert_same(copy.deepcopy(model)(x), outs, rtol=0, atol=0)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_gives_every_parameter_a_depth(name):
    model = build(name)
    last = model.get_layer_depth('head.fc.weight', prefix='backbone.')
    found = set()
    for parameter, _ in model.named_parameters():
        depth, number = model.get_layer_depth(f'backbone.{parameter}', prefix='backbone.')
        assert (depth, number) == model.get_layer_depth(parameter)
        assert number == last[1]
        found.add(depth)
    assert last[0] == last[1] - 1
    assert found | {last[0]} == set(range(last[1])), 'depths count up without a gap'


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_deploys_to_the_same_function(name):
    model = shake(build(name), 0.1).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        model.switch_to_deploy()
        assert_same(model(x), before, rtol=1e-5, atol=1e-8)
        deployed = {n: p.clone() for n, p in model.state_dict().items()}
        model.switch_to_deploy()
    assert_same(model.state_dict().values(), deployed.values(), rtol=0, atol=0)


@pytest.mark.parametrize('name', OF_OUR_LAYERS)
def test_backbone_takes_a_conv_layer_and_an_activation_and_starts_as_the_plain_one(name):
    plain = build(name, act_cfg=dict(type='ReLU')).eval()
    new = build(name, conv_cfg=dict(type='mmext.RefConv2d'), act_cfg=dict(type='mmext.LENI')).eval()
    # The gate of squeeze and excitation has an activation of its own.
    gates = {part for gate in new.modules() if isinstance(gate, SqueezeExcite) for part in gate.modules()}
    kinds = {type(module).__name__ for module in new.modules() if module not in gates}
    assert {'RefConv2d', 'LENI'} <= kinds
    assert 'ReLU' not in kinds
    result = new.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same(new(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_loads_pretrained_weights(name, tmp_path):
    model = shake(build(name), 0.1)
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}}, tmp_path / 'model.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'), prefix='backbone.')
    other = build(name, init_cfg=pretrained)
    other.init_weights()
    assert_same(other.state_dict().values(), model.state_dict().values(), rtol=0, atol=0)


# --- activations ---------------------------------------------------------------------------------------------------------


class Host(BaseModule):
    """A host that draws every convolution anew, as ResNet does."""

    def __init__(self, act_cfg):
        super().__init__(init_cfg=dict(type='Kaiming', layer='Conv2d'))
        self.block = ConvModule(3, 8, 3, padding=1, norm_cfg=dict(type='BN'), act_cfg=act_cfg)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_keeps_its_input_its_shape_and_trains(name):
    layer = shake(build(name, inplace=True), 0.1)
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    given = x.detach().clone()
    y = layer(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert torch.equal(x.detach(), given)
    assert x.grad is not None
    assert not [n for n, p in layer.named_parameters() if p.grad is None]


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_has_the_right_derivative(name):
    layer = shake(build(name), 0.1).double().eval()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    x = torch.where(x.abs() < 0.01, 0.01, x).requires_grad_()  # away from the kink
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_keeps_its_start_inside_a_host(name):
    """The hosts draw nested convolutions anew; what an activation starts as must not hang on one."""
    alone = build(name)
    host = Host(dict(type=f'mmext.{name}', **ARGUMENTS.get(name, {})))
    host.init_weights()
    x = torch.randn(2, 8, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(host.block.activate.eval()(x), alone.eval()(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_runs_in_half_precision(name, dtype):
    layer = shake(build(name), 0.1).eval()
    x = torch.randn(2, 8, 5, 7).to(dtype)
    with torch.no_grad():
        exact = layer(x.float())
        half = layer.to(dtype)(x)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activation_survives_saving_and_copying(name):
    layer = shake(build(name), 0.1).eval()
    loaded = build(name).eval()
    loaded.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 5, 7)
    with torch.no_grad():
        assert_same([loaded(x), copy.deepcopy(layer)(x)], [layer(x)] * 2, rtol=0, atol=0)
