"""UniRepLKNet, the network."""

from functools import partial
from itertools import pairwise

import torch
from torch import nn

from mmext.backbones.unireplknet import UniRepLKNet
from official_layers import Case, last_map
from official_layers.dilated_reparam import UniRepLKOfficial


class _ChannelsLast(nn.Module):
    def __init__(self, back=False):
        super().__init__()
        self.order = (0, 3, 1, 2) if back else (0, 2, 3, 1)

    def forward(self, x):
        return x.permute(self.order)


class _Response(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, width)) for _ in range(2))

    def forward(self, x):
        norms = x.square().sum((1, 2), keepdim=True).sqrt()
        return x + self.beta + x * self.gamma * norms / (norms.mean(3, keepdim=True) + 1e-6)


class _Excite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """The first layer stands under the name that each network has for it."""

    def __init__(self, width, first, name='dwconv'):
        super().__init__()
        self.first = name
        self.add_module(name, first)
        self.norm, self.se = nn.BatchNorm2d(width), _Excite(width)
        self.pwconv1 = nn.Sequential(_ChannelsLast(), nn.Linear(width, 4 * width))
        self.act = nn.Sequential(nn.GELU(), _Response(4 * width))
        linear = nn.Linear(4 * width, width, bias=False)
        self.pwconv2 = nn.Sequential(linear, _ChannelsLast(back=True), nn.BatchNorm2d(width))
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x):
        y = self.se(self.norm(self.get_submodule(self.first)(x)))
        return x + self.gamma.view(-1, 1, 1) * self.pwconv2(self.act(self.pwconv1(y)))


class _Norm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, 3)).movedim(3, 1)


def channels_first_norm(width):
    return _Norm(width, eps=1e-6)


def halve(before, after):
    return [nn.Conv2d(before, after, 3, 2, 1), channels_first_norm(after)]


class NetworkOfficial(nn.Module):
    """A stem, transitions and stages, and a norm of each output."""

    def __init__(self, stages, widths):
        super().__init__()
        stem = nn.Sequential(*halve(3, widths[0] // 2), nn.GELU(), *halve(widths[0] // 2, widths[0]))
        pairs = pairwise(widths)
        self.downsample_layers = nn.ModuleList([stem, *(nn.Sequential(*halve(a, b)) for a, b in pairs)])
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.norm(x.mean((2, 3)))[..., None, None]


class UniRepLKNetOfficial(NetworkOfficial):
    def __init__(self, merged=False):
        small = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        large = partial(UniRepLKOfficial, merged)
        super().__init__([nn.Sequential(Block(4, large()), Block(4, small)), nn.Sequential(Block(4, large()))], (4, 4))


ARCH = dict(depths=(2, 1), channels=(4, 4), kernels=((9, 3), (9,)))
CASES = {
    'network': Case(
        UniRepLKNetOfficial, last_map(UniRepLKNet, arch=ARCH, pooled_norm=True), 3, input_shape=(2, 3, 41, 52)
    ),
}
