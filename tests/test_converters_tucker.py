"""Tucker convolutions: ranks and the room around them."""

import pytest
import torch
from official_layers.tucker import TuckerOfficial

from mmext.converters import convert
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_tucker_slices_by_the_live_ranks():
    official = TuckerOfficial()
    state = official.state_dict()
    cut, room = (convert('tucker', state, {'ranks': ranks}).state for ranks in ('live', 'room'))
    assert cut['core'].shape == (3, 2, 3, 3)
    assert torch.equal(cut['factor_out'], official.Us[0][:, :3])
    assert room['core'].shape == (4, 3, 3, 3)
    assert not room['core'][3:].any()
    assert not room['factor_in'][:, 2:].any()
    assert torch.equal(room['core'][:3, :2], cut['core'])
    assert cut['live_rank'].tolist() == [3, 2, 3, 3]
    assert torch.equal(cut['bias'], 2 * official.bias)


def test_tucker_needs_the_list_of_ranks():
    state = TuckerOfficial().state_dict()
    with pytest.raises(UsageError, match=r'has the ranks \[3, 0, 3, 3\], which are positive'):
        convert('tucker', {**state, 'r': [3, 0, 3, 3]})
    del state['r']
    with pytest.raises(UsageError, match=r'has no r, the list of its ranks'):
        convert('tucker', state)


@pytest.mark.parametrize('ranks', ['live', 'room'])
def test_ranks_stop_at_the_core(ranks):
    state = TuckerOfficial(r=(50, 2, 3, 3)).state_dict()
    new = convert('tucker', state, {'ranks': ranks}).state
    assert new['live_rank'].tolist() == [4, 2, 3, 3]
    assert torch.equal(new['factor_out'], state['Us.0'])
