"""MONet, the network, channels last; its shift reads from a copy."""

import torch
from torch import nn

from mmext.backbones.monet import MONet
from official_layers import Case, last_map, parameter

WIDTHS = (8, 24)


def shift(x):
    rows, columns, width = x.shape[1:]
    row, column, y = torch.arange(rows), torch.arange(columns), x.clone()
    a, b, c = width // 4, width // 2, 3 * width // 4
    y[..., :a] = x[:, (row - 1).clamp(0), :, :a]
    y[..., a:b] = x[:, (row + 1).clamp(max=rows - 1), :, a:b]
    y[..., b:c] = x[:, :, (column - 1).clamp(0), b:c]
    y[..., c:] = x[:, :, (column + 1).clamp(max=columns - 1), c:]
    return y


class _Product(nn.Module):
    def __init__(self, width, hidden, moves):
        super().__init__()
        self.norm1, self.norm3 = (nn.LayerNorm(hidden, eps=1e-6) for _ in range(2))
        self.U1, self.U2 = nn.Linear(width, hidden), nn.Linear(width, hidden // 8)
        self.U3, self.C = nn.Linear(hidden // 8, hidden), nn.Linear(hidden, width)
        self.alpha = parameter(1)
        self.moves = moves

    def forward(self, x):
        a, b = self.U1(x), self.U2(x)
        if self.moves:
            a, b = shift(a), shift(b)
        a, b = self.norm1(a), self.norm3(self.U3(b))
        return self.C(a * (1 + self.alpha * b))


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp1, self.mlp2 = _Product(width, width, True), _Product(width, 3 * width, False)

    def forward(self, x):
        x = x + self.mlp1(self.norm(x))
        return x + self.mlp2(self.norm(x))


class _Part(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class MONetOfficial(nn.Module):
    def __init__(self):
        super().__init__()
        a, b = WIDTHS
        self.fs, self.fs2 = nn.Conv2d(3, a, 2, 2), nn.Conv2d(a, a, 2, 2)
        stages = [nn.Sequential(*(nn.Sequential(_Block(width)) for _ in range(n))) for width, n in ((a, 2), (b, 1))]
        self.network = nn.Sequential(
            _Part(model=stages[0]), _Part(proj=nn.Conv2d(a, b, 3, 2, 1)), _Part(model=stages[1])
        )

    def forward(self, x):
        x = self.network[0].model(self.fs2(self.fs(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.network[2].model(self.network[1].proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


ARCH = dict(depths=(2, 1), channels=WIDTHS)
CASES = {'network': Case(MONetOfficial, last_map(MONet, arch=ARCH), 3, input_shape=(2, 3, 58, 41))}
