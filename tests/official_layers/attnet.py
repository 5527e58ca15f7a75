"""AttNet, the network."""

import torch
from torch import nn

from mmext.backbones.attnet import AttNet
from official_layers import Case, last_map, parameter
from official_layers.at_conv import ATOfficial
from official_layers.unireplknet import channels_first_norm

WIDTHS, HIDDEN = (8, 8), 21


class _Weight(nn.Module):
    def __init__(self, name, width):
        super().__init__()
        self.register_parameter(name, parameter(width))


class _Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 2 * HIDDEN, 1), nn.Conv2d(HIDDEN, width, 1)
        self.dwconv = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)
        self.norm_layer = _Weight('weight', HIDDEN)

    def forward(self, x):
        first, second = self.fc1(x).split(HIDDEN, 1)
        y = nn.functional.gelu(self.dwconv(first)) * second
        y = y / torch.sqrt((y * y).mean(1, keepdim=True) + 1e-6)
        return self.fc2(self.norm_layer.weight.view(-1, 1, 1) * y)


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_mixer, self.channel_mixer = ATOfficial(width), _Gated(width)
        self.norm_1, self.norm_2 = channels_first_norm(width), channels_first_norm(width)
        self.layer_scale_1, self.layer_scale_2 = _Weight('gamma', width), _Weight('gamma', width)

    def forward(self, x):
        x = x + self.layer_scale_1.gamma.view(-1, 1, 1) * self.token_mixer(self.norm_1(x))
        return x + self.layer_scale_2.gamma.view(-1, 1, 1) * self.channel_mixer(self.norm_2(x))


def halve(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after))


class AttNetOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        a, b = WIDTHS
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(halve(3, a // 2), nn.GELU(), halve(a // 2, a)), halve(a, b)]
        )
        self.stages = nn.ModuleList([nn.Sequential(_Block(a), _Block(a)), nn.Sequential(_Block(b))])
        self.norm = nn.LayerNorm(b)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.norm(x.mean((2, 3)))[..., None, None]


ARCH = dict(depths=(2, 1), channels=WIDTHS, ratios=(4, 4))
CASES = {
    'network': Case(AttNetOfficial, last_map(AttNet, arch=ARCH, pooled_norm=True), 3, input_shape=(2, 3, 57, 40)),
}
