"""ConViT's gated positional self-attention."""

import torch
from torch import nn

from mmext.evolution.gpsa import GPSA
from official_layers import Case, parameter


class GPSAOfficial(nn.Module):
    """The positional scores of all pairs of tokens come from their ways on a square grid."""

    def __init__(self, channels, heads, bias):
        super().__init__()
        self.num_heads = heads
        self.qk = nn.Linear(channels, 2 * channels, bias=bias)
        self.v = nn.Linear(channels, channels, bias=bias)
        self.proj = nn.Linear(channels, channels)
        self.pos_proj = nn.Linear(3, heads)
        self.gating_param = parameter(heads)

    def forward(self, x):
        side = round(x.shape[1] ** 0.5)
        y, x_ = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing='ij'))
        down, right = y - y[:, None], x_ - x_[:, None]
        ways = torch.stack((right, down, right**2 + down**2), -1).to(x)
        by_place = self.pos_proj(ways).permute(2, 0, 1).softmax(-1)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (*self.qk(x).chunk(2, 2), self.v(x)))
        by_content = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        gate = self.gating_param.sigmoid().view(-1, 1, 1)
        mixed = (1 - gate) * by_content + gate * by_place
        return self.proj((mixed @ v).transpose(1, 2).flatten(2))


CASES = {
    'without bias': Case(
        lambda: GPSAOfficial(8, 4, False), lambda: GPSA(8, 4, qkv_bias=False), 8, input_shape=(2, 25, 8)
    ),
    'with bias': Case(lambda: GPSAOfficial(6, 2, True), lambda: GPSA(6, 2), 6, input_shape=(2, 16, 6)),
}
