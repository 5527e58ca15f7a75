"""RefConv: a map belongs to its basis."""

import pytest
from official_layers.refconv import RefConvOfficial

from mmext.converters import convert
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_refconv_map_must_fit_the_basis():
    state = RefConvOfficial(4, 6, 1).state_dict()
    with pytest.raises(UsageError, match=r'has a map over 24 slices and a basis of 3 x 4'):
        convert('refconv', {**state, 'weight': state['weight'][:3]})
