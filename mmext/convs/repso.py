"""RepSO: a depthwise convolution that is trained as several parallel branches and folds into one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmext.arguments import Cfg
from mmext.convs.reparam import ReparamConv2d
from mmext.registry import MODELS

__all__ = ['RepSO2d']


@MODELS.register_module()
class RepSO2d(ReparamConv2d):
    r"""FalconNet's re-parameterized spatial operator: several depthwise branches that fold into one kernel.

    Cai and Shen, *FalconNet: Factorization for the Light-weight ConvNets*, 2023, arXiv 2306.06365.

    .. math:: y = \sum_i \mathrm{BN}_i(x * w_i)

    The paper states that several branches make up the operator. Which ones, and that they fold, is our reading. It is
    depthwise there (``groups=in_channels=out_channels``); any other grouping works as well.

    Args:
        *args: Those of ``nn.Conv2d``.
        branches: What is summed, see :class:`mmext.convs.reparam.ReparamConv2d`, which also lists the errors raised.
        norm_cfg: The batch norm of each branch.
        **kwargs: Those of ``nn.Conv2d``.

    Example:
        >>> layer = RepSO2d(8, 8, 3, padding=1, groups=8)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    typical = dict(kernel_size=7, depthwise=True)

    def __init__(
        self,
        *args: Any,
        branches: Sequence[str] = ('kxk', '1x1', 'identity'),
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, branches=branches, norm_cfg=norm_cfg, **kwargs)
