"""SMPConv."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.smpconv import SMPConv2d
from official_layers import Case, depthwise, parameter


class SMPOfficial(nn.Module):
    """Cones around points of [-1, 1]^2, y upwards: shared and depthwise, or averaged for every output."""

    def __init__(self, shared):
        super().__init__()
        self.shared, sets = shared, 1 if shared else 4
        self.weight_coord = nn.Parameter(torch.rand(sets, 6, 2) * 2 - 1)
        self.radius = nn.Parameter(torch.rand(sets, 6, 1, 1) * 0.5 + 0.4)
        self.weights = parameter(1, 4, 6) if shared else parameter(4, 2, 6)
        lin = torch.linspace(-1, 1, 7)
        grid = torch.stack([lin.expand(7, 7), -lin[:, None].expand(7, 7)])
        if shared:
            self.register_buffer('kernel_coord', grid[None])
        else:
            self.grid = grid

    def forward(self, x):
        grid = self.kernel_coord[0] if self.shared else self.grid
        distance = (grid - self.weight_coord[..., None, None]).abs().sum(2)
        cones = F.relu(1 - distance / self.radius)
        if self.shared:
            kernel = torch.einsum('cn,nhw->chw', self.weights[0], cones[0])[:, None]
            return F.conv2d(x, kernel, padding=3, groups=4)
        count = (cones != 0).sum(1)[:, None]
        return F.conv2d(x, torch.einsum('oin,onhw->oihw', self.weights, cones) / (count + 1e-6), padding=3)


CASES = {
    'shared': Case(lambda: SMPOfficial(True), lambda: depthwise(SMPConv2d, 4, 7, n_points=6, bias=False), 4),
    'general': Case(
        lambda: SMPOfficial(False),
        lambda: SMPConv2d(2, 4, 7, padding=3, n_points=6, shared_points=False, bias=False),
        2,
        tolerance=1e-5,  # the released code adds 1e-6 to its counts, ours does not
    ),
}
