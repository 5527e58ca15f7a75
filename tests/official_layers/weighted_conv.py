"""Weighted convolution."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.weighted_conv import WeightedConv2d
from official_layers import Case, parameter


class WeightedOfficial(nn.Module):
    """The kernel times the outer product of a symmetric profile, fixed or trained."""

    def __init__(self, density, trained, size=5):
        super().__init__()
        self.weight, self.bias = parameter(3, 4, size, size), parameter(3)
        density = torch.tensor(density)
        if trained:
            self.den = nn.Parameter(density)
        else:
            profile = torch.cat([density, torch.ones(1), density.flip(0)])
            self.register_buffer('alfa', profile)
            self.register_buffer('Phi', torch.outer(profile, profile))

    def forward(self, x):
        if hasattr(self, 'den'):
            profile = torch.cat([self.den, torch.ones(1), self.den.flip(0)])
            return F.conv2d(x, self.weight * profile[:, None] * profile, self.bias, padding=2)
        return F.conv2d(x, self.weight * self.Phi, self.bias, padding=self.weight.shape[-1] // 2)


CASES = {
    'fixed': Case(lambda: WeightedOfficial([0.3, 0.8], False), lambda: WeightedConv2d(4, 3, 5, padding=2), 4),
    'trained': Case(
        lambda: WeightedOfficial([0.3, 0.8], True), lambda: WeightedConv2d(4, 3, 5, padding=2, trainable=True), 4
    ),
    '1x1': Case(lambda: WeightedOfficial([], False, 1), lambda: WeightedConv2d(4, 3, 1), 4),
}
