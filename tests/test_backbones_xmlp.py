import pytest
import torch
from helpers import shake
from torch import nn

from mmext.backbones import XMLP

SMALL = dict(
    arch=dict(depths=(2, 1), channels=(6, 8)), img_size=(16, 24), out_indices=(0, 1), act_cfg=dict(type='GELU')
)
BLOCK = dict(arch=dict(depths=(1,), channels=(4,)), img_size=(5, 7), stem_stride=1, in_channels=4, out_indices=(0,))
#: Parameters and multiply-adds of the matrices with a linear head: 10 classes at 32 pixels, 1,000 at 224.
ARCHS = {
    'T': (4_049_266, 0.222, 4_597_654, 0.724),
    'S': (5_963_498, 0.308, 6_513_866, 0.991),
    'B': (15_340_570, 0.878, 16_150_558, 2.777),
}


def bare(**arguments):
    """Return a network of one stage with a stem that changes nothing, norms of scale one, and no channel branch."""
    net = XMLP(**{**BLOCK, **arguments}).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-30
            if isinstance(module, nn.Linear):
                module.bias.zero_()
                module.weight.normal_(std=0.3)
        net.stem.channel.weight.copy_(torch.eye(4))
        for block in net.stages[0].blocks:
            block.channel[-1].weight.zero_()
    return net


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize(('side', 'stride', 'classes'), [(32, 1, 10), (224, 4, 1000)])
def test_parameters_and_operations(arch, side, stride, classes):
    params, macs = ARCHS[arch][:2] if side == 32 else ARCHS[arch][2:]
    with torch.device('meta'):
        net = XMLP(arch, img_size=side, stem_stride=stride, out_indices=(3,))
        head = nn.Linear(net.out_channels[-1], classes)
        counted = [head.weight.numel()]
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda m, _, y: counted.append(m.in_features * y.numel()))
        net(torch.empty(1, 3, side, side))
    assert sum(p.numel() for p in [*net.parameters(), *head.parameters()]) == params
    assert sum(counted) / 1e9 == pytest.approx(macs, abs=5e-4)


def test_there_is_nothing_but_matrices_norms_and_activations():
    kinds = {type(m).__name__ for m in XMLP().modules() if not list(m.children())}
    assert kinds == {'_AxisLinear', 'BatchNorm2d', 'GELU', 'DropPath'}


@pytest.mark.parametrize(
    ('branch', 'same'), [('width', (0, 1, 2)), ('height', (0, 1, 3)), ('channel', (0, 2, 3))], ids=lambda v: str(v)
)
def test_a_branch_mixes_along_its_axis_alone(branch, same):
    block = bare().stages[0].blocks[0]
    with torch.no_grad():
        for name in {'width', 'height', 'channel'}:
            block.get_submodule(name)[-1].weight.mul_(name == branch)
        block.channel[-1].weight.normal_().mul_(branch == 'channel')
        x = torch.randn(1, 4, 5, 7, dtype=torch.float64)
        place = (0, 2, 3, 4)
        other = x.clone()
        other[place] += 1
        changed = (block(other) - block(x)).abs() > 1e-12
    axis = ({1, 2, 3} - set(same)).pop()
    expected = torch.zeros_like(changed)
    expected[tuple(slice(None) if i == axis else place[i] for i in range(4))] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize('depth', [1, 3])
@pytest.mark.parametrize('scaled', [False, True])
def test_spatial_weights_are_the_stage(depth, scaled):
    net = bare(arch=dict(depths=(depth,), channels=(4,)))
    if scaled:
        for block in net.stages[0].blocks:
            for norm in (block.width.norm, block.height.norm):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        out = net.stages[0](x)
    for channel in range(4):
        weights = net.spatial_weights(0, channel)
        torch.testing.assert_close(out[:, channel].flatten(1), x[:, channel].flatten(1) @ weights.T, rtol=0, atol=1e-10)
        assert (weights != 0).all(), 'every pixel sees every pixel'


def test_spatial_weights_of_one_block_are_the_kronecker_product():
    net = bare()
    block = net.stages[0].blocks[0]
    height, width = torch.eye(5) + block.height.mix.weight, torch.eye(7) + block.width.mix.weight
    torch.testing.assert_close(net.spatial_weights(0), torch.kron(height, width), rtol=0, atol=1e-12)


def test_width_and_height_commute():
    block = bare().stages[0].blocks[0]
    x = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    first = x + block.height(x)
    torch.testing.assert_close(block(x), first + block.width(first))


@pytest.mark.parametrize('axis_expansion', [None, 2])
def test_blocks_start_as_the_identity(axis_expansion):
    net = XMLP(**SMALL, zero_init_residual=True, axis_expansion=axis_expansion)
    shake(net.stem)
    net.init_weights()
    x = torch.randn(2, 6, 4, 6)
    torch.testing.assert_close(net.stages[0](x), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(axis_expansion=2),
        dict(norm_cfg=dict(type='mmext.LayerNorm2d')),
        dict(norm_cfg=dict(type='GN', num_groups=1)),
        dict(act_cfg=dict(type='mmext.LENI')),
    ],
    ids=str,
)
def test_choices_train_every_parameter(arguments):
    net = XMLP(**{**SMALL, **arguments})
    outs = net(torch.randn(2, 3, 16, 24))
    assert [tuple(out.shape) for out in outs] == [(2, 6, 4, 6), (2, 8, 2, 3)]
    sum(out.square().mean() for out in outs).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]


def test_runs_in_half_precision():
    net = XMLP(**SMALL).eval()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(net(torch.randn(1, 3, 16, 24))[-1]).all()


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: XMLP(**SMALL)(torch.randn(1, 3, 24, 16)), r'built for images of \(16, 24\), got \(24, 16\); resize'),
        (lambda: XMLP(img_size=230), r'multiples of 32 here, got \(230, 230\)'),
        (lambda: XMLP(**{**SMALL, 'img_size': (16, 20)}), r'multiples of 8 here, got \(16, 20\)'),
        (lambda: XMLP('huge'), r"knows the archs \['B', 'S', 'T'\]"),
        (lambda: XMLP(dict(depths=(1,), channels=(4, 8))), 'one depth and one width per stage'),
        (lambda: XMLP(**SMALL).spatial_weights(2), 'has the stages 0 to 1, got stage=2'),
        (lambda: XMLP(**SMALL).spatial_weights(1, 8), 'has the channels 0 to 7, got channel=8'),
        (lambda: XMLP(**SMALL, axis_expansion=2).spatial_weights(0), 'build XMLP with axis_expansion=None'),
        (
            lambda: XMLP(**SMALL, norm_cfg=dict(type='mmext.LayerNorm2d')).spatial_weights(0),
            'as BN is, got LayerNorm2d',
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
