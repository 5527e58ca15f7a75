"""Learning rates that fall with the distance from the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from mmengine.logging import print_log
from torch import nn

from mmext.arguments import Law, above, at_most, check
from mmext.contracts import TellsLayerDepth, find
from mmext.errors import UsageError
from mmext.optim.constructor import LayerOptionsConstructor
from mmext.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['LayerDecayOptimWrapperConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LayerOptionsConstructor):
    r"""Layer-wise learning rates for any backbone that tells the depths of its parameters, in any host.

    Bao et al., *BEiT: BERT Pre-Training of Image Transformers*, ICLR 2022, arXiv 2106.08254.

    .. math:: \mathrm{lr}(p) = \mathrm{lr} \cdot r^{D - 1 - d(p)}

    with the depth d(p) of a parameter and the number D of depths, both from ``get_layer_depth`` of the backbone. All
    backbones of the pack have it, and many of mmpretrain. Depths count from the stem, so a head always learns with the full
    rate. mmpretrain's constructor computes the same for a classifier. It serves neither detectors nor segmentors.

    .. code-block:: python

        optim_wrapper = dict(
            constructor='mmext.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0.0),
        )

    The factors are multiplied with what the config and the layers ask for, see :class:`LayerOptionsConstructor`.

    Args:
        optim_wrapper_cfg: As in :class:`LayerOptionsConstructor`.
        paramwise_cfg: As in mmengine, with ``layer_decay_rate``, above 0 and at most 1; 1 leaves all rates equal.

    Raises:
        ValueError: If no part of the model tells depths, or ``layer_decay_rate`` is missing or out of its range.

    Example:
        >>> constructor = 'mmext.LayerDecayOptimWrapperConstructor'
        >>> optim_wrapper = dict(constructor=constructor, paramwise_cfg=dict(layer_decay_rate=0.8))
    """

    example: Mapping[str, Any] = dict(paramwise_cfg=dict(layer_decay_rate=0.8))

    def __init__(
        self,
        optim_wrapper_cfg: dict,
        paramwise_cfg: Annotated[dict, Law("with the key 'layer_decay_rate'", lambda cfg: 'layer_decay_rate' in cfg)],
    ) -> None:
        paramwise_cfg = dict(paramwise_cfg)
        rate = paramwise_cfg.pop('layer_decay_rate')
        check('LayerDecayOptimWrapperConstructor', _rate, (), dict(layer_decay_rate=rate))
        self.rate = float(rate)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def _asked(self, model: nn.Module) -> dict[int, dict[str, float]]:
        asked = super()._asked(model)
        depths: dict[int, tuple[int, int]] = {}
        for backbone, module in _tellers(model).items():
            prefix = f'{backbone}.'.lstrip('.')
            for name, parameter in module.named_parameters():
                depths.setdefault(id(parameter), module.get_layer_depth(f'{prefix}{name}', prefix))
        for key, (depth, number) in depths.items():
            if (factor := self.rate ** (number - 1 - depth)) != 1:
                own = asked.setdefault(key, {})
                own['lr_mult'] = factor * own.get('lr_mult', 1.0)
        for depth, number in sorted(set(depths.values())):
            print_log(f'layer decay -- depth {depth}: {self.rate ** (number - 1 - depth):.3g}', logger='current')
        return asked


def _rate(layer_decay_rate: Annotated[float, above(0), at_most(1)]) -> None:
    """State the law of the rate."""


def _tellers(model: nn.Module) -> dict[str, Any]:
    """Return the innermost modules that tell depths, by name; a classifier of mmpretrain only asks its backbone."""
    found = dict(find(model, TellsLayerDepth))
    inner = {
        name: module
        for name, module in found.items()
        if not any(other != name and other.startswith(f'{name}.'.lstrip('.')) for other in found)
    }
    if not inner:
        raise UsageError(
            f'LayerDecayOptimWrapperConstructor needs a backbone with get_layer_depth(), {type(model).__name__} has none; '
            'take one of this pack or of mmpretrain, or the default constructor'
        )
    return inner
