"""DCLS."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.dcls import DCLSConv2d
from official_layers import Case, depthwise, parameter


class DCLSOfficial(nn.Module):
    """Points drawn one by one, with the released axes and, in all versions but v0, the rows' middle for both."""

    def __init__(self, version, window=(5, 5)):
        super().__init__()
        self.version, self.window = version, window
        self.weight, self.P, self.bias = parameter(4, 1, 3), nn.Parameter(1.2 * torch.randn(2, 4, 1, 3)), parameter(4)
        if version in ('max', 'gauss'):
            self.SIG = parameter(2, 4, 1, 3)

    def kernel(self):
        height, width = self.window
        rows, cols = torch.arange(height)[:, None], torch.arange(width)
        kernel = torch.zeros(4, 1, height, width)
        for index in np.ndindex(4, 1, 3):
            first, second = self.P[0][index], self.P[1][index]
            sigmas = [p[index].abs() for p in self.SIG] if hasattr(self, 'SIG') else [torch.zeros(())] * 2
            if self.version == 'v0':
                dy, dx = rows - (first + height // 2), cols - (second + width // 2)
            else:
                dx, dy = cols - (first + height // 2), rows - (second + width // 2)
            if self.version == 'gauss':
                drawn = torch.exp(-0.5 * ((dx / (sigmas[0] + 0.27)) ** 2 + (dy / (sigmas[1] + 0.27)) ** 2))
            else:
                drawn = F.relu(1 + sigmas[0] - dx.abs()) * F.relu(1 + sigmas[1] - dy.abs())
            if self.version != 'v0':
                drawn = drawn / (drawn.sum() + 1e-7)
            kernel[index[:2]] += self.weight[index] * drawn
        return kernel

    def forward(self, x):
        return F.conv2d(x, self.kernel(), self.bias, padding=[k // 2 for k in self.window], groups=4)


CASES = {
    'v0': Case(
        lambda: DCLSOfficial('v0'),
        lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='v0'),
        4,
        {'version': 'v0'},
    ),
    'v1': Case(
        lambda: DCLSOfficial('v1'),
        lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='v1'),
        4,
        {'version': 'v1'},
    ),
    'max': Case(lambda: DCLSOfficial('max'), lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='max'), 4),
    'gauss': Case(lambda: DCLSOfficial('gauss'), lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3), 4),
    'not square': Case(
        lambda: DCLSOfficial('gauss', (5, 9)),
        lambda: DCLSConv2d(4, 4, (5, 9), padding=(2, 4), groups=4, kernel_count=3),
        4,
        {'window': '5x9'},
    ),
}
