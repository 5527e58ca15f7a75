import pytest
import torch
from torch import nn

from mmext.backbones.wavemix import WaveMix
from mmext.necks.wavemix import WaveMixDecoder


def test_the_published_segmentor_has_as_many_parameters():
    """63.165 million with 20 classes, of the 256 channels, 16 blocks and four levels."""
    with torch.device('meta'):
        parts = [WaveMix('256-L4'), WaveMixDecoder(256), nn.Conv2d(64, 20, 1)]
    assert round(sum(p.numel() for part in parts for p in part.parameters()) / 1e6, 3) == 63.165


def test_it_is_linear_and_takes_the_chosen_map():
    neck = WaveMixDecoder(8, channels=(6, 4), in_index=0)
    a, b = torch.randn(2, 2, 8, 5, 7).unbind(0)
    maps = [neck([x, None])[0] for x in (a, b, a + b, torch.zeros_like(a))]
    assert maps[0].shape == (2, 4, 20, 28)
    torch.testing.assert_close(maps[0] + maps[1], maps[2] + maps[3])
    with pytest.raises(ValueError, match='in_index=-3'):
        WaveMixDecoder(8, in_index=-3)([a, b])
