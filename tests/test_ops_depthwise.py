"""The routed depthwise convolution is F.conv2d, whichever route it takes: value, gradients, second gradients, layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmext.ops import depthwise, depthwise_conv2d

# (size, kernel, stride, padding, dilation): one at least for every branch of the rule, on both sides of its edges.
CASES = [
    ((9, 11), (3, 3), 1, 1, 1),
    ((12, 10), (5, 5), 1, 'same', 1),
    ((9, 11), (1, 1), 1, 0, 2),
    ((12, 13), (7, 5), (2, 1), (3, 2), 1),
    ((16, 18), (7, 7), 2, 3, 1),
    ((15, 14), (3, 3), 1, 3, 3),
    ((14, 17), (5, 3), 1, (4, 2), 2),
    ((20, 24), (11, 11), 1, 5, 1),
    ((20, 24), (1, 13), 1, (0, 6), 1),
    ((33, 35), (15, 15), 1, 7, 1),
    ((14, 14), (15, 15), 1, 7, 1),
    ((7, 9), (31, 31), 1, 15, 1),
    ((6, 1), (9, 15), 1, (12, 14), (3, 2)),
    ((40, 33), (15, 15), (2, 3), 7, 1),
    ((20, 20), (5, 5), 1, 8, (1, 4)),
    ((10, 10), (4, 4), 1, 'same', 1),
    ((10, 10), (5, 6), 1, 'valid', 1),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(case, dtype=torch.float32, channels=3, batch=2):
    size, kernel, stride, padding, dilation = case
    x = torch.randn(batch, channels, *size, dtype=dtype)
    return (
        x,
        torch.randn(channels, 1, *kernel, dtype=dtype),
        torch.randn(channels, dtype=dtype),
        stride,
        padding,
        dilation,
    )


def close(name, got, expected, tolerance=1e-5):
    assert got.shape == expected.shape, name
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f'{name}: relative error {error:.1e}'


@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
@pytest.mark.parametrize('case', CASES, ids=str)
def test_value_and_gradients(case, layout):
    x, w, b, *options = make(case)
    x = x.to(memory_format=layout)
    inputs, exact = [t.requires_grad_() for t in (x, w, b)], [t.detach().double().requires_grad_() for t in (x, w, b)]
    out, expected = depthwise_conv2d(*inputs, *options), F.conv2d(*exact, *options, groups=3)
    z = torch.randn_like(out)
    close('out', out, expected)
    assert out.is_contiguous(memory_format=layout)
    for name, a, e in zip(
        ('input', 'weight', 'bias'),
        torch.autograd.grad(out, inputs, z),
        torch.autograd.grad(expected, exact, z.double()),
        strict=True,
    ):
        close(name, a, e)


@pytest.mark.parametrize('case', [CASES[1], CASES[4], CASES[5], CASES[10]], ids=str)
def test_second_derivatives(case, monkeypatch):
    monkeypatch.setattr(depthwise, '_ROUTED_TYPES', (torch.float64,))
    x, w, b, *options = make(case, torch.float64, channels=2, batch=1)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    function = lambda *args: depthwise_conv2d(*args, *options)  # noqa: E731
    assert '_Routed' in type(function(*inputs).grad_fn).__name__
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_the_rule_routes_what_it_says(monkeypatch):
    calls = []
    conv2d = F.conv2d

    def spy(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        calls.append(
            (tuple(x.shape), tuple(weight.shape), tuple(padding), x.is_contiguous(memory_format=torch.channels_last))
        )
        return conv2d(x, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(F, 'conv2d', spy)
    monkeypatch.setattr(depthwise, '_MEASURED_HERE', True)
    x = torch.randn(2, 3, 40, 40)
    for kernel, layout, expected in (
        (13, LAYOUTS[0], ((2, 3, 40, 40), (3, 1, 13, 13), (6, 6), False)),
        (15, LAYOUTS[0], ((2, 3, 54, 54), (3, 1, 15, 15), (0, 0), False)),
        (21, LAYOUTS[0], ((2, 3, 40, 40), (3, 1, 21, 21), (10, 10), True)),
        (9, LAYOUTS[1], ((2, 3, 40, 40), (3, 1, 9, 9), (4, 4), True)),
        (11, LAYOUTS[1], ((2, 3, 40, 40), (3, 1, 11, 15), (5, 7), True)),
        (15, LAYOUTS[1], ((2, 3, 40, 40), (3, 1, 15, 15), (7, 7), True)),
    ):
        calls.clear()
        depthwise_conv2d(x.to(memory_format=layout), torch.randn(3, 1, kernel, kernel), None, 1, kernel // 2)
        assert calls == [expected], kernel
    calls.clear()
    depthwise_conv2d(x[..., :5, :8], torch.randn(3, 1, 31, 31), None, 1, 15)
    assert [shape for _, shape, *_ in calls] == [(3, 1, 9, 15)], 'no more taps than see a map of 5 x 8'
    calls.clear()
    depthwise_conv2d(x, torch.randn(3, 1, 1, 1))
    assert not calls, 'one tap is a product'
    monkeypatch.setattr(depthwise, '_MEASURED_HERE', False)
    calls.clear()
    depthwise_conv2d(x, torch.randn(3, 1, 31, 31), None, 1, 15)
    assert calls == [((2, 3, 40, 40), (3, 1, 31, 31), (15, 15), False)]


# Stock F.conv2d of 15 x 15 in float16 does not return on CPUs with AVX512-FP16, torch 2.11.
@pytest.mark.parametrize(
    ('dtype', 'case'),
    [(torch.float64, CASES[8]), (torch.float16, CASES[6]), (torch.bfloat16, CASES[8])],
    ids=['float64', 'float16', 'bfloat16'],
)
def test_other_types(dtype, case):
    x, w, b, *options = make(case, dtype)
    expected = F.conv2d(x.double(), w.double(), b.double(), *options, groups=3)
    close('out', depthwise_conv2d(x, w, b, *options), expected, 1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x, w, b, *options = make(CASES[3])
    w.requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        out = depthwise_conv2d(x, w, b, *options)
        assert out.dtype == F.conv2d(x, w, b, *options, groups=3).dtype == dtype
    out.float().sum().backward()
    exact = w.detach().double().requires_grad_()
    F.conv2d(x.double(), exact, b.double(), *options, groups=3).sum().backward()
    assert w.grad.dtype == torch.float32
    close('weight', w.grad, exact.grad, 3e-2)


@pytest.mark.parametrize('case', [CASES[3], CASES[8]], ids=str)
def test_compile_and_export(case):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            _, weight, _, *self.options = make(case)
            self.weight = torch.nn.Parameter(weight)

        def forward(self, x):
            return depthwise_conv2d(x, self.weight, None, *self.options)

    net, x = Net(), make(case)[0]
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    expected = torch.autograd.grad(net(x).square().sum(), net.weight)[0]
    close('gradient', torch.autograd.grad(compiled(x).square().sum(), net.weight)[0], expected)
    exported = torch.export.export(net, (x,))
    close('exported', exported.module()(x), net(x))
    called = {str(n.target) for n in exported.graph.nodes if n.op == 'call_function'}
    assert called <= {f'aten.{name}.default' for name in ('conv2d', 'pad', 'constant_pad_nd', 'contiguous', 'clone')}


def test_unbatched_empty_and_meta():
    w = torch.randn(3, 1, 7, 7)
    x = torch.randn(3, 9, 9)
    close('unbatched', depthwise_conv2d(x, w, padding=3), F.conv2d(x, w, padding=3, groups=3))
    empty = torch.randn(0, 3, 9, 9)
    assert depthwise_conv2d(empty, w.requires_grad_(), padding=3).shape == (0, 3, 9, 9)
    assert depthwise_conv2d(x.to('meta')[None], w.to('meta'), padding=3).shape == (1, 3, 9, 9)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_an_empty_batch_has_gradients_of_zero(case):
    inputs = [t.requires_grad_() for t in make(case, batch=0)[:3]]
    options = make(case)[3:]
    got = torch.autograd.grad(depthwise_conv2d(*inputs, *options).sum(), inputs, create_graph=True)
    expected = torch.autograd.grad(F.conv2d(*inputs, *options, groups=3).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not torch.autograd.grad(got[1].sum(), inputs[0], allow_unused=True, materialize_grads=True)[0].numel()


def per_image(function, x, w, b, z):
    """Return the gradients of every image's loss."""

    def loss(image, weight, bias):
        return (function(image[None], weight, bias) * z).sum()

    return torch.func.vmap(torch.func.grad(loss, (1, 2)), (0, None, None))(x, w, b)


@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
@pytest.mark.parametrize('case', [CASES[3], CASES[8], CASES[9]], ids=str)
class TestTransforms:
    """What ``torch.func`` makes of it is what it makes of F.conv2d, here in float64, in routed types."""

    @pytest.fixture
    def both(self, case, layout, monkeypatch):
        monkeypatch.setattr(depthwise, '_ROUTED_TYPES', (torch.float64,))
        x, w, b, *options = make(case, torch.float64)
        x = x.to(memory_format=layout)
        return (
            (x, w.requires_grad_(), b),
            tuple(torch.randn_like(t) for t in (x, w, b)),
            lambda *args: depthwise_conv2d(*args, *options),
            lambda *args: F.conv2d(*args, *options, groups=3),
        )

    def same(self, both, transform):
        inputs, tangents, ours, stock = both
        torch.testing.assert_close(transform(ours, inputs, tangents), transform(stock, inputs, tangents))

    def test_jvp_and_hvp(self, both):
        self.same(both, lambda f, x, t: torch.func.jvp(f, x, t))
        self.same(both, lambda f, x, t: torch.func.jvp(torch.func.grad(lambda *a: f(*a).sin().sum(), (0, 1)), x, t))

    def test_per_image_gradients(self, both):
        z = torch.randn_like(both[3](*both[0])[:1])
        self.same(both, lambda f, x, t: per_image(f, *x, z))

    def test_vmap_over_images_and_stacked_kernels(self, both):
        self.same(both, lambda f, x, t: torch.func.vmap(f, (0, None, None))(torch.stack([x[0], t[0]]), *x[1:]))
        self.same(
            both,
            lambda f, x, t: torch.func.vmap(f, (None, 0, 0))(
                x[0], *(torch.stack(p) for p in zip(x[1:], t[1:], strict=True))
            ),
        )

    def test_forward_mode_beside_the_routed_backward(self, both):
        import torch.autograd.forward_ad as forward_mode

        def tangent(f, inputs, tangents):
            with forward_mode.dual_level():
                return forward_mode.unpack_dual(f(*map(forward_mode.make_dual, inputs, tangents))).tangent

        self.same(both, tangent)
        self.same(both, lambda f, x, t: torch.autograd.grad(tangent(f, x, t).square().sum(), x[1]))


@pytest.mark.parametrize('name', ['stride', 'padding', 'dilation'])
@pytest.mark.parametrize('value', [(1, 1, 1), (), None, 1.5, (1.5, 1), 2.0, '2', True, -1, {1, 2}, 2**31], ids=str)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf'{name} must be .*got'):
        depthwise_conv2d(torch.randn(1, 3, 9, 9), torch.randn(3, 1, 5, 5), **{name: value})


def test_padding_by_name():
    x, w = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 5, 5)
    with pytest.raises(ValueError, match="padding must be 'same', 'valid', an integer or two of them, got 'foo'"):
        depthwise_conv2d(x, w, padding='foo')
    with pytest.raises(ValueError, match="padding='same' needs stride 1, got stride=\\[2, 2\\]; give"):
        depthwise_conv2d(x, w, padding='same', stride=2)


@pytest.mark.parametrize(
    'value', [2, (2,), [2], (2, 1), torch.Size([1, 2]), np.int64(2), (np.int32(2), 1), torch.tensor(2)]
)
@pytest.mark.parametrize('name', ['stride', 'padding', 'dilation'])
def test_integers_of_any_kind(name, value):
    x, w = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 3, 3)
    plain = int(value) if isinstance(value, torch.Tensor) else value  # torch 2.5 itself takes no tensors
    close(name, depthwise_conv2d(x, w, **{name: value}), F.conv2d(x, w, groups=3, **{name: plain}))


@pytest.mark.parametrize('options', [((0, 10**8), (1, 10**8)), ((10**7, 0), (10**7, 1)), (0, 1, 2**31 - 1)], ids=str)
def test_taps_and_windows_beyond_the_image_cost_nothing(options):
    padding, dilation, stride = (*options, 1)[:3]
    x, w = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 3, 5 if dilation == 1 else 3, requires_grad=True)
    out = depthwise_conv2d(x, w, None, stride, padding, dilation)
    expected = F.conv2d(x, w, None, stride, padding, dilation, 3)
    close('out', out, expected)
    close('gradient', *(torch.autograd.grad(o.sum(), w)[0] for o in (out, expected)))


def test_flops_are_those_of_the_convolution():
    from mmengine.analysis import get_model_complexity_info

    from mmext.convs.depthwise import DepthwiseConv2d

    layer = DepthwiseConv2d(4, 4, 7, padding=3, groups=4, bias=False)
    info = get_model_complexity_info(layer, inputs=(torch.randn(1, 4, 10, 12),), show_table=False, show_arch=False)
    assert info['flops'] == 4 * 49 * 10 * 12
