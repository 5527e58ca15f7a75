"""A kernel plus a residual that a small network generates from a description of the signal."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Repeats
from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['ConditionedConv2d', 'standardized']

# The side of the grid of coordinates that a layer without a given condition looks at.
GRID = 16


@MODELS.register_module()
class ConditionedConv2d(GeneratedConv2d):
    r"""Conv-INR's dynamic weights: a kernel plus a residual that is generated from a description of the signal.

    Cai, *Conv-INR: Convolutional Implicit Neural Representation for Multimodal Visual Signals*, 2024, arXiv 2406.04249.

    A coordinate network has one signal to represent, so a vector v that describes the signal is constant, and a kernel that
    is generated from it folds like any other:

    .. math:: W = K + \mathrm{head}(\mathrm{relu}(A\,v + a))

    The name, that it costs nothing after training, and the generation of weights by a network are the author's; the formula
    is our reading. The head starts as zeros, so that the layer starts as the plain convolution with K as its kernel.

    Args:
        *args: Those of ``nn.Conv2d``.
        condition_dim: Length of v.
        hidden_dim: Outputs of A.
        source: ``'coords'``: v is the global average of two trainable convolutions over a fixed 16 x 16 grid of
            coordinates, for tasks where the signal is not known; ``'given'``: v is a buffer that starts as zeros and is set
            by :meth:`set_condition`.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` (K) is (Co, Ci/groups, kh, kw).

    Raises:
        ValueError: If ``source`` is unknown.

    Example:
        >>> layer = ConditionedConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    condition: Tensor

    def __init__(
        self,
        *args: Any,
        condition_dim: Repeats = 32,
        hidden_dim: Repeats = 16,
        source: Literal['coords', 'given'] = 'coords',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.source = source
        self.condition_dim = condition_dim
        self.hidden_dim = hidden_dim
        like: Any = dict(device=self.weight.device, dtype=self.weight.dtype)
        if source == 'given':
            self.register_buffer('condition', torch.zeros(condition_dim, **like))
        else:
            self.observer: Any = nn.Sequential(
                nn.Conv2d(2, condition_dim, 3, 2, 1, **like),
                nn.ReLU(),
                nn.Conv2d(condition_dim, condition_dim, 3, 2, 1, **like),
            )
        self.trunk = nn.Linear(condition_dim, hidden_dim, **like)
        self.head = nn.Linear(hidden_dim, self.weight.numel(), **like)
        self._zero_head()

    def _zero_head(self) -> None:
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init_weights(self) -> None:
        super().init_weights()
        if self.source == 'given':
            nn.init.zeros_(self.condition)
        for module in self.modules():
            if module is not self and isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        self._zero_head()

    @torch.no_grad()
    def set_condition(self, condition: Tensor) -> None:
        """Describe the signal by ``condition``, (condition_dim,); it is standardized over its entries.

        Raises:
            RuntimeError: If the layer makes its condition from coordinates.
            ValueError: If the length is not ``condition_dim``.
        """
        if self.source != 'given':
            raise RuntimeError("ConditionedConv2d makes its condition from coordinates; build it with source='given'")
        if condition.shape != self.condition.shape:
            raise ValueError(
                f'ConditionedConv2d needs a condition of shape {tuple(self.condition.shape)}, got {tuple(condition.shape)}'
            )
        self.condition.copy_(standardized(condition))

    def generate_kernel(self) -> Tensor:
        if self.source == 'given':
            condition = self.condition
        else:
            # Not kept: a buffer that no checkpoint holds would stay empty on a layer that was built on the meta device.
            axis = torch.linspace(-1, 1, GRID, device=self.weight.device, dtype=self.weight.dtype)
            grid = torch.stack(torch.meshgrid(axis, axis, indexing='ij'))[None]
            condition = self.observer(grid).mean((0, 2, 3))
        residual = self.head(F.relu(self.trunk(condition)))
        return self.weight + residual.view_as(self.weight)

    def own_repr(self) -> str:
        return f'condition_dim={self.condition_dim}, hidden_dim={self.hidden_dim}, source={self.source!r}'


def standardized(condition: Tensor) -> Tensor:
    """Return a description with mean zero and variance one over its entries: the stages that it comes from differ in scale."""
    spread = condition.std(correction=0).clamp_min(torch.finfo(condition.dtype).tiny)
    return (condition - condition.mean()) / spread
