"""How an operator of this pack is made: schema, kernel, shapes, and derivatives that hold within ``torch.func`` too.

``torch.library.register_autograd`` gives an operator its backward pass alone: its forward-mode derivative is silently
zero, and ``torch.func.grad`` and ``vmap`` of it raise. Here both modes are one function under the operator's autograd key.
Every level of nested transforms passes through that key, as it does for torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._functorch.vmap import _add_batch_dim, unwrap_batched
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_leaves

__all__ = ['LIBRARY', 'operator', 'primals']

LIBRARY = torch.library.Library('mmext', 'FRAGMENT')
_BATCHED = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)


def operator(
    schema: str,
    run: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    setup_context: Callable[[Any, tuple, Tensor], None],
    backward: Callable[..., tuple],
    jvp: Callable[..., Tensor | None],
    vmap: Callable[..., tuple[Tensor, int]],
) -> Any:
    """Define ``mmext::<schema>`` and return it, to be called.

    Args:
        schema: Name, arguments and result, the tensors first.
        run: What computes it wherever no compiled kernel is registered.
        fake: The same, of shapes alone.
        setup_context: As of a ``torch.autograd.Function``: keeps what the derivatives need.
        backward: As there: the gradients of all arguments from that of the result.
        jvp: Gets the operator, the context and the tangents of all arguments, None where there is none; returns that of the
            result. It reads the saved tensors with :func:`primals`.
        vmap: Gets the operator, the vmapped axis of each argument, or None, and the arguments; returns the result and its
            vmapped axis.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.mmext, schema.split('(')[0]).default

    class Derivatives(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            *inputs, keyset = arguments
            # A function's forward records nothing, but what lies below may be another level of transforms, which must.
            with torch.enable_grad(), forward_mode._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
            setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple:
            return *backward(ctx, grad), None

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
            with forward_mode._set_fwd_grad_enabled(True):
                return jvp(op, ctx, *tangents[:-1])

    Derivatives.__name__ = f'{schema.split("(")[0]}Backward'
    function: Any = Derivatives  # ``apply`` is not in torch's stubs

    def differentiate(keyset: Any, *inputs: Any) -> Tensor:
        # Where nobody asks for a derivative, none is prepared, which takes longer than a small map. A backward pass is such a
        # place. Forward mode and transforms do not heed that gradients are off.
        transformed = forward_mode._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
        if not torch.is_grad_enabled() and not transformed:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
        with enable_single_level_autograd_function():
            return function.apply(*inputs, keyset)

    def batch(*inputs: Any) -> Tensor:
        level = torch._C._functorch.current_level()
        inputs, axes = unwrap_batched(inputs, level)
        with torch._C._ExcludeDispatchKeyGuard(_BATCHED):
            if all(axis is None for axis in tree_leaves(axes)):
                return op(*inputs)
            output, axis = vmap(op, axes, *inputs)
        return _add_batch_dim(output, axis, level)

    LIBRARY.impl(op, run, 'CompositeExplicitAutograd')
    torch.library.register_fake(op, fake, lib=LIBRARY)
    LIBRARY.impl(op, differentiate, 'Autograd', with_keyset=True)
    LIBRARY.impl(op, batch, 'FuncTorchBatched')
    return op


def primals(ctx: Any) -> tuple[Tensor, ...]:
    """Return the saved tensors without the tangents that they carry in forward mode."""
    return tuple(forward_mode.unpack_dual(tensor, level=0).primal for tensor in ctx.saved_tensors)
