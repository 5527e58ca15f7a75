"""Gaussian composition: what the window must reach."""

import pytest
from official_layers.gaussian_conv import GaussianOfficial

from mmext.converters import convert
from mmext.errors import UsageError

pytestmark = pytest.mark.usefixtures('double_precision')


def test_gaussian_says_how_far_the_window_reaches():
    for sigma, window in (
        (-1.3, 'max_sigma=1.5 '),
        ([0.7, 1.3], r'max_sigma=(1, 1.5)'),
        ([-0.2, -0.5, 0.4], 'max_sigma=(1, 2)'),
    ):
        assert window in convert('gaussian_conv', GaussianOfficial(sigma).state_dict()).notes[0]
    with pytest.raises(UsageError, match=r'has 4 values of sigma'):
        convert('gaussian_conv', GaussianOfficial([1.0] * 4).state_dict())
