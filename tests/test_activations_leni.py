import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule
from torch import nn

from mmext.activations.leni import LENI, LENIConv
from mmext.folding import fold


def trained(**kwargs) -> LENI:
    """A LENI away from its initial values."""
    return shake(LENI(6, **kwargs), by=0.3)


def with_identity_transform(**kwargs) -> LENI:
    layer = LENI(4, norm_cfg=None, **kwargs)
    nn.init.dirac_(layer.transform.weight, groups=4)
    return layer


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('size', [(5, 7), (1, 1)])
def test_equals_relu_at_init(training, size):
    x = torch.randn(2, 4, *size)
    x[0, 0, 0, 0] = 0
    assert torch.equal(LENI(4).train(training)(x), F.relu(x))


@pytest.mark.parametrize(
    ('init_neg', 'plain'),
    [(-0.25, lambda x: F.leaky_relu(x, 0.25)), (0.0, F.relu), (1.0, torch.abs), (-1.0, lambda x: x)],
)
def test_known_activations_are_special_cases(init_neg, plain):
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(with_identity_transform(init_neg=init_neg)(x), plain(x))


@pytest.mark.parametrize('neg_input', ['rectified', 'negated'])
def test_concat_with_identity_is_crelu(neg_input):
    x = torch.randn(2, 4, 6, 5)
    layer = with_identity_transform(mode='concat', neg_input=neg_input)
    assert torch.equal(layer(x), torch.cat((F.relu(x), F.relu(-x)), 1))
    assert layer.out_channels == 8


def test_positively_homogeneous_without_norm():
    layer = trained(norm_cfg=None)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(3 * x), 3 * layer(x))


def test_parameter_count_is_13_per_channel():
    assert sum(p.numel() for p in LENI(16).parameters()) == 13 * 16
    assert sum(p.numel() for p in LENI(16, norm_cfg=None).parameters()) == 11 * 16


@pytest.mark.parametrize('kwargs', [{}, dict(post_act=False), dict(mode='concat'), dict(t_group_size=3, kernel_size=5)])
def test_fold_equals_eval_mode(kwargs):
    layer = trained(**kwargs).eval()
    x = torch.randn(2, 6, 7, 7)
    expected, state = layer(x), {k: v.clone() for k, v in layer.state_dict().items()}
    folded = layer.fold()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.fold()(x), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items()), 'folding must not change the layer'


@pytest.mark.parametrize('kind', ['mmext.RefConv2d', 'mmext.ATConv2d'])
def test_folds_with_what_surgery_puts_in_the_place_of_its_transform(kind):
    layer = trained()
    layer.transform = build_conv_layer(dict(type=kind), 6, 6, 3, padding=1, groups=6, bias=False)
    model = nn.Sequential(layer)
    x = torch.randn(2, 6, 9, 9)
    model.train()(x)
    expected = model.eval()(x)
    folded = fold(model)
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (kind == 'mmext.ATConv2d'), 'a norm stays behind a layer without a kernel'


@pytest.mark.parametrize('norm_cfg', [dict(type='GN', num_groups=2), dict(type='BN', track_running_stats=False)])
def test_a_norm_that_depends_on_the_input_stays(norm_cfg):
    layer = LENI(6, norm_cfg=norm_cfg).eval()
    assert layer.fold() is layer


def test_learning_starts_through_the_negative_scale():
    layer = LENI(4)
    x = -torch.rand(2, 4, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum() + layer(x).sum(), x, retain_graph=True)
    assert not gradient.any(), 'at init a negative input is as dead as under ReLU'
    layer(x).sum().backward()
    assert layer.neg_scale.grad.abs().sum() > 0
    assert layer.transform.weight.grad is not None
    assert not layer.transform.weight.grad.any()

    alive = with_identity_transform(init_neg=-0.25)
    (gradient,) = torch.autograd.grad(alive(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_gradcheck():
    layer = trained(norm_cfg=None).double()
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    x[x.abs() < 0.05] += 0.1  # away from the kink
    inputs = (x.requires_grad_(), *layer.parameters())
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, inputs)


def test_never_changes_its_input_and_survives_its_host():
    module = ConvModule(3, 4, 3, norm_cfg=dict(type='BN'), act_cfg=dict(type='mmext.LENI', num_channels=4))
    x = torch.randn(1, 4, 5, 5)
    before = x.clone()
    module.activate(x)
    assert torch.equal(x, before)

    class Host(BaseModule):
        def __init__(self):
            super().__init__(
                init_cfg=[dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='BatchNorm2d')]
            )
            self.block = module

    host = Host()
    host.init_weights()
    assert torch.equal(module.activate(x), F.relu(x))


def test_leni_conv_keeps_the_channel_contract():
    layer = LENIConv(3, 8, 3, stride=2, padding=1)
    assert layer(torch.randn(2, 3, 9, 9)).shape == (2, 8, 5, 5)
    assert layer.conv.out_channels == 4
    with pytest.raises(ValueError, match='even'):
        LENIConv(3, 7, 3)


@pytest.mark.parametrize(
    ('kwargs', 'law'),
    [
        (dict(num_channels=None), 'needs num_channels'),
        (dict(kernel_size=4), 'odd kernel_size'),
        (dict(t_group_size=4), 'divide num_channels'),
        (dict(mode='sum'), "'compress' or 'concat'"),
        (dict(neg_input='raw'), "'rectified' or 'negated'"),
    ],
)
def test_bad_arguments(kwargs, law):
    with pytest.raises(ValueError, match=law):
        LENI(**{'num_channels': 6, **kwargs})


def test_one_pixel_of_one_image_has_no_statistics():
    x = torch.randn(1, 6, 1, 1)
    with pytest.raises(
        ValueError, match=r'LENI has batch norms inside.*\(1, 6, 1, 1\); pass norm_cfg=None or a larger batch'
    ):
        LENI(6)(x)
    assert LENI(6, norm_cfg=None)(x).shape == x.shape
    assert LENI(6).eval()(x).shape == x.shape
