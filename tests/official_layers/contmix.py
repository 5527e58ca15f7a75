"""ContMix: the dynamic convolution of the released block."""

from functools import partial

import torch
from torch import nn

from mmext.evolution import ContMixConv2d
from official_layers import Case, parameter


def normed(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]


def windows(size, kernel):
    """Return the first pixel of every window, which stays inside of the image."""
    return (torch.arange(size) - kernel // 2).clamp(0, size - kernel)


class ContMixOfficial(nn.Module):
    """Four heads, a large kernel of seven and a small one of five."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.weight_query = nn.Sequential(*normed(channels, channels // 2))
        self.weight_key = nn.Sequential(nn.AdaptiveAvgPool2d(7), *normed(channels, channels // 2))
        self.weight_value = nn.Sequential(*normed(channels, channels))
        self.weight_proj = nn.Conv2d(49, 25 + 49, 1)
        self.fusion_proj = nn.Sequential(*normed(channels, channels))
        self.rpb1, self.rpb2 = parameter(heads, 9, 9), parameter(heads, 13, 13)

    def forward(self, x):
        size = x.shape[2:]
        q, k = (m(x).flatten(2).unflatten(1, (self.heads, -1)) for m in (self.weight_query, self.weight_key))
        affinity = torch.einsum('bgcn,bgcl->blgn', q * self.scale, k)
        logits = self.weight_proj(affinity).unflatten(3, size).split((25, 49), 1)
        value = self.weight_value(x).chunk(2, 1)
        parts = [self.mix(v, w, t, n) for v, w, t, n in zip(value, logits, (self.rpb1, self.rpb2), (5, 7), strict=True)]
        return self.fusion_proj(torch.cat(parts, 1))

    def mix(self, value, logits, table, kernel):
        """Sum over the taps of a window, whose place in the table is its distance from the pixel."""
        rows, columns = (windows(n, kernel) for n in value.shape[2:])
        taps = []
        for i in range(kernel):
            for j in range(kernel):
                y, x = rows + i, columns + j
                away = table[:, (y - torch.arange(len(y)) + kernel - 1)[:, None], x - torch.arange(len(x)) + kernel - 1]
                seen = value[:, :, y[:, None], x].unflatten(1, (self.heads, -1))
                taps.append((logits[:, i * kernel + j] + away, seen))
        weight = torch.stack([w for w, _ in taps]).softmax(0)
        return sum(w[:, :, None] * seen for w, (_, seen) in zip(weight, taps, strict=True)).flatten(1, 2)


CASES = {
    'plain': Case(
        partial(ContMixOfficial, 32, 4), partial(ContMixConv2d, 32, 32, 7, padding=3, heads=4, bias=False), 32
    )
}
