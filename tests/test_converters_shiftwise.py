"""ShiftwiseConv: the tables that no file holds, and the order of channels."""

import numpy as np
import pytest
import torch
from official_layers import depthwise, shaken
from official_layers.shiftwise import ShiftwiseBlock, ShiftwiseOfficial

from mmext.converters import convert
from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def moved(tensor, official):
    """The channels of a released Shiftwise layer, which come convolved ones first, in their own order."""
    order = torch.cat([official.rep, official.ghost])
    return torch.empty_like(tensor).index_copy(1, order, tensor)


@pytest.mark.parametrize(('big', 'merged'), [(13, False), (11, True)])
def test_shiftwise_layer_alone(big, merged):
    official = shaken(ShiftwiseOfficial(12, big, paths=1 if merged else 2, reps=3, merged=merged))
    ours = depthwise(ShiftwiseConv2d, 12, big, bias=False, n_path=1 if merged else 2, n_rep=3, seed=5)
    new = convert('shiftwise', official.state_dict(), {'n_rep': '3', 'channels': '12'})
    ours.load_state_dict(new.state, strict=True)
    assert 'stands alone' in new.notes[0]
    x = torch.randn(2, 12, 9, 17)
    expected = moved(official(x), official)
    torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(expected[:, official.ghost], x[:, official.ghost])


@pytest.mark.parametrize('prefix', ['', 'stages.0.1.'])
def test_shiftwise_block_gets_its_channels_back(prefix):
    official = shaken(ShiftwiseBlock(ShiftwiseOfficial(12, 13), 12))
    ours = shaken(ShiftwiseBlock(depthwise(ShiftwiseConv2d, 12, 13, bias=False, seed=5), 12))
    new = convert('shiftwise', {f'{prefix}{k}': v for k, v in official.state_dict().items()})
    assert not new.dropped
    assert not new.notes
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in new.state.items()}, strict=True)
    x = torch.randn(2, 12, 9, 10)
    torch.testing.assert_close(ours(x), official(x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours.norm.weight, official.norm.weight)


def test_shiftwise_tables_are_those_of_the_global_generators():
    official = ShiftwiseOfficial(40, big=51)
    state = official.state_dict()
    torch.manual_seed(7)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    new = convert('shiftwise', state, {'channels': '40'}).state
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(new['channels'], official.rep)
    for name, orders in (('slots_h', official.horizontal), ('slots_v', official.vertical)):
        counted = torch.zeros(new[name].shape, dtype=torch.uint8)
        for order in orders:
            for channel, kernels in enumerate(order):
                for place, kernel in enumerate(kernels):
                    counted[channel, place, kernel] += 1
        assert torch.equal(new[name], counted)
    counted = torch.zeros(new['slots_s'].shape, dtype=torch.uint8)
    for order in official.center:
        counted[torch.arange(len(order)), order] += 1
    assert torch.equal(new['slots_s'], counted)


def test_shiftwise_asks_where_the_file_does_not_tell():
    state = ShiftwiseOfficial(12).state_dict()
    with pytest.raises(
        UsageError, match=r'convolves 8 of its channels, which could be \[11, 12\] in all; --options chan'
    ):
        convert('shiftwise', state)
    with pytest.raises(UsageError, match=r"ghost_ratio= needs a number, got 'a'"):
        convert('shiftwise', state, {'ghost_ratio': 'a'})
    with pytest.raises(UsageError, match=r'convolves 8 of 12 channels, not 10; --options ghost_ratio'):
        convert('shiftwise', state, {'channels': '12', 'ghost_ratio': '0.1'})
