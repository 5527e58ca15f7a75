"""BTS: the decoder, as the released depth estimators name it, on a pyramid made of the one input."""

import math

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, elu, interpolate

from mmext.heads.local_planar_guidance import LocalPlanarGuidanceHead
from official_layers import Case

WIDTHS, WIDTH = (3, 3, 3, 3, 3), 32


def pyramid(x):
    """Maps at strides 2 to 32, large enough to move the sigmoid at the end."""
    return [100 * avg_pool2d(x, 2**k) for k in range(1, 6)]


def conv(before, after, side=3, dilation=1):
    return nn.Conv2d(before, after, side, padding=dilation * (side // 2), dilation=dilation, bias=False)


def norm(width):
    return nn.BatchNorm2d(width, eps=1.1e-5)


class Up(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv = conv(before, after)

    def forward(self, x):
        return elu(self.conv(interpolate(x, scale_factor=2)))


class Atrous(nn.Module):
    def __init__(self, before, after, dilation, first):
        super().__init__()
        self.atrous_conv = nn.Sequential()
        if first:
            self.atrous_conv.add_module('first_bn', norm(before))
        parts = [nn.ReLU(), conv(before, 2 * after, 1), norm(2 * after), nn.ReLU(), conv(2 * after, after, 3, dilation)]
        self.atrous_conv.add_module('aconv_sequence', nn.Sequential(*parts))

    def forward(self, x):
        return self.atrous_conv(x)


class Reduction(nn.Module):
    def __init__(self, before, after, final=False):
        super().__init__()
        self.reduc, self.final = nn.Sequential(), final
        while after >= 8:
            self.reduc.add_module(f'inter_{before}_{after}', nn.Sequential(conv(before, after, 1), nn.ELU()))
            before, after = after, after // 2
        last = nn.Sequential(conv(before, 1, 1), nn.Sigmoid()) if final else conv(before, 3, 1)
        self.reduc.add_module('final' if final else 'plane_params', last)

    def forward(self, x, ratio=1):
        x = self.reduc(x)
        if self.final:
            return x
        theta, phi, share = x.sigmoid().unbind(1)
        theta, phi = theta * math.pi / 3, phi * 2 * math.pi
        normal = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos(), share], 1)
        n1, n2, n3, n4 = (part.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2) for part in normal.unbind(1))
        place = (torch.arange(ratio) - (ratio - 1) / 2) / ratio
        u, v = place.repeat(n1.shape[2] // ratio), place.repeat(n1.shape[1] // ratio)[:, None]
        return (n4 / (n1 * u + n2 * v + n3))[:, None]


class Decoder(nn.Module):
    """With a largest depth of 1, so that shares are depths."""

    def __init__(self):
        super().__init__()
        f, (s2, s4, s8, s16, s32) = WIDTH, WIDTHS
        self.upconv5, self.bn5 = Up(s32, f), norm(f)
        self.conv5 = nn.Sequential(conv(f + s16, f), nn.ELU())
        self.upconv4, self.bn4, self.bn4_2 = Up(f, f // 2), norm(f // 2), norm(f // 2)
        self.conv4 = nn.Sequential(conv(f // 2 + s8, f // 2), nn.ELU())
        for k, dilation in enumerate((3, 6, 12)):
            before = f // 2 + (k > 0) * s8 + k * f // 4
            self.add_module(f'daspp_{dilation}', Atrous(before, f // 4, dilation, k > 0))
        self.daspp_conv = nn.Sequential(conv(f // 2 + 3 * f // 4, f // 4), nn.ELU())
        self.reduc8x8 = Reduction(f // 4, f // 4)
        self.upconv3, self.bn3 = Up(f // 4, f // 4), norm(f // 4)
        self.conv3 = nn.Sequential(conv(f // 4 + s4 + 1, f // 4), nn.ELU())
        self.reduc4x4 = Reduction(f // 4, f // 8)
        self.upconv2, self.bn2 = Up(f // 4, f // 8), norm(f // 8)
        self.conv2 = nn.Sequential(conv(f // 8 + s2 + 1, f // 8), nn.ELU())
        self.reduc2x2 = Reduction(f // 8, f // 16)
        self.upconv1 = Up(f // 8, f // 16)
        self.reduc1x1 = Reduction(f // 16, f // 32, final=True)
        self.conv1 = nn.Sequential(conv(f // 16 + 4, f // 16), nn.ELU())
        self.get_depth = nn.Sequential(conv(f // 16, 1), nn.Sigmoid())

    def forward(self, x):
        x2, x4, x8, x16, x32 = pyramid(x)
        y = self.conv5(torch.cat([self.bn5(self.upconv5(x32.relu())), x16], 1))
        joined = [self.bn4(self.upconv4(y)), x8]
        middle = self.bn4_2(self.conv4(torch.cat(joined, 1)))
        found = [middle, self.daspp_3(middle)]
        for layer in (self.daspp_6, self.daspp_12):
            found.append(layer(torch.cat([*joined, *found[1:]], 1)))
        y = self.daspp_conv(torch.cat(found, 1))
        d8 = self.reduc8x8(y, 8)
        y = self.conv3(torch.cat([self.bn3(self.upconv3(y)), x4, interpolate(d8, scale_factor=0.25)], 1))
        d4 = self.reduc4x4(y, 4)
        y = self.conv2(torch.cat([self.bn2(self.upconv2(y)), x2, interpolate(d4, scale_factor=0.5)], 1))
        d2 = self.reduc2x2(y, 2)
        y = self.upconv1(y)
        return self.get_depth(self.conv1(torch.cat([y, self.reduc1x1(y), d2, d4, d8], 1)))


class Ours(LocalPlanarGuidanceHead):
    def forward(self, x):
        return super().forward(pyramid(x))


CASES = {
    'decoder': Case(
        Decoder, lambda: Ours(WIDTHS, WIDTH, max_depth=1.0, dilations=(3, 6, 12)), 3, input_shape=(2, 3, 64, 96)
    )
}
