"""A branch beside a layer that exists."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.arguments import Cfg, Count
from mmext.registry import MODELS, require, takes

__all__ = ['ParallelBranch']


@MODELS.register_module()
class ParallelBranch(BaseModule):
    r"""Add a branch beside a layer, for rules with ``around`` (ours).

    .. math:: y' = y + s \odot B(x)

    Here x is what the layer is given and y what it returns. The scales s, one per channel, start at 0, so that a trained
    model computes as before. Low-rank adapters have this form.

    Args:
        branch: Config of B. ``in_channels`` and ``out_channels`` are filled in where it takes them.
        in_channels: Channels of x.
        out_channels: Channels of y.
        init_scale: Where s starts.
        init_cfg: As everywhere in mmengine.

    Shape:
        x (N, in_channels, H, W) and y (N, out_channels, H', W') to the shape of y.

    Example:
        >>> branch = ParallelBranch(dict(type='Conv2d', kernel_size=1), 8, 8)
        >>> y = torch.randn(1, 8, 4, 4)
        >>> torch.equal(branch(torch.randn(1, 8, 4, 4), y), y)
        True
    """

    example = dict(in_channels=8, out_channels=8, branch=dict(type='Conv2d', kernel_size=3, padding=1))

    def __init__(
        self,
        branch: Cfg,
        in_channels: Count,
        out_channels: Count,
        init_scale: float = 0.0,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        asked: dict[str, Any] = dict(in_channels=in_channels, out_channels=out_channels)
        cls = require(branch)
        self.branch = ROOT_MODELS.build({**{k: v for k, v in asked.items() if takes(cls, k)}, **branch})
        self.scale = nn.Parameter(torch.full((out_channels,), float(init_scale)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what stands for the output y of a layer that was given x."""
        return y + self.scale.view(-1, 1, 1) * self.branch(x)
