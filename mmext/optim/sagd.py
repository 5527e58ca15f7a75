"""SA-GD: stochastic gradient descent that sometimes climbs, as simulated annealing does."""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.logging import print_log
from torch import Tensor

from mmext.arguments import NonNegative
from mmext.registry import OPTIMIZERS

__all__ = ['SAGD', 'transition_probability']

EULER_MASCHERONI = 0.5772156649015329

# torch wraps the `step` of every class it instantiates so that it runs the optimizer's hooks. Calling the bare function
# keeps them from running twice once somebody has also built a plain SGD.
_sgd_step = inspect.unwrap(torch.optim.SGD.step)


def _require(holds: bool, law: str, **got: Any) -> None:
    if not holds:
        raise ValueError(f'SAGD needs {law}, got {", ".join(f"{name}={value!r}" for name, value in got.items())}')


def transition_probability(
    delta: float,
    n: int,
    T0: float,  # noqa: N803
    lr: float,
    mode: str = 'simple',
    gamma: float | None = None,
    k: float = 1.0,
    alpha: float = math.e,
    beta: float = EULER_MASCHERONI,
) -> float:
    r"""Return the transition probability P of one step.

    With :math:`L = \ln(n + 2)` it is :math:`\exp(-(\delta^k / T)^q)`, where

    - ``'simple'`` has :math:`T = T_0 \epsilon L,\ q = 1`;
    - ``'no_lr'`` has :math:`T = T_0 L,\ q = 1`;
    - ``'double'`` has :math:`T = T_0 \epsilon \gamma^n L,\ k = L^{-1/\alpha},\ q = \beta L`.

    Args:
        delta: :math:`|E_i - E_{i-1}|`, how much the loss changed.
        n: The annealing counter, from 0.
        T0: The initial temperature.
        lr: :math:`\epsilon`: the initial learning rate if ``gamma`` is given, else the current one, which stands for
            :math:`\epsilon_0 \gamma^n` under any schedule.
        mode: One of ``'simple'``, ``'no_lr'``, ``'double'``.
        gamma: The decay of the learning rate per count, for ``'double'`` only.
        k: The exponent of the change; ``'double'`` has its own.
        alpha: A constant of ``'double'``.
        beta: A constant of ``'double'``.

    Returns:
        P, between exp(-100) and 1; 1 where the loss did not change.

    Raises:
        ValueError: If ``T0``, ``mode``, ``gamma`` or ``k`` is out of its range.
    """
    double = mode == 'double'
    _require(T0 > 0, 'a positive T0', T0=T0)
    _require(mode in ('simple', 'no_lr', 'double'), "mode 'simple', 'no_lr' or 'double'", mode=mode)
    _require(gamma is None or (double and 0 < gamma <= 1), "0 < gamma <= 1 with mode='double'", gamma=gamma, mode=mode)
    _require(k == 1 or (k > 0 and not double), "a positive k, and 1 with mode='double'", k=k, mode=mode)
    if delta == 0:
        return 1.0
    anneal = math.log(n + 2)
    temperature, power = T0 * anneal, 1.0
    if mode != 'no_lr':
        temperature *= lr
    if double:
        temperature *= 1.0 if gamma is None else gamma**n
        k, power = anneal ** (-1 / alpha), beta * anneal
    if temperature == 0:
        return math.exp(-100.0)
    # In logarithms, as the power of a large ratio overflows; the exponent ends at -100.
    log_exponent = power * (k * math.log(delta) - math.log(temperature))
    return math.exp(-math.exp(min(log_exponent, math.log(100.0))))


@dataclass
class _Progress:
    """What must survive a restart: plain numbers, which any loader accepts."""

    seed: int | None
    steps: int = 0
    ascents: int = 0
    energy: float | None = None


@OPTIMIZERS.register_module()
class SAGD(torch.optim.SGD):
    r"""SGD with simulated annealing: now and then a step uphill.

    Cai, *SA-GD: Improved Gradient Descent Learning Strategy with Simulated Annealing*, 2021, arXiv 2107.07558.

    Once per step, for the whole model, with :math:`E_i` the loss, :math:`\epsilon` the learning rate and :math:`d` the
    direction of ``torch.optim.SGD``,

    .. math::
        p = \min(1 - P(|E_i - E_{i-1}|),\ p_{max}), \qquad
        \theta \leftarrow \theta + \sigma\epsilon d \text{ with probability } p, \text{ else } \theta - \epsilon d

    and :math:`P` is :func:`transition_probability`, :math:`E_0 = 0`. The momentum buffer takes the true gradient either
    way, and the direction includes weight decay and Nesterov's term. On average a step goes down only if
    :math:`p < 1 / (1 + \sigma)`.

    The learning rate is the last factor of SGD's step, so an ascent is SGD's own step with :math:`-\sigma\epsilon` in its
    place: nothing is copied, all of torch's implementations serve, and with ``max_ascent_prob=0`` this *is* SGD.
    Decision number i is a pure function of ``seed`` and i: a resumed run continues with the same ones, and the global
    random state is not touched. In a distributed run the loss is averaged over the processes and rank 0's seed is used,
    so that all of them decide alike. A loss that is not finite makes the step a descent and is forgotten.

    The author published no code. Equations, defaults and the rule of ascent follow two public re-implementations, which
    leave open what P is the probability of (``prob_means``), what n counts (``anneal_by``) and the exponent ``k``; the
    defaults of these three, and that an ascent climbs the regularized loss, are our reading.

    Args:
        params: Parameters or groups. The first group's learning rate is the :math:`\epsilon` of P.
        lr: As in SGD, like the next four.
        momentum: See ``lr``.
        dampening: See ``lr``.
        weight_decay: See ``lr``.
        nesterov: See ``lr``.
        T0: Initial temperature; 15 to 19 is recommended, and about 1e-4 for ``mode='no_lr'``.
        sigma: How much longer an ascent is than a descent, 1 to 4.
        max_ascent_prob: The cap on the probability of an ascent.
        mode: The form of P: ``'simple'``, ``'no_lr'`` or ``'double'``.
        gamma: In mode ``'double'``: the decay of the learning rate per count. None takes the current learning rate,
            which is the same under an exponential schedule.
        prob_means: What P is the probability of, ``'descent'`` or ``'ascent'``; with the latter p = min(P, p_max).
        k: The exponent of the loss change.
        anneal_by: Whether n counts epochs (``'epoch'``) or steps (``'iter'``). Epochs must be told to :meth:`step`;
            untold, steps are counted.
        skip_first: Whether to descend while there is no previous loss. Without it the first change is the whole loss.
        seed: Of the decisions; None takes torch's initial seed.
        **kwargs: ``maximize``, ``foreach``, ``differentiable``, ``fused`` of SGD.

    Raises:
        ValueError: If an argument is out of its range, or a step has no loss.

    Example:
        >>> optimizer = SAGD([nn.Parameter(torch.ones(3))], lr=0.1)
        >>> optimizer.ascent_rate
        0.0
    """

    _own = ('formula', 'sigma', 'max_ascent_prob', 'prob_means', 'anneal_by', 'skip_first', 'progress')

    def __init__(
        self,
        params: Any,
        lr: NonNegative | Tensor = 1e-3,
        momentum: NonNegative = 0,
        dampening: float = 0,
        weight_decay: NonNegative = 0,
        nesterov: bool = False,
        *,
        T0: float = 15.0,  # noqa: N803
        sigma: float = 1.0,
        max_ascent_prob: float = 0.33,
        mode: str = 'simple',
        gamma: float | None = None,
        prob_means: str = 'descent',
        k: float = 1.0,
        anneal_by: str = 'epoch',
        skip_first: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        law = 'a momentum and no dampening with nesterov=True'
        _require(not nesterov or (momentum > 0 and dampening == 0), law, momentum=momentum, dampening=dampening)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, **kwargs)
        _require(sigma > 0, 'a positive sigma', sigma=sigma)
        _require(0 <= max_ascent_prob <= 1, '0 (never ascend) <= max_ascent_prob <= 1', max_ascent_prob=max_ascent_prob)
        _require(prob_means in ('descent', 'ascent'), "prob_means 'descent' or 'ascent'", prob_means=prob_means)
        _require(anneal_by in ('epoch', 'iter'), "anneal_by 'epoch' or 'iter'", anneal_by=anneal_by)
        self.formula: dict[str, Any] = dict(T0=T0, mode=mode, gamma=gamma, k=k)
        transition_probability(1.0, 0, lr=1.0, **self.formula)  # refuses now what it would refuse at the first step
        self.sigma = sigma
        self.max_ascent_prob = max_ascent_prob
        self.prob_means = prob_means
        self.anneal_by = anneal_by
        self.skip_first = skip_first
        self.progress = _Progress(seed)
        if max_ascent_prob * (1 + sigma) >= 1:
            print_log(
                f'SAGD with {max_ascent_prob=} and {sigma=} may climb on average: the mean step descends only while the '
                f'probability of an ascent is below 1 / (1 + sigma) = {1 / (1 + sigma):.3g}',
                logger='current',
                level=logging.WARNING,
            )

    @property
    def ascent_rate(self) -> float:
        """The share of ascents among all steps so far."""
        return self.progress.ascents / max(self.progress.steps, 1)

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float] | None = None,
        loss: Tensor | float | None = None,
        epoch: int | None = None,
    ) -> Tensor | float:
        """Decide, and take one step.

        Args:
            closure: Evaluates the model again and returns the loss, as in SGD.
            loss: The loss of this step's batch, with one element and not scaled; goes before what ``closure`` returns.
            epoch: The current epoch, from 0.

        Returns:
            The loss.

        Raises:
            ValueError: If there is no loss, or it has not one element.
        """
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            loss = value if loss is None else loss
        if loss is None:
            raise ValueError(
                'SAGD decides by the change of the loss and got none; call step(loss=loss) or step(closure), or set '
                "type='mmext.SAGDOptimWrapper' (with AMP 'mmext.SAGDAmpOptimWrapper') for the optim_wrapper"
            )
        # A fused step under a GradScaler finds out about an overflow by itself and then does nothing.
        skipped = bool(getattr(self, 'found_inf', 0))
        ascend = not skipped and self._decide(loss, epoch)
        with torch.set_grad_enabled(self.defaults['differentiable']), self._turned() if ascend else nullcontext():
            _sgd_step(self)
        return loss

    @contextmanager
    def _turned(self) -> Iterator[None]:
        rates = [group['lr'] for group in self.param_groups]
        try:
            for group, lr in zip(self.param_groups, rates, strict=True):
                group['lr'] = -self.sigma * lr
            yield
        finally:
            for group, lr in zip(self.param_groups, rates, strict=True):
                group['lr'] = lr

    def _decide(self, loss: Tensor | float, epoch: int | None) -> bool:
        """Return whether this step ascends, and count it."""
        energy = _mean_over_processes(loss)
        done = self.progress
        if done.steps == 0:
            shared = [torch.initial_seed() if done.seed is None else done.seed]
            broadcast_object_list(shared)
            done.seed = shared[0]
        step, done.steps = done.steps, done.steps + 1
        if not math.isfinite(energy):
            return False
        previous, done.energy = done.energy, energy
        if previous is None and self.skip_first:
            return False
        n = step if epoch is None or self.anneal_by == 'iter' else epoch
        group = self.param_groups[0]
        lr = group['lr'] if self.formula['gamma'] is None else group.get('initial_lr', group['lr'])
        p = transition_probability(abs(energy - (previous or 0.0)), n, lr=float(lr), **self.formula)
        p_up = min(1 - p if self.prob_means == 'descent' else p, self.max_ascent_prob)
        ascend = random.Random(f'{done.seed}:{step}').random() < p_up
        done.ascents += ascend
        return ascend

    def state_dict(self) -> dict[str, Any]:
        """Return SGD's state and, under ``'sagd'``, what the next decisions depend on."""
        return {**super().state_dict(), 'sagd': asdict(self.progress)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a plain SGD's state loads too and leaves the annealing as it is."""
        super().load_state_dict(state_dict)
        if 'sagd' in state_dict:
            self.progress = _Progress(**state_dict['sagd'])

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles the attributes that it knows, no others.
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._own}}


def _mean_over_processes(loss: Tensor | float) -> float:
    loss = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float64)
    _require(loss.numel() == 1, 'a loss with one element (take its mean or sum)', shape=tuple(loss.shape))
    # A copy, since the reduction works in place, and not in half precision, which is too coarse for a mean.
    loss = loss.to(torch.promote_types(loss.dtype, torch.float32), copy=True)
    all_reduce(loss, op='mean')
    return loss.item()
