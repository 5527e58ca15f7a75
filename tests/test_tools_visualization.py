"""Pictures of what a network does, by the tools of ``tools/visualization``."""

import pytest
import torch
from helpers import tool

from mmext.analysis.spatial_weights import draw_spatial_weights
from mmext.backbones import XMLP
from mmext.errors import UsageError

CONFIG = 'model = dict(type="mmext.XMLP", arch=dict(depths=(1,), channels=(4,)), img_size={}, out_indices=(0,))'


def test_spatial_weights_are_drawn(tmp_path, capsys):
    (tmp_path / 'net.py').write_text(CONFIG.format((16, 24)))
    out = tmp_path / 'new/weights.png'
    tool('visualization/spatial_weights').main([str(tmp_path / 'net.py'), '--out', str(out), '--points', '1'])
    assert out.read_bytes().startswith(b'\x89PNG')
    assert 'stage 0, channel 0 of the model' in capsys.readouterr().out


def test_the_maps_are_rows_of_the_matrix():
    net = XMLP(arch=dict(depths=(2,), channels=(4,)), img_size=(16, 24), out_indices=(0,)).eval()
    figure = draw_spatial_weights(net, 0, 1, points=2)
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_title()]
    rows, columns = net.spatial_factors(0, 1)
    weights = net.spatial_weights(0, 1)
    for drawn, expected in zip(images, (rows, columns, weights), strict=False):
        torch.testing.assert_close(torch.as_tensor(drawn.data), expected)
    for drawn, (y, x) in zip(images[3:], ((1, 1), (3, 4)), strict=True):
        torch.testing.assert_close(torch.as_tensor(drawn.data), weights[y * 6 + x].view(4, 6))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['--stage', '1'], 'has the stages 0 to 0'), (['--channel', '4'], 'has the channels 0 to 3')],
)
def test_what_is_not_there_is_refused(arguments, message, tmp_path):
    (tmp_path / 'net.py').write_text(CONFIG.format(16))
    with pytest.raises(UsageError, match=message):
        tool('visualization/spatial_weights').main([str(tmp_path / 'net.py'), *arguments])


def test_a_network_without_spatial_weights_is_refused(tmp_path):
    (tmp_path / 'net.py').write_text('model = dict(type="mmext.FalconNet")')
    with pytest.raises(UsageError, match='no network whose pixels mix by one known matrix'):
        tool('visualization/spatial_weights').main([str(tmp_path / 'net.py'), '--out', str(tmp_path / 'x.png')])
