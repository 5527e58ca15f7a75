"""DynamicConv, as fairseq has it, within the layer of sequences that LightConv has."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.dynamic_conv import DynamicConv2d
from official_layers import parameter
from official_layers.light_conv import CHANNELS, HEADS, TAPS, cases


class Generated(nn.Module):
    """A kernel for each head of consecutive channels and each place, made from the place."""

    def __init__(self, bias=False):
        super().__init__()
        self.weight_linear = nn.Linear(CHANNELS, HEADS * TAPS, bias=False)
        self.register_parameter('conv_bias', parameter(CHANNELS) if bias else None)

    def forward(self, x):
        weight = self.weight_linear(x.transpose(1, 2)).unflatten(2, (HEADS, TAPS)).softmax(-1)
        seen = F.pad(x, (TAPS // 2,) * 2).unfold(2, TAPS, 1).unflatten(1, (HEADS, -1))
        out = torch.einsum('bthk,bhctk->bhct', weight, seen).flatten(1, 2)
        return out if self.conv_bias is None else out + self.conv_bias[:, None]


CASES = cases(Generated, DynamicConv2d, 'DynamicConv2d')
