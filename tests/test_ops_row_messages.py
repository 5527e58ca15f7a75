"""Messages from row to row: the matrix products against the convolutions of single rows, with all derivatives."""

import importlib

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from mmext.blocks.scnn import SCNNBlock
from mmext.ops import row_messages
from mmext.ops._native import NativeStatus, native_status
from mmext.ops.row_messages import row_messages_reference

TYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def tensors(shape=(5, 2, 7, 3), taps=3, bias=True, dtype=torch.float64):
    channels = shape[3]
    made = [torch.randn(shape), torch.randn(channels, channels, taps) / (taps * channels) ** 0.5, torch.randn(channels)]
    made = [t.to(dtype).requires_grad_() for t in made]
    return made if bias else [*made[:2], None]


@pytest.fixture(params=['native', 'reference'])
def way(request, monkeypatch):
    """Run the compiled recurrence where it was built, and the products of single rows."""
    if request.param == 'reference':
        status = NativeStatus('reference', 'a test asks for it')
        # By its path the function of the same name would be found.
        monkeypatch.setattr(importlib.import_module('mmext.ops.row_messages'), 'native_status', lambda: status)
    elif native_status().which != 'native':
        pytest.skip('mmext._C was not built')


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize(
    ('shape', 'taps'),
    [
        ((5, 2, 7, 3), 9),
        ((5, 2, 8, 3), 7),
        ((5, 2, 9, 17), 5),
        ((4, 1, 5, 2), 3),
        ((4, 2, 5, 3), 1),
        ((2, 1, 4, 2), 9),
        ((4, 3, 1, 5), 9),
        ((3, 0, 3, 2), 9),
        ((40, 1, 30, 2), 9),
    ],
)
@pytest.mark.usefixtures('way')
def test_it_is_the_loop_over_rows(shape, taps, bias, reverse):
    inputs = tensors(shape, taps, bias)
    ours, reference = (f(*inputs, reverse) for f in (row_messages, row_messages_reference))
    torch.testing.assert_close(ours, reference)
    z = torch.randn_like(ours)
    asked = [t for t in inputs if t is not None]
    for a, b in zip(torch.autograd.grad(ours, asked, z), torch.autograd.grad(reference, asked, z), strict=True):
        torch.testing.assert_close(a, b)


def test_a_single_row_hears_nothing():
    inputs = tensors((1, 2, 4, 3))
    messages = row_messages(*inputs)
    assert not messages.any()
    assert not any(g.any() for g in torch.autograd.grad(messages.sum(), inputs))


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.usefixtures('way')
def test_types_and_layouts(dtype):
    rows, weight, bias = tensors(dtype=dtype)
    exact = row_messages(rows.double(), weight.double(), bias.double())
    other = rows.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for x in (rows, other):
        messages = row_messages(x, weight, bias)
        assert messages.dtype == dtype
        assert messages.is_contiguous()
        assert (messages.double() - exact).abs().max() <= TYPES[dtype] * exact.abs().max()


def test_single_precision_of_wide_rows():
    rows, weight, _ = tensors((30, 2, 22, 48), 9, dtype=torch.float32)
    exact = row_messages(rows.double(), weight.double())
    assert (row_messages(rows, weight) - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.usefixtures('way')
def test_what_is_not_a_number_stays_so():
    rows, weight, bias = (t.detach() for t in tensors())
    rows[1, 0, 3] = float('nan')
    heard = row_messages(rows, weight, bias)
    assert heard[2, 0, 3].isnan().all()
    assert not heard[:2].isnan().any()
    assert not heard[:, 1].isnan().any()


def test_derivatives_of_any_order():
    inputs = tensors((3, 1, 4, 2))
    assert gradcheck(row_messages, inputs, check_forward_ad=True)
    assert gradgradcheck(row_messages, inputs)


def test_within_transforms():
    rows, weight, bias = (t.detach() for t in tensors())
    many = torch.randn(4, *rows.shape).double()
    each = torch.stack([row_messages(x, weight, bias) for x in many])
    torch.testing.assert_close(vmap(lambda x: row_messages(x, weight, bias))(many), each)
    kernels = torch.randn(3, *weight.shape).double()
    each = torch.stack([row_messages(rows, k, bias) for k in kernels])
    torch.testing.assert_close(vmap(lambda k: row_messages(rows, k, bias))(kernels), each)
    ours, theirs = (
        grad(lambda w, f=f: f(rows, w, bias, False).square().sum())(weight)
        for f in (row_messages, row_messages_reference)
    )
    torch.testing.assert_close(ours, theirs)
    _, tangent = jvp(lambda x: row_messages(x, weight, bias), (rows,), (torch.ones_like(rows),))
    _, expected = jvp(lambda x: row_messages_reference(x, weight, bias, False), (rows,), (torch.ones_like(rows),))
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(weight=torch.zeros(3, 3, 4).double()), r'a kernel \(C, C, k\) with k odd'),
        (dict(weight=torch.zeros(3, 2, 3).double()), r'got \[5, 2, 7, 3\] and \[3, 2, 3\]'),
        (dict(weight=torch.zeros(3, 3, 3)), 'must be of one type'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    rows, weight, bias = tensors()
    with pytest.raises(ValueError, match=message):
        row_messages(**{**dict(rows=rows, weight=weight, bias=bias), **change})


def test_its_work_is_counted():
    rows, weight, bias = tensors((5, 2, 7, 3))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        row_messages(rows, weight, bias)
    assert counter.get_total_flops() == 2 * 4 * 2 * 7 * 3 * 3 * 3
    figures = get_model_complexity_info(SCNNBlock(3, ('down',), 3), inputs=(torch.randn(2, 3, 5, 7),), show_table=False)
    assert figures['flops'] == 4 * 2 * 7 * 3 * 3 * 3
