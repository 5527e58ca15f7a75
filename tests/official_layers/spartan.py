"""SpaRTAN, the network."""

from collections import OrderedDict

import torch
from torch import nn

from mmext.backbones.spartan import SpaRTAN
from official_layers import Case, last_map, parameter

WIDTHS, RATIOS = (8, 16), (3, 2)


def conv(before, after, size=3, stride=1, norm=True, **kwargs):
    layers = OrderedDict(conv=nn.Conv2d(before, after, size, stride, bias=False, **kwargs))
    if norm:
        layers['norm'] = nn.BatchNorm2d(after, eps=1e-6)
    return nn.Sequential(layers)


class _Gate(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class _Spatial(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        half = width // 2
        self.gamma = parameter(1, half, 1, 1)
        self.proj_in, self.proj_out = nn.Conv2d(width, half, 1), nn.Conv2d(width, width, 1)
        self.h_conv = conv(half, half, padding=1, groups=groups)
        far = dict(padding=2, dilation=2, groups=groups)
        self.l_conv = nn.Sequential(conv(half, half, norm=False, **far), conv(half, half, **far))
        self.h_attn, self.l_attn = _Gate(half, half // 4), _Gate(half, half // 4)

    def forward(self, x):
        x = self.proj_in(x)
        x = (1 + self.gamma) * x - self.gamma * x.mean((2, 3), keepdim=True)
        near, far = nn.functional.gelu(self.h_conv(x)), nn.functional.gelu(self.l_conv(x))
        return self.proj_out(torch.cat([self.h_attn(near), self.l_attn(far)], 1))


class _Channels(nn.Module):
    def __init__(self, width, ratio, groups):
        super().__init__()
        wide = width * ratio
        self.theta, self.proj, self.proj_out = (nn.Conv2d(*c, 1) for c in ((width, wide), (width, wide), (wide, width)))
        self.complex = parameter(1, 1, 1, wide // 2, 2)
        self.conv = conv(wide, wide, padding=1, groups=groups)
        self.attn = _Gate(wide, width // 4)

    def forward(self, x):
        strongest = nn.functional.one_hot(x.argmax(1), self.theta.out_channels).permute(0, 3, 1, 2)
        product = self.proj(x) * nn.functional.gelu(self.theta(x))
        product = product + (product * strongest).sum(1, keepdim=True)
        wave = self.complex[0, 0, 0]
        y = torch.empty_like(product)
        y[:, ::2] = product[:, ::2] * wave[:, 0, None, None] - product[:, 1::2] * wave[:, 1, None, None]
        y[:, 1::2] = product[:, ::2] * wave[:, 1, None, None] + product[:, 1::2] * wave[:, 0, None, None]
        return self.proj_out(self.attn(nn.functional.gelu(self.conv(y))))


class _Block(nn.Module):
    def __init__(self, width, ratio, early):
        super().__init__()
        self.smixer = _Spatial(width, 1 if early else width // 2)
        self.cmixer = _Channels(width, ratio, width * ratio if early else width)
        self.norm_1, self.norm_2 = (nn.GroupNorm(1, width, eps=1e-6) for _ in range(2))
        self.scale_1, self.scale_2 = parameter(1, width, 1, 1), parameter(1, width, 1, 1)

    def forward(self, x):
        x = x + self.scale_1 * self.smixer(self.norm_1(x))
        return x + self.scale_2 * self.cmixer(self.norm_2(x))


class SpaRTANOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        (a, b), (r, s) = WIDTHS, RATIOS
        self.conv = nn.Sequential(conv(3, a // 2, 3, 2, padding=1), conv(a // 2, a, 3, 2, padding=1))
        blocks = (_Block(a, r, True), _Block(a, r, True), conv(a, b, 2, 2), _Block(b, s, False))
        self.layers = nn.Sequential(*blocks)

    def forward(self, x):
        for layer in self.conv:
            x = nn.functional.gelu(layer(x))
        for layer in self.layers:
            x = layer(x) if isinstance(layer, _Block) else nn.functional.silu(layer(x))
        return x


ARCH = dict(depths=(2, 1), channels=WIDTHS, ratios=RATIOS)
CASES = {'network': Case(SpaRTANOfficial, last_map(SpaRTAN, arch=ARCH), 3, input_shape=(2, 3, 57, 40))}
