"""LSNet: stages of blocks that alternate, as the released classifiers name them."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import unfold

from mmext.backbones.lsnet import LSNet
from official_layers import Case, last_map


def cb(before, after, size=1, stride=1, groups=1):
    layers = OrderedDict(c=nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False))
    return nn.Sequential(OrderedDict(layers, bn=nn.BatchNorm2d(after)))


class Plus(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        return x + self.m(x)


class FFN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.pw1, self.pw2 = cb(c, 2 * c), cb(2 * c, c)

    def forward(self, x):
        return self.pw2(self.pw1(x).relu())


class RepDW(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.conv1 = cb(c, c, 3, groups=c), cb(c, c, groups=c)

    def forward(self, x):
        return self.conv(x) + self.conv1(x) + x


class SE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class LKP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = cb(c, c // 2), cb(c // 2, c // 2, 7, groups=c // 2), cb(c // 2, c // 2)
        self.cv4, self.norm = nn.Conv2d(c // 2, 9 * c // 8, 1), nn.GroupNorm(c // 8, 9 * c // 8)

    def forward(self, x):
        return self.norm(self.cv4(self.cv3(self.cv2(self.cv1(x).relu())).relu()))


class LSConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.lkp, self.bn = LKP(c), nn.BatchNorm2d(c)

    def forward(self, x):
        n, c, h, w = x.shape
        kernel = self.lkp(x).view(n, c // 8, 9, h, w)[:, torch.arange(c) % (c // 8)]
        return self.bn((unfold(x, 3, padding=1).view(n, c, 9, h, w) * kernel).sum(2)) + x


class Attention(nn.Module):
    """Two heads with keys of 16 channels; its biases belong to a map of 4 x 4 pixels."""

    def __init__(self, c):
        super().__init__()
        self.qkv, self.dw = cb(c, 64 + c), cb(32, 32, 3, groups=32)
        self.proj = nn.Sequential(nn.ReLU(), cb(c, c))
        self.attention_biases = nn.Parameter(torch.randn(2, 16))
        places = [(i, j) for i in range(4) for j in range(4)]
        index = [[4 * abs(a[0] - b[0]) + abs(a[1] - b[1]) for b in places] for a in places]
        self.register_buffer('attention_bias_idxs', torch.tensor(index))

    def forward(self, x):
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).split((32, 32, c), 1)
        q, k, v = (y.view(n, 2, -1, h * w) for y in (self.dw(q), k, v))
        share = (q.mT @ k / 4 + self.attention_biases[:, self.attention_bias_idxs]).softmax(-1)
        return self.proj((v @ share.mT).view(n, c, h, w))


class Block(nn.Module):
    def __init__(self, mixer, gate, c):
        super().__init__()
        self.mixer, self.se, self.ffn = mixer, gate, Plus(FFN(c))

    def forward(self, x):
        return self.ffn(self.se(self.mixer(x)))


class LSNetOfficial(nn.Sequential):
    """One block in the first stage, two in each of the others."""

    def __init__(self):
        def even(c):
            return Block(RepDW(c), SE(c), c)

        def down(a, b):
            return cb(a, a, 3, 2, groups=a), cb(a, b)

        stem = cb(3, 4, 3, 2), nn.ReLU(), cb(4, 8, 3, 2), nn.ReLU(), cb(8, 16, 3, 2)
        second = *down(16, 24), even(24), Block(LSConv(24), nn.Identity(), 24)
        third = *down(24, 32), even(32), Block(Plus(Attention(32)), nn.Identity(), 32)
        stages = dict(blocks1=[even(16)], blocks2=second, blocks3=third)
        super().__init__(
            OrderedDict(patch_embed=nn.Sequential(*stem), **{k: nn.Sequential(*v) for k, v in stages.items()})
        )


ARCH = dict(depths=(1, 2, 2), channels=(16, 24, 32), heads=2)
CASES = {'network': Case(LSNetOfficial, last_map(LSNet, arch=ARCH), 3, input_shape=(2, 3, 128, 128))}
