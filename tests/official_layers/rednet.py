"""RedNet: stages of bottlenecks, as the released classifiers name them."""

import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.functional import unfold

from mmext.backbones.rednet import RedNet
from official_layers import Case, last_map

BN = dict(norm_cfg=dict(type='BN'))


class Involution(nn.Module):
    """Kernels by two 1x1 convolutions; every window is written down and weighted."""

    def __init__(self, channels, size, stride):
        super().__init__()
        self.size, self.stride = size, stride
        self.conv1 = ConvModule(channels, channels // 4, 1, **BN)
        self.conv2 = ConvModule(channels // 4, size**2 * channels // 16, 1, act_cfg=None)
        self.avgpool = nn.AvgPool2d(stride, stride)

    def forward(self, x):
        n, channels = x.shape[:2]
        kernel = self.conv2(self.conv1(self.avgpool(x)))
        kernel = kernel.view(n, channels // 16, 1, self.size**2, *kernel.shape[2:])
        windows = unfold(x, self.size, padding=self.size // 2, stride=self.stride)
        windows = windows.view(n, channels // 16, 16, self.size**2, *kernel.shape[-2:])
        return (kernel * windows).sum(3).flatten(1, 2)


class Bottleneck(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after // 4, 1, bias=False), nn.BatchNorm2d(after // 4)
        self.conv2, self.bn2 = Involution(after // 4, 7, stride), nn.BatchNorm2d(after // 4)
        self.conv3, self.bn3 = nn.Conv2d(after // 4, after, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential()
        if before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class RedNetOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            ConvModule(3, 16, 3, stride=2, padding=1, **BN),
            Involution(16, 3, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            ConvModule(16, 32, 3, padding=1, **BN),
        )
        self.layer1 = nn.Sequential(Bottleneck(32, 64, 1), Bottleneck(64, 64, 1))
        self.layer2 = nn.Sequential(Bottleneck(64, 128, 2))

    def forward(self, x):
        x = torch.max_pool2d(self.stem(x), 3, 2, 1)
        return self.layer2(self.layer1(x))


ARCH = dict(depths=(2, 1), channels=(64, 128))
CASES = {
    'network': Case(RedNetOfficial, last_map(RedNet, arch=ARCH, stem_channels=32), 3, input_shape=(2, 3, 32, 48)),
}
