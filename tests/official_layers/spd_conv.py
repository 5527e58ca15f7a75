"""SPD-Conv."""

import torch
from torch import nn

from mmext.convs.spd_conv import SPDConv2d
from official_layers import Case


class SPDOfficial(nn.Conv2d):
    """Four phases of the image, columns slower than rows, then a convolution."""

    def forward(self, x):
        phases = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return super().forward(torch.cat(phases, 1))


CASES = {
    'plain keys': Case(
        lambda: SPDOfficial(12, 4, 3, padding=1), lambda: SPDConv2d(3, 4, 3, stride=2, padding=1), 3, {'layers': '.*'}
    ),
}
