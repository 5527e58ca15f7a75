"""RDNet, the network."""

from collections import OrderedDict

import torch
from torch import nn

from mmext.backbones.rdnet import RDNet
from official_layers import Case, last_map
from official_layers.unireplknet import channels_first_norm

GROWTHS = (8, 8, 16)


class _Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x * torch.clamp(self.fc(x.mean((2, 3), keepdim=True)) / 6 + 0.5, 0, 1)


class _Dense(nn.Module):
    def __init__(self, width, growth, gated):
        super().__init__()
        layers = [nn.Conv2d(width, width, 7, padding=3, groups=width), channels_first_norm(width)]
        layers += [nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, growth, 1)]
        layers += [_Gate(growth)] * gated
        self.layers = nn.Module()
        self.layers.layers = nn.Sequential(*layers)
        self.gamma = nn.Parameter(torch.randn(growth))

    def forward(self, x):
        return torch.cat([x, self.gamma.view(-1, 1, 1) * self.layers.layers(x)], 1)


class RDNetOfficial(nn.Module):
    """Each stage but the first begins with a norm and a convolution to half of the channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), channels_first_norm(8))
        width, stages = 8, []
        for number, growth in enumerate(GROWTHS):
            before = []
            if number:
                step = (1, 2)[number == 2]
                before = [channels_first_norm(width), nn.Conv2d(width, width // 16 * 8, step, step)]
                width = width // 16 * 8
            blocks = OrderedDict()
            for i in range(3):
                blocks[f'dense_block{i}'] = _Dense(width, growth, number == 2)
                width += growth
            stages.append(nn.Sequential(*before, nn.Sequential(blocks)))
        self.dense_stages = nn.Sequential(*stages)
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.head.norm(self.dense_stages(self.stem(x)).mean((2, 3)))[..., None, None]


ARCH = dict(channels=8, growths=GROWTHS, halvings=(2,))
CASES = {
    'network': Case(RDNetOfficial, last_map(RDNet, arch=ARCH, pooled_norm=True), 3, input_shape=(2, 3, 40, 52)),
}
