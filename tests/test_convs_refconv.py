import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.refconv import RefConv2d

SHAPES = {  # (in, out, kernel, groups) -> shape of the map, from the definition G = Ci Co / g^2
    'depthwise': ((8, 8, 3, 8), (8, 8, 3, 3)),
    'dense': ((4, 6, 3, 1), (24, 1, 3, 3)),
    'grouped': ((8, 12, 5, 4), (24, 4, 3, 3)),
    'multiplier': ((8, 16, 3, 8), (16, 8, 3, 3)),
}


def make(case: str, **kwargs) -> RefConv2d:
    (inputs, outputs, kernel, groups), _ = SHAPES[case]
    return RefConv2d(inputs, outputs, kernel, groups=groups, padding=kernel // 2, **kwargs)


@pytest.mark.parametrize('case', SHAPES)
def test_starts_exactly_at_the_plain_convolution(case):
    layer = make(case)
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, groups=layer.groups
    )
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, layer.in_channels, 7, 6)
    assert layer.map_weight.shape == SHAPES[case][1]
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.fold().weight, plain.weight)


def test_basis_is_frozen_and_the_map_learns_from_zero():
    layer = make('depthwise')
    assert 'weight' not in dict(layer.named_parameters())
    layer(torch.randn(1, 8, 5, 5)).square().sum().backward()
    assert layer.map_weight.grad.abs().sum() > 0


@pytest.mark.parametrize('case', SHAPES)
def test_kernel_equals_the_definition_in_loops(case):
    layer = make(case, map_init='default').double()
    basis, mapping = layer.weight, layer.map_weight
    slices = basis.reshape(-1, *layer.kernel_size)
    padded = F.pad(slices, (1, 1, 1, 1))
    expected = slices.clone()
    per_group = mapping.shape[1]
    for n in range(len(slices)):
        for j in range(per_group):
            source = padded[n // per_group * per_group + j]
            for u in range(3):
                for v in range(3):
                    kh, kw = layer.kernel_size
                    expected[n] += mapping[n, j, u, v] * source[u : u + kh, v : v + kw]
    torch.testing.assert_close(layer.generate_kernel(), expected.view_as(basis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('case', 'sees_others'), [('dense', False), ('depthwise', True)])
def test_which_slices_see_each_other(case, sees_others):
    layer = make(case, map_init='default')
    before = layer.generate_kernel().flatten(0, 1)
    layer.weight[0, 0] += 1
    changed = (layer.generate_kernel().flatten(0, 1) != before).flatten(1).any(1)
    assert changed[0]
    assert bool(changed[1:].all()) == sees_others
    assert bool(changed[1:].any()) == sees_others


def test_gradcheck_through_the_map():
    layer = make('grouped', map_init='default').double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)

    def run(mapping):
        return torch.func.functional_call(layer, {'map_weight': mapping}, x)

    assert torch.autograd.gradcheck(run, layer.map_weight.detach().requires_grad_(), fast_mode=True)


def test_default_map_initialization_is_the_released_one():
    layer = RefConv2d(64, 64, 3, groups=64, map_init='default')
    bound = (64 * 9) ** -0.5
    assert layer.map_weight.abs().max() <= bound
    assert layer.map_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_pointwise_layers_stay_plain_and_learn():
    layer = RefConv2d(4, 8, 1)
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
    assert layer.state_dict()['weight'].shape == (8, 4, 1, 1)
    plain = nn.Conv2d(4, 8, 1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(plain(x), layer(x))


@pytest.mark.parametrize('kwargs', [dict(map_kernel_size=2), dict(map_kernel_size=5), dict(map_init='ones')])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        RefConv2d(4, 4, 3, **kwargs)


def test_plain_checkpoint_of_a_whole_network_is_the_basis():
    cfg = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    plain, refocused = ROOT_MODELS.build(cfg), ROOT_MODELS.build({**cfg, 'conv_cfg': dict(type='mmext.RefConv2d')})
    missing, unexpected = refocused.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(key.endswith('map_weight') for key in missing)
    x = torch.randn(1, 3, 32, 32)
    plain.eval()
    refocused.eval()
    for a, b in zip(plain(x), refocused(x), strict=True):
        assert torch.equal(a, b)
