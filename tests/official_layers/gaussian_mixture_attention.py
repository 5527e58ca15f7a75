"""Gaussian mixture mask attention."""

import torch
from torch import nn

from mmext.evolution.gaussian_mixture_attention import GaussianMixtureAttention
from official_layers import Case


class Mask(nn.Module):
    """A standard Gaussian of the distance, raised to powers."""

    def __init__(self, heads, side, kernels):
        super().__init__()
        self.sigma = nn.Parameter(torch.randn(kernels, heads, 1, 1) * 10 + 10)
        self.alpha = nn.Parameter(torch.randn(kernels, heads, 1, 1) * 2)
        y, x = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing='ij'))
        square = (y - y[:, None]) ** 2 + (x - x[:, None]) ** 2
        self.mask = nn.Parameter((-square.double() / 2).exp()[None, None], requires_grad=False)

    def forward(self, logits):
        return (self.alpha * self.mask ** (1 / (self.sigma**2 + 1e-5))).sum(0) * logits


class GMMOfficial(nn.Module):
    """Attention with such a mask."""

    def __init__(self, channels, heads, side):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))
        self.mask = Mask(heads, side, 5)

    def forward(self, x):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, 2))
        weights = self.mask(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


CASES = {
    'five Gaussians': Case(
        lambda: GMMOfficial(8, 4, 4),
        lambda: GaussianMixtureAttention(8, 4, qkv_bias=False),
        8,
        input_shape=(2, 16, 8),
    ),
}
