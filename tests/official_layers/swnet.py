"""SWNet, the network."""

from torch import nn

from mmext.backbones.swnet import SWNet
from official_layers import Case, last_map
from official_layers.shiftwise import ShiftwiseOfficial
from official_layers.unireplknet import Block, NetworkOfficial


class SWNetOfficial(NetworkOfficial):
    def __init__(self):
        blocks = [nn.Sequential(Block(8, ShiftwiseOfficial(8, big), 'large_kernel')) for big in (13, 7)]
        super().__init__(blocks, (8, 8))


ARCH = dict(depths=(1, 1), channels=(8, 8), kernels=(13, 7))
CASES = {
    'network': Case(SWNetOfficial, last_map(SWNet, arch=ARCH, pooled_norm=True), 3, input_shape=(1, 3, 41, 36)),
}
