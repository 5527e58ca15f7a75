"""Gaussian composition: what the window must reach."""

import pytest
from official_layers.gaussian_conv import GaussianOfficial

from mmext.converters import convert
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_gaussian_says_how_far_the_window_reaches():
    assert 'reaches 3 pixels; max_sigma=1.5' in convert('gaussian_conv', GaussianOfficial(-1.3).state_dict()).notes[0]
    with pytest.raises(UsageError, match=r'has 4 values of sigma'):
        convert('gaussian_conv', GaussianOfficial([1.0] * 4).state_dict())
