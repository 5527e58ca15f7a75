"""The neighbourhood operators within ``torch.func`` and forward mode, against float64 formulas that torch differentiates."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from mmext.ops import neighborhood_aggregate, neighborhood_aggregate_adjoint, neighborhood_correlate

SIZE = (4, 5)
# Options, and the size of the result.
GEOMETRIES = {
    'block': ({}, (4, 5)),
    'interleave': (dict(group_map='interleave'), (4, 5)),
    'shift': (dict(border='shift'), (4, 5)),
    'stride': (dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), group_map='interleave'), (2, 5)),
}


def form(options):
    """Return the trilinear form (z, w, v) -> number as one dense tensor for each group map, read off basis vectors."""
    taps = torch.eye(9, dtype=torch.float64).view(9, 1, 9, 1, 1)
    grid = options[1]
    pixels = torch.eye(SIZE[0] * SIZE[1], dtype=torch.float64).view(1, -1, *SIZE)
    plain = {k: v for k, v in options[0].items() if k != 'group_map'}
    seen = [neighborhood_aggregate(pixels, tap.expand(1, 1, 9, *grid), 3, **plain)[0] for tap in taps]
    return torch.stack(seen)  # (tap, source pixel, Ho, Wo)


@pytest.fixture(params=GEOMETRIES)
def operators(request):
    """Return, operator by operator: ours, the formula, and the two tensors."""
    kwargs, grid = GEOMETRIES[request.param]
    table = form(GEOMETRIES[request.param]).detach()
    kwargs = dict(kwargs)
    order = [0, 2, 1, 3] if kwargs.get('group_map') == 'interleave' else [0, 1, 2, 3]
    of_channel = [order.index(c) // 2 for c in range(4)]
    v, z = torch.randn(2, 4, *SIZE, dtype=torch.float64), torch.randn(2, 4, *grid, dtype=torch.float64)
    w = torch.randn(2, 2, 9, *grid, dtype=torch.float64)
    group = torch.zeros(4, 2, dtype=torch.float64)
    for c, g in enumerate(of_channel):
        group[c, g] = 1

    def aggregate(v, w):
        return torch.einsum('bcp,cg,kpyx,bgkyx->bcyx', v.flatten(2), group, table, w)

    def adjoint(z, w):
        return torch.einsum('bcyx,cg,kpyx,bgkyx->bcp', z, group, table, w).unflatten(2, SIZE)

    def correlate(z, v):
        return torch.einsum('bcyx,cg,kpyx,bcp->bgkyx', z, group, table, v.flatten(2))

    return (
        (lambda v, w: neighborhood_aggregate(v, w, 3, **kwargs), aggregate, v, w),
        (lambda z, w: neighborhood_aggregate_adjoint(z, w, SIZE, 3, **kwargs), adjoint, z, w),
        (lambda z, v: neighborhood_correlate(z, v, 2, 3, **kwargs), correlate, z, v),
    )


def stacked(*tensors):
    """Return three of each, one behind the other."""
    return tuple(torch.stack([t, 2 * t.flip(0), t + 1]) for t in tensors)


def loss(f):
    return lambda *inputs: f(*inputs).sin().sum()


def forward_mode(f, a, b, s, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(a, s), forward_ad.make_dual(b, t))).tangent.clone()


TRANSFORMS = {
    'value': lambda f, a, b, s, t: f(a, b),
    'jvp': lambda f, a, b, s, t: jvp(f, (a, b), (s, t))[1],
    'jvp in one': lambda f, a, b, s, t: jvp(lambda b: f(a, b), (b,), (t,))[1],
    'jvp without gradients': lambda f, a, b, s, t: torch.no_grad()(jvp)(f, (a, b), (s, t))[1],
    'forward mode without gradients': lambda f, a, b, s, t: torch.no_grad()(forward_mode)(f, a, b, s, t),
    'grad': lambda f, a, b, s, t: grad(loss(f), (0, 1))(a, b),
    'grad beside a constant': lambda f, a, b, s, t: grad(lambda a: (torch.no_grad()(f)(a, b) * f(a, b)).sum())(a),
    'jacrev': lambda f, a, b, s, t: jacrev(lambda a: f(a, b).sum((0, 1)))(a),
    'jacfwd': lambda f, a, b, s, t: jacfwd(lambda b: f(a, b).sum((0, 1)))(b),
    'hvp': lambda f, a, b, s, t: jvp(grad(loss(f), (0, 1)), (a, b), (s, t))[1],
    'hvp reverse over forward': lambda f, a, b, s, t: grad(lambda a: jvp(loss(f), (a, b), (s, t))[1])(a),
    'forward over forward': lambda f, a, b, s, t: jvp(
        lambda b: jvp(lambda a: loss(f)(a, b), (a,), (s,))[1], (b,), (t,)
    )[1],
    'vmap over features': lambda f, a, b, s, t: vmap(f, (0, None))(*stacked(a), b),
    'vmap over weights': lambda f, a, b, s, t: vmap(f, (None, 0))(a, *stacked(b)),
    'vmap over both, axes moved': lambda f, a, b, s, t: vmap(f, (1, 2), 3)(
        stacked(a)[0].movedim(0, 1), stacked(b)[0].movedim(0, 2)
    ),
    'vmap of vmap': lambda f, a, b, s, t: vmap(vmap(f, (0, None)), (None, 0))(*stacked(a), *stacked(b)),
    'gradients of each image': lambda f, a, b, s, t: vmap(grad(lambda a, b: loss(f)(a[None], b[None]), (0, 1)))(a, b),
    'gradients of shared weights': lambda f, a, b, s, t: vmap(grad(loss(f), (0, 1)), (0, None))(*stacked(a), b),
    'grad of vmap': lambda f, a, b, s, t: grad(lambda a, b: vmap(f)(a, b).sin().sum(), (0, 1))(*stacked(a, b)),
}


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_equals_the_formula(operators, transform):
    for ours, formula, a, b in operators:
        tangents = torch.randn_like(a), torch.randn_like(b)
        results = (TRANSFORMS[transform](f, a, b, *tangents) for f in (ours, formula))
        torch.testing.assert_close(*results)


def test_numerical_derivatives_in_forward_mode(operators):
    for ours, _, a, b in operators:
        inputs = a[:1].requires_grad_(), b[:1].requires_grad_()
        assert torch.autograd.gradcheck(ours, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(ours, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_transforms_compile():
    v, w = torch.randn(2, 4, *SIZE), torch.randn(2, 2, 9, *SIZE)
    torch._dynamo.reset()
    for transform in ('jvp', 'grad', 'gradients of shared weights'):

        def run(v, w, transform=transform):
            return TRANSFORMS[transform](lambda a, b: neighborhood_aggregate(a, b, 3), v, w, v.cos(), w.cos())

        torch.testing.assert_close(torch.compile(run, fullgraph=True, backend='aot_eager')(v, w), run(v, w))
