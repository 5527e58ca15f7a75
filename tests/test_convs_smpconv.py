import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.smpconv import SMPConv2d

FORMS = {'shared': True, 'per-output': False}


def make(form: str, *args, **kwargs) -> SMPConv2d:
    """Build a layer in float64 with points all over the window and radii of their own."""
    layer = SMPConv2d(*args, shared_points=FORMS[form], **kwargs).double()
    with torch.no_grad():
        layer.weight_coord.uniform_(-1.2, 1.2)
        layer.radius.uniform_(0.2, 0.9)
        layer.weights.normal_()
    return layer


def put(layer: SMPConv2d, x: float, y: float, radius: float) -> None:
    """Make the layer's only point."""
    with torch.no_grad():
        layer.weight_coord[..., 0], layer.weight_coord[..., 1] = x, y
        layer.radius.fill_(radius)
        layer.weights.fill_(1)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kernel_size', [(5, 5), (3, 6), (1, 5)])
def test_kernel_equals_the_definition_in_loops(form, kernel_size):
    layer = make(form, 4, 6, kernel_size, groups=2, n_points=4)
    height, width = kernel_size
    xs = torch.linspace(-1, 1, width, dtype=torch.float64).tolist()
    ys = torch.linspace(1, -1, height, dtype=torch.float64).tolist() if height > 1 else [0.0]  # upwards
    expected = torch.zeros(6, 2, height, width, dtype=torch.float64)
    for o in range(6):
        points = 0 if layer.shared_points else o
        for r in range(height):
            for s in range(width):
                heights = []
                for (x, y), radius in zip(
                    layer.weight_coord[points].tolist(), layer.radius[points].flatten().tolist(), strict=True
                ):
                    heights.append(max(0.0, 1 - (abs(xs[s] - x) + abs(ys[r] - y)) / radius))
                count = 1 if layer.shared_points else max(1, sum(h != 0 for h in heights))
                for i in range(2):
                    total = sum(w * h for w, h in zip(layer.weights[o, i].tolist(), heights, strict=True))
                    expected[o, i, r, s] = total / count
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
def test_a_small_cone_on_a_grid_node_is_a_single_tap(form):
    layer = SMPConv2d(1, 1, 5, n_points=1, shared_points=FORMS[form])
    put(layer, 0.5, -1.0, 0.49)
    expected = torch.zeros(5, 5)
    expected[4, 3] = 1  # right of the middle, at the bottom
    torch.testing.assert_close(layer.generate_kernel()[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_points_move_right_with_x_and_up_with_y():
    layer = SMPConv2d(1, 1, 7, n_points=1)
    put(layer, 0.1, 0.05, 0.5)
    middle = layer.generate_kernel()[0, 0]
    step = 2 / 6
    put(layer, 0.1 + step, 0.05, 0.5)
    torch.testing.assert_close(layer.generate_kernel()[0, 0], middle.roll(1, 1), rtol=1e-5, atol=1e-6)
    put(layer, 0.1, 0.05 + step, 0.5)
    torch.testing.assert_close(layer.generate_kernel()[0, 0], middle.roll(-1, 0), rtol=1e-5, atol=1e-6)


def test_taps_outside_of_all_cones_are_zero_and_finite():
    layer = SMPConv2d(1, 1, 5, n_points=2, shared_points=False)
    put(layer, -1.0, 1.0, 0.6)
    kernel = layer.generate_kernel()[0, 0]
    assert (kernel != 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]
    kernel.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_averaging_counts_the_points_of_each_tap():
    layer = SMPConv2d(1, 1, 3, n_points=2, shared_points=False)
    put(layer, 0.0, 0.0, 1.0)
    with torch.no_grad():
        layer.weight_coord[0, 1, 0] = 1.0  # the second point stands on the right column
        layer.radius.fill_(0.9)
    torch.testing.assert_close(layer.generate_kernel()[0, 0, 1], torch.tensor([0.0, 1.0, 1.0]))
    with torch.no_grad():
        layer.weight_coord[0, 1, 0] = 0.0  # both in the middle
    torch.testing.assert_close(layer.generate_kernel()[0, 0, 1], torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize('form', FORMS)
def test_gradcheck(form):
    layer = make(form, 2, 2, (3, 5), n_points=3)

    class Kernel(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            return self.layer.generate_kernel()

    names = ['weight_coord', 'radius', 'weights']

    def kernel(*values):
        return torch.func.functional_call(Kernel(), {f'layer.{n}': v for n, v in zip(names, values, strict=True)}, ())

    assert torch.autograd.gradcheck(kernel, [layer.get_parameter(n).detach().requires_grad_() for n in names])


def test_shapes_and_initialization_are_the_released_ones():
    shared = SMPConv2d(64, 64, 31, groups=64)
    assert (shared.weight_coord.shape, shared.radius.shape) == ((1, 240, 2), (1, 240, 1, 1))
    assert shared.weights.shape == (64, 1, 240)
    assert [SMPConv2d(1, 1, k).n_points for k in (29, 27, 13)] == [210, 182, 42]
    assert shared.weight_coord.std().item() == pytest.approx(0.2, rel=0.1)
    assert shared.weights.std().item() == pytest.approx(0.02, rel=0.02)
    torch.testing.assert_close(shared.radius, torch.full((1, 240, 1, 1), 4 / 31))
    general = SMPConv2d(8, 16, 33, n_points=30, shared_points=False, radius=0.12, coord_std=0.05)
    assert (general.weight_coord.shape, general.radius.shape) == ((16, 30, 2), (16, 30, 1, 1))
    assert general.weights.shape == (16, 8, 30)
    assert general.weight_coord.std().item() == pytest.approx(0.05, rel=0.1)
    assert (general.radius == 0.12).all()
    assert SMPConv2d(8, 8, 9, shared_points=False).weight_coord.std().item() == pytest.approx(0.1, rel=0.2)
    assert (SMPConv2d(8, 8, 3).radius == 1).all()


@pytest.mark.parametrize(('form', 'low'), [('shared', 1e-3), ('per-output', 1e-4)])
def test_radii_are_kept_positive_and_in_the_window(form, low):
    layer = SMPConv2d(4, 4, 5, shared_points=FORMS[form])
    with torch.no_grad():
        layer.radius.flatten()[:3] = torch.tensor([-1.0, 3.0, 0.3])
        layer.weight_coord.fill_(4)
    layer.project_parameters()
    torch.testing.assert_close(layer.radius.flatten()[:3], torch.tensor([low, 1.0, 0.3]))
    assert (layer.weight_coord == 4).all(), 'points are free to leave'


@pytest.mark.parametrize('form', FORMS)
def test_a_plain_kernel_is_taken_as_near_as_the_points_allow(form):
    source = make(form, 3, 4, 7, n_points=5, bias=False).float()
    kernel = source.generate_kernel().detach()
    taker = SMPConv2d(3, 4, 7, n_points=5, bias=False, shared_points=FORMS[form])
    with torch.no_grad():
        taker.weight_coord.copy_(source.weight_coord)
        taker.radius.copy_(source.radius)
    taker.load_state_dict({'weight': kernel})
    torch.testing.assert_close(taker.generate_kernel(), kernel, rtol=1e-4, atol=1e-5)

    plain = nn.Conv2d(3, 4, 5, bias=False)  # smaller than the window: it goes into the middle
    taker.load_state_dict(plain.state_dict())
    target = F.pad(plain.weight, (1, 1, 1, 1))
    rest = (target - taker.generate_kernel()).detach()
    assert 0 < rest.norm() < target.norm()
    taker.zero_grad()
    (taker.generate_kernel() * rest).sum().backward()
    assert taker.weights.grad.abs().max() < 1e-5, 'no weights come nearer'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('form', FORMS)
def test_half_precision_keeps_its_type_and_finds_no_zero_over_zero(form, dtype):
    layer = make(form, 2, 4, 7, n_points=2)
    expected = layer.generate_kernel()
    kernel = layer.to(dtype).generate_kernel()
    assert kernel.dtype == dtype
    torch.testing.assert_close(kernel.double(), expected, rtol=0.05, atol=0.05)


def test_options_for_the_optimizer():
    assert SMPConv2d(4, 4, 3).optim_options() == dict(
        weight_coord=dict(decay_mult=0.0), radius=dict(lr_mult=0.1, decay_mult=0.0)
    )
    assert SMPConv2d(4, 4, 1).optim_options() == {}


def test_pointwise_layers_stay_plain():
    layer = SMPConv2d(4, 8, 1)
    layer.init_weights()
    layer.project_parameters()
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']


@pytest.mark.parametrize('name', ['n_points', 'radius', 'coord_std'])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f'SMPConv2d needs a positive {name}, got 0'):
        SMPConv2d(4, 4, 3, **{name: 0})
