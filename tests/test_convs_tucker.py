import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.tucker import TuckerConv2d, hosvd
from mmext.folding import fold

FULL = (6, 4, 3, 3)


def rebuild(core, factors):
    """Sum over all four ranks, one term at a time."""
    kernel = torch.zeros([len(f) for f in factors], dtype=core.dtype)
    out, into, rows, cols = factors
    for a in range(core.shape[0]):
        for b in range(core.shape[1]):
            for c in range(core.shape[2]):
                for d in range(core.shape[3]):
                    outer = out[:, a, None, None, None] * into[:, b, None, None]
                    kernel += core[a, b, c, d] * outer * rows[:, c, None] * cols[:, d]
    return kernel


@pytest.mark.parametrize('rank', [(3, 2), (4, 3, 2, 1), FULL])
def test_kernel_equals_the_definition_in_loops(rank):
    layer = TuckerConv2d(4, 6, 3, rank=rank).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    kernel = layer.generate_kernel()
    torch.testing.assert_close(kernel, rebuild(layer.core, layer.factors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('rank', [(3, 2), (4, 3, 2, 1)])
def test_parameters_are_counted_by_the_formula(rank):
    layer = TuckerConv2d(4, 6, (3, 5), rank=rank, bias=False)
    r1, r2, r3, r4 = (*rank, 3, 5)[:4]
    assert sum(p.numel() for p in layer.parameters()) == r1 * r2 * r3 * r4 + 6 * r1 + 4 * r2 + 3 * r3 + 5 * r4


def test_full_rank_takes_any_kernel_exactly():
    layer, plain = TuckerConv2d(4, 6, 3, padding=1, ratio=1.0).double(), nn.Conv2d(4, 6, 3, padding=1).double()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_kernel_of_the_layers_rank_is_taken_exactly_and_another_with_the_error_of_what_was_cut():
    core = torch.randn(2, 3, 2, 3).double()
    factors = [torch.randn(n, r).double() for n, r in zip((6, 5, 3, 3), core.shape, strict=True)]
    kernel = rebuild(core, factors)
    layer = TuckerConv2d(5, 6, 3, rank=(2, 3, 2, 3)).double()
    layer.load_kernel(kernel)
    torch.testing.assert_close(layer.generate_kernel(), kernel, rtol=1e-10, atol=1e-10)

    kernel = torch.randn(6, 5, 3, 3).double()
    layer = TuckerConv2d(5, 6, 3, rank=(2, 5)).double()
    layer.load_kernel(kernel)
    cut = torch.linalg.svdvals(kernel.flatten(1))[2:]
    error = (layer.generate_kernel() - kernel).norm()
    torch.testing.assert_close(error, cut.norm(), rtol=1e-10, atol=0)


def test_decomposition_has_orthonormal_factors_and_keeps_the_best_of_each_mode():
    kernel = torch.randn(8, 6, 3, 3).double()
    core, factors = hosvd(kernel, (4, 3, 3, 2))
    assert core.shape == (4, 3, 3, 2)
    for mode, factor in enumerate(factors):
        torch.testing.assert_close(factor.t() @ factor, torch.eye(factor.shape[1]).double())
        unfolded = kernel.movedim(mode, 0).flatten(1)
        kept = torch.linalg.svdvals(unfolded)[: factor.shape[1]].norm()
        torch.testing.assert_close((factor.t() @ unfolded).norm(), kept)


def test_initialization_is_orthonormal_with_the_variance_of_kaiming():
    layer = TuckerConv2d(64, 96, 3)
    assert layer.rank == (48, 32, 3, 3)
    for factor in layer.factors:
        torch.testing.assert_close(factor.t() @ factor, torch.eye(factor.shape[1]), rtol=0, atol=1e-5)
    assert layer.generate_kernel().var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert not layer.bias.any()
    before = layer.core.detach().clone()
    layer.init_weights()
    assert not torch.equal(layer.core, before)


@pytest.mark.parametrize(
    'kwargs', [dict(), dict(stride=2, padding=1), dict(padding='same'), dict(padding=2, dilation=2)]
)
@pytest.mark.parametrize('mode', ['zeros', 'circular'])
@pytest.mark.parametrize('training', [True, False])
def test_steps_compute_what_the_whole_kernel_does(kwargs, mode, training):
    layer = TuckerConv2d(8, 12, 3, ratio=0.25, padding_mode=mode, **kwargs).double().train(training)
    assert not layer.fold_in_deploy, 'this rank must be cheaper in steps'
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 9, 8).double()
    torch.testing.assert_close(layer(x), layer.fold()(x), rtol=1e-12, atol=1e-12)


def test_only_a_layer_that_gets_cheaper_folds_in_deploy():
    assert TuckerConv2d(8, 8, 3, ratio=1.0).fold_in_deploy
    assert TuckerConv2d(8, 8, 1).fold_in_deploy
    assert not TuckerConv2d(8, 8, 3, ratio=0.5).fold_in_deploy
    # The first step runs before the stride: with 16 times as many pixels it costs more than the rest saves.
    assert TuckerConv2d(8, 8, 3, stride=4, ratio=0.5).fold_in_deploy


def test_ranks_beyond_the_start_are_zero_get_no_gradient_and_are_saved():
    layer = TuckerConv2d(6, 8, 3, rank=(6, 5), start_rank=(3, 2))
    assert layer.live_rank.tolist() == [3, 2, 3, 3]
    layer(torch.randn(1, 6, 5, 5)).square().sum().backward()
    assert not layer.factor_out[:, 3:].any()
    assert not layer.factor_out.grad[:, 3:].any()
    assert not layer.core[3:].any()
    assert not layer.core.grad[3:].any()
    assert layer.core.grad[:3, :2].any()
    other = TuckerConv2d(6, 8, 3, rank=(6, 5))
    other.load_state_dict(layer.state_dict())
    assert other.live_rank.tolist() == [3, 2, 3, 3]


@pytest.mark.parametrize('rank', [(3, 2), (4, 5), (8, 6)])
def test_a_checkpoint_fits_any_layer_with_room_for_its_live_ranks(rank):
    layer = TuckerConv2d(6, 8, 3, rank=(6, 5), start_rank=(3, 2))
    other = TuckerConv2d(6, 8, 3, rank=rank)
    nn.Sequential(other).load_state_dict({f'0.{k}': v for k, v in layer.state_dict().items()})
    assert other.core.shape[:2] == rank
    assert other.live_rank.tolist() == [3, 2, 3, 3]
    torch.testing.assert_close(other.generate_kernel(), layer.generate_kernel())


def test_a_checkpoint_with_higher_live_ranks_or_other_channels_is_refused():
    with pytest.raises(RuntimeError, match='size mismatch for core'):
        TuckerConv2d(6, 8, 3, rank=(3, 2)).load_state_dict(TuckerConv2d(6, 8, 3, rank=(4, 2)).state_dict())
    with pytest.raises(RuntimeError, match='size mismatch for factor_in'):
        TuckerConv2d(5, 8, 3, rank=(3, 2)).load_state_dict(TuckerConv2d(6, 8, 3, rank=(3, 2)).state_dict())


def test_one_rank_serves_a_whole_network():
    assert TuckerConv2d(3, 64, 7, rank=(32, 32)).rank == (32, 3, 7, 7)
    assert TuckerConv2d(8, 4, 1, rank=(32, 32)).plain


@pytest.mark.parametrize('training', [True, False])
def test_spatial_factors_are_multiplied_in_full_precision_under_autocast(training):
    layer = TuckerConv2d(8, 8, 3, padding=1).train(training)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer._spatial_core().dtype == torch.float32
        assert layer(torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(groups=2), r'TuckerConv2d factors a kernel over all channels and needs groups=1, got groups=2'),
        (dict(ratio=0), r'TuckerConv2d needs 0 < ratio <= 1'),
        (dict(rank=(0, 2)), r'two or four ranks of at least 1.*rank=\(0, 2\)'),
        (dict(rank=(2, 2, 2)), 'two or four ranks'),
        (dict(rank=3), 'two or four ranks'),
        (dict(start_rank=(2,)), 'start_rank'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TuckerConv2d(4, 4, 3, **kwargs)


def test_gradcheck_through_the_factors():
    layer = TuckerConv2d(3, 4, 3, rank=(2, 2)).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 3, 4, 4).double()

    def run(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, parameters, fast_mode=True)


def test_a_stock_resnet_starts_at_its_decomposition_and_deploys_in_three_steps():
    plain = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    rules = [dict(match='layer', kernel_size=3, to=dict(type='mmext.TuckerConv2d', ratio=1.0))]
    host, exact = ROOT_MODELS.build(plain), ROOT_MODELS.build(dict(type='mmext.swap_layers', model=plain, rules=rules))
    assert not exact.load_state_dict(host.state_dict(), strict=False).unexpected_keys
    x = torch.randn(1, 3, 32, 32)
    for model in (host, exact):  # not chained: the train() of some hosts' backbones returns None
        model.eval()
    torch.testing.assert_close(exact(x)[0], host(x)[0], rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, TuckerConv2d) for m in fold(exact).modules())

    rules[0]['to']['ratio'] = 0.5
    near = ROOT_MODELS.build(dict(type='mmext.swap_layers', model=plain, rules=rules))
    near.eval()
    near.load_state_dict(host.state_dict(), strict=False)
    parameters = sum(p.numel() for p in near.parameters())
    assert parameters < 0.5 * sum(p.numel() for p in host.parameters())
    before = near(x)[0]
    assert torch.equal(fold(near)(x)[0], before)
    assert sum(p.numel() for p in near.parameters()) == parameters
