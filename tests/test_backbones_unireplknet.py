import pytest
import torch
from mmengine.analysis import get_model_complexity_info

from mmext.backbones.swnet import SWNet
from mmext.backbones.unireplknet import UniRepLKNet
from mmext.convs.dilated_reparam import DilatedReparamConv2d
from mmext.convs.shiftwise import ShiftwiseConv2d

#: Parameters in millions with a linear head of 1,000 classes, as the authors' code has them in training.
ARCHS = {
    (UniRepLKNet, 'A'): 4.649,
    (UniRepLKNet, 'F'): 6.489,
    (UniRepLKNet, 'P'): 11.081,
    (UniRepLKNet, 'N'): 18.819,
    (UniRepLKNet, 'T'): 31.693,
    (UniRepLKNet, 'S'): 56.457,
    (UniRepLKNet, 'B'): 99.089,
    (UniRepLKNet, 'L'): 220.076,
    (UniRepLKNet, 'XL'): 388.691,
    (SWNet, 'T'): 31.790,
    (SWNet, 'S'): 57.313,
    (SWNet, 'B'): 100.250,
    (SWNet, 'L'): 221.809,
}


@pytest.mark.parametrize(('cls', 'arch'), ARCHS)
def test_parameters_are_the_authors(cls, arch):
    with torch.device('meta'):
        net = cls(arch, pooled_norm=True)
    head = net.out_channels[-1] * 1000 + 1000
    assert round((sum(p.numel() for p in net.parameters()) + head) / 1e6, 3) == ARCHS[cls, arch]


@pytest.mark.parametrize(('arch', 'published'), [('A', 0.6), ('T', 4.9)])
def test_operations_are_the_authors(arch, published):
    net = UniRepLKNet(arch, out_indices=(3,)).eval()
    net.switch_to_deploy()
    count = get_model_complexity_info(net, input_shape=(3, 224, 224), show_table=False, show_arch=False)['flops']
    assert round(count / 1e9, 1) == published


def test_kernels_stand_where_the_authors_put_them():
    with torch.device('meta'):
        sizes = [[b.mixer.kernel_size[0] for b in stage.blocks] for arch in 'TS' for stage in UniRepLKNet(arch).stages]
        strips = [[b.mixer.kernel_size[0] for b in stage.blocks] for stage in SWNet('T').stages]
    assert sizes == [
        *([3] * 3, [13] * 3, [13, 3] * 9, [13] * 3),
        *([3] * 3, [13] * 3, [13, 3, 3] * 9, [13] * 3),
    ]
    assert strips == [[51] * 3, [49] * 3, [47] * 18, [13] * 3]


@pytest.mark.parametrize(('cls', 'kind'), [(UniRepLKNet, DilatedReparamConv2d), (SWNet, ShiftwiseConv2d)])
def test_it_deploys_without_the_branches(cls, kind):
    net = cls(**cls.example).eval()
    assert any(isinstance(m, kind) for m in net.modules())
    net.switch_to_deploy()
    assert not any(isinstance(m, kind) for m in net.modules())


def test_response_norm_is_its_formula():
    layer = UniRepLKNet(**UniRepLKNet.example).stages[0].blocks[0].response
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gamma.normal_()
        layer.beta.normal_()
        strength = x.square().sum((2, 3), keepdim=True).sqrt()
        raised = strength / (strength.mean(1, keepdim=True) + 1e-6)
        expected = layer.gamma.view(-1, 1, 1) * x * raised + layer.beta.view(-1, 1, 1) + x
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('cls', [UniRepLKNet, SWNet])
def test_it_starts_as_the_authors_draw_it(cls):
    net = cls(**cls.example, layer_scale=0.5)
    net.init_weights()
    kernels = torch.cat([p.detach().flatten() for p in net.parameters() if p.ndim > 3])
    assert kernels.std() == pytest.approx(0.02, rel=0.1)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith('bias'))
    assert (net.stages[0].blocks[0].gamma == 0.5).all()


@pytest.mark.parametrize('cls', [UniRepLKNet, SWNet])
def test_odd_sizes_are_rounded_up(cls):
    outs = cls(**cls.example).eval()(torch.randn(1, 3, 65, 34))
    assert [tuple(x.shape[2:]) for x in outs] == [(17, 9), (9, 5), (5, 3)]


@pytest.mark.parametrize(
    ('cls', 'arch', 'message'),
    [
        (UniRepLKNet, dict(depths=(1,), channels=(8,), kernels=((),)), 'kernels'),
        (UniRepLKNet, dict(depths=(1,), channels=(8,), kernels=((19,),)), 'branches for kernel_size'),
        (UniRepLKNet, dict(depths=(1,), channels=(8, 8), kernels=((3,),)), 'one entry per stage'),
        (SWNet, dict(depths=(1,), channels=(8,), kernels=(8,)), 'odd'),
        (SWNet, dict(depths=(1,), channels=(8,), kernels=((9,),)), 'kernels'),
    ],
)
def test_bad_archs(cls, arch, message):
    with pytest.raises(ValueError, match=message):
        cls(arch, out_indices=(0,))
