"""UniRepLKNet."""

from torch import nn

from mmext.convs.dilated_reparam import DilatedReparamConv2d
from official_layers import Case, depthwise


class UniRepLKOfficial(nn.Module):
    """A large depthwise convolution and dilated small ones, each with a batch norm; or what they were merged to."""

    branches = ((5, 1), (5, 2), (3, 3), (3, 4))

    def __init__(self, merged=False):
        super().__init__()
        self.lk_origin = nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=merged)
        self.merged = merged
        if merged:
            return
        self.origin_bn = nn.BatchNorm2d(4)
        for k, r in self.branches:
            conv = nn.Conv2d(4, 4, k, padding=r * (k - 1) // 2, dilation=r, groups=4, bias=False)
            setattr(self, f'dil_conv_k{k}_{r}', conv)
            setattr(self, f'dil_bn_k{k}_{r}', nn.BatchNorm2d(4))

    def forward(self, x):
        if self.merged:
            return self.lk_origin(x)
        small = (getattr(self, f'dil_bn_k{k}_{r}')(getattr(self, f'dil_conv_k{k}_{r}')(x)) for k, r in self.branches)
        return self.origin_bn(self.lk_origin(x)) + sum(small)


CASES = {
    'branches': Case(UniRepLKOfficial, lambda: depthwise(DilatedReparamConv2d, 4, 9, bias=False), 4),
    'merged, to a plain layer': Case(lambda: UniRepLKOfficial(merged=True), lambda: depthwise(nn.Conv2d, 4, 9), 4),
    'merged, to ours': Case(lambda: UniRepLKOfficial(merged=True), lambda: depthwise(DilatedReparamConv2d, 4, 9), 4),
}
