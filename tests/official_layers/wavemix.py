"""WaveMix, the network."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.backbones.wavemix import WaveMix
from official_layers import Case, last_map

WIDTH = 8
SIGNS = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0


def haar(x):
    """Return the sums and the differences of one level; the filters stand as kernels of a grouped convolution."""
    channels = x.shape[1]
    bands = F.conv2d(x, SIGNS.to(x).view(4, 1, 2, 2).repeat(channels, 1, 1, 1), stride=2, groups=channels)
    bands = bands.unflatten(1, (channels, 4))
    return bands[:, :, 0], bands[:, :, 1:].flatten(1, 2)


def mix(before, after):
    layers = [nn.Conv2d(before, 2 * WIDTH, 1), nn.GELU(), nn.Dropout(0.5), nn.Conv2d(2 * WIDTH, WIDTH, 1)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(WIDTH, after, 4, 2, 1), nn.BatchNorm2d(after))


class _Block(nn.Module):
    def __init__(self, levels):
        super().__init__()
        self.reduction = nn.Conv2d(WIDTH, WIDTH // 4, 1)
        self.names = [f'feedforward{k}' for k in range(1, levels + 1)] if levels > 1 else ['feedforward']
        for name in self.names:
            before = WIDTH if name == self.names[-1] else WIDTH * 3 // 2
            self.add_module(name, mix(before, WIDTH if name == self.names[0] else WIDTH // 2))

    def forward(self, x):
        low, maps = self.reduction(x), []
        for _ in self.names:
            low, details = haar(low)
            maps.append(torch.cat([low, details], 1))
        y = self.get_submodule(self.names[-1])(maps[-1])
        for name, new in list(zip(self.names, maps, strict=True))[-2::-1]:
            y = self.get_submodule(name)(torch.cat([new, y], 1))
        return x + y


class WaveMixOfficial(nn.Module):
    def __init__(self, levels, strided=False):
        super().__init__()
        quarter, half = WIDTH // 4, WIDTH // 2
        patches = [nn.Conv2d(3, quarter, 3, 1, 1), nn.Conv2d(quarter, half, 3, 1, 1), nn.Conv2d(half, WIDTH, 4, 4)]
        steps = [nn.Conv2d(3, half, 3, 2, 1), nn.Conv2d(half, WIDTH, 3, 2, 1)]
        self.conv = nn.Sequential(*steps) if strided else nn.Sequential(*patches, nn.GELU(), nn.BatchNorm2d(WIDTH))
        self.layers = nn.ModuleList(_Block(levels) for _ in range(2))

    def forward(self, x):
        x = self.conv(x)
        for layer in self.layers:
            x = layer(x)
        return x


def case(levels, strided=False):
    arch = dict(depth=2, channels=WIDTH, levels=levels, strided=strided)
    return Case(lambda: WaveMixOfficial(levels, strided), last_map(WaveMix, arch=arch), 3, input_shape=(2, 3, 64, 96))


CASES = {'network of one level': case(1), 'network': case(3), 'network with a strided stem': case(2, True)}
