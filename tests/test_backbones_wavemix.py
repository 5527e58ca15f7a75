import pytest
import torch
from torch import nn

from mmext.analysis.backbones import cost
from mmext.backbones.wavemix import WaveMix

#: Parameters in millions with a linear head of 1,000 classes, GMACs at 224 x 224: as measured with the authors' code.
ARCHS = {
    'lite': (12.495, 12.79),
    '192-L2': (20.176, 14.65),
    '192-L3': (27.858, 15.13),
    '256-L3': (49.417, 26.85),
    '256-L4': (62.765, None),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_operations_are_the_authors(arch):
    row = cost(arch, dict(type='mmext.WaveMix', arch=arch))
    head = row.channels[-1] * 1000 + 1000
    assert round((row.parameters + head) / 1e6, 3) == ARCHS[arch][0]
    if ARCHS[arch][1]:
        assert row.operations[0] == pytest.approx(ARCHS[arch][1], rel=0.01)


@pytest.mark.parametrize('strided', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (100, 90), (33, 47)])
def test_any_size(size, strided):
    net = WaveMix(dict(depth=2, channels=8, levels=4, strided=strided), out_indices=(0, 1)).eval()
    sides = tuple(-(-side // 4) if strided else side // 4 for side in size)
    assert {tuple(y.shape[2:]) for y in net(torch.randn(1, 3, *size))} == {sides}


def test_a_block_adds_only_a_shift_where_nothing_is_enlarged():
    net = WaveMix(**WaveMix.example).eval()
    block = net.stages[0].blocks[0]
    for module in block.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(block.levels[0].norm.bias)
    x = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(block(x), x + block.levels[0].norm.bias.view(-1, 1, 1))


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('L9', 'knows the archs'),
        (dict(depth=1, channels=6), 'quarter of its channels'),
        (dict(depth=1, channels=8, levels=0), 'levels'),
        (dict(channels=8), 'needs arch'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        WaveMix(arch)
