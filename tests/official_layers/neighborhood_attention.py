"""Neighborhood attention, pixel by pixel, with linear layers."""

import torch
from torch import nn

from mmext.evolution.neighborhood_attention import NeighborhoodAttention2d
from official_layers import Case, parameter


class NATOfficial(nn.Module):
    """Takes channels first here. A window starts as near to its pixel as it can, in the pixel's own class of a dilation."""

    def __init__(self, channels, heads, size, dilation):
        super().__init__()
        self.heads, self.size, self.dilation = heads, size, dilation
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.rpb = parameter(heads, 2 * size - 1, 2 * size - 1)

    def taps(self, at, length):
        own = list(range(at % self.dilation, length, self.dilation))
        first = min(max(own.index(at) - self.size // 2, 0), len(own) - self.size)
        return own[first : first + self.size]

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        q, k, v = (t.unflatten(3, (self.heads, -1)) for t in self.qkv(x).chunk(3, 3))
        out = torch.zeros_like(v)
        for y in range(x.shape[1]):
            for z in range(x.shape[2]):
                rows, columns = self.taps(y, x.shape[1]), self.taps(z, x.shape[2])
                seen = [(r, c) for r in rows for c in columns]
                keys, values = (torch.stack([t[:, r, c] for r, c in seen], 1) for t in (k, v))
                logits = torch.einsum('bhd,bnhd->bhn', q[:, y, z], keys) / q.shape[-1] ** 0.5
                offset = [((r - y) // self.dilation, (c - z) // self.dilation) for r, c in seen]
                logits = logits + torch.stack([self.rpb[:, a + self.size - 1, b + self.size - 1] for a, b in offset], 1)
                out[:, y, z] = torch.einsum('bhn,bnhd->bhd', logits.softmax(-1), values)
        return self.proj(out.flatten(3)).permute(0, 3, 1, 2)


CASES = {
    'near': Case(lambda: NATOfficial(8, 2, 5, 1), lambda: NeighborhoodAttention2d(8, 8, 5, padding=2, num_heads=2), 8),
    'dilated': Case(
        lambda: NATOfficial(8, 4, 3, 3),
        lambda: NeighborhoodAttention2d(8, 8, 3, padding=3, dilation=3, num_heads=4),
        8,
    ),
}
