"""InceptionNeXt."""

import torch
from torch import nn

from mmext.convs.inception_dwconv import InceptionDWConv2d
from official_layers import Case, depthwise


class InceptionOfficial(nn.Module):
    """Identity, square, row and column, in this order of the channels."""

    def __init__(self):
        super().__init__()
        self.dwconv_hw = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.dwconv_w = nn.Conv2d(2, 2, (1, 11), padding=(0, 5), groups=2)
        self.dwconv_h = nn.Conv2d(2, 2, (11, 1), padding=(5, 0), groups=2)

    def forward(self, x):
        same, hw, w, h = x.split((10, 2, 2, 2), 1)
        return torch.cat([same, self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)], 1)


CASES = {
    'branches': Case(InceptionOfficial, lambda: depthwise(InceptionDWConv2d, 16, 11), 16),
}
