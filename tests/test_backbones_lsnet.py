import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from official_layers import shaken
from official_layers.lsnet import ARCH
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmext.backbones.lsnet import LSNet
from mmext.necks.lsnet_fpn import LSNetFPN

#: Parameters in millions with a normalized linear head of 1,000 classes, and GMACs at 224 x 224, of the authors' code.
ARCHS = {'T': (11.410, 0.316), 'S': (16.146, 0.538), 'B': (23.314, 1.245)}
SMALL = dict(arch=ARCH, out_indices=(0, 1, 2))


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_operations_are_the_authors(arch):
    millions, macs = ARCHS[arch]
    with torch.device('meta'):
        net = LSNet(arch, out_indices=(3,)).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    width = net.out_channels[0]
    params = sum(p.numel() for p in net.parameters()) + 2 * width + (width + 1) * 1000
    assert round(params / 1e6, 3) == millions
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize('size', [(224, 224), (97, 75), (33, 130), (1, 1)])
def test_sizes_are_rounded_up(size):
    outs = LSNet(**SMALL).eval()(torch.randn(1, 3, *size))
    for out, stride in zip(outs, (8, 16, 32), strict=True):
        assert out.shape[2:] == tuple(-(-side // stride) for side in size)


def test_blocks_alternate_and_the_last_stage_attends():
    net = LSNet('T')
    kinds = [[type(block.mixer).__name__ for block in stage.blocks] for stage in net.stages]
    assert kinds[0] == []
    assert kinds[1] == ['Sequential', 'LSConv2d']
    assert kinds[2] == ['Sequential', 'LSConv2d'] * 4
    assert kinds[3] == ['Sequential', '_Attention'] * 5


def test_feed_forward_parts_and_attention_start_as_their_shortcuts():
    net = LSNet(**SMALL).eval()
    x = torch.randn(1, 32, 3, 3)
    block = net.stages[2].blocks[1]
    assert torch.equal(block(x), x)
    assert torch.equal(net.stages[2].blocks[0](x), net.stages[2].blocks[0].mixer(x))


def test_three_depthwise_paths_fold_into_one_convolution():
    net = shaken(LSNet(**SMALL))
    layer = net.stages[0].blocks[0].mixer[0]
    x = torch.randn(2, 16, 7, 9)
    layer.train()
    with torch.no_grad():
        for branch in layer.branches:
            branch.norm.momentum = 0.0
            branch.norm.eval()
        trained = layer(x)
        folded = layer.eval().fold()
    assert type(folded) is nn.Conv2d
    torch.testing.assert_close(folded(x), trained, rtol=1e-5, atol=1e-5)


def test_biases_are_those_of_the_distance_and_of_another_map_resized():
    attention = LSNet(**SMALL).stages[2].blocks[1].mixer
    nn.init.normal_(attention.biases)
    bias = attention.bias(16)
    assert bias.shape == (2, 16, 16)
    for p, q in ((0, 0), (5, 2), (15, 0), (3, 12)):
        apart = 4 * abs(p // 4 - q // 4) + abs(p % 4 - q % 4)
        assert torch.equal(bias[:, p, q], attention.biases[:, apart])
    torch.testing.assert_close(attention.bias(6), F.interpolate(bias[None], (6, 6), mode='bicubic')[0])


def test_a_table_of_another_side_is_resized_when_it_is_loaded():
    small, large = LSNet(**SMALL), LSNet(**SMALL, bias_side=14)
    table = small.stages[2].blocks[1].mixer.biases
    nn.init.normal_(table)
    state = small.state_dict()
    assert not large.load_state_dict(state).missing_keys
    expected = F.interpolate(table.view(1, 2, 4, 4), (14, 14), mode='bicubic').view(2, 196)
    torch.testing.assert_close(large.stages[2].blocks[1].mixer.biases, expected)
    assert state['stages.2.blocks.1.mixer.biases'].shape == (2, 16), 'the checkpoint stays as it was'
    with pytest.raises(RuntimeError, match='size mismatch'):
        large.load_state_dict({**state, 'stages.2.blocks.1.mixer.biases': torch.zeros(3, 16)})


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('XL', r"knows the archs \['B', 'S', 'T'\]"),
        (dict(depths=(1,), channels=(16, 32), heads=1), 'one depth per stage'),
        (dict(depths=(1,), channels=(12,), heads=1), 'a multiple of 8'),
        (dict(depths=(1,), channels=(16,), heads=32), 'as wide as its heads=32'),
        (dict(depths=(-1,), channels=(16,), heads=1), 'needs depths as'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        LSNet(arch, out_indices=(0,))


# --- the pyramid ---------------------------------------------------------------------------------------------------------

MAPS = [torch.randn(1, c, *size) for c, size in ((8, (13, 9)), (12, (7, 5)), (16, (4, 3)))]


@pytest.mark.parametrize('add_extra_convs', [False, 'on_input', 'on_lateral', 'on_output'])
@pytest.mark.parametrize('start_level', [0, 1])
def test_without_finer_levels_it_is_the_hosts_pyramid(add_extra_convs, start_level):
    cfg = dict(in_channels=[8, 12, 16], out_channels=8, num_outs=5, start_level=start_level)
    ours = LSNetFPN(**cfg, add_extra_convs=add_extra_convs, num_extra_trans_convs=0)
    theirs = MODELS.build(dict(type='mmdet.FPN', add_extra_convs=add_extra_convs, **cfg))
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours(MAPS), theirs(MAPS), strict=True):
        torch.testing.assert_close(a, b)


def test_finer_levels_are_made_of_the_finest_sum():
    neck = LSNetFPN([8, 12, 16], 8, num_outs=6, num_extra_trans_convs=2)
    sums = []
    neck.fpn_convs[0].register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0]))
    outs = neck(MAPS)
    assert [tuple(out.shape[2:]) for out in outs] == [(52, 36), (26, 18), (13, 9), (7, 5), (4, 3), (2, 2)]
    half = neck.extra_trans_convs[0](sums[0])
    assert isinstance(neck.extra_trans_convs[0].conv, nn.ConvTranspose2d)
    torch.testing.assert_close(outs[1], neck.extra_fpn_convs[1](half))
    torch.testing.assert_close(outs[0], neck.extra_fpn_convs[0](neck.extra_trans_convs[1](half)))
    sum(out.square().mean() for out in outs).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: LSNetFPN([8, 12], 8, num_outs=2), 'num_outs of at least 3'),
        (lambda: LSNetFPN([8, 12], 8, num_outs=3, start_level=2), 'start_level below 2'),
        (lambda: LSNetFPN([8, 12], 8, num_outs=3)(MAPS), 'built for 2 maps, got 3'),
    ],
)
def test_bad_pyramids(call, message):
    with pytest.raises(ValueError, match=message):
        call()
