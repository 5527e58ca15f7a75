import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmext.necks.scnn import DIRECTIONS, SCNN, MessagePassing


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
    with pytest.raises(ValueError, match='2 levels, got 1 maps'):
        SCNN([4, 8], 8)([torch.randn(1, 4, 8, 8)])


def test_in_a_stock_segmentor_and_behind_a_stock_pyramid():
    init_default_scope('mmseg')
    cfg = get_config('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py').model
    cfg.pop('data_preprocessor', None)
    cfg.update(pretrained=None, neck=dict(type='mmext.SCNN', in_channels=(256, 512, 1024, 2048), out_channels=16))
    cfg.decode_head.update(in_channels=16, channels=8)
    cfg.auxiliary_head.update(in_channels=16, channels=8)
    for part in (cfg.backbone, cfg.decode_head, cfg.auxiliary_head):
        part.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg).eval()
    assert model(torch.randn(1, 3, 33, 65)).shape[1] == 19

    init_default_scope('mmdet')
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    cfg.neck = [cfg.neck, dict(type='mmext.SCNN', in_channels=(256,) * 5, out_channels=256, levels=(3, 4))]
    outs = MODELS.build(cfg).eval()(torch.randn(1, 3, 64, 96), mode='tensor')
    assert len(outs[0]) == 5


def test_traces_and_compiles():
    neck, x = SCNN([4], 4).eval(), [torch.randn(1, 4, 5, 6)]
    with torch.no_grad():
        expected = neck(x)[0]
        traced = torch.jit.trace(neck.passes[0], x[0])
        torch.testing.assert_close(traced(x[0]), expected)
        compiled = torch.compile(neck, backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], expected)
