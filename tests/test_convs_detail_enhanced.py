import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.detail_enhanced import DEConv2d

BRANCHES = ('weight', 'central', 'angular', 'horizontal', 'vertical')
# The outer ring of a 3x3 kernel, clockwise from its upper left corner.
RING = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]


def only(*names, **kwargs) -> DEConv2d:
    """Return a layer without bias, all of whose branches but these are zero."""
    layer = DEConv2d(4, 6, 3, bias=False, **kwargs).double()
    with torch.no_grad():
        for name in set(BRANCHES) - set(names):
            layer.get_parameter(name).zero_()
    return layer


def test_kernel_is_the_sum_of_its_branches():
    layer = DEConv2d(4, 6, 3).double()
    parts = []
    for name in BRANCHES:
        part = only(name)
        part.load_state_dict({n: layer.state_dict()[n] if n == name else p for n, p in part.state_dict().items()})
        parts.append(part.generate_kernel())
        assert parts[-1].any()
    torch.testing.assert_close(layer.generate_kernel(), sum(parts), rtol=1e-12, atol=1e-12)


def test_central_difference():
    layer = only('central')
    expected = layer.central.detach().clone()
    expected[..., 1, 1] -= layer.central.sum((-2, -1))
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('theta', [1.0, 0.3])
def test_angular_difference_turns_the_ring_clockwise(theta):
    layer = only('angular', theta=theta)
    w = layer.angular.detach()
    expected = w.clone()
    expected[..., 1, 1] -= theta * w[..., 1, 1]
    for step, (row, column) in enumerate(RING):
        behind = RING[step - 1]
        expected[..., row, column] -= theta * w[..., behind[0], behind[1]]
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-12, atol=1e-12)


def test_horizontal_and_vertical_differences():
    horizontal, vertical = only('horizontal'), only('vertical')
    kernel = horizontal.generate_kernel()
    assert torch.equal(kernel[..., 0], horizontal.horizontal)
    assert torch.equal(kernel, -kernel.flip(-1))
    kernel = vertical.generate_kernel()
    assert torch.equal(kernel[..., 0, :], vertical.vertical)
    assert torch.equal(kernel, -kernel.flip(-2))


def test_differences_see_no_constant():
    layer = only('central', 'angular', 'horizontal', 'vertical')
    y = layer(torch.full((1, 4, 6, 6), 3.0, dtype=torch.float64))
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-12)
    assert layer(torch.randn(1, 4, 6, 6, dtype=torch.float64)).abs().max() > 0.1


def test_equals_five_parallel_convolutions():
    layer = DEConv2d(4, 6, 3, stride=2, padding=1).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    total = layer.bias.view(-1, 1, 1)
    for name in BRANCHES:
        part = only(name)
        with torch.no_grad():
            part.get_parameter(name).copy_(layer.get_parameter(name))
        total = total + F.conv2d(x, part.generate_kernel(), stride=2, padding=1)
    torch.testing.assert_close(layer(x), total, rtol=1e-10, atol=1e-10)


def test_number_of_parameters():
    assert sum(p.numel() for p in DEConv2d(4, 6, 3).parameters()) == 6 * 4 * (9 * 3 + 3 * 2) + 6


def test_each_branch_starts_as_torch_starts_a_convolution_of_its_shape():
    layer = DEConv2d(64, 64, 3, padding=1)
    for name in BRANCHES:
        branch = layer.get_parameter(name)
        bound = (64 * (3 if branch.ndim == 3 else 9)) ** -0.5
        assert bound * 0.99 < branch.abs().max() <= bound, name
        assert branch.std().item() == pytest.approx(bound / 3**0.5, rel=0.03), name


def test_other_sizes_stay_plain():
    for size in (1, 7, (3, 1)):
        layer = DEConv2d(4, 4, size)
        assert layer.plain
        assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']


def test_a_plain_network_goes_on_unchanged():
    cfg = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    plain = ROOT_MODELS.build(cfg)
    model = ROOT_MODELS.build({**cfg, 'conv_cfg': dict(type='mmext.DEConv2d')})
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert sum(isinstance(m, DEConv2d) and not m.plain for m in model.modules()) == 16
    x = torch.randn(1, 3, 32, 32)
    plain.eval()  # not chained: it returns None
    model.eval()
    torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)


def test_the_plain_branch_absorbs_what_the_others_add():
    layer = DEConv2d(4, 6, 3)
    others = {n: p.detach().clone() for n, p in layer.named_parameters() if n not in ('weight', 'bias')}
    plain = nn.Conv2d(4, 6, 3)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.generate_kernel(), plain.weight, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(layer.weight, plain.weight)
    assert all(torch.equal(layer.get_parameter(n), p) for n, p in others.items())


def test_gradcheck_through_every_branch():
    layer = DEConv2d(2, 2, 3, theta=0.5).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def run(*branches):
        return torch.func.functional_call(layer, dict(zip(BRANCHES, branches, strict=True)), x)

    given = [layer.get_parameter(n).detach().clone().requires_grad_() for n in BRANCHES]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
