"""UniRepLKNet: branches outside of the table."""

import pytest
import torch
from official_layers import depthwise, shaken
from official_layers.dilated_reparam import UniRepLKOfficial

from mmext.converters import convert
from mmext.convs.dilated_reparam import DilatedReparamConv2d

pytestmark = pytest.mark.usefixtures('double_precision')


def test_dilated_branches_outside_of_the_table_keep_the_order_of_the_file():
    class Other(UniRepLKOfficial):
        branches = ((3, 4), (5, 1))

    official = shaken(Other())
    ours = depthwise(DilatedReparamConv2d, 4, 9, branches=('3x3@4', '5x5'), bias=False)
    new = convert('dilated_reparam', official.state_dict())
    assert "branches=['3x3@4', '5x5']" in new.notes[0]
    ours.load_state_dict(new.state, strict=True)
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(ours.eval()(x), official(x))
