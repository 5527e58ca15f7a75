"""CondConv, as the port of the released networks has it: the first convolution of a block, and the block's routing."""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.cond_conv import CondConv2d
from official_layers import Case, parameter


class Experts(nn.Module):
    """Flat kernels, mixed by weights from elsewhere."""

    def __init__(self, inputs, outputs, experts, bias):
        super().__init__()
        self.weight = parameter(experts, outputs * inputs)
        self.register_parameter('bias', parameter(experts, outputs) if bias else None)

    def forward(self, x, share):
        bias = [None] * len(x) if self.bias is None else share @ self.bias
        kernels = (share @ self.weight).view(len(x), -1, x.shape[1], 1, 1)
        return torch.cat([F.conv2d(a[None], w, b) for a, w, b in zip(x, kernels, bias, strict=True)])


class CondConvOfficial(nn.Module):
    """The expansion of a block whose routing sees the block's input."""

    def __init__(self, inputs, outputs, experts, bias=False):
        super().__init__()
        self.routing_fn = nn.Linear(inputs, experts)
        self.conv_pw = Experts(inputs, outputs, experts, bias)

    def forward(self, x):
        return self.conv_pw(x, self.routing_fn(x.mean((2, 3))).sigmoid())


def pair(bias):
    return Case(
        partial(CondConvOfficial, 6, 10, 3, bias),
        lambda: nn.Sequential(OrderedDict(conv_pw=CondConv2d(6, 10, 1, num_experts=3, bias=bias))),
        6,
    )


CASES = {'expansion': pair(False), 'with biases': pair(True)}
