"""The small numerical helpers: a constant is made outside of every mode, and the modes are the same afterwards."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmext.numerics import cached_constants, outside_modes

MODES = {
    'none': nullcontext,
    'inference': torch.inference_mode,
    'no_grad': torch.no_grad,
    'fake': FakeTensorMode,
}


def dispatch_state():
    """Return which dispatch keys this thread includes and excludes, in words: torch 2.5 compares the sets by identity."""
    return str(torch._C._dispatch_tls_local_include_set()), str(torch._C._dispatch_tls_local_exclude_set())


@pytest.mark.parametrize('mode', MODES)
def test_a_constant_is_an_ordinary_tensor_and_leaves_the_mode_as_it_was(mode):
    constant = cached_constants(1)(lambda: torch.ones(3))
    with MODES[mode]():
        before = dispatch_state(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        kept = constant()
        assert before == (dispatch_state(), torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        assert constant() is kept
    assert type(kept) is torch.Tensor
    assert not kept.is_inference()
    assert (kept * torch.ones(3, requires_grad=True)).sum() == 3


def test_the_modes_return_after_an_error():
    before = dispatch_state()
    with pytest.raises(KeyError), outside_modes():
        raise KeyError
    assert dispatch_state() == before


def test_transforms_hold_after_a_constant_was_made():
    with outside_modes():
        torch.ones(3)
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda a: a.square().sum()))(x), 2 * x)
    assert not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.FuncTorchDynamicLayerBackMode)
