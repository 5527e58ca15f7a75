"""OverLoCK: base stages, overview and focus stages, as the released detectors name them."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, layer_norm, unfold

from mmext.backbones.overlock import BRANCHES, OverLoCK
from official_layers import Case

ARCH = dict(depths=(1, 1, 1, 1), focus_depths=(2, 2), channels=(16, 16, 16, 32), kernels=(7, 7, 7, 5), heads=(2, 4))


class Norm(nn.LayerNorm):
    def forward(self, x):
        return layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, 1e-6).movedim(-1, 1)


class LayerScale(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c, 1, 1, 1)), nn.Parameter(torch.randn(c))

    def forward(self, x):
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class GRN(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, c, 1, 1)) for _ in range(2))

    def forward(self, x):
        size = x.square().sum((2, 3), keepdim=True).sqrt()
        return x + x * self.gamma * size / (size.mean(1, keepdim=True) + 1e-6) + self.beta


class ResDW(nn.Conv2d):
    def __init__(self, c):
        super().__init__(c, c, 3, padding=1, groups=c)

    def forward(self, x):
        return x + super().forward(x)


class SE(nn.Module):
    def __init__(self, c):
        super().__init__()
        layers = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 16, 1), nn.GELU(), nn.Conv2d(16, c, 1), nn.Sigmoid()
        self.proj = nn.Sequential(*layers)

    def forward(self, x):
        return x * self.proj(x)


class Large(nn.Module):
    def __init__(self, c, size):
        super().__init__()
        self.parts = [('lk_origin', 'origin_bn', size, 1)]
        for kind in BRANCHES[size]:
            k, r = int(kind[0]), int(kind.partition('@')[2] or 1)
            self.parts.append((f'dil_conv_k{k}_{r}', f'dil_bn_k{k}_{r}', k, r))
        for conv, bn, k, r in self.parts:
            self.add_module(conv, nn.Conv2d(c, c, k, padding=r * (k - 1) // 2, dilation=r, groups=c, bias=False))
            self.add_module(bn, nn.BatchNorm2d(c))

    def forward(self, x):
        return sum(self.get_submodule(bn)(self.get_submodule(conv)(x)) for conv, bn, *_ in self.parts)


def mlp(c, h):
    return nn.Conv2d(c, h, 1), nn.GELU(), ResDW(h), GRN(h), nn.Conv2d(h, c, 1)


def cb(a, b, size=1, stride=1):
    return nn.Conv2d(a, b, size, stride, size // 2, bias=False), nn.BatchNorm2d(b)


class Base(nn.Module):
    def __init__(self, c, size, scaled):
        super().__init__()
        self.dwconv = ResDW(c)
        self.proj = nn.Sequential(Norm(c), Large(c, size), nn.BatchNorm2d(c), SE(c), *mlp(c, 4 * c))
        self.ls = LayerScale(c) if scaled else nn.Identity()

    def forward(self, x):
        x = self.dwconv(x)
        return self.ls(x) + self.proj(x)


class Focus(nn.Module):
    def __init__(self, c, ctx, size, heads, first):
        super().__init__()
        self.c, self.size, self.heads, m = c, size, 2 * heads, c + ctx
        if not first:
            self.x_scale, self.h_scale = LayerScale(ctx), LayerScale(ctx)
        self.first = first
        self.dwconv1, self.norm1, self.dwconv2, self.norm2 = ResDW(m), Norm(m), ResDW(m), Norm(m)
        depthwise = nn.Conv2d(m, m, 3, padding=1, groups=m)
        self.fusion = nn.Sequential(depthwise, nn.BatchNorm2d(m), nn.GELU(), nn.Conv2d(m, c, 1), GRN(c))
        self.weight_query = nn.Sequential(*cb(c, c // 2))
        self.weight_key = nn.Sequential(nn.AdaptiveAvgPool2d(7), *cb(ctx, c // 2))
        self.weight_proj = nn.Conv2d(49, 25 + size**2, 1)
        self.dyconv_proj, self.gate = nn.Sequential(*cb(c, c)), nn.Sequential(*cb(c, c), nn.SiLU())
        self.lepe = nn.Sequential(Large(c, size), nn.BatchNorm2d(c))
        self.se_layer, self.proj = SE(c), nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, m, 1))
        self.mlp, self.ls1, self.ls2 = nn.Sequential(*mlp(m, 3 * c)), LayerScale(m), LayerScale(m)
        self.rpb1, self.rpb2 = (nn.Parameter(torch.randn(2 * heads, 2 * k - 1, 2 * k - 1)) for k in (5, size))

    def mix(self, x, logits, table, k):
        """Weigh the windows that slide inside of the map; logits are (N, heads, pixels, taps)."""
        n, c, h, w = x.shape
        centers = unfold(torch.arange(h * w).view(1, 1, h, w).double(), k)[0].long()
        inside = [(i.clamp(0, s - k), i) for i, s in ((torch.arange(h) - k // 2, h), (torch.arange(w) - k // 2, w))]
        (top, _), (left, _) = inside
        window = (top[:, None] * (w - k + 1) + left).flatten()
        seen = x.flatten(2)[:, :, centers.T[window]]
        place = centers.T[window]
        dy = place // w - torch.arange(h).repeat_interleave(w)[:, None] + k - 1
        dx = place % w - torch.arange(w).repeat(h)[:, None] + k - 1
        share = (logits + table[:, dy, dx]).softmax(-1)
        return (seen.view(n, self.heads, -1, h * w, k * k) * share[:, :, None]).sum(-1).view(n, c, h, w)

    def forward(self, x, ctx, overview):
        if not self.first:
            ctx = self.x_scale(ctx) + self.h_scale(overview)
        both = identity = self.dwconv1(torch.cat([x, ctx], 1))
        both = self.norm1(both)
        x = self.fusion(both)
        gate, lepe, size = self.gate(x), self.lepe(x), x.shape[2:]
        scale = max(1, self.size / min(size))
        grown = [max(int(scale * s), self.size) for s in size]
        x, both = (interpolate(y, grown, mode='bilinear') for y in (x, both))
        q = self.weight_query(both[:, : self.c]) * (self.c / self.heads) ** -0.5
        q, k = (y.flatten(2).unflatten(1, (self.heads, -1)) for y in (q, self.weight_key(both[:, self.c :])))
        logits = self.weight_proj(torch.einsum('bgcn,bgcl->blgn', q, k)).permute(0, 2, 3, 1)
        small, large = x.chunk(2, 1)
        y = [self.mix(small, logits[..., :25], self.rpb1, 5), self.mix(large, logits[..., 25:], self.rpb2, self.size)]
        y = self.dyconv_proj(adaptive_avg_pool2d(torch.cat(y, 1), size)) + lepe
        x = self.dwconv2(self.ls1(identity) + self.proj(gate * self.se_layer(y)))
        x = self.ls2(x) + self.mlp(self.norm2(x))
        return x[:, : self.c], x[:, self.c :]


class OverLoCKOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        w, k, ctx = ARCH['channels'], ARCH['kernels'], ARCH['channels'][3] // 4
        steps = [(3, w[0] // 2, 2), (w[0] // 2, w[0] // 2, 1), (w[0] // 2, w[0], 2), (w[0], w[0], 1)]
        layers = [layer for a, b, s in steps for layer in (*cb(a, b, 3, s), nn.GELU())]
        self.patch_embed1 = nn.Sequential(*layers[:-1])
        for i in range(1, 4):
            self.add_module(f'patch_embed{i + 1}', nn.Sequential(*cb(w[i - 1], w[i], 3, 2)))
        for i in range(4):
            self.add_module(f'blocks{i + 1}', nn.ModuleList([Base(w[i], k[i], i > 1)]))
        self.high_level_proj = nn.Conv2d(w[3], ctx, 1)
        halve = OrderedDict(x_proj=nn.Sequential(*cb(w[2], w[3], 3, 2)), h_proj=nn.Sequential(*cb(ctx, ctx, 3, 2)))
        self.patch_embedx = nn.ModuleDict(halve)
        self.sub_blocks3 = nn.ModuleList(Focus(w[2], ctx, k[2], ARCH['heads'][0], not i) for i in range(2))
        self.sub_blocks4 = nn.ModuleList(Focus(w[3], ctx, k[3], ARCH['heads'][1], False) for i in range(2))
        self.h_proj = nn.Sequential(nn.Conv2d(w[3], w[3] + ctx, 1), LayerScale(w[3] + ctx))
        self.extra_norm = nn.ModuleList(map(Norm, (w[0], w[1], w[2] + ctx, w[3] + ctx, w[3])))

    def forward(self, x):
        x = self.blocks1[0](self.patch_embed1(x))
        x = self.extra_norm[1](self.blocks2[0](self.patch_embed2(x)))
        x = self.blocks3[0](self.patch_embed3(x))
        whole = self.blocks4[0](self.patch_embed4(x))
        small = self.high_level_proj(whole)
        ctx = overview = interpolate(small, x.shape[2:], mode='bilinear')
        for block in self.sub_blocks3:
            x, ctx = block(x, ctx, overview)
        x, ctx = self.patch_embedx['x_proj'](x), self.patch_embedx['h_proj'](ctx)
        for block in self.sub_blocks4:
            x, ctx = block(x, ctx, small)
        return self.extra_norm[3](torch.cat([x, ctx], 1)) + self.h_proj(self.extra_norm[4](whole))


def ours():
    """Return our network, all of whose scales are in the file, with the map of the last alone."""
    net = OverLoCK(ARCH)
    net.register_forward_hook(lambda _, args, outs: outs[-1])
    return net


CASES = {'network': Case(OverLoCKOfficial, ours, 3, input_shape=(2, 3, 96, 160))}
