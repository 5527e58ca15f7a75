import copy

import pytest
import torch

from mmext.convs.binary_weight import BinaryWeightConv2d, binarize_weight
from mmext.convs.xnor import XNORConv2d

LAYERS = [BinaryWeightConv2d, XNORConv2d]


def latent(*shape):
    """Weights of which some lie outside of [-1, 1] and some are exactly zero."""
    weight = torch.randn(*shape).double()
    weight.flatten()[::7] = 0
    return weight


@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
def test_every_filter_has_exactly_two_values(grad):
    layer = BinaryWeightConv2d(6, 8, 3, grad=grad, clamp=False)
    layer.weight.data.copy_(latent(8, 6, 3, 3))
    kernel = layer.fold().weight
    for o in range(8):
        alpha = layer.weight[o].abs().mean()
        assert kernel[o].unique().tolist() == pytest.approx([-alpha.item(), alpha.item()], rel=1e-6)
        assert kernel[o].unique().numel() == 2
    assert (kernel[layer.weight == 0] > 0).all(), 'the sign of zero is +1'


def test_binarizing_again_changes_nothing():
    kernel = binarize_weight(latent(8, 6, 3, 3), clamp=False)
    torch.testing.assert_close(binarize_weight(kernel, clamp=False), kernel, rtol=1e-14, atol=0)


def test_scale_and_signs_are_the_nearest_in_least_squares():
    weight = latent(1, 2, 2, 2)
    ours = (binarize_weight(weight, clamp=False) - weight).square().sum()
    best = torch.tensor(float('inf')).double()
    for bits in range(2**8):
        signs = torch.tensor([1.0 if bits >> i & 1 else -1.0 for i in range(8)]).double().view_as(weight)
        best = torch.minimum(best, ((weight * signs).mean() * signs - weight).square().sum())
    torch.testing.assert_close(ours, best)


@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
@pytest.mark.parametrize('per_output', [True, False])
def test_gradients_are_those_of_the_formulas(grad, per_output):
    weight = latent(4, 3, 3, 3).requires_grad_()
    coming = torch.randn(4, 3, 3, 3).double()
    binarize_weight(weight, grad, clamp=False, per_output=per_output).backward(coming)
    expected = torch.zeros_like(coming)
    filters = [[o] for o in range(4)] if per_output else [[0, 1, 2, 3]]
    for members in filters:
        w, g = weight.detach()[members], coming[members]
        n, alpha, inside = w.numel(), w.abs().mean(), (w.abs() <= 1).double()
        sign = torch.where(w >= 0, 1.0, -1.0).double()
        expected[members] = {
            'paper': g * (1 / n + alpha * inside),
            'exact': alpha * inside * g + sign * (g * sign).sum() / n,
            'ste': inside * g,
        }[grad]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_straight_through_gradient_stops_outside_of_one():
    weight = torch.tensor([0.5, -1.0, 1.5, -2.0]).view(1, 4, 1, 1).requires_grad_()
    binarize_weight(weight, 'ste', clamp=False).sum().backward()
    assert weight.grad.flatten().tolist() == [1, 1, 0, 0]


def test_center_is_the_mean_over_the_input_channels():
    layer = BinaryWeightConv2d(6, 8, 3, center=True, clamp=False)
    centered = layer.weight - layer.weight.mean(1, keepdim=True)
    kernel = layer.fold().weight
    assert torch.equal(kernel > 0, centered >= 0)
    torch.testing.assert_close(kernel.abs()[:, 0, 0, 0], centered.abs().mean((1, 2, 3)))


@pytest.mark.parametrize('cls', LAYERS)
@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
def test_a_layer_computes_with_the_clamped_weights_before_and_after_they_are_projected(cls, grad):
    x = torch.randn(1, 4, 6, 6)
    layer = cls(4, 4, 3, grad=grad)
    layer.weight.data.mul_(20)
    projected = copy.deepcopy(layer)
    projected.project_parameters()
    assert layer.weight.abs().max() > 1
    assert projected.weight.abs().max() == 1
    outs = [layer(x), projected(x), copy.deepcopy(layer).eval()(x)]
    assert torch.equal(outs[0], outs[1])
    torch.testing.assert_close(outs[2], outs[0])
    for out in outs[:2]:
        out.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, projected.weight.grad, msg='no weight is stuck outside')
    free = cls(4, 4, 3, clamp=False)
    free.weight.data.mul_(20)
    free.project_parameters()
    assert free.weight.abs().max() > 1


@pytest.mark.parametrize('cls', LAYERS)
def test_projected_after_every_step_it_learns_as_if_clamped_before_every_forward(cls):
    x = torch.randn(2, 4, 6, 6)
    ours, other = cls(4, 4, 3), cls(4, 4, 3, clamp=False)
    other.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD(layer.parameters(), lr=3.0) for layer in (ours, other)]
    for _ in range(5):
        with torch.no_grad():
            other.weight.clamp_(-1, 1)
        for layer, optimizer in zip((ours, other), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        ours.project_parameters()
    with torch.no_grad():
        other.weight.clamp_(-1, 1)
    assert ours.weight.abs().max() == 1
    torch.testing.assert_close(ours.weight, other.weight)


def port_kernel(weight):
    """What the port makes of latent weights, all of it in place: centered, clamped, then binarized."""
    weight.sub_(weight.mean(1, keepdim=True)).clamp_(-1, 1)
    alpha = weight.abs().sum((1, 2, 3), keepdim=True) / weight[0].numel()
    return alpha * torch.where(weight >= 0, 1.0, -1.0)


def port_gradient(weight, g):
    """The port's gradient of centered and clamped weights, without its rescaling."""
    n, sign = weight[0].numel(), weight.sign()
    alpha = weight.abs().sum((1, 2, 3), keepdim=True) / n
    return alpha * g + sign * (sign * g).sum((1, 2, 3), keepdim=True) / n


@pytest.mark.parametrize('spread', [0.1, 0.7, 3.0])
def test_centering_comes_before_clamping(spread):
    weight = spread * torch.randn(6, 5, 3, 3, dtype=torch.float64) + 0.3
    expected = port_kernel(weight.clone())
    torch.testing.assert_close(binarize_weight(weight, center=True), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('cls', LAYERS)
@pytest.mark.parametrize('optimizer', [torch.optim.SGD, torch.optim.AdamW])
def test_with_the_hook_a_centered_layer_learns_as_in_the_port(cls, optimizer):
    """Also where the path depends on the part of the gradient that centering takes away: with Adam and with decay."""
    ours = cls(5, 6, 3, grad='exact', center=True, bias=False).double()
    theirs = ours.weight.detach().clone()
    ours.project_parameters()
    x, target = torch.randn(4, 5, 6, 6, dtype=torch.float64), torch.randn(4, 6, 4, 4, dtype=torch.float64)
    stored = torch.nn.Parameter(theirs)
    steps = [optimizer([w], lr=0.05, weight_decay=0.1) for w in (ours.weight, stored)]
    for _ in range(5):
        kernel = port_kernel(stored.data)
        plain = cls(5, 6, 3, grad='ste', clamp=False, bias=False).double()
        plain.weight.data.copy_(kernel)
        for module, step in ((ours, steps[0]), (plain, None)):
            module.zero_grad()
            (module(x) - target).square().mean().backward()
            if step:
                step.step()
                module.project_parameters()
        stored.grad = port_gradient(stored.data, plain.weight.grad)
        steps[1].step()
    port_kernel(stored.data)
    assert stored.abs().max() < 1
    torch.testing.assert_close(ours.weight, stored, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('cls', LAYERS)
@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
def test_a_layer_may_be_called_twice_in_one_forward(cls, grad):
    """As a detector's head does with every level."""
    layer = cls(4, 4, 3, padding=1, grad=grad)
    layer(layer(torch.randn(1, 4, 6, 6))).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('cls', LAYERS)
def test_bad_arguments(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} knows the gradients .*, got grad='exakt'"):
        cls(4, 4, 3, grad='exakt')
    with pytest.raises(ValueError, match=rf'{cls.__name__} with center=True needs at least two input channels'):
        cls(4, 4, 3, groups=4, center=True)
    with pytest.raises(TypeError, match=rf'{cls.__name__} has no argument no_such'):
        cls(4, 4, 3, no_such=1)
