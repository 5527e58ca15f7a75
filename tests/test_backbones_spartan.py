import pytest
import torch
from helpers import operations, shake
from torch import nn

from mmext.backbones.spartan import SpaRTAN


@pytest.fixture(scope='module')
def published():
    with torch.device('meta'):
        return SpaRTAN()


def test_parameters_and_operations_are_the_authors(published):
    assert round((sum(p.numel() for p in published.parameters()) + 257_000) / 1e6, 3) == 3.820
    assert operations(published) == pytest.approx(0.800, rel=0.003)


def test_the_first_stages_are_dense_in_space_and_depthwise_in_channels(published):
    groups = [
        (stage.blocks[0].mixers[0].near[0].groups, stage.blocks[0].mixers[1].local[0].groups)
        for stage in published.stages
    ]
    assert groups == [(1, 128), (1, 256), (64, 128), (128, 256)]


def channel_mixer(early=True):
    net = SpaRTAN(**SpaRTAN.example)
    return shake(net.stages[0 if early else 2].blocks[0].mixers[1], 0.1).eval()


def test_pairs_of_channels_are_multiplied_as_complex_numbers():
    mixer, x = channel_mixer(), torch.randn(2, 24, 3, 5)
    pairs = torch.view_as_complex(x.permute(0, 2, 3, 1).unflatten(3, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * torch.view_as_complex(mixer.wave.detach())).flatten(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(mixer.turned(x), expected)
    with torch.no_grad():
        mixer.wave.copy_(torch.tensor([1.0, 0.0]))
    assert torch.equal(mixer.turned(x), x)


def test_the_strongest_channel_is_added_to_all():
    mixer, x = channel_mixer(), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        mixer.wave.copy_(torch.tensor([1.0, 0.0]))
        seen = []
        mixer.local.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        mixer(x)
        weight, phase = mixer.weight(x), nn.functional.gelu(mixer.phase(x))
        for row in range(4):
            for column in range(4):
                strongest = int(x[0, :, row, column].argmax())
                at = weight[0, :, row, column] * phase[0, :, row, column]
                torch.testing.assert_close(seen[0][0, :, row, column], at + at[strongest])


def test_channels_turn_in_float32_under_autocast():
    mixer, x = channel_mixer(), torch.randn(1, 24, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(mixer.turned(x), mixer.turned(x.clone()))
        assert mixer.turned(x).dtype == torch.float32
        assert mixer.turned(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(mixer.turned(x.bfloat16()), mixer.turned(x.bfloat16().float()).bfloat16())


def test_the_spatial_mixer_is_its_formula():
    mixer, x = shake(SpaRTAN(**SpaRTAN.example).stages[0].blocks[0].mixers[0], 0.2).eval(), torch.randn(1, 8, 9, 9)
    p = mixer.reduce(x)
    p = p + mixer.sharpness.view(-1, 1, 1) * (p - p.mean((2, 3), keepdim=True))
    near = mixer.near_gate(nn.functional.gelu(mixer.near[1](mixer.near[0](p))))
    far = mixer.far_gate(nn.functional.gelu(mixer.far[2](mixer.far[1](mixer.far[0](p)))))
    torch.testing.assert_close(mixer(x), mixer.fuse(torch.cat([near, far], 1)))
    assert [layer.dilation for layer in (mixer.near[0], mixer.far[0], mixer.far[1])] == [(1, 1), (2, 2), (2, 2)]


def test_blocks_are_the_identity_without_their_scales():
    net = SpaRTAN(**SpaRTAN.example).eval()
    for scale in net.stages[1].blocks[0].scales:
        nn.init.zeros_(scale)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(net.stages[1].blocks[0](x), x)


def test_no_block_drops_with_the_full_rate():
    net = SpaRTAN(**SpaRTAN.example, drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in net.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize('size', [(65, 34), (97, 130)])
def test_the_stem_rounds_up_and_transitions_round_down(size):
    outs = SpaRTAN(**SpaRTAN.example).eval()(torch.randn(1, 3, *size))
    quarter = [-(-side // 4) for side in size]
    assert [list(x.shape[2:]) for x in outs] == [[side // s for side in quarter] for s in (1, 2, 4)]


def test_it_starts_as_the_authors_draw_it():
    net = SpaRTAN('3.8M', out_indices=(1,))
    net.init_weights()
    mixer = net.stages[1].blocks[0].mixers
    assert float(mixer[0].near[0].weight.detach().std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert float(mixer[1].local[0].weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert float(mixer[1].wave.detach().std()) == pytest.approx(1, rel=0.15)
    assert not mixer[1].phase.bias.any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(channels=(8, 12)), 'multiples of 8'),
        (dict(ratios=(2,)), 'one entry per stage'),
        (dict(ratios=(0, 1)), 'ratios'),
    ],
)
def test_bad_archs(change, message):
    with pytest.raises(ValueError, match=message):
        SpaRTAN({**dict(depths=(1, 1), channels=(8, 16), ratios=(2, 2)), **change}, out_indices=(0, 1))
