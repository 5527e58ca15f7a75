"""Effective receptive fields: by the definition, on networks whose field is known."""

import numpy as np
import pytest
import torch
from helpers import tool
from torch import nn

from mmext.analysis.images import load_image, model_inputs
from mmext.analysis.receptive_field import SHARES, draw_receptive_fields, receptive_field, smallest_squares
from mmext.errors import UsageError

CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=10, mean=[127.5] * 3, std=[64.0] * 3, to_rgb=True),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
"""
DETECTOR = "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"
SEGMENTOR = "_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'\n"


def constant(kernel, stride=1, weight=1.0):
    conv = nn.Conv2d(1, 1, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.constant_(conv.weight, weight)
    return conv


def test_the_field_of_a_constant_kernel_is_its_window():
    field = receptive_field(constant(5), torch.randn(2, 1, 11, 9))
    expected = torch.zeros(11, 9)
    expected[3:8, 2:7] = 1
    torch.testing.assert_close(field, expected)


def test_the_field_of_two_kernels_is_their_convolution():
    field = receptive_field(nn.Sequential(constant(3), constant(3)), torch.randn(1, 1, 9, 9))
    row = torch.tensor([1.0, 2, 3, 2, 1])
    torch.testing.assert_close(field[2:7, 2:7], row[:, None] * row)
    assert float(field.sum()) == 81


def test_only_what_adds_counts_and_images_are_averaged():
    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.tensor([1.0, -2.0])[:, None, None] * (x.mean((1, 2, 3), keepdim=True) > 0)

    images = torch.stack([torch.ones(2, 3, 3), -torch.ones(2, 3, 3)])
    field = receptive_field(Gate(), images)
    expected = torch.zeros(3, 3)
    expected[1, 1] = 0.5
    torch.testing.assert_close(field, expected)


def test_squares_by_hand():
    field = torch.zeros(5, 7)
    field[2, 3] = 6
    field[1, 3] = 2
    field[0, 0] = 2
    squares = smallest_squares(field, (0.2, 0.6, 0.61, 0.8, 0.81, 1.0))
    assert [s.reach for s in squares] == [0, 0, 1, 1, 3, 3]
    assert [s.area for s in squares] == pytest.approx([1 / 35, 1 / 35, 9 / 35, 9 / 35, 1, 1])


@pytest.mark.parametrize('value', [0.0, float('nan'), float('inf')])
def test_a_field_without_shares_is_refused(value):
    with pytest.raises(UsageError, match='adds up to'):
        smallest_squares(torch.full((4, 4), value))


def test_squares_of_any_size_end_with_the_image():
    for size in ((1, 1), (2, 2), (4, 7), (8, 3)):
        squares = smallest_squares(torch.rand(size) + 0.1, (0.5, 1.0))
        assert squares[-1].area == 1


def test_a_layer_is_chosen_by_its_name():
    model = nn.Sequential(constant(3), constant(3, stride=2), constant(5)).eval()
    x = torch.randn(1, 1, 16, 16)
    assert int((receptive_field(model, x, '0') > 0).sum()) == 9
    assert int((receptive_field(model, x, '1') > 0).sum()) == 25
    with pytest.raises(UsageError, match="no module 'neck'"):
        receptive_field(model, x, 'neck')
    with pytest.raises(UsageError, match='gives no map'):
        receptive_field(nn.Sequential(nn.Flatten()), x)
    with pytest.raises(UsageError, match='does not run'):
        receptive_field(model, torch.randn(1, 3, 16, 16))


def test_the_picture_has_the_squares_and_their_numbers():
    field = receptive_field(nn.Sequential(constant(3), constant(3)), torch.randn(1, 1, 16, 12))
    (axes,) = draw_receptive_fields([('twice', field)]).axes
    assert axes.get_title() == 'twice'
    assert len(axes.get_lines()) == len(SHARES)
    assert axes.get_lines()[-1].get_xdata().tolist() == [3.5, 8.5, 8.5, 3.5, 3.5]
    assert axes.get_xlabel().endswith(f'99%: {25 / 192:.1%}')


@pytest.mark.parametrize(('scope', 'text'), [('mmpretrain', CLASSIFIER), ('mmdet', DETECTOR), ('mmseg', SEGMENTOR)])
def test_the_tool_takes_models_of_every_host(scope, text, tmp_path, capsys, monkeypatch):
    pytest.importorskip(scope)
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(text)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save('photo.png')
    for images in (['--number', '1'], ['--images', 'photo.png']):
        tool('visualization/receptive_field').main(['mine.py', '--shape', '64', '64', *images])
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith('mine  '))
    assert len(first.split()) == len(second.split()) == 1 + len(SHARES)
    assert Image.open('receptive_field.png').size[0] > 100


def test_the_tool_wants_a_checkpoint_for_each_config(tmp_path):
    (tmp_path / 'config.py').write_text(CLASSIFIER)
    with pytest.raises(UsageError, match='2 configs and 1 checkpoints'):
        tool('visualization/receptive_field').main([str(tmp_path / 'config.py')] * 2 + ['--checkpoints', 'a.pth'])


def test_images_reach_a_model_as_its_host_gives_them(tmp_path):
    from PIL import Image

    from mmext.hosts import build_model

    pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    rgb = np.zeros((8, 8, 3), dtype=np.uint8)
    rgb[..., 0] = 255
    Image.fromarray(rgb).save(tmp_path / 'red.png')
    image = load_image(tmp_path / 'red.png', (6, 4))
    assert image.shape == (6, 4, 3)
    assert image[0, 0].tolist() == [0, 0, 255]
    (tmp_path / 'config.py').write_text(CLASSIFIER)
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(tmp_path / 'config.py').model
    model = build_model(cfg)
    x = model_inputs(model, [image, image])
    assert x.shape == (2, 3, 6, 4)
    torch.testing.assert_close(x[1, :, 0, 0], torch.tensor([127.5 / 64, -127.5 / 64, -127.5 / 64]))
    bare = model_inputs(model.backbone, [image])
    assert float(bare[0, 0].mean()) > 0 > float(bare[0, 2].mean())
