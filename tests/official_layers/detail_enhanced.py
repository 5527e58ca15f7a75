"""DEA-Net."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.detail_enhanced import DEConv2d
from official_layers import Case, parameter


class _Inner(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.conv = nn.Module()
        self.conv.weight, self.conv.bias = parameter(*shape), parameter(shape[0])


class DEAOfficial(nn.Module):
    """Five convolutions of the same input, summed; taps are written one by one."""

    def __init__(self):
        super().__init__()
        self.conv1_1, self.conv1_4 = _Inner(4, 3, 3, 3), _Inner(4, 3, 3, 3)
        self.conv1_2, self.conv1_3 = _Inner(4, 3, 3), _Inner(4, 3, 3)
        self.conv1_5 = nn.Conv2d(3, 4, 3)

    def kernels(self):
        central = self.conv1_1.conv.weight.clone()
        central[..., 1, 1] -= self.conv1_1.conv.weight.sum((2, 3))
        horizontal, vertical = torch.zeros(4, 3, 3, 3), torch.zeros(4, 3, 3, 3)
        for tap in range(3):
            for sign, end in ((1, 0), (-1, 2)):
                horizontal[..., tap, end] = sign * self.conv1_2.conv.weight[..., tap]
                vertical[..., end, tap] = sign * self.conv1_3.conv.weight[..., tap]
        w = self.conv1_4.conv.weight.flatten(2)
        angular = (w - w[..., [3, 0, 1, 6, 4, 2, 7, 8, 5]]).view(4, 3, 3, 3)
        return central, horizontal, vertical, angular

    def forward(self, x):
        inner = (self.conv1_1, self.conv1_2, self.conv1_3, self.conv1_4)
        outs = [F.conv2d(x, k, c.conv.bias, padding=1) for k, c in zip(self.kernels(), inner, strict=True)]
        return sum(outs) + F.conv2d(x, self.conv1_5.weight, self.conv1_5.bias, padding=1)


CASES = {
    'branches': Case(DEAOfficial, lambda: DEConv2d(3, 4, 3, padding=1), 3),
}
