import pytest
import torch
from helpers import operations
from torch import nn

from mmext.backbones.pfnet import PfNet

LAYER = dict(type='mmext.LayerNorm2d', eps=1e-6)
#: Parameters in millions with a linear head of 1,000 classes, as the authors' code has them.
ARCHS = {
    'R50-max': 14.232,
    'R50-hybrid': 17.331,
    'ViT-Ti-max': 6.159,
    'ViT-S-max': 23.819,
    'ViT-B-max': 93.644,
    'PiT-Ti-max': 5.175,
    'PiT-S-max': 25.120,
    'PiT-B-max': 79.006,
}
SMALL = dict(depths=(2, 3), channels=(8, 16), kind='transformer', heads=(2, 2), patch_size=4, patch_stride=2)


def published(arch):
    with torch.device('meta'):
        return PfNet(arch, out_indices=(-1,), out_norm=None if arch.startswith('R50') else LAYER)


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_authors(arch):
    net = published(arch)
    head = net.out_channels[0] * 1000 + 1000
    assert round((sum(p.numel() for p in net.parameters()) + head) / 1e6, 3) == ARCHS[arch]


@pytest.mark.parametrize(('arch', 'expected'), [('R50-hybrid', 2.586), ('ViT-Ti-max', 1.156), ('PiT-Ti-max', 0.532)])
def test_operations_are_the_authors(arch, expected):
    assert operations(published(arch)) == pytest.approx(expected, rel=0.003)


def test_strides_of_all_forms():
    with torch.device('meta'):
        strides = {arch: PfNet(arch).out_strides for arch in ('R50-max', 'ViT-S-max', 'PiT-S-max', 'PiT-B-max')}
    assert list(strides.values()) == [(4, 8, 16, 32), (16,) * 4, (8, 16, 32), (7, 14, 28)]


def resnet(kind, **kwargs):
    return PfNet(dict(depths=(1, 2, 1), channels=(16, 16, 32), kind=kind, stem_channels=8), **kwargs).eval()


def test_a_hybrid_convolves_where_it_halves_and_nowhere_else():
    net = resnet('hybrid')
    sizes = [
        [m.kernel_size for m in block.spatial.modules() if type(m) is nn.Conv2d]
        for s in net.stages
        for block in s.blocks
    ]
    assert sizes == [[], [(3, 3)], [], [(3, 3)]]
    assert not [m for m in resnet('max').stages.modules() if type(m) is nn.Conv2d and m.kernel_size != (1, 1)]


@pytest.mark.parametrize('kind', ['max', 'hybrid'])
@pytest.mark.parametrize('size', [(65, 34), (97, 131), (7, 40)])
def test_a_resnet_rounds_up(kind, size):
    outs = resnet(kind)(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-side // s) for side in size) for s in (4, 8, 16)]


def test_the_average_pool_is_the_authors_on_even_sides_and_averages_what_there_is_on_odd_ones():
    pool = resnet('hybrid').stages[1].blocks[0].spatial[0]
    x = torch.randn(1, 4, 6, 8)
    assert torch.equal(pool(x), nn.functional.avg_pool2d(x, 2))
    odd = pool(x[..., :5, :7])
    torch.testing.assert_close(odd[..., 2, 3], x[..., 4, 6])
    torch.testing.assert_close(odd[..., 2, 0], x[..., 4, :2].mean(-1))


def test_a_max_pool_moves_with_the_map_away_from_borders():
    block = resnet('max').stages[0].blocks[0]
    x = torch.randn(1, 8, 9, 9)
    y, moved = block(x), block(x.roll((1, 2), (2, 3)))
    torch.testing.assert_close(moved[..., 2:-1, 3:-1], y.roll((1, 2), (2, 3))[..., 2:-1, 3:-1])


@pytest.mark.parametrize('kind', ['max', 'hybrid'])
def test_stages_beyond_the_output_stride_keep_the_size_and_dilate(kind):
    net = resnet(kind, output_stride=8)
    plain = resnet(kind)
    net.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 49)
    assert net.out_strides == (4, 8, 8)
    assert [tuple(y.shape[2:]) for y in net(x)] == [(16, 13), (8, 7), (8, 7)]
    spatial, z = net.stages[2].blocks[0].spatial, torch.zeros(1, 8, 9, 9)
    z[..., 4, 4] = 1
    if kind == 'max':
        assert spatial(z)[0, 0].nonzero().tolist() == [[i, j] for i in (2, 4, 6) for j in (2, 4, 6)]
        assert (spatial(z - 5) < 0).all(), 'what lies beyond the border is no zero'
    else:
        assert spatial[1][0].dilation == (2, 2)


def test_every_second_layer_pools_and_starts_anew_after_a_halving():
    def kinds(net):
        return [''.join('pa'[hasattr(b.token, 'qkv')] for b in stage.blocks) for stage in net.stages]

    assert kinds(PfNet(SMALL)) == ['ap', 'apa']
    same = {**SMALL, 'channels': (8, 8), 'depths': (3, 2)}
    net = PfNet(same)
    assert kinds(net) == ['apa', 'pa']
    assert net.out_strides == (2, 2)


def test_a_layer_that_pools_is_its_formula_and_takes_any_map():
    layer, x = PfNet(SMALL).stages[0].blocks[1].token, torch.randn(2, 8, 5, 7)
    wide = nn.functional.gelu(nn.functional.max_pool2d(nn.functional.gelu(layer[0](x)), 3, 1, 1))
    torch.testing.assert_close(layer(x), layer[4](wide))
    assert layer[4].weight.shape == (8, 24, 1, 1)


def test_positions_are_those_of_the_image_and_resized_for_others():
    net = PfNet(SMALL, img_size=32).eval()
    assert net.stem.position.shape == (1, 8, 15, 15)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net.stem(x), net.stem.patches(x) + net.stem.position)
    with torch.no_grad():
        net.stem.position.fill_(0.5)
    x = torch.randn(1, 3, 21, 48)
    torch.testing.assert_close(net.stem(x), net.stem.patches(x) + 0.5)
    assert [tuple(y.shape[2:]) for y in net(x)] == [(9, 23), (5, 12)]
    assert net.stem.optim_options() == dict(position=dict(decay_mult=0.0))


def test_it_starts_as_the_authors_draw_it():
    for std, expected in ((0.02, 0.02), (None, (3 * 8) ** -0.5)):
        net = PfNet({**SMALL, 'std': std})
        for p in net.parameters():
            nn.init.constant_(p, 7.0)
        net.init_weights()
        assert float(net.stages[0].blocks[1].token[0].weight.detach().std()) == pytest.approx(expected, rel=0.25)
        assert float(net.stages[0].blocks[0].token.qkv.weight.detach().std()) == pytest.approx(expected, rel=0.25)
        assert float(net.stem.position.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_a_transformer_trains_every_parameter_with_checkpointing():
    net = PfNet(SMALL, img_size=32, with_cp=True, drop_path_rate=0.1)
    sum(y.square().mean() for y in net(torch.randn(2, 3, 33, 20))).backward()
    assert all(p.grad is not None for p in net.parameters())
    depths = [net.get_layer_depth(name) for name, _ in net.named_parameters()]
    assert {depth for depth, _ in depths} == set(range(6))


@pytest.mark.parametrize(
    ('arch', 'more', 'message'),
    [
        ('R101-max', {}, 'knows the archs'),
        (dict(depths=(1,), channels=(10,), kind='max'), {}, 'multiples of 4'),
        (dict(depths=(1,), channels=(8,), kind='average'), {}, 'hybrid'),
        ({**SMALL, 'heads': (2, 3)}, {}, 'heads that divide'),
        ({**SMALL, 'heads': None}, {}, 'one entry per stage'),
        ({**SMALL, 'channels': (8, 12)}, {}, 'each divides the next'),
        (SMALL, dict(output_stride=8), 'dilates ResNets alone'),
    ],
)
def test_bad_arguments(arch, more, message):
    with pytest.raises(ValueError, match=message):
        PfNet(arch, **more)
