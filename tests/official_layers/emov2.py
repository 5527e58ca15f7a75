"""EMOv2, the network."""

from collections import OrderedDict

import torch
from torch import nn

from mmext.backbones.emov2 import EMOv2
from official_layers import Case, last_map
from official_layers.unireplknet import channels_first_norm

SIDE, HEAD = 3, 4


def conv(before, after, size=1, stride=1, groups=1, bias=False, norm=None, act=None):
    layers = OrderedDict(conv=nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=bias))
    if norm:
        layers['norm'] = nn.BatchNorm2d(after, eps=1e-6)
    if act:
        layers['act'] = act()
    return nn.Sequential(layers)


class _Attention(nn.Module):
    """Every window by itself, both kinds of windows with indices written down."""

    def __init__(self, before, hidden):
        super().__init__()
        self.heads = before // HEAD
        self.qk = conv(before, 2 * before, bias=True)
        self.v = conv(before, hidden, bias=True, act=nn.GELU)

    def forward(self, x):
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, -width % SIDE, 0, -height % SIDE))
        q, k = self.qk(x).chunk(2, 1)
        v = self.v(x)
        rows, columns = x.shape[2] // SIDE, x.shape[3] // SIDE
        out = torch.zeros_like(v)
        for i in range(rows):
            for j in range(columns):
                near = (slice(i * SIDE, (i + 1) * SIDE), slice(j * SIDE, (j + 1) * SIDE))
                for r, c in (near, (slice(i, None, rows), slice(j, None, columns))):
                    a, b, d = (t[:, :, r, c].flatten(2).unflatten(1, (self.heads, -1)) for t in (q, k, v))
                    weights = (a.transpose(2, 3) @ b / HEAD**0.5).softmax(-1)
                    seen = (d @ weights.transpose(2, 3)).flatten(1, 2)
                    out[:, :, r, c] += seen.unflatten(2, (SIDE, SIDE))
        return out[..., :height, :width]


class _Expand(nn.Module):
    def __init__(self, before, hidden, act):
        super().__init__()
        self.net = conv(before, hidden, bias=True, act=act)

    def forward(self, x):
        return self.net(x)


class _Nested(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = channels_first_norm(width)

    def forward(self, x):
        return self.norm(x)


class _Block(nn.Module):
    def __init__(self, before, after, attends, first):
        super().__init__()
        hidden = before * (4 if first else 2)
        self.norm = _Nested(before) if attends else nn.BatchNorm2d(before, eps=1e-6)
        expand = _Expand(before, hidden, nn.GELU if attends else nn.SiLU)
        self.eops = nn.ModuleList([_Attention(before, hidden) if attends and not first else expand])
        self.conv_local = conv(hidden, hidden, 5, 2 if first else 1, hidden, norm=True, act=nn.SiLU)
        self.proj = conv(hidden, after)
        self.ls = nn.Module()
        self.ls.gamma = nn.Parameter(torch.randn(1, after, 1, 1))
        self.first = first

    def forward(self, x):
        y = self.eops[0](self.norm(x))
        y = self.conv_local(y) if self.first else y + self.conv_local(y)
        y = self.proj(y) * self.ls.gamma
        return y if self.first else x + y


class EMOv2Official(nn.Module):
    def __init__(self):
        super().__init__()
        stem = [conv(3, 4, 3, 2, bias=True, norm=True, act=nn.SiLU), conv(4, 4, 3, 1, 4, norm=True, act=nn.SiLU)]
        self.stage0 = nn.ModuleList([*stem, conv(4, 4)])
        self.stage1 = nn.ModuleList([_Block(4, 8, False, True), _Block(8, 8, False, False)])
        self.stage2 = nn.ModuleList([_Block(8, 16, True, True), _Block(16, 16, True, False)])
        self.norm = _Nested(16)

    def forward(self, x):
        for block in (*self.stage0, *self.stage1, *self.stage2):
            x = block(x)
        return self.norm(x)


ARCH = dict(depths=(2, 2), channels=(8, 16), ratios=(2, 2), head_channels=(HEAD, HEAD), attention=(False, True))
NORM = dict(type='mmext.LayerNorm2d', eps=1e-6)
CASES = {
    'network': Case(
        EMOv2Official, last_map(EMOv2, arch=ARCH, window_size=SIDE, out_norm=NORM), 3, input_shape=(2, 3, 57, 40)
    ),
}
