"""Hypercomplex networks: convolutions and linear layers."""

import pytest
import torch
import torch.nn.functional as F
from official_layers.phconv import PHCOfficial, PHMOfficial

from mmext.converters import convert

pytestmark = pytest.mark.usefixtures('double_precision')


@pytest.mark.parametrize('names', ['as', 'AS'])
def test_phc_bias_is_dropped_and_linear_layers_fold(names):
    layer, linear = PHCOfficial(), PHMOfficial(names)
    state = {f'{n}.{k}': v for n, m in (('conv', layer), ('fc', linear)) for k, v in m.state_dict().items()}
    new = convert('phconv', state)
    assert new.layers == ['conv', 'fc']
    assert new.dropped == ['conv.bias']
    assert set(new.state) == {'conv.algebra', 'conv.filters', 'fc.weight', 'fc.bias'}
    x = torch.randn(3, 12)
    torch.testing.assert_close(F.linear(x, new.state['fc.weight'], new.state['fc.bias']), linear(x))


def test_phc_leaves_other_dimensions_alone():
    state = dict(PHCOfficial().state_dict(), **{'audio.A': torch.zeros(2, 2, 2), 'audio.F': torch.zeros(2, 4, 3, 3)})
    new = convert('phconv', state)
    assert new.layers == ['']
    assert new.state['audio.F'] is state['audio.F']
    assert new.notes == ['audio is left as it is: no layer of ours computes what it does']
