import pytest
import torch
from helpers import shake
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmext.backbones.ffnet import FFNet
from mmext.folding import fold

#: Parameters in millions with a linear head of 1,000 classes in training and deployed, as the authors' code has them.
ARCHS = {'1': (13.776, 13.660), '2': (27.208, 26.908), '3': (48.818, 48.331), '4': (79.869, 79.200)}
SEG = dict(depths=(1, 1), channels=(8, 12), token_kernels=(3, 9), channel_kernels=(3, 3), scaled=True, strips=True)
CLASSIFIER = dict(out_indices=(3,), out_norm=dict(type='BN'))


def millions(net):
    return round((sum(p.numel() for p in net.parameters()) + net.out_channels[-1] * 1000 + 1000) / 1e6, 3)


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_authors(arch):
    with torch.device('meta'):
        assert millions(FFNet(arch, **CLASSIFIER)) == ARCHS[arch][0]


def test_the_form_for_segmentation_has_the_authors_parameters():
    with torch.device('meta'):
        net = FFNet('seg', out_indices=(3,))
        head = nn.Sequential(nn.Conv2d(768, 1024, 1, bias=False), nn.BatchNorm2d(1024), nn.Linear(1024, 1280))
        head += nn.Sequential(nn.LayerNorm(1280), nn.Linear(1280, 1000))
    assert sum(p.numel() for m in (net, head) for p in m.parameters()) == 67_210_088


def test_parameters_and_operations_of_the_deployed_form_are_the_authors():
    net = fold(FFNet('1', **CLASSIFIER).eval(), fuse_bn=True)
    assert millions(net) == ARCHS['1'][1]
    count = get_model_complexity_info(net, input_shape=(3, 256, 256), show_table=False, show_arch=False)['flops']
    assert count / 1e9 == pytest.approx(2.985, rel=0.01)


@pytest.mark.parametrize('arch', [FFNet.example['arch'], SEG])
def test_it_folds_with_its_norms(arch):
    net = shake(FFNet(arch, out_indices=(0, 1)), 0.1)
    net.eval()
    x = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        before = net(x)
        after = fold(net, fuse_bn=True)(x)
    for a, b in zip(after, before, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_transition_gives_two_outputs_for_each_input_channel():
    net = FFNet(**FFNet.example).eval()
    strided = net.stages[1].shrink[0]
    x = torch.zeros(1, 8, 9, 9)
    x[:, 3] = torch.randn(9, 9)
    with torch.no_grad():
        assert strided(x).abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [6, 7]


@pytest.mark.parametrize('size', [(65, 34), (96, 96)])
def test_odd_sizes_are_rounded_up(size):
    for arch in (FFNet.example['arch'], SEG):
        outs = FFNet(arch, out_indices=(0, 1)).eval()(torch.randn(1, 3, *size))
        assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-side // s) for side in size) for s in (4, 8)]


def test_scales_start_where_they_are_told():
    net = FFNet(**FFNet.example, layer_scale=0.5)
    assert all((p == 0.5).all() for name, p in net.named_parameters() if name.endswith('scale'))
    with torch.device('meta'):
        assert not any(name.endswith('scale') for name, _ in FFNet('1').named_parameters())


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('5', "knows the archs .* got '5'"),
        (
            dict(depths=(1, 1), channels=(8, 12), token_kernels=(3, 3), channel_kernels=(3, 3)),
            'multiple of those before',
        ),
        (dict(depths=(1, 1), channels=(8, 16)), 'one entry per stage in channels, token_kernels, channel_kernels'),
        (dict(depths=(1,), channels=(8,), token_kernels=(4,), channel_kernels=(3,)), 'odd'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        FFNet(arch, out_indices=(0,))


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match='folds batch norms'):
        FFNet(**FFNet.example, norm_cfg=dict(type='GN', num_groups=1))
