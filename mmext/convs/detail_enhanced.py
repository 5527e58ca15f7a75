"""Detail-enhanced convolution: a 3x3 kernel trained as the sum of a plain kernel and four difference operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.convs.generated import GeneratedConv2d
from mmext.registry import MODELS

__all__ = ['DEConv2d']

# Where each tap of the angular branch comes from, row by row: the outer ring moves one step clockwise.
CLOCKWISE = (3, 0, 1, 6, 4, 2, 7, 8, 5)


@MODELS.register_module()
class DEConv2d(GeneratedConv2d):
    r"""Detail-enhanced convolution of DEA-Net: a 3x3 kernel plus four learned difference operators.

    *DEA-Net: Single image dehazing based on detail-enhanced convolution and content-guided attention*, IEEE TIP 2024,
    arXiv 2301.04805.

    Five kernels, each linear in its own weights, are summed before they meet the input, in training too:

    .. math::
        W = w + \mathrm{CD}(w_c) + \mathrm{AD}(w_a) + \mathrm{HD}(w_h) + \mathrm{VD}(w_v)

    - central difference, :math:`\mathrm{CD}(w) = w - \delta \sum w`, with :math:`\delta` the unit kernel;
    - angular difference, :math:`\mathrm{AD}(w) = w - \theta\,\mathrm{rot}(w)`, the outer ring turned clockwise by a tap;
    - horizontal difference, the column w on the left and -w on the right; vertical, the row w above and -w below.

    The four (with :math:`\theta = 1`) see no constant, only detail. The operators exist for 3x3 kernels; a layer of another
    size stays plain, so that ``conv_cfg`` can name this class for a whole network.

    Args:
        *args: Those of ``nn.Conv2d``.
        theta: Strength of the angular difference.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``weight`` (the plain branch), ``central`` and ``angular`` are (Co, Ci/groups, 3, 3), ``horizontal`` and
        ``vertical`` (Co, Ci/groups, 3). A plain layer's kernel is taken by the plain branch, which absorbs what the others
        add, so that all of them together compute with it.

    Ours: stride, padding, dilation, groups and ``theta`` as arguments, and one bias where the released layer adds five.

    Example:
        >>> layer = DEConv2d(8, 8, 3, padding=1)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    def __init__(self, *args: Any, theta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.theta = theta
        self.plain = self.kernel_size != (3, 3)
        if self.plain:
            return
        like = self.weight.detach()
        self.central = nn.Parameter(torch.empty_like(like))
        self.angular = nn.Parameter(torch.empty_like(like))
        self.horizontal = nn.Parameter(torch.empty_like(like[..., 0]))
        self.vertical = nn.Parameter(torch.empty_like(like[..., 0]))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every branch as torch draws a convolution of its own shape."""
        super().init_weights()
        if not self.plain:
            for branch in (self.central, self.angular, self.horizontal, self.vertical):
                nn.init.kaiming_uniform_(branch, a=5**0.5)

    def generate_kernel(self) -> Tensor:
        center = F.pad(self.central.sum((-2, -1), keepdim=True), (1, 1, 1, 1))
        taps = self.angular.flatten(-2).unbind(-1)
        turned = torch.stack([taps[source] for source in CLOCKWISE], -1).view_as(self.angular)
        nothing = torch.zeros_like(self.horizontal)
        horizontal = torch.stack([self.horizontal, nothing, -self.horizontal], -1)
        vertical = torch.stack([self.vertical, nothing, -self.vertical], -2)
        return self.weight + (self.central - center) + (self.angular - self.theta * turned) + horizontal + vertical

    def load_kernel(self, kernel: Tensor) -> None:
        self.weight += kernel - self.generate_kernel()

    def own_repr(self) -> str:
        return f'theta={self.theta}'
