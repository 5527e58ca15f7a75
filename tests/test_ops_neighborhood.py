"""The neighbourhood operators against loops written out here, against each other, and against torch's own machinery."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import TOLERANCE
from torch import nn

from mmext.ops import (
    native_status,
    neighborhood_aggregate,
    neighborhood_aggregate_adjoint,
    neighborhood_correlate,
    neighborhood_mask,
)
from mmext.ops.neighborhood import reference
from mmext.ops.neighborhood.geometry import Window, axis_table, output_size, resolve
from mmext.ops.neighborhood.reference import aggregate as reference_aggregate

# (kernel, stride, dilation, padding, border, group map): every rule and map, awkward and uneven on purpose.
GRID = [
    pytest.param(*case, id='k{}x{}-s{}x{}-d{}x{}-{}-{}-{}'.format(*case[0], *case[1], *case[2], *case[3:]))
    for case in [
        ((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'),
        ((3, 2), (2, 1), (2, 1), (1, 0), 'zero', 'interleave'),
        ((5, 3), (1, 2), (1, 2), 'same', 'zero', 'interleave'),
        ((2, 4), (3, 2), (1, 1), 'same', 'zero', 'block'),
        ((1, 1), (2, 2), (1, 1), 0, 'zero', 'block'),
        ((3, 3), (2, 2), (3, 2), 'same', 'zero', 'block'),
        ((3, 3), (1, 1), (1, 1), 'same', 'shift', 'block'),
        ((5, 3), (1, 1), (1, 2), 'same', 'shift', 'interleave'),
        ((3, 5), (1, 1), (2, 1), 'same', 'shift', 'block'),
    ]
]
B, C, G, H, W = 2, 6, 2, 7, 9


def position(o, k, length, kernel, stride, dilation, before, border):
    """The source position of one tap, or None, from the rule as a reader would state it."""
    if border == 'zero':
        at = o * stride - before + k * dilation
        return at if 0 <= at < length else None
    residue = list(range(o % dilation, length, dilation))
    start = min(max(residue.index(o) - kernel // 2, 0), len(residue) - kernel)
    return residue[start + k]


def loop_aggregate(value, weight, kernel, stride, dilation, padding, border, group_map):
    (_, channels, height, width), groups, (ho, wo) = value.shape, weight.shape[1], weight.shape[-2:]
    before = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)] if padding == 'same' else padding
    before = (before, before) if isinstance(before, int) else before
    out = value.new_zeros(len(value), channels, ho, wo)
    for y, x, ky, kx in itertools.product(range(ho), range(wo), range(kernel[0]), range(kernel[1])):
        i = position(y, ky, height, kernel[0], stride[0], dilation[0], before[0], border)
        j = position(x, kx, width, kernel[1], stride[1], dilation[1], before[1], border)
        if i is None or j is None:
            continue
        for c in range(channels):
            g = c // (channels // groups) if group_map == 'block' else c % groups
            out[:, c, y, x] += weight[:, g, ky * kernel[1] + kx, y, x] * value[:, c, i, j]
    return out


def tensors(case, dtype=torch.float64, batch=B, size=(H, W), channels=C, groups=G):
    kernel = case[0]
    ho, wo = output_size(size, resolve(*case))
    value = torch.randn(batch, channels, *size, dtype=torch.float64).to(dtype)
    weight = torch.randn(batch, groups, kernel[0] * kernel[1], ho, wo, dtype=torch.float64).to(dtype)
    return value, weight, torch.randn(batch, channels, ho, wo, dtype=torch.float64).to(dtype)


def close(name, got, expected, tolerance):
    error = (got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    assert error <= tolerance, f'{name}: relative error {error:.2e} above {tolerance:.0e}'


@pytest.mark.parametrize('case', [p.values for p in GRID], ids=[p.id for p in GRID])
class TestOverTheGrid:
    def test_equals_the_loops(self, case):
        value, weight, _ = tensors(case)
        close('out', neighborhood_aggregate(value, weight, *case), loop_aggregate(value, weight, *case), 1e-12)

    @pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
    @pytest.mark.parametrize(('size', 'groups'), [((7, 9), 2), ((19, 41), 1), ((33, 17), 6)])
    def test_equals_the_float64_reference(self, case, dtype, size, groups):
        value, weight, z = tensors(case, dtype, size=size, groups=groups, channels=12)
        window = resolve(*case)
        v, w = value.double().requires_grad_(), weight.double().requires_grad_()
        expected = reference_aggregate(v, w, window)
        grads = torch.autograd.grad(expected, (v, w), z.double())
        close('aggregate', neighborhood_aggregate(value, weight, *case), expected, TOLERANCE[dtype])
        close('adjoint', neighborhood_aggregate_adjoint(z, weight, size, *case), grads[0], TOLERANCE[dtype])
        close('correlate', neighborhood_correlate(z, value, groups, *case), grads[1], TOLERANCE[dtype])

    def test_one_form_read_three_ways(self, case):
        value, weight, z = tensors(case)
        form = (z * neighborhood_aggregate(value, weight, *case)).sum()
        torch.testing.assert_close(form, (weight * neighborhood_correlate(z, value, G, *case)).sum())
        torch.testing.assert_close(form, (value * neighborhood_aggregate_adjoint(z, weight, (H, W), *case)).sum())

    def test_derivatives_of_both_orders(self, case):
        value, weight, z = (t.requires_grad_() for t in tensors(case, batch=1, size=(7, 6), channels=2, groups=1))
        for function, inputs in (
            (lambda v, w: neighborhood_aggregate(v, w, *case), (value, weight)),
            (lambda u, w: neighborhood_aggregate_adjoint(u, w, (7, 6), *case), (z, weight)),
            (lambda q, k: neighborhood_correlate(q, k, 1, *case), (z, value)),
        ):
            assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)

    def test_torch_library_contract(self, case):
        window = tuple(resolve(*case))
        for grad, layout in ((True, torch.contiguous_format), (False, torch.channels_last)):
            value, weight, z = tensors(case, torch.float32)
            value, z = (t.to(memory_format=layout).requires_grad_(grad) for t in (value, z))
            weight.requires_grad_(grad)
            ops = torch.ops.mmext
            torch.library.opcheck(ops.neighborhood_aggregate.default, (value, weight, *window))
            torch.library.opcheck(ops.neighborhood_aggregate_adjoint.default, (z, weight, H, W, *window))
            torch.library.opcheck(ops.neighborhood_correlate.default, (z, value, G, *window))

    def test_layouts(self, case):
        value, weight, z = tensors(case)
        expected = (
            neighborhood_aggregate(value, weight, *case),
            neighborhood_aggregate_adjoint(z, weight, (H, W), *case),
            neighborhood_correlate(z, value, G, *case),
        )
        for name, change in (
            ('channels_last', lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t),
            ('transposed', lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2)),
            ('sliced', lambda t: torch.stack([t, t + 1], -1)[..., 0]),
        ):
            v, w, u = change(value), change(weight), change(z)
            got = (
                neighborhood_aggregate(v, w, *case),
                neighborhood_aggregate_adjoint(u, w, (H, W), *case),
                neighborhood_correlate(u, v, G, *case),
            )
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b), name
                assert a.is_contiguous(), name

    def test_empty_batch(self, case):
        value, weight, z = tensors(case, batch=0)
        assert neighborhood_aggregate(value, weight, *case).shape == z.shape
        assert neighborhood_aggregate_adjoint(z, weight, (H, W), *case).shape == value.shape
        assert neighborhood_correlate(z, value, G, *case).shape == weight.shape

    def test_meta_device(self, case):
        value, weight, z = (t.to('meta') for t in tensors(case))
        assert neighborhood_aggregate(value, weight, *case).shape == z.shape
        assert neighborhood_correlate(z, value, G, *case).shape == weight.shape


@pytest.mark.parametrize('border', ['replicate', 'reflect'])
def test_padded_borders(border):
    value, weight, _ = tensors(((3, 3), (1, 1), (2, 1), 'same', 'zero', 'block'))
    got = neighborhood_aggregate(value, weight, 3, dilation=(2, 1), border=border)
    padded = F.pad(value, (1, 1, 2, 2), mode=border)
    expected = loop_aggregate(padded, weight, (3, 3), (1, 1), (2, 1), 0, 'zero', 'block')
    close('out', got, expected, 1e-12)


def test_one_hot_weights_select_a_tap():
    value = torch.randn(1, 2, 6, 7)
    for k, (ky, kx) in enumerate(itertools.product(range(3), range(3))):
        weight = torch.zeros(1, 1, 9, 6, 7)
        weight[:, :, k] = 1
        expected = F.pad(value, (1, 1, 1, 1))[..., ky : ky + 6, kx : kx + 7]
        assert torch.equal(neighborhood_aggregate(value, weight, 3), expected)


@pytest.mark.parametrize(('stride', 'dilation', 'padding'), [(1, 1, 1), (2, 1, 0), ((1, 2), (2, 1), (2, 1))])
def test_constant_weights_are_a_depthwise_convolution(stride, dilation, padding):
    value, kernel = torch.randn(2, 4, 9, 11, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    expected = F.conv2d(value, kernel, None, stride, padding, dilation, groups=4)
    weight = kernel.view(1, 4, 9, 1, 1).expand(2, -1, -1, *expected.shape[-2:])
    close('out', neighborhood_aggregate(value, weight, 3, stride, dilation, padding), expected, 1e-12)


def test_group_maps_differ_by_a_permutation_of_channels():
    value, weight, _ = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'))
    to_block = torch.arange(C).view(C // G, G).T.flatten()
    block = neighborhood_aggregate(value[:, to_block], weight, 3)
    assert torch.equal(neighborhood_aggregate(value, weight, 3, group_map='interleave')[:, to_block], block)


def test_shifted_windows_lose_nothing():
    """With equal weights every pixel takes a mean of true pixels: a constant image stays constant up to the border."""
    weight = torch.full((1, 1, 49, 9, 8), 1 / 49, dtype=torch.float64)
    ones = torch.ones(1, 1, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(neighborhood_aggregate(ones, weight, 7, border='shift'), ones)
    zero = neighborhood_aggregate(ones, weight, 7)
    torch.testing.assert_close(zero[..., 3:-3, 3:-3], ones[..., 3:-3, 3:-3])
    assert zero[..., 0, 0] < 0.5


def test_weights_as_a_convolution_emits_them_and_for_every_image():
    value, weight, _ = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'))
    assert torch.equal(neighborhood_aggregate(value, weight.flatten(1, 2), 3), neighborhood_aggregate(value, weight, 3))
    shared = weight[:1].requires_grad_()
    every = weight[:1].detach().repeat(B, 1, 1, 1, 1).requires_grad_()
    once, repeated = neighborhood_aggregate(value, shared, 3), neighborhood_aggregate(value, every, 3)
    assert torch.equal(once, repeated)
    once.square().sum().backward()
    repeated.square().sum().backward()
    torch.testing.assert_close(shared.grad, every.grad.sum(0, keepdim=True))


def test_more_weights_than_32_bits_count():
    """A batch-shared weight whose expanded form has over 2^31 elements, none of which is copied."""
    value, weight = torch.randn(1100, 1, 32, 32), torch.randn(1, 1, 45 * 45, 32, 32)
    assert len(value) * weight.numel() > 2**31
    if native_status().which == 'reference':
        value = value[:3]
    got = neighborhood_aggregate(value, weight, 45)
    close('last image', got[-1:], neighborhood_aggregate(value[-1:].double(), weight.double(), 45), 1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_summed_in_float32(dtype):
    """1 + 168 * 2^-12: each addition alone would be lost in half precision."""
    weight = torch.full((1, 1, 169, 13, 13), 2.0**-12, dtype=dtype)
    weight[:, :, 84] = 1
    value = torch.ones(1, 1, 13, 13, dtype=dtype)
    got = neighborhood_aggregate(value, weight, 13, border='shift')
    expected = torch.tensor(1 + 168 * 2.0**-12).to(dtype)
    assert torch.equal(got, torch.full_like(got, expected.item()))


def test_backward_is_deterministic():
    value, weight, z = tensors(((5, 5), (1, 1), (1, 1), 'same', 'shift', 'block'), torch.float32, size=(23, 31))
    grads = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        v, w = value.clone().requires_grad_(), weight.clone().requires_grad_()
        grads.append(torch.autograd.grad(neighborhood_aggregate(v, w, 5, border='shift'), (v, w), z))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(other, grads[0], strict=True))


@pytest.fixture
def nan_filled_memory(monkeypatch):
    """Memory full of NaN beneath all outputs, so that what is left unwritten shows."""
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, dtype=torch.bfloat16).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures('nan_filled_memory')
@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
class TestNoOutputIsLeftUnwritten:
    @pytest.mark.parametrize('size', [(7, 9), (13, 40)], ids=str)
    @pytest.mark.parametrize('border', ['zero', 'shift'])
    def test_same_size(self, border, size, dtype):
        value, weight, z = tensors(((5, 5), (1, 1), (1, 1), 'same', border, 'block'), dtype, size=size)
        assert neighborhood_aggregate(value, weight, 5, border=border).isfinite().all()
        assert neighborhood_aggregate_adjoint(z, weight, size, 5, border=border).isfinite().all()
        assert neighborhood_correlate(z, value, G, 5, border=border).isfinite().all()

    @pytest.mark.parametrize(('height', 'kernel'), [(8, 3), (1, 1), (5, 4), (19, 5)])
    @pytest.mark.parametrize('axis', [0, 1])
    def test_windows_that_see_padding_alone(self, axis, height, kernel, dtype):
        """Every tap meets each pixel once where the padding lets it, so the weight gradient counts taps and pixels."""
        for padding in (kernel - 1, kernel + 3, kernel + 4, kernel + 8, kernel + 9, 37):
            value = torch.ones(1, 2, height, 1, dtype=dtype)
            weight = torch.ones(1, 2, kernel, height + 2 * padding - kernel + 1, 1, dtype=dtype)
            shape, sides = (kernel, 1), (padding, 0)
            if axis:
                value, weight, shape, sides = value.mT, weight.mT, (1, kernel), (0, padding)
            value, weight = value.requires_grad_(), weight.requires_grad_()
            out = neighborhood_aggregate(value, weight, shape, padding=sides)
            grads = torch.autograd.grad(out.sum(), (value, weight))
            assert out.sum() == grads[0].sum() == grads[1].sum() == 2 * height * kernel, padding
            assert all(t.isfinite().all() for t in (out, *grads))


def test_infinities_stay_where_they_belong():
    """An infinite weight reaches its own output and no neighbour, whatever is read beside it."""
    value, weight, _ = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32, size=(6, 37))
    weight[0, 0, 4, 2, 0] = weight[0, 0, 4, 2, 36] = float('inf')
    value = value.abs() + 1
    out = neighborhood_aggregate(value, weight, 3)
    assert out[0, : C // G].isinf().nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 0], [2, 36]]
    sent = neighborhood_aggregate_adjoint(value, weight, (6, 37), 3)
    assert (~sent[0, : C // G].isfinite()).nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 0], [2, 36]]


@pytest.mark.parametrize(('stride', 'border'), [(1, 'zero'), (2, 'zero'), (1, 'shift')])
def test_mask_counts_what_is_seen(stride, border):
    mask = neighborhood_mask((6, 7), 3, stride, border=border)
    ones = torch.ones(1, 1, 6, 7)
    seen = neighborhood_correlate(torch.ones(1, 1, *mask.shape[-2:]), ones, 1, 3, stride, border=border)
    assert torch.equal(mask, seen[0, 0] == 1)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_the_type_that_is_asked_for(dtype):
    value, weight, _ = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32)
    weight.requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        out = neighborhood_aggregate(value, weight, 3)
        logits = neighborhood_correlate(value, value, G, 3)
        wide = neighborhood_aggregate(value.double(), weight.double(), 3)
    assert (out.dtype, logits.dtype, wide.dtype) == (dtype, dtype, torch.float64)
    assert torch.equal(out, neighborhood_aggregate(value.to(dtype), weight.to(dtype), 3))
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


class Attention(nn.Module):
    """All three operators in one network: logits, softmax, aggregation."""

    def __init__(self, border):
        super().__init__()
        self.border = border
        self.query, self.out = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)

    def forward(self, x):
        logits = neighborhood_correlate(self.query(x), x, G, 3, border=self.border)
        return self.out(neighborhood_aggregate(x, logits.softmax(2), 3, border=self.border))


@pytest.mark.parametrize('border', ['zero', 'shift', 'reflect'])
def test_compiles_into_one_graph(border):
    model, x = Attention(border), torch.randn(2, C, 8, 9)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected)
    grads = torch.autograd.grad(expected.square().sum(), model.parameters())
    for a, b in zip(torch.autograd.grad(compiled(x).square().sum(), model.parameters()), grads, strict=True):
        torch.testing.assert_close(a, b)


def test_one_graph_serves_all_sizes():
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    model = Attention('zero')
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for size in ((8, 9), (11, 13), (20, 7)):
        x = torch.randn(2, C, *size)
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


def test_exports():
    model, x = Attention('zero').eval(), torch.randn(2, C, 8, 9)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    assert 'mmext.neighborhood_aggregate' in str(exported.graph)


@pytest.mark.parametrize('border', ['zero', 'shift'])
def test_onnx_holds_standard_operators_only(border, tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model, x = Attention(border).eval(), torch.randn(1, C, 8, 9)
    path = str(tmp_path / 'model.onnx')
    options = {} if torch.__version__ < '2.6' else {'dynamo': False}
    torch.onnx.export(model, (x,), path, opset_version=17, **options)
    assert {node.domain for node in onnx.load(path).graph.node} == {''}
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_both_counters_see_the_operators():
    from mmengine.analysis import get_model_complexity_info
    from torch.utils.flop_counter import FlopCounterMode

    model, x = Attention('zero'), torch.randn(2, C, 8, 9)
    taps, pixels = 9, 2 * 8 * 9
    expected = 2 * C * taps * pixels + 2 * C * C * pixels
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * expected
    assert get_model_complexity_info(model, inputs=(x,), show_table=False, show_arch=False)['flops'] == expected
    value, weight, z = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32)
    with FlopCounterMode(display=False) as counter:
        neighborhood_aggregate(value, weight.requires_grad_(), 3).backward(z)
    assert counter.get_total_flops() == 2 * 2 * B * C * 9 * H * W


def test_bad_input_is_named():
    value, weight, z = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32)
    for message, call in (
        ('border must be one of', lambda: neighborhood_aggregate(value, weight, 3, border='clamp')),
        ('group_map must be one of', lambda: neighborhood_aggregate(value, weight, 3, group_map='mod')),
        ('stride 1, an odd kernel', lambda: neighborhood_aggregate(value, weight, 3, stride=2, border='shift')),
        ('stride 1, an odd kernel', lambda: neighborhood_aggregate(value, weight, 4, border='shift')),
        (r'kernel \* dilation <= size', lambda: neighborhood_correlate(value, value, G, 3, dilation=4, border='shift')),
        ('weight must be', lambda: neighborhood_aggregate(value, weight, 5)),
        ('windows of kernel', lambda: neighborhood_aggregate(value, weight[..., 1:], 3)),
        ('multiple of the groups', lambda: neighborhood_aggregate(value[:, 1:], weight, 3)),
        ('multiple of the groups', lambda: neighborhood_correlate(z, value, 4, 3)),
        ('one floating dtype', lambda: neighborhood_aggregate(value, weight.half(), 3)),
        ('one batch size', lambda: neighborhood_aggregate(value[:1], weight, 3)),
        ('no window of kernel', lambda: neighborhood_aggregate(value, weight, 3, dilation=9, padding=0)),
        ('agree in channels', lambda: neighborhood_correlate(z[:, :2], value, G, 3)),
        ('agree in size', lambda: neighborhood_aggregate_adjoint(z[..., 1:], weight, (H, W), 3)),
        ('padding below the size', lambda: neighborhood_aggregate(value, weight, 15, border='reflect')),
        (
            "takes border 'zero' or 'shift'",
            lambda: neighborhood_aggregate_adjoint(z, weight, (H, W), 3, border='reflect'),
        ),
        ('padding must be', lambda: neighborhood_aggregate(value, weight, 3, padding='valid')),
        ('kernel_size must be', lambda: neighborhood_aggregate(value, weight, (3, 0))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_operator_itself_refuses_to_read_outside():
    """torch.ops is reachable without the public function, so the kernels check what they index with."""
    value, weight, z = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32)
    window = resolve(3, 1, 1, 'same', 'zero', 'block')
    ops = torch.ops.mmext
    for call in (
        lambda: ops.neighborhood_aggregate(value, weight[:, :, :, 1:], *window),
        lambda: ops.neighborhood_aggregate(value, weight, *window._replace(padding=[0, 0, 0, 0])),
        lambda: ops.neighborhood_aggregate(value, weight[:1], *window),
        lambda: ops.neighborhood_aggregate(value, weight.double(), *window),
        lambda: ops.neighborhood_aggregate_adjoint(z, weight, H + 1, W, *window),
        lambda: ops.neighborhood_correlate(z, value, 4, *window),
        lambda: ops.neighborhood_correlate(z[:, :2], value, G, *window),
        lambda: ops.neighborhood_correlate(z, value, G, *Window(*window)._replace(kernel=[9, 9], shift=True)),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            call()


@pytest.mark.parametrize('value', [2**31, 2**62, 2**63 - 1, 0, -1, -(2**62)])
@pytest.mark.parametrize('name', ['kernel', 'stride', 'dilation', 'padding'])
def test_the_operator_itself_counts_in_bounds(name, value):
    """Sums and products of such entries would leave 64 bits, and what follows the check would be anything."""
    if name == 'padding' and value == 0:
        value = -2
    window = resolve((3, 1), 1, 1, (1, 0), 'zero', 'block')._asdict()
    window[name] = [value, *window[name][1:]]
    x = torch.ones(1, 1, 5, 1)
    for call in (
        lambda: torch.ops.mmext.neighborhood_aggregate(x, torch.ones(1, 1, 3, 5, 1), *window.values()),
        lambda: torch.ops.mmext.neighborhood_aggregate_adjoint(x, torch.ones(1, 1, 3, 5, 1), 5, 1, *window.values()),
        lambda: torch.ops.mmext.neighborhood_correlate(x, x, 1, *window.values()),
        lambda: torch.ops.mmext.neighborhood_correlate(x.to('meta'), x.to('meta'), 1, *window.values()),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_the_case_that_passed_the_check():
    query, key = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match='stride'):
        torch.ops.mmext.neighborhood_correlate(
            query, key, 1, [5, 1], [2**62, 1], [2**62, 1], [0, 0, 0, 0], False, False
        )


@pytest.mark.usefixtures('nan_filled_memory')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ('kernel', 'options'),
    [
        (3, dict(dilation=10**8)),
        ((3, 5), dict(dilation=(1, 2**29))),
        (3, dict(stride=10**9)),
        (3, dict(stride=2**31 - 1, padding=2**31 - 1)),
        ((2, 3), dict(stride=(10**8, 1), dilation=(10**8, 1), padding=(10**8, 1))),
        ((5, 3), dict(dilation=(50, 2), padding=(100, 2), stride=(3, 1))),
    ],
    ids=str,
)
def test_taps_beyond_the_image_cost_nothing(kernel, options, dtype):
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    window = resolve(
        kernel, options.get('stride', 1), options.get('dilation', 1), options.get('padding', 'same'), 'zero', 'block'
    )
    mask = neighborhood_mask((6, 7), kernel, **options)
    assert mask.any()
    grid = output_size((6, 7), window)
    value, z = torch.randn(2, 4, 6, 7).to(dtype), torch.randn(2, 4, *grid).to(dtype)
    weight = torch.randn(2, 2, sides[0] * sides[1], *grid).to(dtype)
    exact = [t.double().requires_grad_() for t in (value, weight)]
    expected = torch.zeros(2, 4, *grid, dtype=torch.float64)
    rows, columns = (axis_table(window, axis, n) for axis, n in enumerate((6, 7)))
    for ky, kx in itertools.product(range(sides[0]), range(sides[1])):
        seen = exact[0][:, :, rows[:, ky]][..., columns[:, kx]] * mask[ky * sides[1] + kx]
        expected = expected + exact[1][:, :, ky * sides[1] + kx].repeat_interleave(2, 1) * seen
    grads = torch.autograd.grad(expected, exact, z.double())
    close('aggregate', neighborhood_aggregate(value, weight, kernel, **options), expected, TOLERANCE[dtype])
    sent = neighborhood_aggregate_adjoint(z, weight, (6, 7), kernel, **options)
    close('adjoint', sent, grads[0], TOLERANCE[dtype])
    close('correlate', neighborhood_correlate(z, value, 2, kernel, **options), grads[1], TOLERANCE[dtype])
    close('reference', reference_aggregate(value, weight, window), expected, TOLERANCE[dtype])
    close('reference', reference.aggregate_adjoint(z, weight, (6, 7), window), grads[0], TOLERANCE[dtype])
    close('reference', reference.correlate(z, value, 2, window), grads[1], TOLERANCE[dtype])


BAD = [None, 1.5, '33', (3, 3, 3), (), (3, 1.5), True, {1, 2}, -1, 2**31, 2**63]


@pytest.mark.parametrize('value', BAD, ids=str)
@pytest.mark.parametrize('name', ['kernel_size', 'stride', 'dilation', 'padding', 'size', 'groups'])
def test_bad_arguments_are_named(name, value):
    value_, weight, z = tensors(((3, 3), (1, 1), (1, 1), 'same', 'zero', 'block'), torch.float32)
    good = dict(kernel_size=3, stride=1, dilation=1, padding='same')
    if name == 'size':
        calls = [
            lambda: neighborhood_aggregate_adjoint(z, weight, value, **good),
            lambda: neighborhood_mask(value, **good),
        ]
    elif name == 'groups':
        calls = [lambda: neighborhood_correlate(z, value_, value, **good)]
    else:
        options = {**good, name: value}
        calls = [
            lambda: neighborhood_aggregate(value_, weight, **options),
            lambda: neighborhood_aggregate_adjoint(z, weight, (H, W), **options),
            lambda: neighborhood_correlate(z, value_, G, **options),
            lambda: neighborhood_mask((H, W), **options),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=rf'{name} must be .*got'):
            call()
