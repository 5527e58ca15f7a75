import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.spd_conv import SPDConv2d


def phases(x: torch.Tensor, down: int = 2, right: int = 2) -> torch.Tensor:
    """Space-to-depth as released: phases (row, column) in the order (0, 0), (1, 0), (0, 1), (1, 1)."""
    return torch.cat([x[..., dy::down, dx::right] for dx in range(right) for dy in range(down)], 1)


@pytest.mark.parametrize(('kernel', 'padding'), [(1, 0), (3, 1), (3, 0), (5, 2), ((3, 5), (1, 2)), (2, 1)])
@pytest.mark.parametrize('stride', [2, (2, 1), (3, 2)])
def test_equals_space_to_depth_and_a_convolution(kernel, padding, stride):
    layer = SPDConv2d(3, 5, kernel, stride, padding).double()
    x = torch.randn(2, 3, 18, 12, dtype=torch.float64)
    expected = F.conv2d(phases(x, *layer.stride), layer.phase_weight, layer.bias, 1, padding)
    for result in (layer(x), layer.fold()(x)):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_is_the_plain_convolution_of_the_definition():
    layer = SPDConv2d(3, 5, 3, 2, 1)
    plain = layer.fold()
    assert (plain.kernel_size, plain.stride, plain.padding) == ((6, 6), (2, 2), (2, 2))
    for dy in range(2):
        for dx in range(2):
            q = 2 * dx + dy
            assert torch.equal(plain.weight[:, :, dy::2, dx::2], layer.phase_weight[:, 3 * q : 3 * q + 3])


def test_groups_see_all_phases_of_their_own_channels():
    layer = SPDConv2d(4, 6, 3, 2, 1, groups=2).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    each = [
        F.conv2d(phases(x[:, 2 * g : 2 * g + 2]), layer.phase_weight[3 * g : 3 * g + 3], padding=1) for g in range(2)
    ]
    expected = torch.cat(each, 1) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('kernel', 'padding'), [(1, 0), (3, 1), (7, 3)])
@pytest.mark.parametrize('stride', [2, 4])
def test_takes_the_kernel_of_the_strided_layer_and_computes_the_same(kernel, padding, stride):
    plain = nn.Conv2d(3, 5, kernel, stride, padding).double()
    layer = SPDConv2d(3, 5, kernel, stride, padding).double()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


def test_takes_an_uncentered_kernel_where_both_see_the_same():
    plain = nn.Conv2d(3, 5, 4, 2, 1).double()
    layer = SPDConv2d(3, 5, 4, 2, 1).double()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, plain(x)[..., : out.shape[2], : out.shape[3]], rtol=1e-12, atol=1e-12)


def test_odd_sizes_lose_what_fills_no_block():
    layer = SPDConv2d(3, 5, 1, 2, bias=False)
    x = torch.randn(1, 3, 9, 11)
    assert layer(x).shape == (1, 5, 4, 5)
    torch.testing.assert_close(layer(x), layer(x[..., :8, :10]))


@pytest.mark.parametrize(
    'kwargs', [dict(kernel_size=3), dict(kernel_size=3, dilation=2), dict(kernel_size=1), dict(kernel_size=4, stride=4)]
)
def test_layers_without_a_stride_and_patch_embeddings_stay_plain(kwargs):
    layer = SPDConv2d(4, 4, **kwargs)
    assert layer.plain
    assert layer.state_dict()['weight'].shape == (4, 4, *layer.kernel_size)
    plain = layer.fold()
    x = torch.randn(1, 4, 12, 12)
    assert torch.equal(plain(x), layer(x))


def test_starts_as_torch_starts_a_layer_of_its_shape():
    layer = SPDConv2d(64, 64, 3, 2, 1)
    bound = (4 * 64 * 9) ** -0.5
    for tensor in (layer.phase_weight, layer.bias):
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    layer.init_weights()
    assert layer.phase_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_refuses_what_it_does_not_serve():
    with pytest.raises(
        ValueError, match=r'^SPDConv2d needs dilation 1 where it has a stride, got stride=.*leave the layer out'
    ):
        SPDConv2d(4, 4, 3, 2, 1, dilation=2)
    with pytest.raises(ValueError, match=r"^SPDConv2d: padding='same' is not supported"):
        SPDConv2d(4, 4, 3, 2, 'same')


@pytest.mark.parametrize('size', [64, 75])
def test_a_whole_resnet_starts_as_the_stock_one(size):
    cfg = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    plain = ROOT_MODELS.build(cfg)
    model = ROOT_MODELS.build(dict(cfg, conv_cfg=dict(type='mmext.SPDConv2d')))
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    plain.eval()
    model.eval()
    x = torch.randn(1, 3, size, size)
    out = model(x)[0]
    if size == 64:
        torch.testing.assert_close(out, plain(x)[0], rtol=1e-5, atol=1e-5)
    else:
        assert out.shape == (1, 64, 2, 2)
