"""Dilated re-parameterization: a large depthwise kernel trained beside small dilated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmext.arguments import Cfg, check_conv2d
from mmext.convs.reparam import ReparamConv2d
from mmext.registry import MODELS

__all__ = ['DilatedReparamConv2d']

# Branches beside the large kernel, by its size: what UniRepLKNet's released network uses.
BRANCHES = {
    5: ('3x3', '3x3@2'),
    7: ('5x5', '3x3@2', '3x3@3'),
    9: ('5x5', '5x5@2', '3x3@3', '3x3@4'),
    11: ('5x5', '5x5@2', '3x3@3', '3x3@4', '3x3@5'),
    13: ('5x5', '7x7@2', '3x3@3', '3x3@4', '3x3@5'),
    15: ('5x5', '7x7@2', '3x3@3', '3x3@5', '3x3@7'),
    17: ('5x5', '9x9@2', '3x3@4', '3x3@5', '3x3@7'),
}


@MODELS.register_module()
class DilatedReparamConv2d(ReparamConv2d):
    r"""Dilated re-param block of UniRepLKNet: a large kernel trained beside small dilated ones, folded into one.

    Ding, Zhang et al., *UniRepLKNet: A Universal Perception Large-Kernel ConvNet*, CVPR 2024, arXiv 2311.15599.

    A kernel of K x K is trained beside small kernels whose taps lie r apart, each with a batch norm; a small kernel with
    dilation r is a sparse large one, so that the sum is one kernel:

    .. math:: W = s_0 W_0 + \sum_i s_i\,\mathrm{dilate}_{r_i}(w_i)

    It is depthwise there (``groups=in_channels=out_channels``); any other grouping works as well.

    Args:
        *args: Those of ``nn.Conv2d``.
        branches: What stands beside the large kernel, ``'3x3@2'`` for 3 x 3 taps two apart. By default the released
            table's row for the kernel size, and none below 5 x 5.
        norm_cfg: The batch norm of each branch.
        **kwargs: Those of ``nn.Conv2d``.

    Raises:
        ValueError: If the table has no row for the kernel size, and for what
            :class:`mmext.convs.reparam.ReparamConv2d` refuses.

    A 1 x 1 or 3 x 3 kernel, which the released network leaves plain, stays a plain convolution here too.

    Example:
        >>> layer = DilatedReparamConv2d(8, 8, 9, padding=4, groups=8).eval()
        >>> layer.fold().weight.shape
        torch.Size([8, 1, 9, 9])
    """

    example = dict(kernel_size=9)
    typical = dict(kernel_size=13, depthwise=True)

    def __init__(
        self,
        *args: Any,
        branches: Sequence[str] | None = None,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        check_conv2d(type(self).__name__, args, kwargs)
        if branches is None:
            size = kwargs.get('kernel_size', args[2] if len(args) > 2 else 1)
            size = size[0] if isinstance(size, (tuple, list)) and size[0] == size[1] else size
            if size not in (1, 3, *BRANCHES):
                raise ValueError(
                    f'DilatedReparamConv2d has branches for kernel_size {sorted(BRANCHES)}, got {size}; pass branches=[...]'
                )
            branches = BRANCHES.get(size, ())
        super().__init__(*args, branches=('kxk', *branches) if branches else (), norm_cfg=norm_cfg, **kwargs)
