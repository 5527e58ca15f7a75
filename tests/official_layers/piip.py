"""PIIP with two vision transformers, as its released backbones name them; images fill all patches and windows."""

import torch
from torch import nn
from torch.nn.functional import grid_sample, interpolate

from mmext.backbones.piip import PIIP
from official_layers import Case, parameter


class Linears(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        for name, (before, after) in sizes.items():
            setattr(self, name, nn.Linear(before, after))


class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(c, 1e-6), nn.LayerNorm(c, 1e-6)
        self.attn, self.mlp = Linears(qkv=(c, 3 * c), proj=(c, c)), Linears(fc1=(c, 4 * c), fc2=(4 * c, c))
        self.gamma_1, self.gamma_2 = parameter(c), parameter(c)

    def forward(self, x):
        found = []
        for q, k, v in zip(*(t.chunk(self.heads, 2) for t in self.attn.qkv(self.norm1(x)).chunk(3, 2)), strict=True):
            found.append((q @ k.mT / q.shape[2] ** 0.5).softmax(2) @ v)
        x = x + self.gamma_1 * self.attn.proj(torch.cat(found, 2))
        return x + self.gamma_2 * self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Patches(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(3, c, 16, 16)


class ViT(nn.Module):
    def __init__(self, c, heads, depth):
        super().__init__()
        self.patch_embed = Patches(c)
        self.pos_embed = parameter(1, 4, c)
        self.blocks = nn.ModuleList(Block(c, heads) for _ in range(depth))

    def begin(self, image):
        x = self.patch_embed.proj(image)
        code = self.pos_embed.mT.unflatten(2, (2, 2))
        return (x + interpolate(code, x.shape[2:], mode='bicubic')).flatten(2).mT, x.shape[2:]


class Depthwise(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dwconv = nn.Conv2d(c, c, 3, padding=1, groups=c)


class FFN(Linears):
    def __init__(self, c, hidden):
        super().__init__(fc1=(c, hidden), fc2=(hidden, c))
        self.dwconv = Depthwise(hidden)

    def forward(self, x, size):
        y = self.dwconv.dwconv(self.fc1(x).mT.unflatten(2, size)).flatten(2).mT
        return self.fc2(nn.functional.gelu(y))


class Attention(Linears):
    def __init__(self, c, heads, points):
        n = heads * points
        super().__init__(
            sampling_offsets=(c, 2 * n), attention_weights=(c, n), output_proj=(c // 2, c), value_proj=(c, c // 2)
        )
        self.heads, self.points = heads, points

    def forward(self, x, size, feat, other):
        """Every head of every token looks at its points, by bilinear samples of a map."""
        rows, columns = (torch.arange(n).to(x) for n in size)
        y, x_ = torch.meshgrid((rows + 0.5) / size[0], (columns + 0.5) / size[1], indexing='ij')
        here = torch.stack((x_, y), 2).flatten(0, 1)[:, None]
        value = self.value_proj(feat).mT.unflatten(2, other).chunk(self.heads, 1)
        found = []
        for v, way, weight in zip(
            value,
            self.sampling_offsets(x).chunk(self.heads, 2),
            self.attention_weights(x).chunk(self.heads, 2),
            strict=True,
        ):
            places = here + way.unflatten(2, (self.points, 2)) / torch.tensor([other[1], other[0]]).to(x)
            seen = grid_sample(v, 2 * places - 1, align_corners=False)
            found.append((seen * weight.softmax(2).unsqueeze(1)).sum(3))
        return self.output_proj(torch.cat(found, 1).mT)


class Injector(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.query_norm, self.feat_norm, self.ffn_norm = (nn.LayerNorm(c, 1e-6) for _ in range(3))
        self.attn, self.ffn = Attention(c, heads, 4), FFN(c, c // 4)
        self.ca_gamma, self.cffn_gamma = parameter(c), parameter(c)

    def forward(self, x, size, feat, other):
        x = x + self.ca_gamma * self.attn(self.query_norm(x), size, self.feat_norm(feat), other)
        return x + self.cffn_gamma * self.ffn(self.ffn_norm(x), size)


class Unit(nn.Module):
    def __init__(self, a, b, heads):
        super().__init__()
        self.branch2to1_proj, self.branch1to2_proj = nn.Linear(b, a), nn.Linear(a, b)
        self.branch2to1_injector, self.branch1to2_injector = Injector(a, heads), Injector(b, heads)


class Interaction(nn.Module):
    def __init__(self, a, b, heads):
        super().__init__()
        self.interaction_units_12 = Unit(a, b, heads)

    def forward(self, x, y, s, t):
        unit = self.interaction_units_12
        to_y, to_x = unit.branch1to2_proj(x), unit.branch2to1_proj(y)
        return unit.branch2to1_injector(x, s, to_x, t), unit.branch1to2_injector(y, t, to_y, s)


def merge(before, after):
    layers = []
    for c in (before, after):
        layers += [nn.Conv2d(c, after, 3, padding=1, bias=False), nn.GroupNorm(32, after), nn.ReLU()]
    return nn.Sequential(*layers)


class PIIPTwoBranch(nn.Module):
    def __init__(self, a, b, heads, depths):
        super().__init__()
        self.w1, self.w2 = parameter(), parameter()
        self.branch1, self.branch2 = ViT(a, 4, depths[0]), ViT(b, 2, depths[1])
        self.groups = min(depths)
        self.interactions = nn.Sequential(*(Interaction(a, b, heads) for _ in range(self.groups)))
        up = (nn.ConvTranspose2d(a, a, 2, 2), nn.GroupNorm(32, a), nn.GELU(), nn.ConvTranspose2d(a, a, 2, 2))
        self.fpn1, self.fpn2 = nn.Sequential(*up), nn.Sequential(nn.ConvTranspose2d(a, a, 2, 2))
        self.merge_branch1, self.merge_branch2 = merge(a, a), merge(b, a)

    def forward(self, image):
        (x, s), (y, t) = (
            self.branch1.begin(interpolate(image, scale_factor=0.5, mode='bilinear')),
            self.branch2.begin(image),
        )
        for i, interaction in enumerate(self.interactions):
            for branch, name in ((self.branch1, 'x'), (self.branch2, 'y')):
                share = len(branch.blocks) // self.groups
                for block in branch.blocks[i * share : (i + 1) * share]:
                    x, y = (block(x), y) if name == 'x' else (x, block(y))
            x, y = interaction(x, y, s, t)
        x = interpolate(self.merge_branch1(x.mT.unflatten(2, s)), t, mode='bilinear')
        out = x * self.w1 + self.merge_branch2(y.mT.unflatten(2, t)) * self.w2
        maps = self.fpn1(out), self.fpn2(out), out, nn.functional.max_pool2d(out, 2)
        return torch.cat([m.flatten(2) for m in maps], 2)


def ours():
    branch = dict(num_heads=4, pretrain_size=32)
    branches = dict(branch, depth=4, embed_dims=32), dict(branch, depth=2, embed_dims=16, num_heads=2)
    net = PIIP(dict(branches=branches, interactions=2, sizes=(32, 64)), num_heads=4, interaction_drop_path=0.0)
    net.register_forward_hook(lambda _, args, outs: torch.cat([m.flatten(2) for m in outs], 2))
    return net


CASES = {'two vision transformers': Case(lambda: PIIPTwoBranch(32, 16, 4, (4, 2)), ours, 3, input_shape=(2, 3, 64, 96))}
