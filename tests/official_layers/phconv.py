"""Hypercomplex layers."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.phconv import PHConv2d
from official_layers import Case, parameter


class PHCOfficial(nn.Module):
    """Kronecker products; the bias is there and not added."""

    def __init__(self):
        super().__init__()
        self.A, self.F, self.bias = parameter(2, 2, 2), parameter(2, 4, 3, 3, 3), parameter(8)

    def forward(self, x):
        kernel = sum(torch.kron(a[..., None, None], f) for a, f in zip(self.A, self.F, strict=True))
        return F.conv2d(x, kernel, padding=1)


class PHMOfficial(nn.Module):
    """The same for a linear layer, where the bias is added; the networks have another one than the library of layers."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        for name, shape in zip(names, ((3, 3, 3), (3, 2, 4)), strict=True):
            self.register_parameter(name, parameter(*shape))
        self.bias = parameter(6)

    def forward(self, x):
        pairs = zip(*(getattr(self, name) for name in self.names), strict=True)
        return F.linear(x, sum(torch.kron(a, s) for a, s in pairs), self.bias)


CASES = {
    'dense': Case(PHCOfficial, lambda: PHConv2d(6, 8, 3, padding=1, n=2, bias=False), 6),
}
