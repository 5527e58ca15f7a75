import pytest
import torch
from torch import nn

from mmext.analysis.backbones import cost
from mmext.backbones.attnet import AttNet

#: Parameters in millions with a linear head of 1,000 classes, GMACs at 224 x 224, as the authors' code has them.
ARCHS = {
    'XXS': (2.854, 0.531),
    'XS': (5.555, 1.004),
    'S': (7.681, 1.327),
    'T1': (13.715, 2.421),
    'T2': (27.011, 5.089),
    'T3': (49.176, 9.382),
    'T4': (87.320, 16.725),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_operations_are_the_authors(arch):
    row = cost(arch, dict(type='mmext.AttNet', arch=arch, pooled_norm=True))
    assert round((row.parameters + row.channels[-1] * 1000 + 1000) / 1e6, 3) == ARCHS[arch][0]
    assert row.operations[0] == pytest.approx(ARCHS[arch][1], rel=0.01)


def test_the_gated_mixer_is_its_formula():
    mixer = AttNet(**AttNet.example).stages[0].blocks[0].mixers[1]
    x = torch.randn(2, 8, 5, 7)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        gate, value = mixer.expand(x).chunk(2, 1)
        y = nn.functional.gelu(mixer.depthwise(gate)) * value
        y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight.view(-1, 1, 1)
        torch.testing.assert_close(mixer(x), mixer.project(y))


def test_blocks_are_the_identity_without_their_scales():
    net = AttNet(**AttNet.example).eval()
    for scale in net.stages[1].blocks[0].scales:
        nn.init.zeros_(scale)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(net.stages[1].blocks[0](x), x)


def test_images_of_a_batch_do_not_see_each_other():
    net = AttNet(**AttNet.example, layer_scale=1.0).eval()
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        for together, alone in zip(net(x), net(x[:1]), strict=True):
            torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize('size', [(65, 34), (225, 190)])
def test_odd_sizes_are_rounded_up(size):
    outs = AttNet(**AttNet.example).eval()(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-side // s) for side in size) for s in (4, 8, 16)]


def test_it_starts_as_the_authors_draw_it():
    net = AttNet('XXS')
    net.init_weights()
    kernels = torch.cat([p.detach().flatten() for p in net.parameters() if p.ndim > 1])
    assert kernels.std() == pytest.approx(0.02, rel=0.05)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith(('bias', 'inhibition')))


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('T9', 'knows the archs'),
        (dict(depths=(1, 1), channels=(8, 8)), 'one entry per stage'),
        (dict(depths=(1,), channels=(8,), ratios=(4,), kernel_size=4), 'odd'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        AttNet(arch, out_indices=(0,))
