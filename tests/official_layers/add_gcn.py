"""ADD-GCN: the whole classifier on a one-layer stem, as the released files name it."""

import torch
from torch import nn
from torch.nn.functional import leaky_relu

from mmext.heads.add_gcn import MultiLabelADDGCNHead
from official_layers import Case

K, WIDTH, D = 4, 6, 8


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.static_adj = nn.Sequential(nn.Conv1d(K, K, 1, bias=False), nn.LeakyReLU(0.2))
        self.static_weight = nn.Sequential(nn.Conv1d(D, D, 1), nn.LeakyReLU(0.2))
        self.conv_global, self.bn_global = nn.Conv1d(D, D, 1), nn.BatchNorm1d(D)
        self.conv_create_co_mat, self.dynamic_weight = nn.Conv1d(2 * D, K, 1), nn.Conv1d(D, D, 1)

    def forward(self, v):
        v = v + self.static_weight(self.static_adj(v.mT).mT)
        whole = leaky_relu(self.bn_global(self.conv_global(v.mean(2, keepdim=True))), 0.2)
        graph = self.conv_create_co_mat(torch.cat([whole.repeat(1, 1, K), v], 1)).sigmoid()
        return leaky_relu(self.dynamic_weight(leaky_relu(torch.bmm(v, graph), 0.2)), 0.2)


class Classifier(nn.Module):
    """All K x K scores are computed, and all but the diagonal are masked."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH))
        self.fc, self.conv_transform = nn.Conv2d(WIDTH, K, 1, bias=False), nn.Conv2d(WIDTH, D, 1)
        self.gcn, self.last_linear = Graph(), nn.Conv1d(D, K, 1)
        self.mask_mat = nn.Parameter(torch.eye(K))

    def forward(self, x):
        x = self.features(x)
        maps = self.fc(x).flatten(2)
        v = torch.einsum('ndp,nkp->ndk', self.conv_transform(x).flatten(2), maps.sigmoid())
        second = (self.last_linear(self.gcn(v) + v) * self.mask_mat).sum(-1)
        return (maps.max(2)[0] + second) / 2


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(dict(conv1=nn.Conv2d(3, WIDTH, 3, padding=1), bn1=nn.BatchNorm2d(WIDTH)))
        self.head = MultiLabelADDGCNHead(K, WIDTH, D)

    def forward(self, x):
        return self.head([self.backbone.bn1(self.backbone.conv1(x))])


CASES = {'classifier': Case(Classifier, Ours, 3)}
