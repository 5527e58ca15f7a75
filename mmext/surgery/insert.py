"""Put a block after, before or around a layer or stage of a model, without another name for anything that was there."""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.contracts import RunsInserted
from mmext.convs.base import ForeignWeightError, _is_scaled
from mmext.errors import reason
from mmext.surgery.layout import ChannelsLast, channel_axis
from mmext.surgery.rules import Insertion
from mmext.surgery.trial import Shape

__all__ = ['Gated', 'insert_block', 'inserted_blocks', 'misfit', 'with_blocks']


class Gated(nn.Module):
    r"""A block whose effect starts at zero, :math:`y + g \, (B(\ldots, y) - y)` with one learned number g.

    At g = 0 learning starts through g, whose gradient is not zero.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map what the block maps; the last input is what passes."""
        return inputs[-1] + self.gate * (self.block(*inputs) - inputs[-1])


def inserted_blocks(module: nn.Module) -> dict[str, str]:
    """Return the names of the blocks that were put at ``module``, with where each stands."""
    return dict(module.inserted) if isinstance(module, RunsInserted) else {}


@functools.cache
def with_blocks(cls: type) -> type:
    """Return a class derived from ``cls`` whose instances run the children that ``inserted`` names, beside their own forward.

    It has the name of ``cls``. What folding makes of an instance has the same blocks.
    """
    host: Any = cls

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        if host.forward is not nn.Sequential.forward:
            return host.forward(self, *args, **kwargs)
        (x,) = args
        for layer in self:
            x = layer(x)
        return x

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        for name, where in self.inserted:
            x = self._modules[name](x) if where == 'before' else x
        y = own(self, x, *args, **kwargs)
        for name, where in self.inserted:
            y = y if where == 'before' else self._modules[name](y) if where == 'after' else self._modules[name](x, y)
        return y

    def members(self: Any) -> Iterator[nn.Module]:
        names = dict(self.inserted)
        return iter([child for name, child in self._modules.items() if name not in names])

    def fold(self: Any) -> nn.Module:
        plain = host.fold(self)
        return plain if plain is self else _with(plain, {name: self._modules[name] for name, _ in self.inserted}, self)

    def reduce(self: Any, protocol: Any) -> tuple:
        made, arguments, *state = host.__reduce_ex__(self, max(int(protocol), 2))
        if type(self) is derived:
            made, arguments = _revive, (cls,)
        return (made, arguments, *state)

    described = dict(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__, plain_class=cls)
    methods: dict[str, Any] = dict(forward=forward, __reduce_ex__=reduce)
    if issubclass(cls, nn.Sequential):
        methods |= dict(__iter__=members, __len__=lambda self: len(self._modules) - len(self.inserted))
    if hasattr(cls, 'fold'):
        methods['fold'] = fold
    if issubclass(cls, nn.Conv2d):
        # A norm behind the block is not a norm behind the convolution: no fusion must take it for one.
        methods |= dict(__setattr__=_guarded(host), _conv_forward=_own_weight_only(host), refuses_weight=_REFUSAL)
    derived: type = type(cls)(cls.__name__, (cls,), {**described, **methods})
    return derived


_REFUSAL = 'has a block of mmext.swap_layers beside it, so that its norm cannot fuse into it; leave the norm as it is'


def _guarded(host: Any) -> Any:
    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name == 'weight' and isinstance(value, nn.Parameter) and _is_scaled(self._parameters.get('weight'), value):
            raise ForeignWeightError(f'{type(self).__name__} {_REFUSAL}')
        host.__setattr__(self, name, value)

    return set_attribute


def _own_weight_only(host: Any) -> Any:
    def conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight is not self.weight:
            raise ForeignWeightError(f'{type(self).__name__} {_REFUSAL}')
        return nn.Conv2d._conv_forward(self, x, weight, bias)

    return conv_forward


def _revive(cls: type) -> Any:
    derived = with_blocks(cls)
    return derived.__new__(derived)  # type: ignore[call-overload]


def _with(module: nn.Module, blocks: dict[str, nn.Module], like: Any) -> nn.Module:
    """Put ``blocks`` at ``module``, where they stand at ``like``."""
    module.__class__ = with_blocks(type(module))  # type: ignore[arg-type]
    module._modules.update(blocks)
    module.inserted = like.inserted
    return module


def insert_block(name: str, module: nn.Module, rule: Insertion, seen: Sequence[Sequence[Shape]]) -> nn.Module:
    """Build the block of a rule and put it at ``module``.

    Args:
        name: Of the module, for errors.
        module: The layer or stage.
        rule: What and where.
        seen: The shapes of what went into the module in a trial, and of what came out.

    Returns:
        The block.

    Raises:
        ValueError: If the module has no forward, or does not take and return one tensor, or the block changes its shape.
    """
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f'swap_layers cannot put a block at {name}, a {type(module).__name__}, which has no forward; name its members'
        )
    ins, outs = seen
    if not outs or (rule.where != 'after' and not ins):
        raise ValueError(
            f'swap_layers can put a block {rule.where} what takes and returns one tensor; {name} '
            f'({type(module).__name__}) did not in a trial forward of the model, choose another layer'
        )
    given = [ins, outs] if rule.where == 'around' else [outs] if rule.where == 'after' else [ins]
    block = _fitting(name, module, rule, given)
    taken = inserted_blocks(module)
    own = next(
        n for i in range(len(taken) + 1) if (n := f'inserted_{rule.where}' + (f'_{i}' if i else '')) not in taken
    )
    if not taken:
        module.__class__ = with_blocks(type(module))  # type: ignore[arg-type]
    module._modules[own] = block
    module.__dict__['inserted'] = (*getattr(module, 'inserted', ()), (own, rule.where))
    return block


def _fitting(name: str, module: nn.Module, rule: Insertion, given: list[Sequence[Shape]]) -> nn.Module:
    axes = [channel_axis(shapes) or 0 for shapes in given]
    what = f'{rule.insert["type"]} {rule.where} {name} ({type(module).__name__})'
    if any(a not in (1, len(shapes[0]) - 1) for a, shapes in zip(axes, given, strict=True)):
        raise ValueError(
            f'swap_layers cannot put {what}: a trial saw the shapes {given[-1][:4]}, whose channels it cannot tell'
        )
    channels = [shapes[0][axis] for shapes, axis in zip(given, axes, strict=True)]
    names = dict(num_channels=channels[-1], channels=channels[-1], in_channels=channels[0], out_channels=channels[-1])
    asked = {k: v for k, v in names.items() if rule.takes(k)}
    try:
        block = ROOT_MODELS.build({**asked, **rule.insert})
    except (TypeError, ValueError) as error:
        raise ValueError(f'swap_layers cannot put {what}: {error}') from error
    like = next(module.parameters(), None)
    block = block if like is None else block.to(like)
    together = list(dict.fromkeys(zip(*given, strict=True)))
    failure = misfit(block, together)
    if failure and all(axis != 1 for axis in axes):
        block = ChannelsLast(block)
        failure = misfit(block, together)
    if failure:
        raise ValueError(f'swap_layers cannot put {what}: {failure}')
    return block if not rule.identity or _passes(block, together[0]) else Gated(block).to(like)


def _run(block: nn.Module, shapes: Sequence[Shape]) -> tuple[Tensor, Tensor]:
    """Return what passes and what a copy of ``block``, in eval mode, makes of noise of these shapes, two samples."""
    probe = copy.deepcopy(block)
    probe.eval()
    like = next(probe.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    # Not as many samples as channels: torch would take such tokens for a map without a batch axis.
    inputs = [torch.randn(3 if 2 in shape[1:] else 2, *shape[1:], generator=generator).to(like) for shape in shapes]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return inputs[-1], probe(*inputs)


def misfit(block: nn.Module, shapes: Sequence[Sequence[Shape]]) -> str:
    """Return why a layer cannot stand where it is given tensors of these shapes, or an empty text."""
    for given in shapes:
        try:
            x, out = _run(block, given)
        except Exception as error:  # a layer of any host may raise anything
            return _failure(block, given, error)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            made = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            return f'it makes {made} of {tuple(x.shape)}, which what follows does not expect'
    return ''


def _failure(block: nn.Module, given: Sequence[Shape], error: Exception) -> str:
    """Return why a layer fails on tensors of these shapes, found out on other shapes where its error is that of torch."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, ValueError) and Path(torch.__file__).parent not in Path(raised_in).parents:
        return reason(error).removeprefix('ValueError: ')  # a law of the layer, in its own words
    last = isinstance(block, ChannelsLast)
    layer = block.layer if isinstance(block, ChannelsLast) else block
    for size in (8, 64):
        maps = [(1, shape[-1] if last else shape[1], size, size) for shape in given]
        try:
            _run(layer, maps)
        except Exception:  # as above
            continue
        if len(given[0]) != 4:
            return 'it takes maps, (N, C, H, W), and no tensors of that many axes'
        return f'it takes maps of {size} x {size}, and none of these sizes'
    return f'its forward raises {type(error).__name__} on them, and on maps of as many channels'


def _passes(block: nn.Module, shapes: Sequence[Shape]) -> bool:
    """Tell whether a block leaves what passes as it is."""
    x, out = _run(block, shapes)
    return torch.allclose(out, x, rtol=1e-5, atol=1e-6)
