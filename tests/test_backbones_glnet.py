import pytest
import torch
from helpers import operations
from torch import nn

from mmext.backbones.glnet import GLNet
from mmext.optim import LayerOptionsConstructor

#: Parameters in millions with the last norm and a linear head of 1,000 classes, as the authors' code has them.
ARCHS = {'STL': 30.297, 'STL-learned': 30.481, '4G': 27.002, '9G': 60.011, '16G': 106.055}


def published(arch):
    with torch.device('meta'):
        return GLNet(arch, out_indices=(3,), out_norm=dict(type='BN'))


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_authors(arch):
    net = published(arch)
    head = net.out_channels[0] * 1000 + 1000
    assert round((sum(p.numel() for p in net.parameters()) + head) / 1e6, 3) == ARCHS[arch]


@pytest.mark.parametrize(('arch', 'expected'), [('STL', 4.316), ('4G', 4.270)])
def test_operations_are_the_authors(arch, expected):
    assert operations(published(arch)) == pytest.approx(expected, rel=0.003)


def mixer(**changes):
    arch = {**GLNet.example['arch'], **changes}
    return GLNet(arch, out_indices=(0,)).stages[0].blocks[0].token


def test_slots_gather_pixels_and_pixels_gather_slots():
    token, x = mixer(slot_attention=False), torch.randn(2, 8, 9, 7)
    seeds = token.seeds(x)
    assert seeds.shape == (2, 16, 8)
    logits = token.logits(x.flatten(2).transpose(1, 2), seeds)
    cosines = nn.functional.cosine_similarity(seeds[:, :, None], x.flatten(2).transpose(1, 2)[:, None], dim=-1)
    torch.testing.assert_close(logits, cosines * 8**-0.5)
    gather, give = logits.softmax(2), logits.softmax(1)
    torch.testing.assert_close(gather.sum(2), torch.ones(2, 16))
    torch.testing.assert_close(give.sum(1), torch.ones(2, 63))
    slots = torch.einsum('bsn,bcn->bsc', gather, x.flatten(2))
    torch.testing.assert_close(token.shared(x, seeds).flatten(2), torch.einsum('bsn,bsc->bcn', give, slots))


def test_the_branch_of_the_slots_moves_with_the_pixels():
    token, x = mixer(), torch.randn(1, 8, 4, 6)
    seeds, order = token.seeds(x), torch.randperm(24)
    moved = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(token.shared(moved, seeds).flatten(2), token.shared(x, seeds).flatten(2)[..., order])


def test_a_constant_map_stays_constant_without_the_local_branch():
    token = mixer()
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 5, 6)
    y = token.shared(x, token.seeds(x))
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y))


def test_seeds_are_means_of_the_map_before_position_and_norm():
    block = GLNet(**GLNet.example).eval().stages[0].blocks[0]
    x, seen = torch.randn(1, 8, 9, 9), []
    block.token.register_forward_pre_hook(lambda _, args: seen.extend(args))
    block(x)
    torch.testing.assert_close(seen[1], block.token.seeds(x))
    torch.testing.assert_close(seen[0], block.norms[0](x + block.position(x)))


def test_every_second_block_of_an_alternating_stage_attends():
    net = published('4G')
    kinds = [[type(block.token).__name__ for block in stage.blocks] for stage in net.stages]
    assert kinds[2] == ['_SlotMixer', 'MapAttention'] * 9
    assert [set(kinds[i]) for i in (0, 1, 3)] == [{'_SlotMixer'}, {'_SlotMixer'}, {'MapAttention'}]


@pytest.mark.parametrize('size', [(64, 96), (225, 33), (33, 34)])
def test_any_size_runs_also_maps_smaller_than_the_regions(size):
    outs = GLNet(**GLNet.example).eval()(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-side // s) for side in size) for s in (4, 8, 16)]
    plain = {**GLNet.example['arch'], 'overlapping': False, 'positions': False, 'local': False}
    outs = GLNet(plain, out_indices=(0, 1, 2)).eval()(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(side // s for side in size) for s in (4, 8, 16)]


def test_it_starts_as_the_authors_draw_it_also_in_a_host_that_draws_all():
    net = GLNet({**GLNet.example['arch'], 'learned': True}, out_indices=(2,))
    for p in net.parameters():
        nn.init.constant_(p, 7.0) if p.ndim > 1 else None
    net.init_weights()
    assert float(net.stages[0].blocks[0].token.slots.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert net.stages[2].blocks[0].token.project.weight.abs().max() < 0.1
    bound = (3 * 8) ** -0.5 * 3**0.5
    expand = net.stages[0].blocks[0].channel.expand.weight
    assert bound * 0.5 < expand.abs().max() < bound * 1.01


def test_the_temperature_does_not_decay():
    net = GLNet(**GLNet.example)
    constructor = LayerOptionsConstructor(dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.5)))
    groups = constructor(net).param_groups
    decays = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    numbers = [p for name, p in net.named_parameters() if name.endswith('temperature')]
    assert {decays[id(p)] for p in numbers} == {0}
    assert decays[id(net.stem[0].weight)] == 0.5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(channels=(8, 6)), 'heads that divide'),
        (dict(slots=60), 'take a square'),
        (dict(mixers=('slots',)), 'one entry per stage'),
        (dict(mixers=('slots', 'convolution')), 'alternating'),
    ],
)
def test_bad_archs(change, message):
    arch = dict(depths=(1, 1), channels=(8, 16), mixers=('slots', 'attention'), head_channels=4)
    with pytest.raises(ValueError, match=message):
        GLNet({**arch, **change}, out_indices=(0, 1))
