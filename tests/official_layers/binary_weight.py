"""Binary weights."""

import torch.nn.functional as F
from torch import nn

from mmext.convs.binary_weight import BinaryWeightConv2d
from official_layers import Case


class BinaryOfficial(nn.Conv2d):
    """A plain convolution in the file; the kernel is centered, clamped and binarized before it is used."""

    def forward(self, x):
        latent = (self.weight - self.weight.mean(1, keepdim=True)).clamp(-1, 1)
        scale = latent.abs().flatten(1).sum(1) / latent[0].numel()
        return F.conv2d(x, latent.sign() * scale.view(-1, 1, 1, 1), self.bias, padding=1)


CASES = {
    'plain keys': Case(
        lambda: BinaryOfficial(3, 4, 3, padding=1),
        lambda: BinaryWeightConv2d(3, 4, 3, padding=1, center=True),
        3,
        {'layers': '.*'},
    ),
}
