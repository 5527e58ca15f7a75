"""SoftHGNN as its modules, models and detectors are released, on tokens; and the fusion of three maps."""

import torch
from torch import nn

from mmext.blocks.soft_hgnn import SoftHGNN, SoftHGNNSeS
from mmext.necks.soft_hgnn import SoftHGFusion
from official_layers import Case, parameter


class Generation(nn.Module):
    """The softmax over nodes of the mean over heads, each head written down."""

    def __init__(self, width, edges, heads, fixed, top_k):
        super().__init__()
        self.heads, self.fixed, self.top_k = heads, fixed, top_k
        self.prototype_base = parameter(edges, width)
        self.context_net = nn.Linear(2 * width, edges * width)
        self.pre_head_proj = nn.Linear(width, width)

    def forward(self, x):
        context = torch.cat((x.mean(1), x.max(1)[0]), 1)
        prototypes = self.prototype_base + self.context_net(context).view(len(x), *self.prototype_base.shape)
        pairs = zip(self.pre_head_proj(x).chunk(self.heads, 2), prototypes.chunk(self.heads, 2), strict=True)
        logits = sum(z @ p.mT / z.shape[2] ** 0.5 for z, p in pairs) / self.heads
        incidence = logits.softmax(1)
        if self.top_k is not None:
            mask = torch.ones_like(logits[:, 0])
            scores = logits.sum(1)[:, self.fixed :]
            mask[:, self.fixed :] = (scores >= scores.topk(self.top_k)[0][:, -1:]).to(mask)
            incidence = incidence * mask.unsqueeze(1)
        return incidence


class SoftHGNNOfficial(nn.Module):
    def __init__(self, width, edges, heads, fixed=0, top_k=None, gate=None):
        super().__init__()
        self.edge_generator = Generation(width, edges, heads, fixed, top_k)
        self.edge_proj = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.node_proj = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.used = gate not in (None, 1)
        if gate is not None:
            self.gate = nn.Parameter(torch.tensor(float(gate)))

    def forward(self, x):
        incidence = self.edge_generator(x)
        found = self.node_proj(incidence @ self.edge_proj(incidence.mT @ x))
        return x + (self.gate * found if self.used else found)


class Conv(nn.Module):
    def __init__(self, before, after, size=1):
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c, 3), Conv(c, c, 3)

    def forward(self, x):
        return x + self.cv2(self.cv1(x))


class C3k(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(c, c // 2), Conv(c, c // 2), Conv(c, c)
        self.m = nn.Sequential(Bottleneck(c // 2), Bottleneck(c // 2))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Branch(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.softhgnn = SoftHGNNOfficial(c, 8, 8)

    def forward(self, x):
        return self.softhgnn(x.flatten(2).mT).mT.reshape(x.shape)


class Fuse(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv_out = Conv(4 * c, c)

    def forward(self, fine, x, coarse):
        coarse = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.conv_out(torch.cat((nn.functional.avg_pool2d(fine, 2), x, coarse), 1))


def pyramid(x):
    """Three maps of one: widths c, c and 2 c."""
    return nn.functional.interpolate(x, scale_factor=2).sin(), x, torch.cat([x[..., ::2, ::2]] * 2, 1).cos()


class F2SoftHG(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2 = Conv(c, 3 * c // 2), Conv(5 * c // 2, c)
        self.m = nn.ModuleList([C3k(c // 2)])
        self.fuse = Fuse(c)
        self.softhgbranch1, self.softhgbranch2 = Branch(c // 2), Branch(c // 2)

    def forward(self, x):
        a, b, c = self.cv1(self.fuse(*pyramid(x))).chunk(3, 1)
        return self.cv2(torch.cat((a, self.softhgbranch1(b), c, self.m[0](c), self.softhgbranch2(b)), 1))


class Fusion(SoftHGFusion):
    def forward(self, x):
        return super().forward(pyramid(x))


def fusion():
    mixer = dict(type='mmext.SoftHGNN', num_hyperedges=8, num_heads=8)
    return Fusion([16, 16, 32], 16, 1, 1, mixer, dict(type='BN'), dict(type='SiLU'))


TOKENS = (2, 35, 8)
SES = dict(num_dynamic=6, top_k=2, num_fixed=1, num_heads=2)
CASES = {
    'module': Case(lambda: SoftHGNNOfficial(8, 4, 4), lambda: SoftHGNN(8, 4), 8, input_shape=TOKENS),
    'with a gate': Case(
        lambda: SoftHGNNOfficial(8, 4, 4, gate=0.7), lambda: SoftHGNN(8, 4, gate=True), 8, input_shape=TOKENS
    ),
    'sparse, with a gate that is not used': Case(
        lambda: SoftHGNNOfficial(8, 7, 2, 1, 2, gate=1), lambda: SoftHGNNSeS(8, **SES), 8, input_shape=TOKENS
    ),
    'fusion in a detector': Case(lambda: F2SoftHG(16), fusion, 16),
}
