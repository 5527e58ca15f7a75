"""SMPConv."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.smpconv import SMPConv2d
from official_layers import Case, depthwise, parameter


class Points(nn.Module):
    """Cones around points of [-1, 1]^2, y upwards."""

    def __init__(self, sets, *weights):
        super().__init__()
        self.weight_coord = nn.Parameter(torch.rand(sets, 6, 2) * 2 - 1)
        self.radius = nn.Parameter(torch.rand(sets, 6, 1, 1) * 0.5 + 0.4)
        self.weights = parameter(*weights, 6)

    def grid(self):
        lin = torch.linspace(-1, 1, 7)
        return torch.stack([lin.expand(7, 7), -lin[:, None].expand(7, 7)])

    def cones(self):
        distance = (self.grid() - self.weight_coord[..., None, None]).abs().sum(2)
        return F.relu(1 - distance / self.radius)


class SMPOfficial(Points):
    """The same points for all channels, depthwise."""

    def __init__(self):
        super().__init__(1, 1, 4)
        self.register_buffer('kernel_coord', self.grid()[None])

    def forward(self, x):
        kernel = torch.einsum('cn,nhw->chw', self.weights[0], self.cones()[0])[:, None]
        return F.conv2d(x, kernel, padding=3, groups=4)


class CKOfficial(nn.Module):
    """Points of every output, averaged, in a module of their own beside the window's size and the bias."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.Kernel, self.bias = Points(outputs, outputs, inputs), parameter(outputs)
        self.register_buffer('train_length', torch.tensor([7], dtype=torch.int32))

    def forward(self, x):
        cones = self.Kernel.cones()
        count = (cones != 0).sum(1)[:, None] + 1e-6
        return F.conv2d(x, torch.einsum('oin,onhw->oihw', self.Kernel.weights, cones) / count, self.bias, padding=3)


def general(inputs, outputs):
    ours = partial(SMPConv2d, inputs, outputs, 7, padding=3, n_points=6, shared_points=False)
    # The released code adds 1e-6 to its counts, ours does not.
    return Case(partial(CKOfficial, inputs, outputs), ours, inputs, tolerance=1e-5)


CASES = {
    'shared': Case(SMPOfficial, partial(depthwise, SMPConv2d, 4, 7, n_points=6, bias=False), 4),
    'general': general(2, 4),
    'general with one output': general(3, 1),
    'general with one input and output': general(1, 1),
}
