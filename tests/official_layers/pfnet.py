"""PfNet, the networks: ResNets of both kinds, a ViT and a PiT."""

import torch
from torch import nn

from mmext.backbones.pfnet import PfNet
from official_layers import Case, last_map, parameter


def conv(before, after, size=1, stride=1, act=True):
    layers = [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, *[nn.ReLU()] * act)


class _Bottleneck(nn.Module):
    def __init__(self, before, after, stride, hybrid):
        super().__init__()
        self.reduction_block = conv(before, after // 4)
        self.conv_block = nn.MaxPool2d(3, stride, 1)
        if hybrid and stride == 2:
            self.conv_block = nn.Sequential(nn.AvgPool2d(2), conv(after // 4, after // 4, 3))
        self.expansion_block = conv(after // 4, after, act=False)
        self.downsample = conv(before, after, 1, stride, act=False) if stride == 2 or before != after else None

    def forward(self, x):
        y = self.expansion_block(self.conv_block(self.reduction_block(x)))
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


class ResNetOfficial(nn.Module):
    def __init__(self, hybrid):
        super().__init__()
        self.conv1 = conv(3, 8, 7, 2)
        self.layer1 = nn.Sequential(_Bottleneck(8, 16, 1, hybrid), _Bottleneck(16, 16, 1, hybrid))
        self.layer2 = nn.Sequential(_Bottleneck(16, 32, 2, hybrid))

    def forward(self, x):
        return self.layer2(self.layer1(nn.functional.max_pool2d(self.conv1(x), 3, 2, 1)))


class _Part(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class _Block(nn.Module):
    """Every token by its place in a grid."""

    def __init__(self, width, pools):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = _Part(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(3 * width if pools else width, width))
        self.mlp = _Part(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
        self.pools = pools

    def forward(self, x, grid):
        gelu = nn.functional.gelu
        y = self.attn.qkv(self.norm1(x))
        if self.pools:
            y = gelu(y).transpose(1, 2).unflatten(2, grid)
            y = gelu(nn.functional.max_pool2d(y, 3, 1, 1)).flatten(2).transpose(1, 2)
        else:
            q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in y.chunk(3, 2))
            weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
            y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + self.attn.proj(y)
        return x + self.mlp.fc2(gelu(self.mlp.fc1(self.norm2(x))))


def run(blocks, x):
    y = x.flatten(2).transpose(1, 2)
    for block in blocks:
        y = block(y, x.shape[2:])
    return y.transpose(1, 2).reshape(x.shape)


def normed(norm, x):
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ViTOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = _Part(proj=nn.Conv2d(3, 8, 4, 4))
        self.pos_embed = parameter(1, 16, 8)
        self.blocks = nn.ModuleList(_Block(8, i % 2) for i in range(4))
        self.norm = nn.LayerNorm(8, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x)
        return normed(self.norm, run(self.blocks, x + self.pos_embed.transpose(1, 2).view(1, 8, *x.shape[2:])))


class PiTOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = _Part(conv=nn.Conv2d(3, 8, 4, 2))
        self.pos_embed = parameter(1, 8, 7, 7)
        self.transformers = nn.ModuleList(
            _Part(blocks=nn.ModuleList(_Block(width, i % 2) for i in range(n))) for width, n in ((8, 3), (16, 2))
        )
        self.pools = nn.ModuleList([_Part(conv=nn.Conv2d(8, 16, 3, 2, 1, groups=8))])
        self.norm = nn.LayerNorm(16, eps=1e-6)

    def forward(self, x):
        x = run(self.transformers[0].blocks, self.patch_embed.conv(x) + self.pos_embed)
        return normed(self.norm, run(self.transformers[1].blocks, self.pools[0].conv(x)))


def resnet(kind):
    arch = dict(depths=(2, 1), channels=(16, 32), kind=kind, stem_channels=8)
    return Case(lambda: ResNetOfficial(kind == 'hybrid'), last_map(PfNet, arch=arch), 3, input_shape=(2, 3, 64, 32))


def transformer(official, **arch):
    layer = dict(type='mmext.LayerNorm2d', eps=1e-6)
    ours = last_map(PfNet, arch=dict(kind='transformer', patch_size=4, **arch), img_size=16, out_norm=layer)
    return Case(official, ours, 3, input_shape=(2, 3, 16, 16))


CASES = {
    'ResNet, max': resnet('max'),
    'ResNet, hybrid': resnet('hybrid'),
    'ViT': transformer(ViTOfficial, depths=(1,) * 4, channels=(8,) * 4, heads=(2,) * 4, patch_stride=4),
    'PiT': transformer(PiTOfficial, depths=(3, 2), channels=(8, 16), heads=(2, 2), patch_stride=2),
}
