"""Norms over all positions of a forward pass, and how their statistics are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.arguments import Axis, Count, Positive
from mmext.numerics import at_least_float32

__all__ = ['PositionNorm', 'constant_stats', 'freeze_stats', 'value_and_gradient']


class PositionNorm(nn.Module):
    """The part that the norms of coordinate networks share.

    The input is seen as a matrix of N positions and C channels. In training its own statistics are used; in eval mode too,
    until they are frozen, as the released networks do. Frozen statistics make the output at a position independent of which
    others are evaluated with it. They are buffers that exist, and are saved, only while they are frozen; ``train()`` forgets
    them, because they belong to the weights that they were measured with.

    Statistics and normalization are computed in float32 for a half precision input: a column sum over a few ten thousand
    positions is infinite in float16.

    A subclass names its statistics and defines :meth:`measure` and :meth:`normalize`.

    Args:
        num_features: C.
        eps: Added to the variance.
        divisor: ``'official'`` or ``'exact'``, see the subclass.
        channel_dim: Where the channels are: -1 for lists and grids of positions, 1 for maps (N, C, H, W), as in
            ``norm_cfg`` of a convolutional network.

    Raises:
        ValueError: If ``divisor`` is unknown.
    """

    statistics: tuple[str, ...] = ()

    def __init__(
        self,
        num_features: Count,
        eps: Positive = 1e-5,
        divisor: Literal['official', 'exact'] = 'official',
        channel_dim: Axis = -1,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.divisor = divisor
        self.channel_dim = channel_dim
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        for name in self.statistics:
            self.register_buffer(name, None)

    def reset_parameters(self) -> None:
        """Set the affine map to the identity and forget frozen statistics."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.unfreeze()

    def measure(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the statistics of ``rows``, (N, C), in the order of ``statistics``."""
        raise NotImplementedError

    def normalize(self, rows: Tensor, *statistics: Tensor) -> Tensor:
        """Normalize ``rows``, (N, C), and apply the affine map."""
        raise NotImplementedError

    def normalize_itself(self, rows: Tensor) -> Tensor:
        """Normalize ``rows`` with their own statistics."""
        return self.normalize(rows, *self.measure(rows))

    @property
    def frozen(self) -> bool:
        """Whether statistics are frozen."""
        return self._buffers[self.statistics[0]] is not None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Return the scale and shift, (C,) each, that the norm applies in eval mode, None where it is no such map."""
        return None

    def optional_state(self) -> Sequence[str]:
        """Return the names of the statistics: they are saved only while they are frozen."""
        return self.statistics

    def deploy_warning(self) -> str | None:
        """Say that the output hangs on what is evaluated together."""
        if self.frozen:
            return None
        return (
            'norms have no frozen statistics, so that the value at a position depends on what is evaluated with it; train '
            'with mmext.SignalHook, which saves them'
        )

    @torch.no_grad()
    def freeze(self, x: Tensor) -> None:
        """Measure ``x`` and use its statistics in eval mode from now on."""
        for name, value in zip(self.statistics, self.measure(self._rows(x)), strict=True):
            setattr(self, name, value)

    def unfreeze(self) -> None:
        """Forget frozen statistics."""
        for name in self.statistics:
            setattr(self, name, None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, whose axis ``channel_dim`` has C entries."""
        if not self.fixed:
            return self._by_rows(x, self.normalize_itself)
        return self._by_rows(
            x, lambda rows: self.normalize(rows, *(getattr(self, name).to(rows.dtype) for name in self.statistics))
        )

    @property
    def fixed(self) -> bool:
        """Whether the next forward uses frozen statistics."""
        return self.frozen and not self.training

    def with_constant_stats(self, x: Tensor) -> Tensor:
        """Return the same as :meth:`forward`, but differentiate as if the statistics of ``x`` were constants."""

        def normalize(rows: Tensor) -> Tensor:
            with torch.no_grad():
                statistics = [statistic.to(rows.dtype) for statistic in self.measure(rows)]
            return self.normalize(rows, *statistics)

        return self._by_rows(x, normalize)

    def _by_rows(self, x: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        order = self._order(x)
        rows = normalize(self._rows(x)).to(x.dtype).view([x.shape[axis] for axis in order])
        return rows.permute([order.index(axis) for axis in range(x.ndim)])

    def _order(self, x: Tensor) -> list[int]:
        """Return the axes of ``x`` with that of the channels last; named one by one, as exporters need them."""
        order = list(range(x.ndim))
        order.append(order.pop(self.channel_dim))
        return order

    def _rows(self, x: Tensor) -> Tensor:
        rows = x.permute(self._order(x)).reshape(-1, self.num_features)
        return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows

    def train(self, mode: bool = True) -> PositionNorm:
        if mode:
            self.unfreeze()
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.statistics if f'{prefix}weight' in state_dict else ():
            saved = state_dict.get(f'{prefix}{name}')
            # Storage of the right shape for a saved statistic, and none where none was saved.
            setattr(self, name, None if saved is None else torch.empty_like(saved, device=self.weight.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps}, divisor={self.divisor!r}, channel_dim={self.channel_dim}'


@torch.no_grad()
def freeze_stats(model: nn.Module, *inputs: Tensor, run: Callable[[], Any] | None = None) -> nn.Module:
    """Give every norm of ``model`` the exact statistics of one forward pass, and set the model to eval mode.

    Afterwards the model computes in eval mode, position by position, what it computes in training mode on all of ``inputs``
    together. Batch norms are included: their running statistics become those of this pass, with the variance divided by
    the number of positions, where torch's moving average divides by one less. Their counter of training batches stays.

    Args:
        model: Any module.
        *inputs: The arguments of its forward pass, e.g. the whole grid.
        run: What is done instead of a forward pass; of several passes in it the last one counts.
    """
    counts: dict[_BatchNorm, int] = {}
    hooks = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, PositionNorm):
            module.freeze(args[0])
        elif isinstance(module, _BatchNorm):
            counts[module] = args[0].numel() // module.num_features

    batch_norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    momenta = [(m, m.momentum) for m in batch_norms]
    counters = [
        (m.num_batches_tracked, m.num_batches_tracked.clone()) for m in batch_norms if m.num_batches_tracked is not None
    ]
    for module in model.modules():
        if isinstance(module, (PositionNorm, _BatchNorm)):
            hooks.append(module.register_forward_pre_hook(watch))
    model.train()
    try:
        for norm in batch_norms:
            norm.momentum = 1.0
        model(*inputs) if run is None else run()
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for counter, before in counters:
            counter.copy_(before)
        for hook in hooks:
            hook.remove()
    for norm in batch_norms:
        if norm in counts:
            norm.get_buffer('running_var').mul_((counts[norm] - 1) / counts[norm])
    return model.eval()


@contextmanager
def constant_stats(model: nn.Module) -> Iterator[int]:
    """Let every norm of ``model`` be differentiated as if the statistics that it uses were constants.

    Values are those of training mode. Batch statistics tie all positions together: the gradient of a sum of values with
    respect to the positions is then not the gradient at each of them. Within this context it is. Running statistics of
    batch norms are not updated in it. Norms that use frozen or running statistics, and layer norms, stay as they are.

    Args:
        model: Any module; this context may be entered within itself.

    Yields:
        How many norms are concerned. Where there are none, values and gradients are those outside of the context.
    """
    replaced = []
    for module in model.modules():
        constant: Callable[[Tensor], Tensor] | None = None
        if isinstance(module, PositionNorm) and not module.fixed:
            constant = module.with_constant_stats
        elif isinstance(module, _BatchNorm) and (module.training or module.running_var is None):
            constant = partial(_batch_norm_with_constant_stats, module)
        if constant is not None and 'forward' not in vars(module):
            vars(module)['forward'] = constant
            replaced.append(module)
    try:
        yield len(replaced)
    finally:
        for module in replaced:
            del vars(module)['forward']


def value_and_gradient(
    field: Callable[[Tensor], Tensor], points: Tensor, model: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Return what a field has at points, and the gradient of its first value at each of them.

    Args:
        field: A function of points, (..., d) to (..., C).
        points: (..., d).
        model: The module that computes the field. In training mode the statistics of its norms count as constants, see
            :func:`constant_stats`; in eval mode the gradient is not differentiated again.

    Returns:
        Values (..., C) and gradients (..., d). Without gradient mode neither has a graph.
    """
    learns = torch.is_grad_enabled()
    training = model is None or model.training
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = seen = field(points)
        if model is not None and training:
            with constant_stats(model) as replaced:
                seen = field(points) if replaced else values
        # A constant field has a gradient, too: zero.
        total = seen[..., 0].sum() + 0 * points.sum()
        (gradient,) = torch.autograd.grad(total, points, create_graph=learns and training)
    return (values, gradient) if learns else (values.detach(), gradient)


def _batch_norm_with_constant_stats(norm: _BatchNorm, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    var, mean = torch.var_mean(at_least_float32(x.detach()), axes, unbiased=False)
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False, eps=norm.eps)
