"""Gradient noise: normal noise of falling strength on every gradient before the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor

from mmext.registry import OPTIM_WRAPPERS

__all__ = ['GradNoiseAmpOptimWrapper', 'GradNoiseOptimWrapper']

GAMMA = 0.55
PRIME = 1_000_003


@OPTIM_WRAPPERS.register_module()
class GradNoiseOptimWrapper(OptimWrapper):
    r"""Adds normal noise to every gradient before the step; it fades as the steps are counted.

    Neelakantan et al., *Adding Gradient Noise Improves Learning for Very Deep Networks*, 2015, arXiv 1511.06807.

    .. math:: g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^{0.55}}

    The noise comes after the clipping. t counts steps of the optimizer, not batches that are accumulated. All processes
    of a job draw the same noise: it depends on the seed, the step and the parameter's place, not on torch's generator.

    Args:
        *args: Those of mmengine's ``OptimWrapper``.
        eta: :math:`\eta`; the paper tries 0.01, 0.3 and 1. With 0 the wrapper is mmengine's own.
        mode: ``'relative'`` multiplies :math:`\sigma_t` by the root mean square of the parameter's gradient (ours).
            ``'absolute'`` is the paper's. For a network with batch norms its noise is far above the gradients.
        seed: Of the noise.
        **kwargs: Those of mmengine's ``OptimWrapper``.

    Raises:
        ValueError: If ``eta`` is negative or not finite, or ``mode`` is unknown.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
        >>> round(GradNoiseOptimWrapper(optimizer, eta=0.3).strength(), 3)
        0.548
    """

    example = dict(optimizer=dict(type='SGD', lr=0.1))

    def __init__(self, *args: Any, eta: float = 0.01, mode: str = 'relative', seed: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= eta < float('inf'):
            raise ValueError(f'{type(self).__name__} needs a finite eta >= 0, got {eta=}; 0 adds no noise')
        if mode not in ('relative', 'absolute'):
            raise ValueError(f"{type(self).__name__} knows the modes 'relative' and 'absolute', got {mode=}")
        self.eta, self.mode, self.seed = eta, mode, seed
        self.noisy_steps = 0
        # The optimizer's own hook: what clips or skips a step has done so by then.
        self.optimizer.register_step_pre_hook(self._add_noise)

    def strength(self) -> float:
        r"""Return :math:`\sigma_t` of the coming step."""
        return (self.eta / (1 + self.noisy_steps) ** GAMMA) ** 0.5

    @torch.no_grad()
    def _add_noise(self, *_: Any) -> None:
        sigma = self.strength()
        self.noisy_steps += 1
        for number, gradient in enumerate(self._gradients()):
            if sigma:
                generator = torch.Generator(gradient.device)
                generator.manual_seed(((self.seed * PRIME + self.noisy_steps) * PRIME + number) % 2**63)
                noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
                scale = gradient.square().mean().sqrt() if self.mode == 'relative' else 1.0
                gradient.add_(noise * (sigma * scale))

    def _gradients(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from (p.grad for p in group['params'] if p.grad is not None)

    def state_dict(self) -> dict:
        """Return the optimizer's state with the number of steps that had noise."""
        return {**super().state_dict(), 'noisy_steps': self.noisy_steps}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue where a checkpoint was; one without noise starts counting."""
        state_dict = dict(state_dict)
        self.noisy_steps = int(state_dict.pop('noisy_steps', 0))
        super().load_state_dict(state_dict)


@OPTIM_WRAPPERS.register_module()
class GradNoiseAmpOptimWrapper(GradNoiseOptimWrapper, AmpOptimWrapper):
    """:class:`GradNoiseOptimWrapper` with automatic mixed precision.

    Gradients are unscaled before the noise. A step that the scaler skips because of an overflow has no noise and no count.

    Args:
        *args: Those of mmengine's ``AmpOptimWrapper``.
        **kwargs: Those of mmengine's ``AmpOptimWrapper`` and of :class:`GradNoiseOptimWrapper`.

    Example:
        >>> optim_wrapper = dict(type='mmext.GradNoiseAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    """

    def step(self, **kwargs: Any) -> None:
        """Unscale, clip, add the noise, and let the scaler step."""
        if not self.clip_grad_kwargs:  # mmengine unscales where it clips, and torch refuses to do it twice
            self.loss_scaler.unscale_(self.optimizer)
        super().step(**kwargs)
