"""FFNet, the network."""

from collections import OrderedDict

import torch
from torch import nn

from mmext.backbones.ffnet import FFNet
from official_layers import Case, last_map

WIDTHS = (8, 16)


def normed(before, after, size, stride=1, groups=1):
    if isinstance(size, int):
        size = (size, size)
    conv = nn.Conv2d(before, after, size, stride, (size[0] // 2, size[1] // 2), groups=groups, bias=False)
    return nn.Sequential(OrderedDict(c=conv, bn=nn.BatchNorm2d(after)))


class _Sum(nn.Module):
    """Branches of one depthwise kernel, each with a norm."""

    def __init__(self, before, after, sizes, stride=1):
        super().__init__()
        for name, size in sizes.items():
            self.add_module(name, normed(before, after, size, stride, before))

    def forward(self, x):
        return sum(branch(x) for branch in self.children())


class _Residual(nn.Module):
    def __init__(self, width, **layers):
        super().__init__()
        self.main = nn.Sequential(OrderedDict(layers))
        self.layer_scale = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x):
        return x + self.layer_scale * self.main(x)


class _Shortcut(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(width), c=nn.Conv2d(width, width, 1, bias=False)))

    def forward(self, x):
        return x + self.conv(x)


def block(width, token, local):
    """Return both mixers of a block; ``token`` and ``local`` make their depthwise convolutions."""
    wide = dict(fc1=nn.Conv2d(width, 3 * width, 1), act=nn.GELU(), fc2=nn.Conv2d(3 * width, width, 1))
    mixer = _Residual(width, fc=normed(width, width, 1), conv1=token(width), act=nn.GELU(), conv2=token(width))
    mixers = dict(token_mixer=nn.Sequential(mixer), channel_mixer=_Residual(width, conv=local(width), **wide))
    return nn.Sequential(OrderedDict(mixers))


def large(width):
    return _Sum(width, width, dict(conv=7, conv1=3))


def small(width):
    return nn.Conv2d(width, width, 3, padding=1, groups=width)


def strips(width):
    return _Sum(width, width, dict(conv1=9, conv2=5, strip_conv1=(1, 9), strip_conv2=(9, 1)))


def cross(width):
    return _Sum(width, width, dict(conv1=3, strip_conv1=(1, 3), strip_conv2=(3, 1)))


def local(width):
    return normed(width, width, 3, 1, width)


def shrink(*layers):
    return nn.Sequential(OrderedDict(proj=nn.Sequential(*layers)))


class FFNetOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        a, b = WIDTHS
        self.patch_embed = nn.Sequential(normed(3, 4, 3, 2), nn.GELU(), normed(4, a, 3, 2))
        down = shrink(_Sum(a, b, dict(conv=7, conv1=3), 2), _Shortcut(b))
        first = nn.Sequential(block(a, small, large), block(a, small, large))
        self.stages = nn.ModuleList([first, nn.Sequential(down, block(b, large, local))])
        self.norm = nn.BatchNorm2d(b)

    def forward(self, x):
        return self.norm(self.stages[1](self.stages[0](self.patch_embed(x))))


class FFNetSegOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        a, b = WIDTHS
        inner = [normed(3, 4, 3, 2), nn.GELU(), normed(4, 4, 3), nn.GELU(), normed(4, a, 3), normed(a, a, 3, 2)]
        self.patch_embed = nn.Sequential(*inner)
        down = shrink(normed(a, 2 * b, 3, 2), nn.GELU(), normed(2 * b, b, 1))
        self.stages = nn.ModuleList(
            [nn.Sequential(block(a, cross, local)), nn.Sequential(down, block(b, strips, local))]
        )

    def forward(self, x):
        return self.stages[1](self.stages[0](self.patch_embed(x)))


ARCH = dict(depths=(2, 1), channels=WIDTHS, token_kernels=(3, 7), channel_kernels=(7, 3), scaled=True, stem_channels=4)
SEG = dict(ARCH, depths=(1, 1), token_kernels=(3, 9), channel_kernels=(3, 3), strips=True)
SIZE = (2, 3, 41, 52)
CASES = {
    'network': Case(FFNetOfficial, last_map(FFNet, arch=ARCH, out_norm=dict(type='BN')), 3, input_shape=SIZE),
    'network for segmentation': Case(FFNetSegOfficial, last_map(FFNet, arch=SEG), 3, input_shape=SIZE),
}
