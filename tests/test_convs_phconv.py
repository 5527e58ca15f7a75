import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.phconv import PHConv2d

COMPLEX = [[[1, 0], [0, 1]], [[0, -1], [1, 0]]]
QUATERNION = [
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
    [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
    [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
]


def with_algebra(algebra) -> PHConv2d:
    layer = PHConv2d(8, 12, 3, n=len(algebra)).double()
    with torch.no_grad():
        layer.algebra.copy_(torch.tensor(algebra))
    return layer


def blocks(rows) -> torch.Tensor:
    return torch.cat([torch.cat(row, 1) for row in rows])


def loops(layer: PHConv2d) -> torch.Tensor:
    """Return the kernel from the definition, entry by entry; group after group."""
    n, groups = layer.n, layer.groups
    outputs, inputs = layer.out_channels // groups, layer.in_channels // groups
    banks = layer.filters.unflatten(0, (layer.n, -1))
    per_out, per_in = outputs // n, layer.filters.shape[1]
    kernel = torch.zeros(layer.out_channels, inputs, *layer.kernel_size, dtype=layer.filters.dtype)
    for group in range(groups):
        for row in range(outputs):
            for column in range(inputs):
                for s in range(n):
                    entry = layer.algebra[s, row // per_out, column // per_in]
                    bank = banks[s, group * per_out + row % per_out, column % per_in]
                    kernel[group * outputs + row, column] += entry * bank
    return kernel


@pytest.mark.parametrize(
    ('inputs', 'outputs', 'groups', 'n'), [(8, 12, 1, 4), (6, 9, 1, 3), (8, 12, 2, 2), (3, 8, 1, 4), (5, 4, 1, 2)]
)
def test_kernel_equals_the_definition_in_loops(inputs, outputs, groups, n):
    layer = PHConv2d(inputs, outputs, (3, 1), groups=groups, n=n).double()
    torch.testing.assert_close(layer.generate_kernel(), loops(layer), rtol=1e-12, atol=1e-12)


def test_one_dimension_is_a_plain_convolution():
    layer = with_algebra([[[1]]])
    assert torch.equal(layer.generate_kernel(), layer.filters)


def test_two_dimensions_contain_the_complex_convolution():
    layer = with_algebra(COMPLEX)
    real, imag = layer.filters.chunk(2)
    torch.testing.assert_close(layer.generate_kernel(), blocks([[real, -imag], [imag, real]]), rtol=0, atol=0)


def test_four_dimensions_contain_the_quaternion_convolution():
    layer = with_algebra(QUATERNION)
    r, i, j, k = layer.filters.chunk(4)
    expected = blocks([[r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r]])
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=0, atol=0)


def test_has_an_nth_of_the_parameters():
    layer = PHConv2d(64, 32, 3, n=4)
    assert sum(p.numel() for p in layer.parameters()) == 4**3 + 64 * 32 * 9 // 4 + 32


def test_an_image_is_completed_by_a_channel_of_zeros():
    image, whole = PHConv2d(3, 8, 3, n=4), PHConv2d(4, 8, 3, n=4)
    whole.load_state_dict(image.state_dict())
    x = torch.randn(1, 3, 6, 6)
    completed = torch.cat([x, torch.zeros(1, 1, 6, 6)], 1)
    torch.testing.assert_close(image(x), whole(completed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('n', [1, 2, 4])
def test_he_start_has_the_variance_of_a_plain_layer(n):
    for _ in range(5):
        layer = PHConv2d(64, 128, 3, n=n)
        assert layer.generate_kernel().var().item() == pytest.approx(2 / (64 * 9), rel=0.05)


def test_official_start_is_xavier_on_both_tensors():
    n, inputs, outputs = 4, 256, 256
    layer = PHConv2d(inputs, outputs, 3, n=n, init='official')
    bound = (6 / (outputs / n * inputs / n * 9 + inputs * 9)) ** 0.5
    assert bound * 0.999 < layer.filters.abs().max() <= bound
    assert layer.algebra.abs().max() <= 3**0.5 / n
    expected = 2 / (inputs * 9 * (1 + outputs / n**2)) / n
    kernels = torch.stack([PHConv2d(64, 64, 3, n=n, init='official').generate_kernel().var() for _ in range(20)])
    assert kernels.mean().item() == pytest.approx(2 / (64 * 9 * (1 + 64 / n**2)) / n, rel=0.15)
    assert layer.generate_kernel().var().item() == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize('groups', [1, 2])
def test_a_kernel_of_the_family_is_taken_exactly(groups):
    source, target = (PHConv2d(8, 16, 3, n=4, groups=groups).double() for _ in range(2))
    with torch.no_grad():
        target.load_kernel(source.generate_kernel())
    torch.testing.assert_close(target.generate_kernel(), source.generate_kernel(), rtol=1e-7, atol=1e-9)


def test_any_other_kernel_is_approached_by_the_nearest():
    n = 2
    layer, kernel = PHConv2d(4, 6, 3, n=n).double(), torch.randn(6, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.load_kernel(kernel)
    rows = torch.stack([kernel[3 * p : 3 * p + 3, 2 * q : 2 * q + 2].flatten() for p in range(n) for q in range(n)])
    least = torch.linalg.svdvals(rows)[n:].square().sum()
    torch.testing.assert_close((layer.generate_kernel() - kernel).square().sum(), least, rtol=1e-8, atol=0)
    assert least < 0.6 * kernel.square().sum()


def test_the_kernel_of_an_image_is_approached_too():
    image, whole = PHConv2d(3, 8, 3, n=4).double(), PHConv2d(4, 8, 3, n=4).double()
    kernel = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        image.load_kernel(kernel)
        whole.load_kernel(torch.cat([kernel, torch.zeros_like(kernel[:, :1])], 1))
    torch.testing.assert_close(image.generate_kernel(), whole.generate_kernel()[:, :3], rtol=1e-8, atol=1e-10)


def test_the_bias_is_added():
    layer = PHConv2d(4, 4, 1, n=2)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(4.0))
    assert torch.equal(layer(torch.zeros(1, 4, 1, 1)).flatten(), torch.arange(4.0))


def test_gradcheck_through_algebra_and_filters():
    layer = PHConv2d(3, 4, 3, n=2).double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def run(algebra, filters):
        return torch.func.functional_call(layer, dict(algebra=algebra, filters=filters), x)

    given = [p.detach().clone().requires_grad_() for p in (layer.algebra, layer.filters)]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(n=3), 'PHConv2d needs an n that divides .* n=3 for out_channels=8, groups=1'),
        (dict(n=0), 'n=0'),
        (dict(n=2, groups=8), 'groups=8'),
        (dict(init='ones'), "PHConv2d needs init 'he' or 'official', got init='ones'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PHConv2d(8, 8, 3, **kwargs)


def test_a_whole_network_of_it():
    cfg = dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8)
    model = ROOT_MODELS.build({**cfg, 'conv_cfg': dict(type='mmext.PHConv2d', n=4)})
    model.init_weights()
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {PHConv2d}
    assert model(torch.randn(2, 3, 64, 64))[0].isfinite().all()
