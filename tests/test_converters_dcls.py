"""DCLS: axes, versions and shared positions."""

import pytest
import torch
from official_layers.dcls import DCLSOfficial
from torch import nn

from mmext.converters import convert
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_dcls_axes():
    state = DCLSOfficial('v1').state_dict()
    as_v0, as_v1 = (convert('dcls', state, {'version': v}).state['P'] for v in ('v0', 'v1'))
    assert torch.equal(as_v0, state['P'])
    assert torch.equal(as_v1, state['P'].flip(0))
    widths = DCLSOfficial('max').state_dict()
    assert torch.equal(convert('dcls', widths).state['SIG'], widths['SIG'].flip(0))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, r'version= needs one of v0, v1, got none'),
        ({'version': 'gauss'}, r'version= needs one of v0, v1, got gauss'),
        ({'version': 'v1', 'window': '5'}, r'window=HxW needs two numbers'),
        ({'versoin': 'v1'}, r'takes the options layers, version, window, got versoin'),
    ],
)
def test_dcls_options(options, message):
    with pytest.raises(UsageError, match=message):
        convert('dcls', DCLSOfficial('v1').state_dict(), options)


def test_dcls_keeps_a_copy_per_block_of_shared_positions():
    first, second = DCLSOfficial('v0'), DCLSOfficial('v0')
    second.P = first.P
    state = nn.ModuleList([first, second]).state_dict()
    new = convert('dcls', state, {'version': 'v0'})
    assert new.layers == ['0', '1']
    assert torch.equal(new.state['0.P'], new.state['1.P'])
