"""RCNet's neck of five levels, with plain convolutions; a picture of three planes stands for the maps of a backbone."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from mmext.necks.rcnet import RCFPN
from official_layers import Case, parameter

WIDTHS, C = (3, 6, 9), 16


def maps_of(x):
    half, quarter = (F.avg_pool2d(x, size, ceil_mode=True) for size in (2, 4))
    return [x, half.repeat(1, 2, 1, 1), quarter.repeat(1, 3, 1, 1)]


def together(outs):
    return torch.cat([out.flatten(1) for out in outs], 1)


class Normed(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)

    def forward(self, x):
        return self.bn(self.conv(x))


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)

    def forward(self, x):
        return self.bn(self.conv(x.relu()))


class Node(nn.Module):
    def __init__(self, inputs, attention):
        super().__init__()
        self.weight = nn.ModuleList(nn.Conv2d(2 * C, 1, 1) for _ in range(inputs - 1))
        if attention:
            self.spatial_weight, self.temp = nn.Conv2d(2 * C, 1, 3, padding=1), parameter(1)
        self.post_fusion = Fusion()
        if inputs == 3:
            self.pre_fusion = Fusion()

    def gate(self, i, a, b):
        return self.weight[i](torch.cat([a, b], 1).mean((2, 3), keepdim=True)).sigmoid()

    def forward(self, own, other, finer=None):
        gate = self.gate(0, own, other)
        if hasattr(self, 'temp'):
            logits = self.temp * C**-0.5 * self.spatial_weight(torch.cat([own, other], 1))
            other = logits.flatten(1).softmax(1).view_as(logits) * logits[0].numel() * other
        y = gate * own + (1 - gate) * other
        if finer is not None:
            y = self.pre_fusion(y)
            gate = self.weight[1](torch.cat([y.mean((2, 3), True), finer.mean((2, 3), True)], 1)).sigmoid()
            y = gate * y + (1 - gate) * finer
        return self.post_fusion(y)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.channel_agg, self.trans = nn.Conv2d(C, 1, 1), nn.Conv2d(C, C, 1)

    def forward(self, x):
        share = self.channel_agg(x).flatten(1).softmax(1).view(len(x), 1, *x.shape[2:])
        return self.trans((x * share).sum((2, 3), keepdim=True))


class RCFPNOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Normed(width, C) for width in WIDTHS)
        self.extra_downsamples = nn.ModuleList(nn.Sequential(Normed(C, C)) for _ in range(2))
        nodes = dict(p7=Node(2, False), p6=Node(3, True), p5=Node(3, True), p4=Node(3, True), p3=Node(2, True))
        self.RevFP = nn.ModuleDict(nodes)
        mixes = [
            nn.Sequential(
                nn.Sequential(OrderedDict(conv=nn.Conv2d(20, C, 1, bias=False), bn=nn.BatchNorm2d(C), act=nn.ReLU())),
                nn.Conv2d(C, C, 1),
            )
            for _ in range(5)
        ]
        msm = nn.ModuleDict(dict(aggregation=nn.ModuleList(mixes)))
        self.CSN = nn.ModuleDict(dict(spatialContext=Branch(), scaleContext=Branch(), msm=msm))

    def forward(self, x):
        maps = [conv(y) for conv, y in zip(self.lateral_convs, maps_of(x), strict=True)]
        for down in self.extra_downsamples:
            maps.append(F.max_pool2d(down(maps[-1]), 2, ceil_mode=True))
        outs = []
        for i in range(5):
            up = [F.interpolate(y, maps[i].shape[2:], mode='bilinear') for y in maps[i + 1 : i + 2]]
            down = [F.max_pool2d(y, 2, ceil_mode=True) for y in outs[-1:]]
            outs.append(self.RevFP[f'p{3 + i}'](maps[i], *up, *down))
        size = outs[1].shape[2:]
        first = F.adaptive_max_pool2d(outs[0], size)
        x = torch.stack([first, *(F.interpolate(y, size, mode='bilinear') for y in outs[1:])], 1)
        moved = [x.roll(-step, 1)[:, :, i : i + 1] for i, step in enumerate((1, -1, 2, -2))]
        s = torch.cat([*moved, x], 2)
        x = x + torch.stack([mix(s[:, i]) for i, mix in enumerate(self.CSN.msm.aggregation)], 1)
        pixels = self.CSN.spatialContext(x.mean(1))
        levels = self.CSN.scaleContext(x.mean((3, 4)).transpose(1, 2).unsqueeze(-1))
        x = x + (pixels + levels).unsqueeze(1)
        added = [F.interpolate(x[:, 0], outs[0].shape[2:], mode='bilinear')]
        added += [F.adaptive_max_pool2d(x[:, i], outs[i].shape[2:]) for i in range(1, 5)]
        return together(a + b for a, b in zip(outs, added, strict=True))


def ours():
    neck = RCFPN(WIDTHS, C, 5, norm_cfg=dict(type='BN'), out_conv_cfg=None)
    neck.register_forward_pre_hook(lambda _, inputs: (maps_of(inputs[0]),))
    neck.register_forward_hook(lambda _, inputs, outs: together(outs))
    return neck


CASES = {'neck': Case(RCFPNOfficial, ours, 3, input_shape=(2, 3, 39, 26))}
