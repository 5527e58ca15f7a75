import pytest
import torch
from mmengine.analysis import get_model_complexity_info

from mmext.backbones.rdnet import RDNet

SMALL = dict(arch=dict(channels=8, growths=(8, 16, 8), halvings=(1, 2)), out_indices=(0, 1, 2))
#: Parameters in millions with a linear head of 1,000 classes, channels of the scales, GMACs at 224 x 224: as published.
ARCHS = {
    'T': (23.863, (256, 440, 744, 1040), 5.033),
    'S': (50.436, (264, 512, 760, 1264), 8.706),
    'B': (87.451, (408, 584, 1000, 1760), 15.358),
    'L': (186.270, (528, 840, 1528, 2000), 34.675),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_widths_are_the_authors(arch):
    millions, widths, _ = ARCHS[arch]
    with torch.device('meta'):
        net = RDNet(arch, pooled_norm=True)
    head = widths[-1] * 1000 + 1000
    assert round((sum(p.numel() for p in net.parameters()) + head) / 1e6, 3) == millions
    assert net.out_channels == widths


def test_operations_are_the_authors():
    net = RDNet('T', out_indices=(3,)).eval()
    count = get_model_complexity_info(net, input_shape=(3, 224, 224), show_table=False, show_arch=False)['flops']
    assert count / 1e9 == pytest.approx(ARCHS['T'][2], rel=0.01)


def test_a_stage_is_its_input_and_what_is_new():
    net = RDNet(**SMALL).eval()
    with torch.no_grad():
        for blocks in net.stages:
            for block in blocks:
                block.gamma.zero_()
        x = torch.randn(1, 3, 32, 32)
        out = net(x)[0]
        torch.testing.assert_close(out[:, :8], net.stem(x))
        assert not out[:, 8:].any()


def test_transitions_halve_the_channels_to_a_multiple_of_eight():
    net = RDNet('T', out_indices=(3,))
    pairs = [(t[1].in_channels, t[1].out_channels) for t in net.transitions[1:]]
    assert pairs == [(256, 128), (440, 216), (600, 296), (680, 336), (720, 360), (744, 368)]


def test_later_stages_are_gated_and_the_gate_is_the_formula():
    net = RDNet(**SMALL)
    assert [blocks[0].gate is not None for blocks in net.stages] == [False, False, True]
    block = net.stages[2][0].eval()
    x = torch.randn(2, block.depthwise.in_channels, 5, 5)
    new = block.project(block.act(block.expand(block.norm(block.depthwise(x)))))
    gate = ((block.gate(new.mean((2, 3), keepdim=True)) + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(block(x), new * gate * block.gamma.view(-1, 1, 1))


@pytest.mark.parametrize('size', [225, 230])
def test_odd_sizes_are_rounded_down(size):
    outs = RDNet(**SMALL).eval()(torch.randn(1, 3, size, size))
    assert [x.shape[-1] for x in outs] == [size // 4, size // 8, size // 16]


def test_outputs_for_classifiers_and_detectors():
    pooled = RDNet(**SMALL, pooled_norm=True).eval()
    assert pooled(torch.randn(2, 3, 32, 32))[-1].shape == (2, pooled.out_channels[-1], 1, 1)
    normed = RDNet(**SMALL, out_norm=dict(type='GN', num_groups=1)).eval()
    for out in normed(torch.randn(2, 3, 32, 32)):
        assert out.mean().abs() < 1e-5


@pytest.mark.parametrize(
    'arch',
    [
        'XXL',
        dict(channels=8),
        dict(channels=8, growths=(), halvings=()),
        dict(channels=8, growths=(8, 8), halvings=(2,)),
        dict(channels=8, growths=(8, 8, 8), halvings=(2, 1)),
    ],
)
def test_bad_archs(arch):
    with pytest.raises(ValueError, match='RDNet'):
        RDNet(arch)


def test_norms_have_the_authors_epsilon():
    """The hosts' builder of norms has another default than the norm itself."""
    net = RDNet(**SMALL, pooled_norm=True)
    assert {m.eps for m in net.modules() if type(m).__name__ == 'LayerNorm2d'} == {1e-6}
    assert net.pooled_norm.eps == 1e-5
