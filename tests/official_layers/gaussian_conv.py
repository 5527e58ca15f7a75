"""Gaussian composition."""

import math
from functools import partial

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
        halves = [max(1, math.ceil(2 * float(v) ** 0.5)) for v in covariance.detach().diag()]  # a window of each axis
        z = torch.stack(torch.meshgrid(*[torch.arange(-h, h + 1.0) for h in halves], indexing='ij'), -1)
        z = z * torch.tensor([-1.0, 1.0])  # y upwards
        density = torch.exp(-0.5 * torch.einsum('hwi,ij,hwj->hw', z, torch.linalg.inv(covariance), z))
        return density / density.sum()

    def forward(self, x):
        blur = self.gaussian()
        x = F.conv2d(x, blur.expand(3, 1, -1, -1), padding=[k // 2 for k in blur.shape], groups=3)
        return F.conv2d(x, self.weight)


def case(sigma, max_sigma, covariance):
    ours = partial(GaussianConv2d, 3, 4, 3, max_sigma=max_sigma, sigma=0.5, covariance=covariance, bias=False)
    return Case(partial(GaussianOfficial, sigma), ours, 3)


CASES = {
    'iso': case(1.3, 1.5, 'iso'),
    'diag': case([0.7, 1.3], (1.0, 1.5), 'diag'),
    'diag, rows wider': case([1.9, 0.3], (2.0, 0.5), 'diag'),
    'full': case([0.1, 0.4, 0.2], 1.5, 'full'),
    'full, columns wider': case([-0.2, -0.5, 0.4], (1.0, 2.0), 'full'),
}
