"""Global and cross norm: their definitions in loops, their invariances, precision, and frozen statistics."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer
from torch import nn

from mmext.norms import CrossNorm, GlobalNorm, freeze_stats
from mmext.norms.cross_norm import cross_normalize

NORMS = {
    'global': (GlobalNorm, {}),
    'global-exact': (GlobalNorm, dict(divisor='exact')),
    'cross': (CrossNorm, {}),
    'cross-exact': (CrossNorm, dict(divisor='exact')),
    'cross-var': (CrossNorm, dict(var='cross')),
    'cross-var-exact': (CrossNorm, dict(var='cross', divisor='exact')),
}


def make(case, channels=5):
    cls, kwargs = NORMS[case]
    norm = cls(channels, **kwargs).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def variance(values, divisor):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / divisor


def in_loops(case, x, norm):
    """The definition, entry by entry, in Python's floats."""
    rows, (count, channels) = x.tolist(), x.shape
    everything = [v for row in rows for v in row]
    exact = 'exact' in case
    out = torch.empty_like(x)
    for i in range(count):
        for j in range(channels):
            column = [row[j] for row in rows]
            if case.startswith('global'):
                mean = sum(everything) / len(everything)
                var = variance(everything, len(everything) - (not exact))
            else:
                divisor = count + channels - exact
                mean = (sum(rows[i]) + sum(column) - rows[i][j]) / divisor
                if 'var' in case:
                    squares = sum(v * v for v in rows[i]) + sum(v * v for v in column) - rows[i][j] ** 2
                    var = squares / divisor - mean**2
                else:
                    var = variance(column, count - 1) + variance(rows[i], channels - 1)
            out[i, j] = (rows[i][j] - mean) / (var + norm.eps) ** 0.5 * norm.weight[j] + norm.bias[j]
    return out


@pytest.mark.parametrize('case', NORMS)
def test_equals_the_definition_in_loops(case):
    norm = make(case)
    x = torch.randn(7, 5, dtype=torch.float64) * 3 + 1
    torch.testing.assert_close(norm(x), in_loops(case, x, norm), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('case', NORMS)
def test_derivatives(case):
    norm = make(case)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(norm, {'weight': weight, 'bias': bias}, x)

    inputs = (x, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_blocks_of_rows_change_nothing():
    """More rows than one block holds, against the formula in one piece."""
    norm = make('cross', channels=7)
    x = torch.randn(2**17 // 7 + 11, 7, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    whole = cross_normalize(x, norm.weight, norm.bias, len(x) + 7, norm.eps)
    torch.testing.assert_close(norm(x), whole, rtol=1e-10, atol=1e-10)
    wanted = (x, norm.weight, norm.bias)
    for ours, reference in zip(
        torch.autograd.grad(norm(x), wanted, direction), torch.autograd.grad(whole, wanted, direction), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('case', NORMS)
def test_transforms_of_torch_func_differentiate_it(case):
    """They are how the tangent kernel of a network is computed."""
    norm = make(case)
    x = torch.randn(4, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(norm, x)
    torch.testing.assert_close(torch.func.jacrev(norm)(x), jacobian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.jacfwd(norm)(x), jacobian, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('case', NORMS)
def test_backward_under_autocast_is_in_full_precision(case):
    norm = make(case).float()
    x = torch.randn(50, 5, requires_grad=True)
    (exact,) = torch.autograd.grad(norm(x).square().sum(), x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (low,) = torch.autograd.grad(norm(x).square().sum(), x)
    torch.testing.assert_close(low, exact, rtol=1e-4, atol=1e-5)


def test_global_norm_standardizes_the_whole_tensor():
    x = torch.randn(50, 6, dtype=torch.float64) * 4 - 2
    y = GlobalNorm(6).double()(x)
    var = x.var()
    assert y.mean().abs() < 1e-12
    torch.testing.assert_close(y.var(), var / (var + 1e-5))
    torch.testing.assert_close(GlobalNorm(6).double()(3 * x + 7), y, rtol=0, atol=1e-5)
    exact = GlobalNorm(6, divisor='exact').double()(x)
    torch.testing.assert_close(exact.var(correction=0), torch.ones_like(var), rtol=1e-5, atol=0)


def test_only_the_exact_cross_norm_ignores_a_shift():
    x, shift = torch.randn(16, 28, dtype=torch.float64), 3.0
    exact, official = CrossNorm(28, divisor='exact').double(), CrossNorm(28).double()
    torch.testing.assert_close(exact(x + shift), exact(x), rtol=0, atol=1e-12)
    spread = x.var(0) + x.var(1, keepdim=True)
    expected = shift / (16 + 28) / (spread + official.eps).sqrt()
    torch.testing.assert_close(official(x + shift) - official(x), expected, rtol=1e-9, atol=1e-12)
    constant = official(torch.full_like(x, shift))
    torch.testing.assert_close(constant, torch.full_like(x, 3 / 44 / 1e-5**0.5), rtol=1e-9, atol=0)
    assert constant[0, 0].item() == pytest.approx(21.561, abs=1e-3)


def test_cross_mean_tends_to_the_column_mean():
    distances = []
    for count in (64, 1024, 16384):
        x = torch.randn(count, 28, dtype=torch.float64) + torch.randn(28, dtype=torch.float64)
        mean = (x.sum(1, keepdim=True) + x.sum(0) - x) / (count + 28)
        y = CrossNorm(28).double()(x)
        scale = (x.var(0) + x.var(1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(x - y * scale, mean, rtol=0, atol=1e-10)
        distances.append((x - y * scale - x.mean(0)).abs().mean())
    assert distances[0] > 10 * distances[1] > 100 * distances[2]


@pytest.mark.parametrize('case', NORMS)
def test_state_is_two_parameters_per_channel(case):
    norm = make(case)
    assert list(norm.state_dict()) == ['weight', 'bias']
    assert [p.numel() for p in norm.parameters()] == [5, 5]
    norm.reset_parameters()
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


@pytest.mark.parametrize('case', NORMS)
def test_half_precision_has_float32_statistics(case):
    """A column sum of these inputs is beyond float16."""
    x = torch.rand(4096, 5) * 100 + 20
    norm = make(case).float()
    exact = norm(x.half().float())
    assert not torch.isinf(x.half().float().sum(0)).any()
    assert torch.isinf(x.half().sum(0)).any()
    half = copy.deepcopy(norm).half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=5e-3, atol=5e-3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(norm(x.half().float()), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', NORMS)
def test_frozen_statistics_give_a_subset_the_values_of_the_whole(case):
    norm = make(case)
    x = torch.randn(40, 5, dtype=torch.float64)
    whole = norm(x)
    norm.eval()
    assert torch.equal(norm(x), whole), 'the statistics of the batch until they are frozen'
    assert (norm(x[:10]) - whole[:10]).abs().max() > 1e-3
    freeze_stats(norm, x)
    torch.testing.assert_close(norm(x[:10]), whole[:10], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm(x[3:4]), whole[3:4], rtol=1e-10, atol=1e-10)

    loaded = make(case).eval()
    loaded.load_state_dict(norm.state_dict())
    assert torch.equal(loaded(x[:10]), norm(x[:10]))
    assert torch.equal(copy.deepcopy(norm)(x[:10]), norm(x[:10]))
    loaded.load_state_dict(make(case).state_dict())
    assert not loaded.frozen

    norm.train()
    assert not norm.frozen
    assert torch.equal(norm.eval()(x), whole)


def test_freezing_gives_batch_norms_the_exact_statistics():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    model.train()
    expected = model(x)
    freeze_stats(model, x)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', ['GlobalNorm', 'CrossNorm'])
def test_norm_cfg_of_a_convolutional_network(name):
    cfg = dict(type=f'mmext.{name}', channel_dim=1)
    module = ConvModule(3, 8, 3, padding=1, norm_cfg=cfg)
    x = torch.randn(2, 3, 5, 6)
    maps = module.conv(x)
    rows = build_norm_layer(dict(type=f'mmext.{name}'), 8)[1](maps.movedim(1, -1).reshape(-1, 8))
    torch.testing.assert_close(module(x).movedim(1, -1).reshape(-1, 8), rows.relu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('case', NORMS)
def test_any_layout_is_a_list_of_positions(case):
    norm = make(case)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(norm(x).view(-1, 5), norm(x.view(-1, 5)))
    turned = norm(x.transpose(0, 2).contiguous().transpose(0, 2))
    torch.testing.assert_close(turned, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('case', NORMS)
def test_compiles_and_runs_on_the_meta_device(case):
    norm = make(case)
    x = torch.randn(9, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(norm, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), norm(x), rtol=1e-10, atol=1e-10)
    assert norm.to('meta')(x.to('meta')).shape == x.shape


def test_bad_arguments():
    for cls in (GlobalNorm, CrossNorm):
        with pytest.raises(ValueError, match=f'^{cls.__name__} needs divisor'):
            cls(4, divisor='n')
    with pytest.raises(ValueError, match=r'^CrossNorm needs var'):
        CrossNorm(4, var='mean')
    with pytest.raises(ValueError, match=r'^CrossNorm takes a variance over the channels'):
        CrossNorm(1)
    with pytest.raises(ValueError, match=r'^CrossNorm takes a variance over the positions .*got 1; freeze'):
        CrossNorm(4)(torch.randn(1, 4))
