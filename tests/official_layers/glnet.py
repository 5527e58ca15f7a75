"""GLNet, the network: with overlapping convolutions, and without, with learned slots."""

import torch
from torch import nn

from mmext.backbones.glnet import GLNet
from official_layers import Case, depthwise, last_map, parameter
from official_layers.unireplknet import channels_first_norm

HEAD, WIDTHS = 4, (8, 16)


def attend(layer, x):
    return layer(x, x, x)[0]


class _Gamma(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = parameter(*shape)


class _Mixer(nn.Module):
    """What both kinds of blocks have: norms, an inverted bottleneck, and scales."""

    def __init__(self, width, rich):
        super().__init__()
        self.norm1, self.norm2 = channels_first_norm(width), channels_first_norm(width)
        middle = depthwise(nn.Conv2d, 3 * width, 3) if rich else nn.Identity()
        self.mlp = nn.Sequential(nn.Conv2d(width, 3 * width, 1), middle, nn.GELU(), nn.Conv2d(3 * width, width, 1))
        if rich:
            self.pos_conv = depthwise(nn.Conv2d, width, 3)
            self.ls1, self.ls2 = _Gamma(1, width, 1, 1), _Gamma(1, width, 1, 1)
        self.rich = rich

    def forward(self, x):
        raw = x
        if self.rich:
            x = x + self.pos_conv(x)
        y = self.mixed(self.norm1(x), raw)
        x = x + (y * self.ls1.gamma.view(-1, 1, 1) if self.rich else y)
        h = self.mlp[0](self.norm2(x))
        y = self.mlp[3](nn.functional.gelu(h + self.mlp[1](h) if self.rich else h))
        return x + (y * self.ls2.gamma.view(-1, 1, 1) if self.rich else y)


class _Slots(_Mixer):
    def __init__(self, width, rich):
        super().__init__(width, rich)
        self.slot_scale = nn.Parameter(torch.tensor(0.7))
        if not rich:
            self.init_slots = parameter(1, 9, width)
        self.relation_mha = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.feature_conv = nn.Sequential(
            nn.Conv2d(width, width, 1), depthwise(nn.Conv2d, width, 5), nn.Conv2d(width, width, 1)
        )

    def mixed(self, x, raw):
        pixels = x.flatten(2)
        seeds = nn.functional.adaptive_avg_pool2d(raw, 3).flatten(2) if self.rich else self.init_slots.transpose(1, 2)
        cosines = torch.einsum('bcs,bcn->bsn', seeds / seeds.norm(dim=1, keepdim=True).expand_as(seeds), pixels)
        logits = self.slot_scale * cosines / pixels.norm(dim=1)[:, None]
        slots = attend(self.relation_mha, torch.einsum('bsn,bcn->bsc', logits.softmax(2), pixels))
        back = torch.einsum('bsn,bsc->bcn', logits.softmax(1), slots)
        return back.view_as(x) + self.feature_conv(x)


class _Attention(_Mixer):
    def __init__(self, width, rich):
        super().__init__(width, rich)
        self.mha_op = nn.MultiheadAttention(width, width // HEAD, batch_first=True)

    def mixed(self, x, raw):
        return attend(self.mha_op, x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class _Stage(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class GLNetOfficial(nn.Module):
    def __init__(self, rich):
        super().__init__()
        a, b = WIDTHS

        def half(before, after):
            return nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after)

        if rich:
            down = [
                nn.Sequential(nn.Identity(), *half(3, a // 2), nn.GELU(), *half(a // 2, a)),
                nn.Sequential(*half(a, b)),
            ]
        else:
            down = [nn.Sequential(nn.Conv2d(3, a, 4, 4), nn.BatchNorm2d(a))]
            down += [nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 2, 2))]
        self.downsample_layers = nn.ModuleList(down)
        self.stages = nn.ModuleList([_Stage(_Slots(a, rich)), _Stage(_Slots(b, rich), _Attention(b, rich))])
        self.norm = nn.BatchNorm2d(b)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = down(x)
            for block in stage.blocks:
                x = block(x)
        return self.norm(x)


def case(rich, **arch):
    arch = dict(depths=(1, 2), channels=WIDTHS, mixers=('slots', 'alternating'), head_channels=HEAD, slots=9, **arch)
    ours = last_map(GLNet, arch=arch, out_norm=dict(type='BN'))
    return Case(lambda: GLNetOfficial(rich), ours, 3, input_shape=(2, 3, 57, 40))


CASES = {
    'overlapping': case(True, layer_scale=1e-4),
    'learned slots': case(False, overlapping=False, positions=False, local=False, learned=True),
}
