"""SCNN's passes: a port of the authors' weights, and one with biases that leaves the first row and column."""

from functools import partial

import torch
from torch import nn

from mmext.blocks.scnn import SCNNBlock
from official_layers import Case

C, K = 4, 9


class Passes(nn.Module):
    def __init__(self, names, bias):
        super().__init__()
        for i, name in enumerate(names):
            size, padding = ((1, K), (0, K // 2)) if i < 2 else ((K, 1), (K // 2, 0))
            self.add_module(name, nn.Conv2d(C, C, size, padding=padding, bias=bias))
        self.end = int(bias)

    def forward(self, x):
        for i, conv in enumerate(self.children()):
            axis, backward = 2 + i // 2, i % 2
            slices = list(x.split(1, axis))
            count = len(slices)
            for here in range(count - 2, self.end - 1, -1) if backward else range(1, count):
                slices[here] = slices[here] + conv(slices[here + 1 if backward else here - 1]).relu()
            x = torch.cat(slices, axis)
        return x


def case(names, bias):
    return Case(partial(Passes, names, bias), partial(SCNNBlock, C, bias=bias, skip_first=bias), C)


CASES = {
    "port of the authors' weights": case(('up_down', 'down_up', 'left_right', 'right_left'), False),
    'port with biases': case(('conv_d', 'conv_u', 'conv_r', 'conv_l'), True),
}
