"""The softmax over taps: torch's own, without the taps outside, with all derivatives, in every type and layout."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

from mmext.ops import neighborhood_mask, tap_softmax

TYPES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def inside(size=(5, 7)):
    """Windows of 3 x 3, of which those at the border see less."""
    return neighborhood_mask(size, 3)


def expected(logits, mask=None):
    wide = logits.double()
    return (wide if mask is None else wide.masked_fill(~mask, -torch.inf)).softmax(2)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('scale', [1, 30, 1000])
def test_it_is_the_softmax_of_the_taps_inside(dtype, masked, scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(2, 3, 9, 5, 7)).to(dtype)
    mask = inside() if masked else None
    weights = tap_softmax(logits, mask)
    assert weights.dtype == dtype
    exact = expected(logits, mask)
    assert float((weights.double() - exact).abs().max()) < TYPES[dtype]
    if masked:
        assert not weights[:, :, ~mask].any()


@pytest.mark.parametrize(
    'shape', [(1, 1, 1, 1, 1), (2, 1, 49, 1, 3), (1, 2, 961, 2, 40), (1, 1, 9, 33, 65), (3, 2, 25, 1, 1)]
)
def test_any_number_of_taps_and_pixels(shape):
    logits = torch.randn(shape)
    torch.testing.assert_close(tap_softmax(logits), logits.softmax(2), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize('shape', [(0, 2, 9, 3, 3), (1, 0, 9, 3, 3), (1, 2, 9, 0, 3)])
def test_empty_images(shape):
    logits = torch.randn(shape, requires_grad=True)
    weights = tap_softmax(logits, torch.ones(shape[2:], dtype=torch.bool))
    assert weights.shape == shape
    weights.sum().backward()
    assert logits.grad.shape == shape


def test_any_layout():
    logits = torch.randn(2, 9, 5, 7, 3).movedim(4, 1)[:, ::2]
    assert not logits.is_contiguous()
    weights = tap_softmax(logits, inside())
    assert weights.is_contiguous()
    torch.testing.assert_close(weights.double(), expected(logits, inside()), rtol=2e-6, atol=1e-7)


def test_a_window_that_sees_nothing_weighs_all_taps_alike():
    logits = torch.randn(1, 2, 9, 4, 4)
    weights = tap_softmax(logits, torch.zeros(9, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 9))


def test_values_that_are_no_numbers_stay_in_their_window():
    logits = torch.randn(1, 1, 9, 4, 4)
    logits[0, 0, 3, 1, 2] = torch.nan
    logits[0, 0, 3, 2, 2] = torch.inf
    logits[0, 0, 3, 0, 0] = -torch.inf
    weights = tap_softmax(logits)
    theirs = logits.softmax(2)
    torch.testing.assert_close(weights, theirs, equal_nan=True, rtol=2e-6, atol=1e-8)
    assert int(weights.isnan().sum()) == 18


@pytest.mark.parametrize('masked', [False, True])
def test_derivatives_of_first_and_second_order_in_both_modes(masked):
    mask = inside((3, 4)) if masked else None
    logits = torch.randn(2, 1, 9, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: tap_softmax(x, mask), logits, check_forward_ad=True)
    assert gradgradcheck(lambda x: tap_softmax(x, mask), logits)


def test_transforms():
    mask = inside((3, 4))
    many = torch.randn(5, 2, 1, 9, 3, 4, dtype=torch.float64)
    one = torch.stack([tap_softmax(x, mask) for x in many])
    torch.testing.assert_close(vmap(lambda x: tap_softmax(x, mask))(many), one)
    torch.testing.assert_close(vmap(lambda x: tap_softmax(x, mask), in_dims=2)(many.movedim(0, 2)), one)
    masks = torch.stack([mask, ~mask])
    each = torch.stack([tap_softmax(many[0], m) for m in masks])
    torch.testing.assert_close(vmap(lambda m: tap_softmax(many[0], m))(masks), each)
    tangents = torch.randn_like(many)
    _, ours = jvp(vmap(lambda x: tap_softmax(x, mask)), (many,), (tangents,))
    _, theirs = jvp(lambda x: x.masked_fill(~mask, -1e300).softmax(3), (many,), (tangents,))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('masked', [False, True])
def test_it_is_a_well_made_operator(masked):
    logits = torch.randn(2, 1, 9, 3, 4, requires_grad=True)
    bias = torch.where(inside((3, 4)), 0, -1e30) if masked else None
    torch.library.opcheck(torch.ops.mmext.tap_softmax.default, (logits, bias))


def test_the_gradient_of_half_types_is_made_in_full_precision():
    logits = torch.randn(1, 2, 49, 8, 8)
    grad = torch.randn(1, 2, 49, 8, 8)
    half = logits.half().requires_grad_()
    tap_softmax(half).backward(grad.half())
    wide = half.detach().double().requires_grad_()
    wide.softmax(2).backward(grad.half().double())
    assert float((half.grad.double() - wide.grad).abs().max()) < 1e-3 * float(wide.grad.abs().max())


@pytest.mark.parametrize(
    ('logits', 'mask', 'why'),
    [
        (torch.randn(2, 9, 3, 4), None, 'logits must be'),
        (torch.ones(1, 1, 9, 3, 4, dtype=torch.long), None, 'logits must be'),
        (torch.randn(1, 1, 9, 3, 4), torch.ones(9, 3, 4), 'inside must be bool'),
        (torch.randn(1, 1, 9, 3, 4), inside((4, 3)), 'inside must be bool'),
    ],
)
def test_what_does_not_fit_is_refused(logits, mask, why):
    with pytest.raises(ValueError, match=why):
        tap_softmax(logits, mask)
