"""RepSO2d: every branch set folds exactly, for every geometry."""

import pytest
import torch
from helpers import shake_norms
from mmcv.cnn import ConvModule
from torch import nn

from mmext.convs import RepSO2d

BRANCHES = [
    ('kxk',),
    ('kxk', '1x1', 'identity'),
    ('kxk', 'kxk', 'avg'),
    ('1xk', 'kx1', '1x1', 'identity', 'avg'),
    ('3x1', '1x3', 'kxk'),
]


def branchwise(conv, x):
    """Eval-mode statistics, but the branches one by one: what the folded kernel has to equal."""
    conv.train()
    for branch in conv.branches:
        branch.norm.eval()
    return conv(x)


@pytest.mark.parametrize('branches', BRANCHES, ids='+'.join)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [3, 5, 7])
def test_fold_equals_the_branches(k, stride, branches):
    conv = RepSO2d(6, 6, k, stride, padding=k // 2, groups=6, branches=branches).double()
    shake_norms(conv)
    x = torch.randn(2, 6, 11, 8, dtype=torch.float64)
    expected = branchwise(conv, x)
    conv.eval()
    folded = conv.fold()
    assert type(folded) is nn.Conv2d
    assert folded.bias is not None
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(folded(x), expected)


@pytest.mark.parametrize(
    'geometry',
    [
        dict(padding=0),
        dict(padding=(3, 0)),
        dict(padding='same'),
        dict(padding=2, dilation=2),
        dict(padding=(1, 2), dilation=(1, 2), stride=(2, 1)),
        dict(padding=1, padding_mode='reflect'),
        dict(padding=1, groups=2),
        dict(padding=1, groups=1, bias=False),
        dict(padding=1, out_channels=8, groups=4),
        dict(padding=(1, 2), kernel_size=(3, 5)),
        dict(padding=1, norm_cfg=dict(type='BN', affine=False)),
    ],
    ids=str,
)
def test_any_geometry_of_a_plain_convolution(geometry):
    arguments = dict(in_channels=4, out_channels=4, kernel_size=3, groups=4) | geometry
    conv = RepSO2d(**arguments, branches=('kxk', '1x3', '1x1', 'avg', 'identity')).double()
    shake_norms(conv)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 9, 10, dtype=torch.float64)
    expected = branchwise(conv, x)
    conv.eval()
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv.fold()(x), expected)


def test_training_normalizes_each_branch_by_its_own_batch():
    conv = RepSO2d(3, 3, 3, padding=1, groups=3, bias=False, branches=('kxk', 'identity')).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    w = conv.branches[0].weight
    norm = nn.functional.batch_norm
    by_hand = norm(nn.functional.conv2d(x, w, padding=1, groups=3), None, None, training=True)
    by_hand = by_hand + norm(x, None, None, training=True)
    torch.testing.assert_close(conv(x), by_hand)


def test_the_fixed_branches_are_the_average_and_the_input():
    conv = RepSO2d(6, 6, 3, 2, padding=1, groups=6, bias=False, branches=('avg',)).eval()
    x = torch.randn(2, 6, 9, 8)
    scale = (1 + conv.branches[0].norm.eps) ** -0.5
    torch.testing.assert_close(conv(x), nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=True) * scale)
    conv = RepSO2d(6, 6, 3, padding=1, groups=2, bias=False, branches=('identity',)).eval()
    torch.testing.assert_close(conv(x), x * scale)


def test_cost_of_the_default_is_that_of_its_branches():
    conv = RepSO2d(16, 16, 3, padding=1, groups=16, bias=False)
    assert sum(p.numel() for p in conv.parameters()) == 16 * (9 + 1 + 2 * 3)
    assert 'weight' not in dict(conv.named_parameters())
    assert not any(key == 'weight' for key in conv.state_dict())


def test_identity_and_average_are_left_out_where_they_cannot_be():
    assert [b.kind for b in RepSO2d(4, 4, 3, stride=2, groups=4).branches] == ['kxk', '1x1']
    wide = RepSO2d(4, 8, 3, groups=4, branches=('kxk', 'avg', 'identity'))
    assert [b.kind for b in wide.branches] == ['kxk']


def test_every_parameter_gets_a_gradient():
    conv = RepSO2d(4, 4, 3, padding=1, groups=4)
    conv(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in conv.named_parameters() if 'norm.bias' not in n)
    assert all(p.grad is not None for p in conv.parameters())


def test_state_round_trips_in_both_forms():
    conv, other = (RepSO2d(4, 4, 5, padding=2, groups=4) for _ in range(2))
    shake_norms(conv)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 4, 7, 7)
    assert torch.equal(conv.eval()(x), other.eval()(x))
    folded, fresh = conv.fold(), other.fold()
    nn.init.zeros_(fresh.weight)
    fresh.load_state_dict(folded.state_dict())
    assert torch.equal(folded(x), fresh(x))


def test_a_plain_layer_refuses_an_unfolded_checkpoint():
    conv, plain = RepSO2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(RuntimeError, match='weight'):
        plain.load_state_dict(conv.state_dict())


def test_works_as_conv_cfg_and_keeps_its_initialization():
    module = ConvModule(8, 8, 3, padding=1, conv_cfg=dict(type='mmext.RepSO2d'), norm_cfg=dict(type='BN'))
    with torch.no_grad():
        module.conv.branches[0].weight.fill_(7)
    module.init_weights()
    assert (module.conv.branches[0].weight == 7).all(), 'ConvModule must leave a conv with init_weights() alone'
    assert module(torch.randn(2, 8, 6, 6)).shape == (2, 8, 6, 6)


def test_repr_shows_the_branches():
    assert "branches=('kxk', '1x1', 'identity')" in repr(RepSO2d(4, 4, 3, groups=4))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kernel_size=4), r'odd kernel_size, got \(4, 4\)'),
        (dict(kernel_size=(3, 2)), r'odd kernel_size, got \(3, 2\)'),
        (dict(kernel_size=3, branches=('5x5',)), "cover no more than kernel_size=.*'5x5'"),
        (dict(kernel_size=5, branches=('2x3',)), "odd.*'2x3'"),
        (dict(kernel_size=3, branches=('max',)), "knows the branches 'avg', 'identity'.*'max'"),
        (dict(kernel_size=3, stride=2, branches=('identity',)), "no branch left.*add 'kxk'"),
        (dict(kernel_size=3, norm_cfg=dict(type='GN', num_groups=2)), 'running statistics only'),
        (dict(kernel_size=3, norm_cfg=dict(type='BN', track_running_stats=False)), 'running statistics only'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepSO2d(4, 4, groups=4, **arguments)
