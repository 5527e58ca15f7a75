"""LightConv, as fairseq has it, within its layer of sequences."""

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import nn

from mmext.blocks.spatial_ops import LightConvSO
from mmext.convs.light_conv import LightConv2d
from official_layers import Case, parameter

CHANNELS, HEADS, TAPS, LENGTH = 8, 2, 5, 14


class Kernels(nn.Module):
    """A kernel for each head of consecutive channels, one weighted mean for all places."""

    def __init__(self, bias=False):
        super().__init__()
        self.weight = parameter(HEADS, 1, TAPS)
        self.register_parameter('bias', parameter(CHANNELS) if bias else None)

    def forward(self, x):
        each = self.weight.softmax(-1).repeat_interleave(CHANNELS // HEADS, 0)
        return F.conv1d(x, each, self.bias, padding=TAPS // 2, groups=CHANNELS)


class Around(nn.Module):
    """A linear layer, maybe a gate, the convolution over time, and another linear layer."""

    def __init__(self, conv, gated):
        super().__init__()
        self.gated, self.conv = gated, conv()
        self.linear1, self.linear2 = nn.Linear(CHANNELS, CHANNELS * (1 + gated)), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        x = self.linear1(x.squeeze(2).transpose(1, 2))
        x = F.glu(x, -1) if self.gated else x
        return self.linear2(self.conv(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2).unsqueeze(2)


def ungated(conv):
    pointwise = partial(nn.Conv2d, CHANNELS, CHANNELS, 1)
    return nn.Sequential(OrderedDict(linear1=pointwise(), conv=conv(), linear2=pointwise()))


def cases(kernels, ours, name):
    shape = (2, CHANNELS, 1, LENGTH)
    layer = partial(ours, CHANNELS, CHANNELS, (1, TAPS), padding=(0, TAPS // 2), groups=CHANNELS, heads=HEADS)
    return {
        'gated': Case(
            partial(Around, kernels, True),
            lambda: LightConvSO(CHANNELS, CHANNELS, (1, TAPS), dict(type=f'mmext.{name}', heads=HEADS)),
            CHANNELS,
            input_shape=shape,
        ),
        'not gated': Case(
            partial(Around, partial(kernels, bias=True), False), lambda: ungated(layer), CHANNELS, input_shape=shape
        ),
    }


CASES = cases(Kernels, LightConv2d, 'LightConv2d')
