import pytest
import torch
from helpers import tool
from mmengine.registry import MODELS, init_default_scope

from mmext.blocks.scnn import DIRECTIONS, MessagePassing, SCNNBlock
from mmext.necks.scnn import SCNN


def passing(direction, channels=3, length=5):
    layer = MessagePassing(channels, direction, length).double()
    torch.nn.init.normal_(layer.weight)
    return layer


def test_down_is_the_recurrence_in_loops():
    layer, x = passing('down'), torch.randn(2, 3, 6, 7).double()
    expected = x.clone()
    for i in range(1, 6):
        for column in range(7):
            message = torch.zeros(2, 3).double()
            for tap in range(5):
                source = column + tap - 2
                if 0 <= source < 7:
                    message += expected[:, :, i - 1, source] @ layer.weight[:, :, tap].T
            expected[:, :, i, column] = x[:, :, i, column] + message.relu()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ('direction', 'turn'),
    [
        ('up', lambda x: x.flip(2)),
        ('right', lambda x: x.transpose(2, 3)),
        ('left', lambda x: x.transpose(2, 3).flip(2)),
    ],
)
def test_other_directions_are_down_on_a_turned_map(direction, turn):
    down, other = passing('down'), passing(direction)
    other.load_state_dict(down.state_dict())
    x = torch.randn(1, 3, 5, 8).double()
    torch.testing.assert_close(turn(other(x)), down(turn(x)))


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_a_message_only_adds_and_reaches_the_far_side(direction):
    layer, x = passing(direction), torch.randn(1, 3, 6, 6).double().requires_grad_()
    y = layer(x)
    assert (y >= x).all()
    far = {'down': y[..., -1, :], 'up': y[..., 0, :], 'right': y[..., -1], 'left': y[..., 0]}[direction]
    near = {'down': (..., 0, slice(None)), 'up': (..., -1, slice(None)), 'right': (..., 0), 'left': (..., -1)}[
        direction
    ]
    (grad,) = torch.autograd.grad(far.sum(), x)
    assert grad[near].abs().sum() > 0


def test_zero_kernels_and_single_rows_change_nothing():
    layer, x = passing('down'), torch.randn(1, 3, 1, 9).double()
    assert torch.equal(layer(x), x)
    torch.nn.init.zeros_(layer.weight)
    x = torch.randn(1, 3, 4, 9).double()
    assert torch.equal(layer(x), x)


def test_gradients():
    layer = passing('left', 2, 3)
    assert torch.autograd.gradcheck(layer, (torch.randn(1, 2, 3, 4).double().requires_grad_(),))


def test_parameters_and_start_are_the_authors():
    neck = SCNN([128], 128)
    assert sum(p.numel() for p in neck.parameters()) == 589_824
    torch.nn.init.ones_(neck.passes[0][0].weight)
    neck.init_weights()
    assert neck.passes[0][0].weight.std().item() == pytest.approx(1.65e-3, rel=0.01)


def test_levels_that_are_left_out_are_reduced_only():
    neck = SCNN([4, 8], 8, levels=(0,)).eval()
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)]
    outs = neck(maps)
    assert torch.equal(outs[1], maps[1])
    assert outs[0].shape == (1, 8, 8, 8)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(directions=('down', 'sideways')), 'sideways'),
        (dict(kernel_size=4), 'odd kernel_size'),
        (dict(levels=(2,)), 'levels 0 to 1'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SCNN([4, 8], 8, **kwargs)


def test_another_number_of_maps():
    with pytest.raises(ValueError, match=r'built for 2 maps with the channels \[4, 8\], got 1 maps'):
        SCNN([4, 8], 8)([torch.randn(1, 4, 8, 8)])


def test_a_later_port_has_biases_and_leaves_the_first_row():
    block, x = SCNNBlock(3, bias=True, skip_first=True).double(), torch.randn(2, 3, 5, 6).double()
    for one in block:
        torch.nn.init.normal_(one.weight)
        torch.nn.init.normal_(one.bias)
    expected = x.clone()
    weights = [(one.weight, one.bias) for one in block]
    for (weight, bias), axis, backward in zip(weights, (2, 2, 3, 3), (False, True, False, True), strict=True):
        count = expected.shape[axis]
        for here in range(count - 2, 0, -1) if backward else range(1, count):
            before = expected.select(axis, here + 1 if backward else here - 1)
            expected.select(axis, here).add_(torch.conv1d(before, weight, bias, padding=4).relu())
    torch.testing.assert_close(block(x), expected)


def test_a_plug_in_and_a_block_behind_any_map():
    init_default_scope('mmdet')
    plugin = dict(cfg=dict(type='mmext.SCNNBlock'), stages=(False, True), position='after_conv3')
    stem = dict(depth=50, stem_channels=8, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1))
    net = MODELS.build(dict(stem, type='ResNet', out_indices=(0, 1), plugins=[plugin]))
    assert sum(isinstance(m, SCNNBlock) for m in net.modules()) == 4
    net(torch.randn(1, 3, 32, 32))


def test_kernels_of_a_neck_and_of_a_block_have_the_same_names():
    block, neck = SCNNBlock(4), SCNN([4], 4)
    neck.passes[0].load_state_dict(block.state_dict())
    x = torch.randn(1, 4, 5, 6)
    assert torch.equal(neck([x])[0], block(x))


def test_the_benchmark_compares_with_the_same_function():
    loop = tool('analysis_tools/benchmark_necks').row_by_row
    block, x = SCNNBlock(3, kernel_size=5), torch.randn(2, 3, 6, 4)
    for one in block:
        torch.nn.init.normal_(one.weight, std=0.3)
    torch.testing.assert_close(loop(block, [x]), block(x))


def test_traces_and_compiles():
    neck, x = SCNN([4], 4).eval(), [torch.randn(1, 4, 5, 6)]
    with torch.no_grad():
        expected = neck(x)[0]
        traced = torch.jit.trace(neck.passes[0], x[0])
        torch.testing.assert_close(traced(x[0]), expected)
        compiled = torch.compile(neck, backend='eager', fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], expected)
