"""RefConv."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.refconv import RefConv2d
from official_layers import Case, depthwise


class RefConvOfficial(nn.Module):
    """Every 2-D slice of the basis is a channel of one image, over which the map convolves."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.groups, slices = groups, outputs * inputs // groups
        self.register_buffer('weight', torch.randn(outputs, inputs // groups, 3, 3))
        self.convmap = nn.Conv2d(slices, slices, 3, padding=1, groups=inputs * outputs // groups**2, bias=False)

    def forward(self, x):
        kernel = self.weight + self.convmap(self.weight.view(1, -1, 3, 3)).view_as(self.weight)
        return F.conv2d(x, kernel, padding=1, groups=self.groups)


CASES = {
    'dense': Case(lambda: RefConvOfficial(4, 6, 1), lambda: RefConv2d(4, 6, 3, padding=1, bias=False), 4),
    'grouped': Case(lambda: RefConvOfficial(4, 6, 2), lambda: RefConv2d(4, 6, 3, padding=1, groups=2, bias=False), 4),
    'depthwise': Case(lambda: RefConvOfficial(4, 4, 4), lambda: depthwise(RefConv2d, 4, 3, bias=False), 4),
}
