"""Gaussian composition."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.gaussian_conv import GaussianConv2d
from official_layers import Case, parameter


class GaussianOfficial(nn.Module):
    """Blur every channel, then convolve without padding."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.weight = nn.Parameter(torch.tensor(sigma)), parameter(4, 3, 3, 3)

    def gaussian(self):
        if self.sigma.numel() == 3:
            a, b, c = self.sigma
            factor = torch.stack([torch.stack([a.exp(), b]), torch.stack([b * 0, c.exp()])])
            covariance = factor.T @ factor
        else:
            covariance = torch.diag(self.sigma.expand(2) ** 2)
        half = max(1, math.ceil(2 * float(covariance.detach().diag().max().sqrt())))
        z = torch.stack(torch.meshgrid(*[torch.arange(-half, half + 1.0)] * 2, indexing='ij'), -1)
        z = z * torch.tensor([-1.0, 1.0])  # y upwards
        density = torch.exp(-0.5 * torch.einsum('hwi,ij,hwj->hw', z, torch.linalg.inv(covariance), z))
        return density / density.sum()

    def forward(self, x):
        blur = self.gaussian()
        x = F.conv2d(x, blur.expand(3, 1, -1, -1), padding=blur.shape[-1] // 2, groups=3)
        return F.conv2d(x, self.weight)


CASES = {
    'iso': Case(lambda: GaussianOfficial(1.3), lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, bias=False), 3),
    'diag': Case(
        lambda: GaussianOfficial([0.7, 1.3]),
        lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, covariance='diag', bias=False),
        3,
    ),
    'full': Case(
        lambda: GaussianOfficial([0.1, 0.4, 0.2]),
        lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, covariance='full', bias=False),
        3,
    ),
}
