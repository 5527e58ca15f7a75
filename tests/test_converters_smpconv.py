"""SMPConv: its two forms."""

import pytest
from official_layers.smpconv import CKOfficial, SMPOfficial
from torch import nn

from mmext.converters import convert

pytestmark = pytest.mark.usefixtures('double_precision')


def test_the_grid_and_its_size_are_dropped():
    assert convert('smpconv', SMPOfficial().state_dict()).dropped == ['kernel_coord']
    state = nn.Sequential(nn.ReLU(), CKOfficial(3, 1)).state_dict()
    new = convert('smpconv', state)
    assert new.dropped == ['1.train_length']
    assert set(new.state) == {'1.weight_coord', '1.radius', '1.weights', '1.bias'}
