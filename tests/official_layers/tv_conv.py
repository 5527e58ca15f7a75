"""TVConv."""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution import TVConv2d
from official_layers import Case, parameter


class TVOfficial(nn.Module):
    """Kernels of 3 x 3 for maps of 12 x 14, strided or not."""

    def __init__(self, channels, bias=False, layers=1, stride=1):
        super().__init__()
        self.step = stride
        self.size = (12 // stride, 14 // stride)
        geometry = dict(TVConv_k=3, TVConv_k_square=9, stride=stride, channels=channels, h=self.size[0], w=self.size[1])
        for name, value in geometry.items():
            self.register_buffer(name, torch.tensor(value))
        self.posi_map = parameter(1, 4, *self.size)
        self.weight_layers = self.network(9 * channels, layers)
        self.bias_layers = self.network(channels, layers) if bias else None

    def network(self, outputs, layers):
        widths = [4] + [16] * (layers + 1)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.LayerNorm([b, *self.size]), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        return nn.Sequential(*blocks, nn.Conv2d(16, outputs, 3, padding=1, bias=False))

    def forward(self, x):
        weight = self.weight_layers(self.posi_map).unflatten(1, (-1, 9))
        patches = F.unfold(x, 3, padding=1, stride=self.step).unflatten(1, (-1, 9)).unflatten(3, self.size)
        y = (weight * patches).sum(2)
        return y if self.bias_layers is None else y + self.bias_layers(self.posi_map)


def case(stride=1, **kwargs):
    bias, layers = kwargs.get('bias', False), kwargs.get('layers', 1)
    own = dict(size=(12 // stride, 14 // stride), position_bias=bias, layers=layers)
    ours = partial(TVConv2d, 6, 6, 3, stride, 1, bias=False, **own)
    return Case(partial(TVOfficial, 6, stride=stride, **kwargs), ours, 6)


CASES = {'plain': case(), 'with a bias, deeper': case(bias=True, layers=3), 'strided': case(stride=2)}
