"""What every attention module for token grids promises; a new one is tested by being registered."""

import copy

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from registered import ARGUMENTS, COMPONENTS
from torch import nn

from mmext.evolution.gaussian_mixture_attention import GaussianMixtureAttention
from mmext.evolution.gpsa import GPSA
from mmext.evolution.token_attention import TokenAttention

FAMILY = sorted(n for n, c in COMPONENTS.items() if isinstance(c, type) and issubclass(c, TokenAttention))
GRIDS = {'square': ({}, 9), 'class token': (dict(num_extra_tokens=1), 10), 'wide': (dict(grid=(2, 5)), 10)}
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=4, feedforward_channels=32),
    img_size=64,
    drop_path_rate=0.2,
    layer_scale_init_value=0.5,
)


def build(name, **kwargs):
    layer = COMPONENTS[name](**{**ARGUMENTS[name], **kwargs}).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_output_equals_its_attention_matrix_times_the_values(name, grid, batch):
    kwargs, tokens = GRIDS[grid]
    layer = build(name, **kwargs).eval()
    x = torch.randn(batch, tokens, 16, dtype=torch.float64)
    weights = layer.dense_kernel(x)
    assert weights.shape == (batch, 4, tokens, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    expected = layer.proj((weights @ layer.heads(x)[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', FAMILY)
def test_gradcheck(name):
    layer = build(name, num_extra_tokens=1)
    x = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize('name', FAMILY)
def test_dropout_drops_weights_of_the_whole_matrix(name):
    layer = build(name, attn_drop=0.999, qkv_bias=False)
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    assert not torch.allclose(layer(x), layer.eval()(x))
    nn.init.zeros_(layer.proj.bias)
    assert (layer.train()(x).abs().amax(-1) == 0).any()


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize(('grid', 'tokens'), [({}, 8), (dict(num_extra_tokens=1), 9), (dict(grid=(2, 3)), 9), ({}, 0)])
def test_tokens_that_are_no_grid_are_refused_in_one_sentence(name, grid, tokens):
    with pytest.raises(ValueError, match=rf'{name} needs .* got {tokens} tokens; say num_extra_tokens=1 .* grid='):
        build(name, **grid)(torch.randn(1, tokens, 16, dtype=torch.float64))


@pytest.mark.parametrize('name', FAMILY)
def test_heads_that_do_not_divide_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} splits channels into heads'):
        COMPONENTS[name](embed_dims=16, num_heads=3)


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_gives_the_half_type_and_near_values(name, dtype):
    layer = build(name).float().eval()
    x = torch.randn(2, 16, 16)
    with torch.autocast('cpu', dtype):
        out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('class_token', [True, False])
def test_a_stock_vision_transformer_takes_it_by_a_rule(name, class_token):
    rule = dict(layer='MultiheadAttention', first=2, to=dict(type=f'mmext.{name}', num_extra_tokens=int(class_token)))
    args = dict(with_cls_token=class_token, out_type='cls_token' if class_token else 'avg_featmap')
    stock = ROOT_MODELS.build({**VIT, **args})
    model = ROOT_MODELS.build(dict(type='mmext.swap_layers', model={**VIT, **args}, rules=[rule]))
    first, last = model.layers[0].attn, model.layers[2].attn
    assert type(first).__name__ == type(model.layers[1].attn).__name__ == name
    assert type(last).__name__ == 'MultiheadAttention'
    assert model.layers[1].attn.out_drop.drop_prob == pytest.approx(0.1)
    assert first.gamma1.weight.tolist() == [0.5] * 16
    missing = model.load_state_dict(stock.state_dict(), strict=False)
    own = {n for n, _ in build(name).named_parameters()} - {'qkv.weight', 'qkv.bias', 'proj.weight', 'proj.bias'}
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) == {f'layers.{i}.attn.{n}' for i in (0, 1) for n in own}
    before = copy.deepcopy(first.state_dict())
    model.init_weights()
    model.train()
    for size in (64, 96):
        model(torch.randn(2, 3, size, size))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if 'attn' in n)
    assert set(before) == set(first.state_dict())


@pytest.mark.parametrize('name', FAMILY)
def test_another_class_is_refused_in_one_sentence(name):
    rules = [dict(layer='Linear', to=dict(type=f'mmext.{name}'))]
    with pytest.raises(ValueError, match=rf'cannot put {name} in the place of 0, because that Linear does not say'):
        ROOT_MODELS.build(dict(type='mmext.swap_layers', model=nn.Sequential(nn.Linear(4, 4)), rules=rules))


@pytest.mark.parametrize('name', FAMILY)
def test_a_host_that_draws_all_linear_layers_leaves_the_start(name):
    """DeiT's config draws every linear layer; what a module's own start is comes after that."""
    model = ROOT_MODELS.build(
        dict(
            type='mmext.swap_layers',
            model={**VIT, 'init_cfg': dict(type='Constant', layer='Linear', val=7.0)},
            rules=[dict(layer='MultiheadAttention', to=dict(type=f'mmext.{name}', num_extra_tokens=1))],
        )
    )
    model.init_weights()
    assert not any((p == 7).any() for p in model.layers[0].attn.parameters())


def test_gpsa_starts_as_the_taps_of_a_kernel():
    layer = GPSA(16, 4, locality_strength=50.0, qkv_bias=False).double().eval()
    nn.init.constant_(layer.gating_param, 50.0)
    nn.init.eye_(layer.proj.weight)
    x = torch.randn(1, 5, 5, 16, dtype=torch.float64)
    # Four heads are a 2 x 2 kernel whose taps lie between pixels: each looks at four pixels alike.
    weights = layer.dense_kernel(x.flatten(1, 2)).unflatten(2, (5, 5)).unflatten(4, (5, 5))
    for head, (down, right) in enumerate([(-1, -1), (0, -1), (-1, 0), (0, 0)]):
        expected = torch.zeros(5, 5, dtype=torch.float64)
        expected[2 + down : 4 + down, 2 + right : 4 + right] = 0.25
        torch.testing.assert_close(weights[0, head, 2, 2], expected, rtol=1e-6, atol=1e-6)


def test_gpsa_with_a_closed_gate_is_plain_attention():
    layer = GPSA(16, 4, num_extra_tokens=1).eval()
    plain = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        layer.gating_param.fill_(-200.0)
        layer.qkv.weight.normal_()
        plain.in_proj_weight.copy_(layer.qkv.weight)
        plain.in_proj_bias.copy_(layer.qkv.bias)
    plain.out_proj.load_state_dict(layer.proj.state_dict())
    x = torch.randn(2, 10, 16)
    torch.testing.assert_close(layer(x), plain(x, x, x)[0], rtol=1e-5, atol=1e-6)


def test_gaussian_mask_is_symmetric_and_known_on_the_diagonal_at_any_distance():
    layer = GaussianMixtureAttention(16, 4).double()
    mask = layer.mask((20, 30))
    torch.testing.assert_close(mask, mask.mT)
    torch.testing.assert_close(mask[:, 7, 7], layer.alpha.sum(0).flatten())
    with torch.no_grad():
        layer.sigma.fill_(20.0)
        layer.alpha.fill_(0.2)
    far = torch.tensor(-(19.0**2 + 29.0**2) / (2 * (400 + 1e-5)), dtype=torch.float64).exp()
    torch.testing.assert_close(layer.mask((20, 30))[:, 0, -1], far.expand(4))


def test_a_gaussian_of_infinite_width_is_plain_attention():
    layer = GaussianMixtureAttention(16, 4, num_kernels=1, num_extra_tokens=1).double().eval()
    nn.init.ones_(layer.alpha)
    nn.init.constant_(layer.sigma, 1e12)
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    q, k, v = layer.heads(x)
    torch.testing.assert_close(layer.mix(q, k, v, (3, 3)), nn.functional.scaled_dot_product_attention(q, k, v))
