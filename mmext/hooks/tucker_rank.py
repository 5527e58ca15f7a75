"""Rank-adaptive training of Tucker convolutions: their ranks grow along the gradient and shrink by a tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmext.checkpoints import unwrap
from mmext.convs.tucker import TuckerConv2d
from mmext.registry import HOOKS

__all__ = ['TuckerRankHook', 'augment', 'truncate']


@HOOKS.register_module()
class TuckerRankHook(Hook):
    r"""Lets the channel ranks of Tucker convolutions grow and shrink while the model trains.

    Zangrando, Schotthöfer, Ceruti, Kusch, Tudisco, *Geometry-aware training of factorized layers in tensor Tucker format*,
    NeurIPS 2024, arXiv 2305.19059. Every ``interval`` steps, for the factors :math:`U_1, U_2` of the channels:

    1. augment the basis, :math:`\hat U_i = \mathrm{orth}[U_i, -\nabla_{U_i}]`, up to twice the rank and the layer's ``rank``;
    2. project the core on it, :math:`\hat S = S \times_1 \hat U_1^T U_1 \times_2 \hat U_2^T U_2`, and its moments as well;
    3. let the optimizer take its steps, on the core and all that is no factor;
    4. truncate mode by mode: keep the fewest left singular vectors P of the core unfolded along the mode such that
       the norm of the discarded singular values is below ``tolerance`` times that of all;
       :math:`U_i = \hat U_i P,\ S = \hat S \times_i P^T`.

    The factors stay orthonormal and move by 1 and 4 only; the optimizer never sees a gradient of theirs. Give the layers
    room to grow, ``rank`` (or ``ratio``) larger than ``start_rank``. The mean rank after 4 is logged as ``tucker_rank``. A
    checkpoint holds the ranks of its moment (``live_rank``), and training continues from them; the last iteration truncates.

    Args:
        tolerance: See 4, between 0 and 1.
        min_rank: No rank falls below it, unless the layer allows no more.
        interval: Optimizer steps from one adaptation to the next; in between, the core learns in the augmented bases. With
            1 a small learning rate cannot fill a new direction beyond the tolerance in the one step that it has, and ranks
            that started too small stay so.

    Raises:
        ValueError: If an argument is out of range or the model holds no Tucker convolution.

    What is inferred: the sequence and the defaults of ``tolerance`` and ``min_rank`` are those of a third-party
    implementation, which adapts at every step, as the paper's own algorithm was not at hand. Ours: ``interval``; the gradient
    that augments is that of the step before, so that any training loop serves; the spatial factors are fixed; second moments
    (``*_sq`` of the Adam family) are projected with the squared matrix, which keeps them positive. An average of weights over
    iterations (EMA) mixes factors of different bases, so do not combine the two.

    Example:
        >>> custom_hooks = [dict(type='mmext.TuckerRankHook')]
    """

    def __init__(self, tolerance: float = 0.1, min_rank: int = 3, interval: int = 10) -> None:
        if not 0 < tolerance < 1 or min_rank < 1 or interval < 1:
            raise ValueError(
                f'TuckerRankHook needs 0 < tolerance < 1, min_rank >= 1 and interval >= 1, got {tolerance=}, {min_rank=}, '
                f'{interval=}'
            )
        self.tolerance, self.min_rank, self.interval = tolerance, min_rank, interval
        self._handles: list[Any] = []
        self._layers: list[tuple[TuckerConv2d, Optimizer]] = []
        self._gradients: dict[TuckerConv2d, list[Tensor]] = {}
        self._pending: dict[TuckerConv2d, tuple[list[Tensor], Optimizer]] = {}

    def before_train(self, runner: Runner) -> None:
        """Make the factors orthonormal and follow the optimizers' steps."""
        self.after_train(runner)  # an interrupted training has left without it
        found = [m for m in unwrap(runner.model).modules() if isinstance(m, TuckerConv2d) and not m.plain]
        if not found:
            raise ValueError(
                'TuckerRankHook found no mmext.TuckerConv2d in the model; put some in by mmext.swap_layers, or leave the hook '
                'out'
            )
        wrapper: Any = runner.optim_wrapper
        optimizers = [wrapper.optimizer] if hasattr(wrapper, 'optimizer') else [w.optimizer for w in wrapper.values()]
        for number, optimizer in enumerate(optimizers):
            held = {id(p) for group in optimizer.param_groups for p in group['params']}
            layers = [m for m in found if id(m.core) in held and m.core.requires_grad]
            for layer in layers:
                orthonormalize(layer)
                self._layers.append((layer, optimizer))
            # Hooks of the step itself: the gradients are then complete (reduced, unscaled), and a step that is left out, for
            # accumulation or because the loss scaler found an overflow, is no step here either.
            before, after = self._before_step(layers), self._after_step(layers, runner, f'tucker_rank_steps_{number}')
            self._handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def _before_step(self, layers: list[TuckerConv2d]) -> Any:
        def keep_gradients(*_: Any) -> None:
            for layer in layers:
                gradients = [factor.grad for factor in layer.factors]
                for factor in layer.factors:
                    factor.grad = None
                if gradients[0] is not None and gradients[1] is not None:
                    self._gradients[layer] = [g.detach() for g in gradients[:2] if g is not None]

        return keep_gradients

    def _after_step(self, layers: list[TuckerConv2d], runner: Runner, counter: str) -> Any:
        def adapt(optimizer: Optimizer, *_: Any) -> None:
            hub = runner.message_hub
            steps = hub.get_info(counter, 0) + 1
            hub.update_info(counter, steps)  # saved with the checkpoint
            gradients = {layer: self._gradients.pop(layer) for layer in layers if layer in self._gradients}
            if steps % self.interval or not gradients:
                return
            for layer, gradient in gradients.items():
                self._pending[layer] = truncate(layer, self.tolerance, self.min_rank, optimizer, gradient), optimizer
            ranks = torch.stack([layer.live_rank[:2] for layer in gradients])
            hub.update_scalar('train/tucker_rank', ranks.double().mean().item())

        return adapt

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Augment the bases for the step to come."""
        for layer, (gradient, optimizer) in self._pending.items():
            augment(layer, gradient, optimizer)
        self._pending.clear()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Leave no augmented bases behind, before the last checkpoint is written."""
        if runner.iter + 1 == runner.max_iters:
            for layer, optimizer in self._layers:
                truncate(layer, self.tolerance, self.min_rank, optimizer)

    def run_state(self, runner: Runner) -> dict[str, Any]:
        """Return the gradients by which bases are augmented before the next step, by the names of their layers."""
        names = {layer: name for name, layer in unwrap(runner.model).named_modules()}
        return {names[layer]: [g.cpu() for g in gradient] for layer, (gradient, _) in self._pending.items()}

    def set_run_state(self, runner: Runner, state: Mapping[str, Any]) -> None:
        """Take what :meth:`run_state` returned."""
        optimizers, model = dict(self._layers), unwrap(runner.model)
        for name, gradient in state.items():
            layer: Any = model.get_submodule(name)
            if layer in optimizers:
                self._pending[layer] = [g.to(layer.core.device) for g in gradient], optimizers[layer]

    def after_train(self, runner: Runner) -> None:
        """Let go of the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers.clear()
        self._gradients.clear()
        self._pending.clear()


@torch.no_grad()
def orthonormalize(layer: TuckerConv2d) -> None:
    """Make all factors orthonormal without a change of the kernel; those that are stay as they are."""
    core, factors = _live(layer)
    for mode, factor in enumerate(factors):
        if (factor.t() @ factor - torch.eye(factor.shape[1]).to(factor)).abs().max() > 1e-4:
            factors[mode], triangle = torch.linalg.qr(factor)
            core = torch.tensordot(triangle, core.movedim(mode, 0), 1).movedim(0, mode)
    layer.set_factors(core, factors)


@torch.no_grad()
def truncate(
    layer: TuckerConv2d, tolerance: float, min_rank: int, optimizer: Optimizer, gradients: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Cut the channel ranks of a layer with orthonormal factors, and return their gradients, if given, in the new bases.

    Per mode, the norm of the singular values that are cut off is below ``tolerance`` times that of all.
    """
    core, factors = _live(layer)
    maps, turned, remaining = [], [], core
    for mode in (0, 1):
        vectors, values, _ = torch.linalg.svd(remaining.movedim(mode, 0).flatten(1), full_matrices=False)
        tails = values.square().flip(0).cumsum(0).flip(0).sqrt()  # tails[r]: what is lost by keeping r of them
        keep = int((tails >= tolerance * tails[0]).sum())
        kept = vectors[:, : min(max(keep, min_rank), len(values))]
        maps.append(kept.t())
        remaining = torch.tensordot(kept.t(), remaining.movedim(mode, 0), 1).movedim(0, mode)
        turned += [g[:, : core.shape[mode]].to(core) @ kept for g in gradients[mode : mode + 1]]
        factors[mode] = factors[mode] @ kept
    _change_basis(layer, core, factors, maps, optimizer)
    return turned


@torch.no_grad()
def augment(layer: TuckerConv2d, gradients: list[Tensor], optimizer: Optimizer) -> None:
    """Extend the bases of the channel modes by the directions of steepest descent; the kernel does not change."""
    core, factors = _live(layer)
    maps = []
    for mode in (0, 1):
        old = factors[mode]
        room = min(old.shape[1], layer.rank[mode] - old.shape[1])
        # An orthonormal old basis is the first part of Q, up to signs, so that the projection below loses nothing.
        factors[mode] = torch.linalg.qr(torch.cat([old, -gradients[mode][:, :room]], 1)).Q
        maps.append(factors[mode].t() @ old)
    _change_basis(layer, core, factors, maps, optimizer)


def _live(layer: TuckerConv2d) -> tuple[Tensor, list[Tensor]]:
    """Return the parts of the core and of the factors that are in use, in float32 at least."""
    ranks = layer.live_rank.tolist()
    dtype = torch.promote_types(layer.core.dtype, torch.float32)
    core = layer.core.detach()[tuple(slice(r) for r in ranks)].to(dtype)
    return core, [f.detach()[:, :r].to(dtype) for f, r in zip(layer.factors, ranks, strict=True)]


def _change_basis(
    layer: TuckerConv2d, core: Tensor, factors: list[Tensor], maps: list[Tensor], optimizer: Optimizer
) -> None:
    """Store the core and its moments as seen from new channel factors; ``maps`` turn old coordinates into new ones."""
    old = tuple(slice(n) for n in core.shape)
    shared = [*layer.parameters(), layer.live_rank]
    for name, moment in optimizer.state.get(layer.core, {}).items():
        if isinstance(moment, Tensor) and moment.shape == layer.core.shape:
            squared = [m.square() for m in maps] if name.endswith('_sq') else maps
            turned = torch.einsum('abcd,ea,fb->efcd', moment[old].to(core), *squared)
            moment.zero_()
            moment[tuple(slice(n) for n in turned.shape)] = turned.to(moment)
            shared.append(moment)
    layer.set_factors(torch.einsum('abcd,ea,fb->efcd', core, *maps), factors)
    for tensor in shared:  # the decompositions of other machines may differ by rounding, or in a sign
        dist.broadcast(tensor.detach())
