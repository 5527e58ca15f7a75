import pytest
import torch
from helpers import operations, shake
from torch import nn

from mmext.backbones.monet import MONet, shifted


@pytest.mark.parametrize(('arch', 'millions'), [('T', 10.339), ('S', 32.881)])
def test_parameters_are_the_authors(arch, millions):
    """In millions, with a linear head of 1,000 classes."""
    with torch.device('meta'):
        net = MONet(arch)
    assert round((sum(p.numel() for p in net.parameters()) + net.out_channels[-1] * 1000 + 1000) / 1e6, 3) == millions


def test_operations_are_the_authors():
    with torch.device('meta'):
        net = MONet('T')
    assert operations(net) == pytest.approx(2.703, rel=0.003)


@pytest.mark.parametrize('channels', [8, 6, 3])
def test_the_shift_is_a_depthwise_kernel_with_one_tap_and_a_repeated_border(channels):
    x = torch.randn(2, channels, 5, 4)
    given = x.clone()
    ends = [channels * i // 4 for i in range(5)]
    kernel = torch.zeros(channels, 1, 3, 3)
    for (row, column), start, end in zip([(0, 1), (2, 1), (1, 0), (1, 2)], ends[:-1], ends[1:], strict=True):
        kernel[start:end, 0, row, column] = 1
    y = shifted(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode='replicate')
    assert torch.equal(y, nn.functional.conv2d(padded, kernel, groups=channels))
    assert torch.equal(x, given)


def test_one_row_or_column_shifts_to_itself():
    x = torch.randn(1, 8, 1, 1)
    assert torch.equal(shifted(x), x)


def layer(shifts):
    return shake(MONet(**MONet.example).stages[0].blocks[0].layers[0 if shifts else 1], 0.2).eval()


@pytest.mark.parametrize('shifts', [True, False])
def test_a_layer_is_its_formula(shifts):
    mu, x = layer(shifts), torch.randn(2, 8, 5, 6)
    move = shifted if shifts else lambda y: y
    a = mu.norms[0](move(mu.first(x)))
    b = mu.norms[1](mu.second(move(mu.narrow(x))))
    torch.testing.assert_close(mu(x), mu.project(a + mu.alpha * a * b))
    with torch.no_grad():
        mu.alpha.zero_()
    torch.testing.assert_close(mu(x), mu.project(a))


def test_a_constant_before_the_norms_changes_nothing():
    """So the biases of one, with which they start, do no work."""
    mu, x = layer(False), torch.randn(1, 8, 4, 4)
    before = mu(x)
    with torch.no_grad():
        mu.first.bias.add_(3)
        mu.second.bias.add_(-2)
    torch.testing.assert_close(mu(x), before, rtol=1e-4, atol=1e-5)


def test_a_larger_map_passes_its_size_by_the_shortcuts_alone():
    block = MONet(**MONet.example).eval().stages[0].blocks[0]
    shake(block, 0.1)
    x = torch.randn(1, 8, 4, 4)
    mu = block.layers[0]
    first = mu(block.norm(x))
    torch.testing.assert_close(mu(block.norm(50 * x)), first, rtol=1e-3, atol=1e-3)


def test_every_block_drops_with_the_same_rate():
    net = MONet(**MONet.example, drop_path_rate=0.3)
    assert {block.drop_path.drop_prob for stage in net.stages for block in stage.blocks} == {0.3}


@pytest.mark.parametrize('size', [(65, 34), (98, 131)])
def test_the_stem_rounds_down_and_transitions_round_up(size):
    outs = MONet(**MONet.example).eval()(torch.randn(1, 3, *size))
    quarter = [side // 4 for side in size]
    assert [list(x.shape[2:]) for x in outs] == [[-(-side // s) for side in quarter] for s in (1, 2, 4)]


def test_it_starts_as_the_authors_draw_it():
    net = MONet('T', out_indices=(1,))
    net.init_weights()
    mu = net.stages[1].blocks[0].layers[1]
    assert float(mu.first.weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert float(mu.project.weight.detach().std()) == pytest.approx((2 / 384) ** 0.5, rel=0.05)
    assert float(net.stages[1].shrink.weight.detach().std()) == pytest.approx((9 * 64) ** -0.5, rel=0.05)
    assert all((part.bias == 1).all() for part in (mu.first, mu.narrow, mu.second))
    assert not mu.project.bias.any()
    assert not net.stem[0].bias.any()


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('XL', 'knows the archs'),
        (dict(depths=(1, 1), channels=(8,)), 'one entry per stage'),
        (dict(depths=(1,), channels=(8,), ratio=0), 'ratio'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        MONet(arch, out_indices=(0,))
