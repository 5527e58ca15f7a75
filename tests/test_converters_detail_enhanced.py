"""DEA-Net: five branches, and what they were simplified to."""

import pytest
import torch
from official_layers.detail_enhanced import DEAOfficial
from torch import nn

from mmext.converters import convert
from mmext.convs.detail_enhanced import DEConv2d
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_dea_adds_five_biases_and_keeps_the_simplified_form():
    official = DEAOfficial()
    new = convert('detail_enhanced', official.state_dict()).state
    inner = (official.conv1_1, official.conv1_2, official.conv1_3, official.conv1_4)
    torch.testing.assert_close(new['bias'], sum(c.conv.bias for c in inner) + official.conv1_5.bias)
    kernel = sum(official.kernels()) + official.conv1_5.weight
    simplified = {'block.weight': kernel.detach(), 'block.bias': new['bias']}
    with pytest.raises(
        UsageError, match=r'no layer of detail_enhanced .* simplified form .* --options form=simplified'
    ):
        convert('detail_enhanced', simplified)
    copied = convert('detail_enhanced', simplified, {'form': 'simplified'})
    assert copied.layers == ['block']
    assert all(copied.state[k] is v for k, v in simplified.items())
    ours = nn.ModuleDict({'block': DEConv2d(3, 4, 3, padding=1)})
    ours.load_state_dict(copied.state)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(ours.block.eval()(x), official(x))


def test_the_simplified_form_has_3x3_kernels_and_no_branches():
    with pytest.raises(UsageError, match='has five branches; leave --options form=simplified out'):
        convert('detail_enhanced', DEAOfficial().state_dict(), {'form': 'simplified'})
    with pytest.raises(UsageError, match='no layer of detail_enhanced'):
        convert('detail_enhanced', nn.Conv2d(3, 4, 5).state_dict(), {'form': 'simplified'})
    with pytest.raises(UsageError, match='form= needs one of branches, simplified, got plain'):
        convert('detail_enhanced', DEAOfficial().state_dict(), {'form': 'plain'})
