"""PairHead: any of mmdet's dense heads, fed with one map for classification and another for regression."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmext.arguments import Cfg, checked
from mmext.contracts import shown_by
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['Pick', 'pair_head']

#: Heads with the two lists that a pair cannot go through, and why.
REFUSED = {
    'RepPointsHead': 'reads the dtype of its input before splitting it',
    'DDODHead': 'initializes the convolutions that it expects in its lists',
}
_REMEDY = 'take RetinaHead, FreeAnchorRetinaHead, FSAFHead, FCOSHead, ATSSHead or GFLHead'


class Pick(nn.Module):
    """Take one member of a pair of maps; a plain tensor passes through.

    Args:
        index: Which member.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Return ``x[index]``, or ``x`` where it is a tensor."""
        return x if isinstance(x, Tensor) else x[self.index]

    def extra_repr(self) -> str:
        return str(self.index)


@MODELS.register_module(name='PairHead')
@shown_by(head='mmdet.RetinaHead', in_channels=8, num_classes=3)
@partial(checked, owner='PairHead')
def pair_head(head: str | Cfg, **head_args: Any) -> nn.Module:
    """Any dense head of mmdet whose input is a pair (cls, reg) per level, as SEPC gives it (ours).

    A dense head sends each level through ``cls_convs`` and, in parallel, through ``reg_convs``. Built with
    ``stacked_convs=0`` both lists are empty; one parameter-free :class:`Pick` in each splits the pair in the head's own,
    untouched code. The result is the host's class with the host's state-dict keys. It takes plain maps too.

    As a diff on a stock config, whose other settings of the head then still hold::

        bbox_head=dict(type='mmext.PairHead', head='mmdet.RetinaHead')

    ``stacked_convs`` and ``feat_channels`` of the stock config are overridden, by 0 and by ``in_channels``: without
    stacked convs the predictors see the neck's maps.

    Args:
        head: The type of the head, or its config; what the config says takes precedence over ``head_args``.
        **head_args: Arguments of the head.

    Returns:
        The head, with nothing but the two lists changed.

    Raises:
        ValueError: If ``in_channels`` is missing, or the head does not send a level through plain ``cls_convs`` and
            ``reg_convs`` and nothing else. RetinaHead, FreeAnchorRetinaHead, FSAFHead, FCOSHead, ATSSHead, PAAHead and
            GFLHead are known to work, RepPointsHead and DDODHead not to.
        ImportError: If the scope of ``head`` is that of a package that is not installed.

    Example:
        >>> head = dict(type='mmext.PairHead', head='mmdet.RetinaHead', in_channels=8, num_classes=3)
    """
    cfg = {**head_args, **({'type': head} if isinstance(head, str) else head)}
    if 'in_channels' not in cfg:
        raise ValueError(f'PairHead needs in_channels, the width of the maps that the neck gives, got {sorted(cfg)}')
    cfg.update(stacked_convs=0, feat_channels=cfg['in_channels'])
    built = build_from_host(cfg, 'PairHead')
    for base in type(built).__mro__:
        if base.__name__ in REFUSED:
            raise ValueError(f'{base.__name__} cannot take a pair: it {REFUSED[base.__name__]}; {_REMEDY}')
    for index, name in enumerate(('cls_convs', 'reg_convs')):
        branch = getattr(built, name, None)
        if not isinstance(branch, nn.ModuleList) or len(branch):
            raise ValueError(
                f'PairHead needs a head that loops over {name} and has none with stacked_convs=0; {type(built).__name__} '
                f'holds {branch}; {_REMEDY}'
            )
        branch.append(Pick(index))
    return built
