"""SMPConv: its two forms."""

import pytest
from official_layers.smpconv import SMPOfficial

from mmext.converters import convert

pytestmark = pytest.mark.usefixtures('double_precision')


def test_smp_grid_is_dropped():
    assert convert('smpconv', SMPOfficial(True).state_dict()).dropped == ['kernel_coord']
