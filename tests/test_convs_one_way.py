import pytest
import torch
from torch import nn

from mmext.convs.one_way import OneWayConv2d


def test_kernel_equals_the_definition_in_loops():
    layer = OneWayConv2d(4, 6, (3, 5), rank=7).double()
    expected = torch.zeros(6, 4, 3, 5).double()
    for r in range(7):
        for u in range(3):
            for v in range(5):
                taps = layer.col[r, u] * layer.row[r, v]
                expected[..., u, v] += layer.pw_out[:, r, None] * layer.pw_in[r] * taps
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-12, atol=1e-12)


def test_a_rank_one_kernel_has_rank_one_along_all_four_modes():
    kernel = OneWayConv2d(4, 6, 3, rank=1).double().generate_kernel()
    for mode in range(4):
        values = torch.linalg.svdvals(kernel.movedim(mode, 0).flatten(1))
        assert values[0] > 0.01
        assert values[1] < 1e-12


@pytest.mark.parametrize(
    'kwargs',
    [dict(), dict(stride=(2, 1), padding=(0, 2)), dict(padding='same'), dict(padding=2, dilation=2)],
)
@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('training', [True, False])
def test_steps_compute_what_the_whole_kernel_does(kwargs, mode, training):
    layer = OneWayConv2d(8, 12, 3, padding_mode=mode, **kwargs).double().train(training)
    assert layer.rank == 6
    assert not layer.fold_in_deploy, 'this rank must be cheaper in steps'
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 9, 8).double()
    torch.testing.assert_close(layer(x), layer.fold()(x), rtol=1e-12, atol=1e-12)


def test_even_kernels_pad_as_a_plain_convolution_does():
    layer = OneWayConv2d(4, 4, 4, padding='same')
    x = torch.randn(1, 4, 7, 8)
    assert not layer.fold_in_deploy
    torch.testing.assert_close(layer(x), layer.fold()(x), rtol=1e-5, atol=1e-5)


def test_only_a_layer_that_gets_cheaper_folds_in_deploy():
    assert OneWayConv2d(8, 8, 3, rank=64).fold_in_deploy
    assert OneWayConv2d(8, 8, 1).fold_in_deploy
    assert not OneWayConv2d(8, 8, 3).fold_in_deploy


def test_initial_variance_is_that_of_kaiming():
    layer = OneWayConv2d(64, 96, 3)
    variance = torch.stack([(layer.init_weights(), layer.generate_kernel().var())[1] for _ in range(10)]).mean()
    assert variance.item() == pytest.approx(2 / (64 * 9), rel=0.1)
    assert not layer.bias.any()


def test_pointwise_layers_stay_plain_in_any_grouping():
    assert OneWayConv2d(8, 4, 1).plain
    assert OneWayConv2d(8, 8, 1, groups=8).plain
    assert not OneWayConv2d(8, 4, (1, 3)).plain


def test_a_plain_kernel_is_not_taken():
    assert not OneWayConv2d(4, 4, 3).loads_kernel


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(groups=2), r'OneWayConv2d factors a kernel over all channels and needs groups=1, got groups=2'),
        (dict(rank=0), 'OneWayConv2d needs a rank of at least 1, got rank=0'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OneWayConv2d(4, 4, 3, **kwargs)


def test_gradcheck_through_the_factors():
    layer = OneWayConv2d(3, 4, 3, rank=2).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 3, 4, 4).double()

    def run(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, parameters, fast_mode=True)
