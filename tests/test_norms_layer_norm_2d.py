import torch
from mmcv.cnn import build_norm_layer

from mmext.norms.layer_norm_2d import LayerNorm2d


def test_equals_torchs_layer_norm_on_the_channels():
    ours, theirs = LayerNorm2d(6).double(), torch.nn.LayerNorm(6, eps=1e-6).double()
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 3, 5).double()
    torch.testing.assert_close(ours(x), theirs(x.movedim(1, -1)).movedim(-1, 1))


def test_norm_cfg_names_it():
    name, layer = build_norm_layer(dict(type='mmext.LayerNorm2d'), 8)
    assert (name, type(layer)) == ('ln', LayerNorm2d)
