"""LSConv."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution import LSConv2d
from official_layers import Case


class Normed(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self, inputs, outputs, **kwargs):
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, bias=False, **{'kernel_size': 1, **kwargs})
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.c(x))


class Prediction(nn.Module):
    """The kernels of C / 8 groups, 3 x 3, from a view of 7 x 7."""

    def __init__(self, channels):
        super().__init__()
        half, groups = channels // 2, channels // 8
        self.cv1, self.cv3 = Normed(channels, half), Normed(half, half)
        self.cv2 = Normed(half, half, kernel_size=7, padding=3, groups=half)
        self.cv4 = nn.Conv2d(half, 9 * groups, 1)
        self.norm = nn.GroupNorm(groups, 9 * groups)

    def forward(self, x):
        return self.norm(self.cv4(F.relu(self.cv3(self.cv2(F.relu(self.cv1(x)))))))


class LSOfficial(nn.Module):
    """Channel c has the kernel of group c mod G."""

    def __init__(self, channels):
        super().__init__()
        self.lkp, self.bn = Prediction(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        groups = x.shape[1] // 8
        weight = self.lkp(x).unflatten(1, (groups, 9))[:, torch.arange(x.shape[1]) % groups]
        patches = F.unfold(x, 3, padding=1).unflatten(1, (-1, 9)).unflatten(3, x.shape[2:])
        return self.bn((weight * patches).sum(2)) + x


CASES = {'plain': Case(partial(LSOfficial, 32), partial(LSConv2d, 32, 32, 3, padding=1, bias=False), 32)}
