import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmext.backbones.inceptionnext import InceptionNeXt

#: Parameters in millions with the authors' head (hidden layer of 3 C), GMACs at 224 x 224: as published.
ARCHS = {'atto': (4.157, 0.504), 'T': (28.056, 4.192), 'S': (49.374, 8.361), 'B': (86.672, 14.85)}


def head(width):
    return nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.LayerNorm(3 * width), nn.Linear(3 * width, 1000))


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_authors(arch):
    with torch.device('meta'):
        net = InceptionNeXt(arch)
        count = sum(p.numel() for m in (net, head(net.out_channels[-1])) for p in m.parameters())
    assert round(count / 1e6, 3) == ARCHS[arch][0]


@pytest.mark.parametrize('arch', ['atto', 'T'])
def test_operations_are_the_authors(arch):
    net = InceptionNeXt(arch, out_indices=(3,)).eval()
    count = get_model_complexity_info(net, input_shape=(3, 224, 224), show_table=False, show_arch=False)['flops']
    assert count / 1e9 == pytest.approx(ARCHS[arch][1], rel=0.01)


def test_a_block_is_its_formula():
    block = InceptionNeXt(**InceptionNeXt.example).stages[0].blocks[0].eval()
    x = torch.randn(2, 8, 7, 5)
    with torch.no_grad():
        block.gamma.normal_()
        y = block.mixer(x)
        assert torch.equal(y[:, :5], x[:, :5])
        y = block.project(nn.functional.gelu(block.expand(block.norm(y))))
        torch.testing.assert_close(block(x), x + block.gamma.view(-1, 1, 1) * y)


@pytest.mark.parametrize('initialize', [False, True])
def test_kernels_start_small_and_biases_at_zero(initialize):
    net = InceptionNeXt('atto')
    if initialize:
        net.init_weights()
    for name, p in net.named_parameters():
        if p.ndim > 1 and p.numel() > 3000:
            assert p.detach().std() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith('bias'):
            assert not p.any(), name


@pytest.mark.parametrize('size', [(225, 190), (40, 33)])
def test_odd_sizes_are_rounded_down(size):
    outs = InceptionNeXt(**InceptionNeXt.example).eval()(torch.randn(1, 3, *size))
    assert [x.shape[2:] for x in outs] == [tuple(side // s for side in size) for s in (4, 8, 16)]


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('XL', "knows the archs .* got 'XL'"),
        (dict(depths=(1,)), r'arch=dict\(depths=\.\.\., .*got the keys'),
        (dict(depths=(1, 1), channels=(8, 8)), 'one entry per stage in channels, ratios'),
        (dict(depths=(1,), channels=(8,), ratios=(1,), band=4), 'band .* odd'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        InceptionNeXt(arch)
