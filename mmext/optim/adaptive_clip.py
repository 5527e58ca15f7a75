"""Adaptive clipping: no unit's gradient is longer than a share of the unit's weights."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor

from mmext.registry import OPTIM_WRAPPERS

__all__ = ['AdaptiveClipAmpOptimWrapper', 'AdaptiveClipOptimWrapper']


def _norm(x: Tensor) -> Tensor:
    """Return the norm of each unit: an entry of the first axis, or the whole of a vector."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)) or None, keepdim=True)


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipOptimWrapper(OptimWrapper):
    r"""Clips the gradient of each unit to a share of the norm of its weights, before the step (AGC).

    Brock, De, Smith and Simonyan, *High-Performance Large-Scale Image Recognition Without Normalization*, ICML 2021,
    arXiv 2102.06171.

    .. math:: g_i \leftarrow g_i \min\Big(1,\ \lambda\, \frac{\max(\lVert w_i \rVert, \epsilon)}{\lVert g_i \rVert}\Big)

    A unit i is an output of a layer, so a row of its weights. A vector (a bias, or the weights of a norm) is one unit. All
    parameters of the optimizer are clipped. The paper spares the classifier, the training script of LSNet does not.

    Args:
        *args: Those of mmengine's ``OptimWrapper``.
        clip_factor: :math:`\lambda`. The paper has 0.01, LSNet 0.02.
        eps: :math:`\epsilon`, so that weights at zero can leave it.
        **kwargs: Those of mmengine's ``OptimWrapper``. Its ``clip_grad`` comes first.

    Raises:
        ValueError: If ``clip_factor`` or ``eps`` is not positive.

    Example:
        >>> weight = nn.Parameter(torch.ones(1, 4))
        >>> wrapper = AdaptiveClipOptimWrapper(torch.optim.SGD([weight], lr=1.0), clip_factor=0.5)
        >>> wrapper.update_params((10 * weight).sum())
        >>> weight.detach()
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    example = dict(optimizer=dict(type='SGD', lr=0.1))

    def __init__(self, *args: Any, clip_factor: float = 0.01, eps: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not (clip_factor > 0 and eps > 0):
            raise ValueError(f'{type(self).__name__} needs a positive clip_factor and eps, got {clip_factor=}, {eps=}')
        self.clip_factor, self.eps = clip_factor, eps
        # The optimizer's own hook: gradients are whole, averaged and unscaled by then.
        self.optimizer.register_step_pre_hook(self._clip_units)

    @torch.no_grad()
    def _clip_units(self, *_: Any) -> None:
        for group in self.optimizer.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    most, norm = self.clip_factor * _norm(p).clamp(min=self.eps), _norm(p.grad)
                    p.grad.copy_(torch.where(norm < most, p.grad, p.grad * (most / norm.clamp(min=1e-6))))


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipAmpOptimWrapper(AdaptiveClipOptimWrapper, AmpOptimWrapper):
    """:class:`AdaptiveClipOptimWrapper` with automatic mixed precision. Gradients are unscaled before they are clipped.

    Args:
        *args: Those of mmengine's ``AmpOptimWrapper``.
        **kwargs: Those of mmengine's ``AmpOptimWrapper`` and of :class:`AdaptiveClipOptimWrapper`.

    Example:
        >>> optim_wrapper = dict(type='mmext.AdaptiveClipAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    """

    example = dict(optimizer=dict(type='SGD', lr=0.1))
