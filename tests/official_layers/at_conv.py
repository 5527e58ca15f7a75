"""ATConv."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution import ATConv2d
from official_layers import Case, parameter


class ATOfficial(nn.Module):
    """A kernel of 3 x 3 for every image and channel."""

    def __init__(self, channels):
        super().__init__()
        self.kernel_proj, self.x_proj, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.kernel_gen = nn.Linear(9, 9)
        self.difference_control = parameter(channels)

    def forward(self, x):
        strips = F.adaptive_avg_pool1d(self.kernel_proj(x).flatten(2), 9)
        taps = self.kernel_gen(F.gelu(strips))
        taps = taps - self.difference_control.sigmoid()[:, None] * taps.mean(2, keepdim=True)
        value = self.x_proj(x)
        each = [
            F.conv2d(v[None], w.view(-1, 1, 3, 3), padding=1, groups=len(v)) for v, w in zip(value, taps, strict=True)
        ]
        return self.proj(torch.cat(each))


CASES = {'plain': Case(partial(ATOfficial, 8), partial(ATConv2d, 8, 8, 3, padding=1), 8)}
