"""What every backbone of the pack promises beside its maps: choice of outputs, freezing, norms, deployment."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.folding import fold

__all__ = ['Backbone']


class Backbone(BaseModule):
    """A stem and scales of falling size.

    A subclass builds its modules, sets ``out_channels`` and ``out_strides``, and calls :meth:`freeze` at the end of its
    constructor. It defines :meth:`parts` and :meth:`get_layer_depth`.

    Args:
        out_indices: Scales whose maps are returned, negative ones counted from the last.
        num_scales: How many there are.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n scales.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        init_cfg: As in mmengine.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Strides of the returned maps.
        out_indices: The chosen scales, ascending.

    Raises:
        ValueError: If ``out_indices`` are not ascending scales, or ``frozen_stages`` lies outside of the scales built.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]

    def __init__(
        self,
        out_indices: int | Sequence[int],
        num_scales: int,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if not given or not all(-num_scales <= i < num_scales for i in given):
            raise ValueError(f'{name} needs out_indices within its {num_scales} stages, got {out_indices}')
        self.out_indices = tuple(i % num_scales for i in given)
        if list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(
                f'{name} returns maps from large to small and needs ascending out_indices, got {out_indices}'
            )
        #: Scales after the last that is returned are not built, so that every parameter gets a gradient.
        self.num_scales = self.out_indices[-1] + 1
        if not -1 <= frozen_stages <= self.num_scales:
            raise ValueError(
                f'{name} needs frozen_stages from -1 to {self.num_scales} (the stages built), got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then those of each scale."""
        raise NotImplementedError(f'{type(self).__name__} must define parts()')

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, for a layer-wise learning rate.

        The stem is 0, and everything outside of the backbone comes last.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: What the names of this backbone's parameters start with, e.g. ``'backbone.'``.
        """
        raise NotImplementedError(f'{type(self).__name__} must define get_layer_depth()')

    def freeze(self) -> None:
        """Freeze the stem and the first ``frozen_stages`` scales."""
        for part in self.parts()[: self.frozen_stages + 1]:
            for module in part:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Switch the mode; frozen scales, and with ``norm_eval`` all batch norms, stay in eval mode."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Fold everything that folds, in place; outputs in eval mode stay the same."""
        fold(self)
