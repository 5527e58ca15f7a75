import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.inception_dwconv import InceptionDWConv2d


def make(channels=32, kernel=11, **kwargs) -> InceptionDWConv2d:
    kwargs.setdefault('padding', kernel // 2 if isinstance(kernel, int) else 0)
    return InceptionDWConv2d(channels, channels, kernel, groups=channels, **kwargs).double()


def test_equals_the_released_form():
    """Identity, square, row and column, each a convolution of its own that keeps the size, in this order."""
    layer = make()
    x = torch.randn(2, 32, 13, 9, dtype=torch.float64)
    untouched, square, row, column = x.split((20, 4, 4, 4), 1)
    biases = layer.branch_bias.chunk(3)
    expected = [
        untouched,
        F.conv2d(square, layer.square, biases[0], padding=1, groups=4),
        F.conv2d(row, layer.row, biases[1], padding=(0, 5), groups=4),
        F.conv2d(column, layer.column, biases[2], padding=(5, 0), groups=4),
    ]
    assert [tuple(k.shape) for k in (layer.square, layer.row, layer.column)] == [
        (4, 1, 3, 3),
        (4, 1, 1, 11),
        (4, 1, 11, 1),
    ]
    torch.testing.assert_close(layer(x), torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('training', [True, False])
def test_untouched_channels_are_bit_equal(training):
    layer = make().train(training)
    x = torch.randn(2, 32, 13, 9, dtype=torch.float64)
    assert torch.equal(layer(x)[:, :20], x[:, :20])
    assert torch.equal(layer.fold()(x)[:, :20], x[:, :20])


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(padding=0),
        dict(padding=(7, 2)),
        dict(stride=2),
        dict(stride=(1, 3), padding=(5, 4), bias=False),
        dict(dilation=2, padding=10),
        dict(padding='same', padding_mode='circular'),
        dict(kernel=5, padding=2, padding_mode='reflect'),
        dict(square_kernel=5, branch_ratio=1 / 3),
        dict(kernel=(7, 11), padding=(3, 5)),
        dict(kernel=3),
        dict(kernel=3, square_kernel=5),
        dict(kernel=(1, 9), padding=(0, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(24, 25), (23, 22)])
def test_fold_is_exact_for_every_geometry(kwargs, size):
    layer = make(**{'padding': 5, **kwargs})
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode).fold()(x), layer(x), rtol=1e-12, atol=1e-12)


def test_the_square_is_cut_to_a_small_kernel():
    assert make(kernel=3, square_kernel=5).square.shape == (4, 1, 3, 3)
    assert make(kernel=(1, 9), padding=0).square.shape == (4, 1, 1, 3)


@pytest.mark.parametrize(
    ('channels', 'ratio', 'count'), [(4, 0.125, 1), (3, 0.125, 1), (15, 0.125, 1), (16, 0.125, 2), (9, 1 / 3, 3)]
)
def test_every_part_has_a_channel(channels, ratio, count):
    layer = make(channels, branch_ratio=ratio)
    assert layer.parts == (channels - 3 * count, count, count, count)
    x = torch.randn(1, channels, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(layer.fold()(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'args', [(8, 8, 3), (8, 8, 3, 1, 1, 1, 4), (8, 16, 3, 1, 1, 1, 8), (2, 2, 11, 1, 5, 1, 2), (8, 8, 1, 1, 0, 1, 8)]
)
def test_other_layers_stay_plain(args):
    layer = InceptionDWConv2d(*args)
    assert layer.plain
    assert layer.state_dict()['weight'].shape == nn.Conv2d(*args).weight.shape


def test_starts_as_torch_starts_each_branch():
    layer = InceptionDWConv2d(3072, 3072, 11, padding=5, groups=3072)
    for kernel, bias in zip((layer.square, layer.row, layer.column), layer.branch_bias.chunk(3), strict=True):
        bound = kernel[0].numel() ** -0.5
        for tensor in (kernel, bias):
            assert tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_gradients():
    layer = make(8, 5, stride=2)
    names = [n for n, _ in layer.named_parameters()]
    x = torch.randn(1, 8, 5, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_autocast_returns_one_type():
    layer = make().float()
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(torch.randn(1, 32, 12, 12)).dtype == torch.bfloat16


@pytest.mark.parametrize('kwargs', [dict(square_kernel=2), dict(branch_ratio=0.4), dict(branch_ratio=0)])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=rf'^InceptionDWConv2d needs .*{next(iter(kwargs))}'):
        make(**kwargs)
    with pytest.raises(ValueError, match=r'^InceptionDWConv2d centers its branches and needs an odd kernel_size'):
        make(kernel=4)


def test_in_a_stock_convnext():
    """The rule of the configs: another kernel size in the place of the 7x7."""
    rules = [dict(depthwise=True, to=dict(type='mmext.InceptionDWConv2d', kernel_size=11, padding=5))]
    arch = dict(depths=[1, 1], channels=[16, 32])
    model = ROOT_MODELS.build(
        dict(
            type='mmext.swap_layers',
            model='mmpretrain.ConvNeXt',
            rules=rules,
            arch=arch,
            out_indices=(1,),
            gap_before_final_norm=False,
        )
    )
    layers = [m for m in model.modules() if isinstance(m, InceptionDWConv2d)]
    assert [m.row.shape[-1] for m in layers] == [11, 11]
    assert model(torch.randn(1, 3, 32, 32))[-1].shape == (1, 32, 4, 4)
