"""Involution."""

from functools import partial

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import nn

from mmext.evolution import Involution2d
from official_layers import Case


class InvolutionOfficial(nn.Module):
    """Groups of sixteen channels, a quarter of the channels hidden."""

    def __init__(self, channels, kernel_size, stride):
        super().__init__()
        self.size, self.stride, self.groups = kernel_size, stride, channels // 16
        self.conv1 = ConvModule(channels, channels // 4, 1, norm_cfg=dict(type='BN'))
        self.conv2 = ConvModule(channels // 4, kernel_size**2 * self.groups, 1, act_cfg=None)

    def forward(self, x):
        weight = self.conv2(self.conv1(F.avg_pool2d(x, self.stride)))
        patches = F.unfold(x, self.size, padding=self.size // 2, stride=self.stride)
        weight = weight.unflatten(1, (self.groups, 1, self.size**2)).flatten(4)
        patches = patches.unflatten(1, (self.groups, 16, self.size**2))
        rows = (x.shape[2] - 1) // self.stride + 1
        return (weight * patches).sum(3).flatten(1, 2).unflatten(2, (rows, -1))


def case(channels, kernel_size, stride):
    ours = partial(Involution2d, channels, channels, kernel_size, stride, kernel_size // 2, bias=False)
    return Case(partial(InvolutionOfficial, channels, kernel_size, stride), ours, channels)


CASES = {'plain': case(32, 7, 1), 'strided': case(16, 3, 2)}
