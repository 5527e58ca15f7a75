"""CATNet's dense pyramid of four levels; a picture of three planes stands for the maps of a backbone."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from mmext.necks.catnet import DenseFPN
from official_layers import Case, parameter
from official_layers.rcnet import WIDTHS, maps_of, together

C, N = 8, 4


def normed(before, after, size=1, stride=1):
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after)))


def bottleneck():
    return nn.Sequential(normed(C, C // 2), normed(C // 2, C // 2, 3), normed(C // 2, C))


class DenseFPNOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral_convs = nn.ModuleList(normed(width, C) for width in WIDTHS)
        self.extra_convs = nn.ModuleList([normed(C, C, 3, 2)])
        self.stages = nn.ModuleList(nn.ModuleList(bottleneck() for _ in range(2 * N)) for _ in range(2))
        self.top_down_atts = nn.ParameterList([parameter(3), parameter(2)])
        self.bottom_up_atts = nn.ParameterList([parameter(2), parameter(3)])

    def forward(self, x):
        maps = [conv(y) for conv, y in zip(self.lateral_convs, maps_of(x), strict=True)]
        maps.append(self.extra_convs[0](maps[-1]))
        for stage in self.stages:
            tops, outs = {}, []
            for i in (3, 2, 1, 0):
                weights = self.top_down_atts[i].softmax(0) if i < 2 else torch.ones(1)
                y = maps[i]
                for j in range(3 - i):
                    y = y + weights[j] * F.interpolate(maps[3 - j], maps[i].shape[2:], mode='bilinear')
                tops[i] = stage[i](y.relu())
            for i in range(4):
                weights = self.bottom_up_atts[i - 2].softmax(0) if i > 1 else torch.ones(1)
                y = maps[i] + tops[i]
                for j in range(i):
                    y = y + weights[j] * F.adaptive_max_pool2d(tops[j], maps[i].shape[2:])
                outs.append(stage[i + 4](y.relu()))
            maps = outs
        return together(maps)


def ours():
    neck = DenseFPN(WIDTHS, C, N, stack_times=2, norm_cfg=dict(type='BN'))
    neck.register_forward_pre_hook(lambda _, inputs: (maps_of(inputs[0]),))
    neck.register_forward_hook(lambda _, inputs, outs: together(outs))
    return neck


CASES = {'neck': Case(DenseFPNOfficial, ours, 3, input_shape=(2, 3, 39, 26))}
