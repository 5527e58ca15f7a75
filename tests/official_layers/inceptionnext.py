"""InceptionNeXt, the network."""

from collections import OrderedDict

import torch
from torch import nn

from mmext.backbones.inceptionnext import InceptionNeXt
from official_layers import Case, last_map
from official_layers.inception_dwconv import InceptionOfficial

WIDTHS = (16, 16)


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_mixer = InceptionOfficial()
        self.norm = nn.BatchNorm2d(width)
        layers = dict(fc1=nn.Conv2d(width, 3 * width, 1), act=nn.GELU(), fc2=nn.Conv2d(3 * width, width, 1))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x + self.gamma.view(-1, 1, 1) * self.mlp(self.norm(self.token_mixer(x)))


class InceptionNeXtOfficial(nn.Sequential):
    """A stem, and stages of a norm, a strided convolution and blocks."""

    def __init__(self):
        stages = []
        for i, width in enumerate(WIDTHS):
            down = [nn.BatchNorm2d(WIDTHS[i - 1]), nn.Conv2d(WIDTHS[i - 1], width, 2, 2)] if i else []
            blocks = nn.Sequential(_Block(width), _Block(width))
            stages.append(nn.Sequential(OrderedDict(downsample=nn.Sequential(*down), blocks=blocks)))
        stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 4), nn.BatchNorm2d(WIDTHS[0]))
        super().__init__(OrderedDict(stem=stem, stages=nn.Sequential(*stages)))


ARCH = dict(depths=(2, 2), channels=WIDTHS, ratios=(3, 3))
CASES = {
    'network': Case(InceptionNeXtOfficial, last_map(InceptionNeXt, arch=ARCH), 3, input_shape=(2, 3, 40, 52)),
}
