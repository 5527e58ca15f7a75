"""Halo attention, as timm has it, with the relative positions written out."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.halo_attention import HaloAttention2d
from official_layers import Case, parameter


class Tables(nn.Module):
    def __init__(self, window, width):
        super().__init__()
        self.height_rel, self.width_rel = parameter(2 * window - 1, width), parameter(2 * window - 1, width)


class HaloOfficial(nn.Module):
    """Block by block; keys and values of a head stand side by side."""

    def __init__(self, inputs, outputs, heads, width, block, halo, stride):
        super().__init__()
        self.heads, self.width, self.block, self.halo, self.stride = heads, width, block, halo, stride
        self.q = nn.Conv2d(inputs, heads * width, 1, stride, bias=False)
        self.kv = nn.Conv2d(inputs, heads * width + outputs, 1, bias=False)
        self.pos_embed = Tables(block + 2 * halo, width)

    def forward(self, x):
        window, side = self.block + 2 * self.halo, self.block // self.stride
        q = self.q(x)
        k, v = F.pad(self.kv(x), [self.halo] * 4).unflatten(1, (self.heads, -1)).tensor_split([self.width], 2)
        out = x.new_zeros(len(x), self.heads, v.shape[2], *q.shape[2:])
        place = torch.arange(window) - torch.arange(side)[:, None] + window - 1
        for row in range(x.shape[2] // self.block):
            for column in range(x.shape[3] // self.block):
                mine = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
                top, left = row * self.block, column * self.block
                seen = (slice(top, top + window), slice(left, left + window))
                query = q[(slice(None), slice(None), *mine)].unflatten(1, (self.heads, -1))
                logits = torch.einsum('bhdyx,bhdij->bhyxij', query, k[(..., *seen)]) * self.width**-0.5
                logits = logits + torch.einsum('bhdyx,yid->bhyxi', query, self.pos_embed.height_rel[place])[..., None]
                beside = torch.einsum('bhdyx,xjd->bhyxj', query, self.pos_embed.width_rel[place])
                weight = (logits + beside[..., None, :]).flatten(4).softmax(-1).unflatten(4, (window, window))
                out[(..., *mine)] = torch.einsum('bhyxij,bhdij->bhdyx', weight, v[(..., *seen)])
        return out.flatten(1, 2)


def pair(stride, width):
    return Case(
        lambda: HaloOfficial(6, 8, 2, width, 2, 1, stride),
        lambda: HaloAttention2d(
            6, 8, 3, padding=1, stride=stride, block_size=2, num_heads=2, query_channels=width, bias=False
        ),
        6,
    )


CASES = {'usual': pair(1, 4), 'strided': pair(2, 3)}
