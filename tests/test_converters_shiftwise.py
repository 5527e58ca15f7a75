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
    for wrong in ('a', 'nan', '1', '-0.1'):
        with pytest.raises(UsageError, match=rf"ghost_ratio= needs a number from 0 to 0.99, got '{wrong}'"):
            convert('shiftwise', state, {'ghost_ratio': wrong})
    with pytest.raises(UsageError, match=r'convolves 8 of 12 channels, not 10; --options ghost_ratio=0.228'):
        convert('shiftwise', state, {'channels': '12', 'ghost_ratio': '0.1'})
    with pytest.raises(UsageError, match=r'convolves 8 of 5 channels, not 2; --options channels=NUMBER is that of all'):
        convert('shiftwise', state, {'channels': '5'})


def count_of_v1(channels):
    return channels - int(0.23 * channels)


@pytest.mark.parametrize('channels', [96, 192, 384, 768])
def test_the_ratio_of_v1_networks_is_named(channels):
    """They cut the number of channels that pass, where later networks cut that of the channels that are convolved."""
    state = ShiftwiseOfficial(channels, count=count_of_v1(channels)).state_dict()
    with pytest.raises(
        UsageError, match=r"--options ghost_ratio=0.228, the v1 networks' number, and build the layers with"
    ):
        convert('shiftwise', state, {'channels': str(channels)})


@pytest.mark.parametrize(('channels', 'count', 'ratio'), [(96, 74, 0.228), (64, 50, 0.2031), (12, 12, 0.0)])
def test_a_layer_with_the_ratio_that_the_refusal_names_computes_the_same(channels, count, ratio):
    official = shaken(ShiftwiseOfficial(channels, count=count, reps=1))
    with pytest.raises(UsageError, match=rf'convolves {count} of {channels} .* ghost_ratio={ratio:g}(,|$)'):
        convert('shiftwise', official.state_dict(), {'channels': str(channels), 'n_rep': '1'})
    options = {'channels': str(channels), 'n_rep': '1', 'ghost_ratio': str(ratio)}
    ours = depthwise(ShiftwiseConv2d, channels, 13, bias=False, n_rep=1, ghost_ratio=ratio)
    ours.load_state_dict(convert('shiftwise', official.state_dict(), options).state, strict=True)
    x = torch.randn(1, channels, 9, 10)
    torch.testing.assert_close(ours.eval()(x), moved(official(x), official), rtol=1e-9, atol=1e-9)


def test_odd_counts_cannot_be_had():
    state = ShiftwiseOfficial(13, count=count_of_v1(13)).state_dict()
    with pytest.raises(UsageError, match='convolves 11 of 13 channels, not 10; layers of ours convolve an even number'):
        convert('shiftwise', state, {'channels': '13'})
