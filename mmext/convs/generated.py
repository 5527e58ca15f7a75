"""Idea 1 of the pack: convolutions whose kernel is a function of learnable parameters and not of the input."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.base import ExtConv2d
from mmext.convs.cache import CachingLayer
from mmext.ops.depthwise import depthwise_conv2d

__all__ = ['GeneratedConv2d']

GENERATES = (
    'generates its kernel and computes with no other; fold the model first (tools/deploy.py, or mmext.folding.fold), or leave '
    'fuse_conv_bn and efficient_conv_bn_eval out'
)


class GeneratedConv2d(ExtConv2d, CachingLayer):
    r"""A convolution with a generated kernel, :math:`y = x * g(\theta) + b`.

    A system of this family is the function ``g`` (:meth:`generate_kernel`) and its parameters. Everything else is here,
    once:

    - the arguments of ``nn.Conv2d``, all of them;
    - generation in full precision under autocast (a kernel made in half precision is not the kernel that folds);
    - a cache in eval mode, see :class:`mmext.convs.cache.CachingLayer`;
    - :meth:`fold`, the plain ``nn.Conv2d`` that computes the same;
    - a plain checkpoint as the starting point: where the state keeps a tensor ``weight`` of a plain kernel's shape (a
      basis, a latent kernel) it is loaded there, else through :meth:`load_kernel`, if the system defines that. A smaller
      kernel lies in the center, with zeros around it: the same function, if the padding has grown alike;
    - a checkpoint that no plain layer accepts by mistake, see :class:`mmext.convs.base.ExtConv2d`.

    A system that has nothing to generate for some layers (RefConv for a 1x1 kernel) sets ``plain`` in its constructor and
    leaves them as ``nn.Conv2d`` made them, so that ``conv_cfg`` can name it for a whole network.

    Attributes:
        plain: Whether this very layer generates nothing and ``weight`` is its kernel.
        fold_in_deploy: Whether :func:`mmext.folding.fold` folds the layer. False where the plain form computes the same and
            costs more.
        stretches: Whether a layer that keeps ``weight`` can start from a smaller kernel with zeros around it.
        serves: The kinds of layers that the system has a kernel for; others it refuses, or leaves plain.
        refuses: Arguments of ``nn.Conv2d`` that it refuses to have changed: ``'dilation'``, ``'named padding'``.
        typical: Arguments of the place where the paper uses the layer, see :class:`mmext.contracts.Exemplified`.
    """

    typical: Mapping[str, Any] = {}
    serves: tuple[str, ...] = ('dense', 'grouped', 'depthwise')
    refuses: tuple[str, ...] = ()
    plain = False
    fold_in_deploy = True
    stretches = True

    def generate_kernel(self) -> Tensor:
        """Return the kernel in the layout of ``nn.Conv2d``, differentiable in the parameters.

        Its size and groups are those of :meth:`plain_geometry`; usually (out_channels, in_channels / groups, kh, kw).
        """
        raise NotImplementedError(f'{type(self).__name__} must define generate_kernel()')

    def generate_bias(self) -> Tensor | None:
        """Return the bias that belongs to the kernel, (out_channels,), or None."""
        return self.bias

    @property
    def loads_kernel(self) -> bool:
        """Whether this layer defines :meth:`load_kernel` and has something to generate."""
        return not self.plain and super().loads_kernel

    @property
    def weight_is_kernel(self) -> bool:  # type: ignore[override]
        """Whether this very layer is a plain one."""
        return self.plain

    @property
    def refuses_weight(self) -> str | None:  # type: ignore[override]
        """Why no kernel is taken from outside, None in a plain layer."""
        return None if self.plain else GENERATES

    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return the generated kernel and bias, from the cache where that is valid."""
        return self.cached(self._generate)

    def _generate(self) -> tuple[Tensor, Tensor | None]:
        if self.plain:
            return self.weight, self.bias
        with self.full_precision():
            return self.generate_kernel(), self.generate_bias()

    def full_precision(self) -> AbstractContextManager:
        """Return the context in which kernels are generated, without autocast."""
        sources = [*self.parameters(), *self.buffers()]
        device = sources[0].device.type if sources else 'cpu'
        # The meta device has no autocast to switch off.
        return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, in_channels, H, W), with the generated kernel."""
        return self.convolve(x, *self.kernel_and_bias())

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve ``x`` with a kernel of the plain geometry."""
        geometry = self.plain_geometry()
        if self.padding_mode != 'zeros':
            x = self.pad(x, geometry['padding'])
            geometry['padding'] = 0
        if geometry['groups'] == self.in_channels == self.out_channels:
            del geometry['groups']
            return depthwise_conv2d(x, kernel, bias, **geometry)
        return F.conv2d(x, kernel, bias, **geometry)

    def pad(self, x: Tensor, padding: str | tuple[int, int] | None = None) -> Tensor:
        """Pad ``x`` by ``padding``, or by the layer's own, in the layer's padding mode."""
        padding = self.padding if padding is None else padding
        # What nn.Conv2d has made of padding='same', last dimension first.
        if isinstance(padding, str):
            pads = self._reversed_padding_repeated_twice
        else:
            pads = [p for p in reversed(padding) for _ in range(2)]
        return F.pad(x, pads, mode='constant' if self.padding_mode == 'zeros' else self.padding_mode)

    def fold(self) -> nn.Conv2d:
        """Return the plain convolution that computes the same as this layer does in eval mode."""
        with torch.no_grad():
            return self.as_plain(*self._generate())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        takes_weight = self.keeps_weight and not self.plain and not self.loads_kernel
        if takes_weight and self.holds_plain_kernel(state_dict, prefix):
            key, kernel = f'{prefix}weight', state_dict[f'{prefix}weight']
            if self.stretches or kernel.shape == self.weight.shape:
                kernel = self.fill_window(kernel)
            else:
                args[-1].append(
                    f'{prefix}{type(self).__name__} cannot start from a kernel of {tuple(kernel.shape[2:])}, because zeros '
                    f'around it would not stay zeros; build it with kernel_size={tuple(kernel.shape[2:])}'
                )
                kernel = self.weight
            state_dict = {**state_dict, key: kernel}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        own = 'plain' if self.plain else self.own_repr()
        return f'{super().extra_repr()}, {own}' if own else super().extra_repr()

    def own_repr(self) -> str:
        """Return the system's own arguments, as they appear in the repr."""
        return ''
