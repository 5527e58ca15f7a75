"""The class between ``nn.Conv2d`` and every conv layer of the pack."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _pair

from mmext.arguments import check_conv2d
from mmext.convs.absent import AbsentWeight, ForeignWeightError
from mmext.takeover import warn_if_lost

__all__ = ['ExtConv2d', 'ForeignWeightError', 'InnerConv2d', 'flattened']


class ExtConv2d(nn.Conv2d):
    """``nn.Conv2d`` with the two properties that keep a special initialization alive inside OpenMMLab models.

    mmengine's initializers match ``layer='Conv2d'`` against a class name and the names of its *direct* bases, so a layer
    that derives from ``nn.Conv2d`` itself is re-initialized by its host; one class in between prevents that. And mmcv's
    ``ConvModule`` re-initializes every conv that has no ``init_weights``; so each layer has one. Only both together
    survive in ResNet (``conv_cfg`` and ``dcn``), FPN and CSPNeXt.

    Subclasses take every argument of ``nn.Conv2d`` with its defaults, then their own as keywords.

    Where ``weight`` has the shape of a plain layer's kernel without being the kernel that the layer computes with (a basis,
    a latent kernel), no plain layer must accept it by mistake. It is then *saved* with a leading axis of length 1,
    (1, Co, Ci/groups, kh, kw): torch refuses that shape for a plain layer even with ``strict=False``, mmengine's loader
    reports it and leaves the layer as it was (``mmext.CheckpointGuardHook`` makes that an error), and this class loads both.

    A host that fuses a batch norm (``fuse_conv_bn``, ``efficient_conv_bn_eval``) scales ``weight``, output by output, and
    takes it for the kernel. A layer with ``refuses_weight`` raises an error then, before anything is changed. Its own weight
    may be replaced by another one, taken away and brought back (``parametrize``, ``prune``, FSDP).

    Attributes:
        weight_is_kernel: Whether the layer computes with ``weight`` as it is.
        refuses_weight: Why the outputs do not scale with ``weight``, and what to do instead. None where they do.
        keeps_weight: Whether the layer has a ``weight`` at all, see :meth:`drop_weight`. Where not, its ``weight`` is an
            :class:`mmext.convs.absent.AbsentWeight`, which hosts may initialize in vain.
        loads_bias: Whether a plain bias is taken by :meth:`load_bias`, and not loaded into the layer's own ``bias``.
        loads_kernel_exactly: Whether a layer that starts from a given kernel computes with it as it is, or comes near to it.
        is_copy: Whether the layer was copied from another one, or read from a file as a whole.

    Raises:
        TypeError: If a keyword is an argument neither of ``nn.Conv2d`` nor of the subclass.
        ValueError: If ``nn.Conv2d`` refuses the arguments.
        ForeignWeightError: If a host fuses a norm into a layer that refuses it, or computes with a weight that is not there.
    """

    example: Mapping[str, Any] = dict(in_channels=8, out_channels=8, kernel_size=3)

    # torch types the geometry for any number of dimensions; here there are two.
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    weight_is_kernel: bool = True
    refuses_weight: str | None = None
    keeps_weight: bool = True
    loads_kernel_exactly: bool = True
    loads_bias: bool = False
    is_copy: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        plain = inspect.signature(nn.Conv2d).parameters
        if unknown := sorted(set(kwargs) - set(plain)):
            own = [p.name for c in type(self).__mro__ for p in _keywords_of(c) if p.name not in plain]
            raise TypeError(
                f'{type(self).__name__} has no argument {", ".join(unknown)}; it takes those of nn.Conv2d'
                + (f' and {", ".join(own)}' if own else '')
            )
        check_conv2d(type(self).__name__, args, kwargs)
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:  # torch does not say which layer it refuses
            raise ValueError(f'{type(self).__name__}: {error}') from error

    def init_weights(self) -> None:
        """Initialize the layer as its constructor does."""
        self.reset_parameters()

    def drop_weight(self) -> Tensor:
        """Give ``weight`` up for good, in a constructor; return it, as the model of shape, type and device."""
        weight = self.weight.detach()
        del self.weight
        self.keeps_weight = False
        return weight

    def load_kernel(self, kernel: Tensor) -> None:
        """Set the parameters so that the layer computes with ``kernel``, (Co, Ci/groups, kh, kw), or comes near to it.

        Called under ``no_grad`` when a plain layer's checkpoint is loaded, or a plain layer replaced by surgery. A system
        that keeps no ``weight`` of a plain kernel's shape defines this if it can start from a given kernel.
        """
        raise NotImplementedError(f'{type(self).__name__} cannot start from a given kernel')

    def load_bias(self, bias: Tensor) -> None:
        """Take the bias, (Co,), that came with the kernel. A system that ``loads_bias`` defines this."""
        raise NotImplementedError(f'{type(self).__name__} has no place for a plain bias')

    @property
    def loads_kernel(self) -> bool:
        """Whether this layer defines :meth:`load_kernel`."""
        return type(self).load_kernel is not ExtConv2d.load_kernel

    def can_load_kernel(self, shape: Sequence[int]) -> bool:
        """Whether a kernel of this shape can be the start: it has the layer's channels and fits into its window."""
        channels, size = (self.out_channels, self.in_channels // self.groups), tuple(shape[2:])
        fits = len(size) == 2 and all(k <= n for k, n in zip(size, self.kernel_size, strict=True))
        return fits and tuple(shape[:2]) == channels

    def fill_window(self, kernel: Tensor) -> Tensor:
        """Return ``kernel`` with zeros around it, as large as the window and with the same center."""
        pads = []
        for k, window in reversed(list(zip(kernel.shape[2:], self.kernel_size, strict=True))):
            before = window // 2 - k // 2
            pads += [before, window - k - before]
        return F.pad(kernel, pads) if any(pads) else kernel

    def holds_plain_kernel(self, state_dict: Mapping[str, Any], prefix: str) -> bool:
        """Whether ``state_dict`` holds a plain layer's kernel, and nothing of this layer's own, under ``prefix``."""
        weight = state_dict.get(f'{prefix}weight')
        own = [name for name in self.state_dict() if name not in ('weight', 'bias')]
        return (
            isinstance(weight, Tensor)
            and self.can_load_kernel(weight.shape)
            and not any(f'{prefix}{name}' in state_dict for name in own)
        )

    def __getattr__(self, name: str) -> Any:
        if name == 'weight' and not self.keeps_weight:
            like = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.empty(0))
            shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
            return AbsentWeight(like, shape, f'{type(self).__name__} has no weight: it {self.refuses_weight}')
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Not in register_parameter(): there the old weight would be gone already where it is a buffer.
        if name == 'weight' and isinstance(value, nn.Parameter) and self.refuses_weight:
            present = self._parameters.get('weight', self._buffers.get('weight'))
            if not self.keeps_weight or _is_scaled(present, value):
                raise ForeignWeightError(f'{type(self).__name__} {self.refuses_weight}')
        super().__setattr__(name, value)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute with this kernel, which mmcv's ``efficient_conv_bn_eval`` passes with the norm in it."""
        if self.refuses_weight:
            raise ForeignWeightError(f'{type(self).__name__} {self.refuses_weight}')
        return super()._conv_forward(x, weight, bias)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = destination.get(key := f'{prefix}weight')
        # keep_vars asks for the parameters themselves: tracing, and with it the hosts' FLOPs counter, looks for them so.
        if weight is not None and weight.ndim == 4 and not self.weight_is_kernel and not keep_vars:
            destination[key] = weight.unsqueeze(0)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        taken, bias = None, state_dict.get(f'{prefix}bias')
        if self.loads_kernel and self.holds_plain_kernel(state_dict, prefix):
            like = next(self.parameters())
            taken = self.fill_window(state_dict.pop(f'{prefix}weight').to(like))
            with torch.no_grad():
                self.load_kernel(taken)
                if self.loads_bias and bias is not None:
                    self.load_bias(state_dict.pop(f'{prefix}bias').to(like))
            # The loaders hand every module a dictionary of its own, from which the children are loaded after this.
            for name, tensor in self.state_dict().items():
                state_dict.setdefault(f'{prefix}{name}', tensor)
        weight = state_dict.get(key := f'{prefix}weight')
        if weight is not None and weight.ndim == 5 and not self.weight_is_kernel:
            state_dict = {**state_dict, key: weight.squeeze(0)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        own = [f'{prefix}{name}' for name in self.state_dict() if name not in ('weight', 'bias')]
        if weight is not None and not any(key in state_dict for key in own):
            taken = weight
        # A copy is silent: an average of the model learns nothing by itself either.
        if taken is not None and not (self.is_copy or (self.weight_is_kernel and self.keeps_weight)):
            warn_if_lost(prefix.rstrip('.'), self, taken, bias)

    def __getstate__(self) -> dict[str, Any]:
        state = getattr(super(), '__getstate__', lambda: self.__dict__)  # a method of object since Python 3.11
        return {**state(), 'is_copy': True}

    def plain_geometry(self) -> dict[str, Any]:
        """Return stride, padding, dilation and groups of the plain convolution that this layer amounts to.

        They are this layer's own, unless a system's kernel needs others (it is larger, or dense where the layer is not).
        """
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    @torch.no_grad()
    def as_plain(self, kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
        """Return an ``nn.Conv2d`` of the plain geometry with copies of ``kernel`` and ``bias``."""
        plain = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            kernel.shape[2:],
            bias=bias is not None,
            padding_mode=self.padding_mode,
            device=kernel.device,
            dtype=kernel.dtype,
            **self.plain_geometry(),
        )
        plain.weight.copy_(kernel)
        if plain.bias is not None and bias is not None:
            plain.bias.copy_(bias)
        return plain.train(self.training)


class InnerConv2d(_ConvNd):
    """A plain convolution inside of a layer of the pack, which no host draws anew.

    It is no ``nn.Conv2d``: some hosts draw all of those anew, wherever they stand.
    """

    forward = nn.Conv2d.forward
    _conv_forward = nn.Conv2d._conv_forward

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = 'zeros',
        **factory: Any,
    ) -> None:
        size, strides, around, apart = map(_pair, (kernel_size, stride, padding, dilation))
        super().__init__(
            in_channels,
            out_channels,
            size,
            strides,
            around,
            apart,
            False,
            _pair(0),
            groups,
            bias,
            padding_mode,
            **factory,
        )


def _keywords_of(cls: type) -> list[inspect.Parameter]:
    """Return the keyword-only arguments that ``cls`` itself adds."""
    init = cls.__dict__.get('__init__')
    parameters = inspect.signature(init).parameters.values() if inspect.isfunction(init) else ()
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY]


def flattened(state_dict: dict, key: str, own: Tensor) -> dict:
    """Return ``state_dict`` with the leading axes of ``key`` in one, as ``own`` has it: 5-D tensors stop channels_last."""
    saved = state_dict.get(key)
    if not isinstance(saved, Tensor) or saved.ndim != own.ndim + 1 or saved.shape[2:] != own.shape[1:]:
        return state_dict
    return {**state_dict, key: saved.flatten(0, 1)}


def _is_scaled(old: Tensor | None, new: Tensor) -> bool:
    """Whether ``new`` is ``old`` with another scale for each output, as fusing a batch norm makes it."""
    ordinary = (Tensor, nn.Parameter)
    if old is None or {type(old), type(new)} - {*ordinary} or old.is_meta or new.is_meta or old.shape != new.shape:
        return False
    with torch.no_grad():
        a, b = (t.flatten(1).to('cpu', torch.float64) for t in (old, new))
        scale = (a * b).sum(1, keepdim=True) / a.square().sum(1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
        # Rounding in bfloat16 is 0.4 percent of an entry; two kernels that are not related differ by all of it.
        return not torch.equal(a, b) and bool((scale * a - b).norm() <= 0.01 * b.norm())
