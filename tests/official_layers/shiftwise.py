"""ShiftwiseConv, and the block around it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.shiftwise import ShiftwiseConv2d
from official_layers import Case, depthwise


class ShiftwiseOfficial(nn.Module):
    """Small kernels convolve, what comes out is shifted and added; tables are drawn from the global generators."""

    def __init__(self, channels, big=13, paths=2, reps=4, merged=False, count=None):
        super().__init__()
        self.big, self.n = big, math.ceil(big / 3)
        count = int(channels * (1 - 0.23)) // 2 * 2 if count is None else count
        np.random.seed(123)
        ghost = sorted(np.random.choice(channels, channels - count, replace=False).tolist())
        self.ghost, self.rep = (
            torch.tensor(ghost, dtype=torch.long),
            torch.tensor(sorted(set(range(channels)) - set(ghost))),
        )
        torch.manual_seed(123)
        self.horizontal = [[torch.randperm(self.n) for _ in range(count)] for _ in range(reps)]
        self.vertical = [[torch.randperm(self.n) for _ in range(count)] for _ in range(reps)]
        self.center = [torch.randint(0, self.n, [count]) for _ in range(reps)]
        convs = [nn.Conv2d(count, count * self.n, 3, padding=2, groups=count, bias=False) for _ in range(paths)]
        if merged:
            self.LoRA = convs[0]
        else:
            self.LoRAs = nn.ModuleList(convs)
        self.bn_lora1, self.bn_lora2, self.bn_small = (nn.BatchNorm2d(count) for _ in range(3))

    def forward(self, x):
        rep = x[:, self.rep]
        convs = [self.LoRA] if hasattr(self, 'LoRA') else self.LoRAs
        y = sum(conv(rep) for conv in convs).unflatten(1, (-1, self.n))
        height, width = x.shape[2:]
        room = 2 * self.big
        y = F.pad(y, (room, room, room, room))

        def shifted(channel, kernel, down, right):
            """What the kernel sees when its first tap lies ``down`` and ``right`` of the pixel."""
            top, left = room + 2 + down, room + 2 + right
            return y[:, channel, kernel, top : top + height, left : left + width]

        sums = torch.zeros(3, *rep.shape)
        for r in range(len(self.center)):
            for c in range(rep.shape[1]):
                for i in range(self.n):
                    far = -(self.big // 2) + 3 * i
                    sums[0, :, c] += shifted(c, self.horizontal[r][c][i], -1, far)
                    sums[1, :, c] += shifted(c, self.vertical[r][c][i], far, -1)
                sums[2, :, c] += shifted(c, self.center[r][c], -1, -1)
        out = self.bn_lora1(sums[0]) + self.bn_lora2(sums[1]) + self.bn_small(sums[2]) + rep
        return torch.cat([out, x[:, self.ghost]], 1)


class ShiftwiseBlock(nn.Module):
    """The layer, norm, squeeze and excitation, two linear layers, residual."""

    def __init__(self, large_kernel, channels):
        super().__init__()
        self.large_kernel, self.norm = large_kernel, nn.BatchNorm2d(channels)
        self.se = nn.Module()
        self.se.down, self.se.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)
        self.pwconv1 = nn.Sequential(nn.Identity(), nn.Linear(channels, 2 * channels))
        self.pwconv2 = nn.Sequential(nn.Linear(2 * channels, channels))

    def forward(self, x):
        y = self.norm(self.large_kernel(x))
        y = y * self.se.up(self.se.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.pwconv2(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


CASES = {
    'in its block': Case(
        lambda: ShiftwiseBlock(ShiftwiseOfficial(12, 13), 12),
        lambda: ShiftwiseBlock(depthwise(ShiftwiseConv2d, 12, 13, bias=False, seed=5), 12),
        12,
        tolerance=1e-9,
    ),
}
