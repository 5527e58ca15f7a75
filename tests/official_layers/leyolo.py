"""LeYOLO, the detector as its file names it: a list of layers, of which some are joined before."""

import torch
from torch import nn

from mmext.backbones.leyolo import LeYOLO
from mmext.heads.leyolo import leyolo_dnin_head
from mmext.necks.leyolo import LeYOLOFPAN
from official_layers import Case

#: Channels of the stages, and hidden widths of the neck.
WIDTHS, HIDDEN, CLASSES, BINS = (4, 6, 8, 10), (8, 10, 12), 3, 16
BACKBONE = dict(
    arch=dict(depths=(1, 2, 2, 2), channels=WIDTHS, hidden=(4, 8, 8, 12), first_hidden=(4, 8, 8, 12)),
    norm_cfg=dict(type='BN', eps=1e-3),
)


class _Conv(nn.Module):
    def __init__(self, before, after, size=1, stride=1, groups=1, name='c'):
        super().__init__()
        self.add_module(name, nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=name == 'c'))
        self.bn = nn.BatchNorm2d(after, eps=1e-3)
        self.name = name

    def forward(self, x):
        y = self.bn(self.get_submodule(self.name)(x))
        return y * torch.sigmoid(y)


class _Block(nn.Module):
    def __init__(self, before, after, size, hidden, stride=1, widen=True):
        super().__init__()
        first = [_Conv(before, hidden)] if widen else []
        spatial = _Conv(hidden, hidden, size, stride, hidden)
        self.layers = nn.Sequential(*first, spatial, nn.Conv2d(hidden, after, 1), nn.BatchNorm2d(after, eps=1e-3))
        self.adds = before == after and stride == 1

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


class _Pooling(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cv1, self.cv2 = _Conv(width, width // 2, name='conv'), _Conv(2 * width, width, name='conv')

    def forward(self, x):
        pool = lambda y: nn.functional.max_pool2d(y, 5, 1, 2)  # noqa: E731
        a = self.cv1(x)
        return self.cv2(torch.cat([a, pool(a), pool(pool(a)), pool(pool(pool(a)))], 1))


class _Detect(nn.Module):
    def __init__(self, widths):
        super().__init__()
        first = widths[0]
        for name, width, outs in (
            ('cv2', max(16, first // 4, 4 * BINS), 4 * BINS),
            ('cv3', max(first, CLASSES), CLASSES),
        ):
            branches = [
                nn.Sequential(
                    _Conv(w, width, name='conv'),
                    *(_Conv(width, width, 3, 1, width, 'conv') for _ in range(2)),
                    nn.Conv2d(width, outs, 1),
                )
                for w in widths
            ]
            self.add_module(name, nn.ModuleList(branches))
        self.dfl = nn.Module()
        self.dfl.conv = nn.Conv2d(BINS, 1, 1, bias=False)

    def forward(self, maps):
        return [torch.cat([a(x), b(x)], 1) for a, b, x in zip(self.cv2, self.cv3, maps, strict=True)]


def layers(deep):
    """Return the layers with what they read: -1 the one before, a list of them joined."""
    a, b, c, d = WIDTHS
    (p3, p4, p5), (e3, e4, e5) = (b, c, d), HIDDEN
    rows = [
        (_Conv(3, a, 3, 2), -1),
        (_Conv(a, a), -1),
        (_Block(a, a, 3, a, 2, widen=False), -1),
        (_Block(a, b, 3, 8, 2), -1),
        (_Block(b, b, 3, 8), -1),
        (_Block(b, c, 5, 8, 2), -1),
        (_Block(c, c, 5, 8), -1),
        (_Block(c, d, 5, 12, 2), -1),
        (_Block(d, d, 5, 12), -1),
        (_Pooling(d), -1),
    ]

    def node(joined, *blocks):
        rows.append((None, joined))
        rows.extend((block, -1) for block in blocks)
        return len(rows) - 1

    up = nn.Upsample(scale_factor=2)
    rows.append((up, -1))
    more = 1 if deep else 0
    n4 = node([-1, 6], _Block(p4 + p5, p4, 5, e4), *(_Block(p4, p4, 5, e4) for _ in range(2 + more)))
    rows.append((up, -1))
    blocks = [_Block(p4 + p3, p3, 3, p4 + p3, widen=False), _Block(p3, p3, 3, e3), _Block(p3, p3, 3, e3)]
    o3 = node([-1, 4], *blocks, *([_Block(p3, p4, 5, e4)] if deep else [])) - 2 * more
    rows.append((_Conv(p4 if deep else p3, p4, 3, 2), -1))
    o4 = node([-1, n4], _Block(2 * p4, p4, 5, e4), *(_Block(p4, p4, 5, e4) for _ in range(2 + more))) - 3 * more
    rows.append((_Conv(p4, p5, 3, 2), -1))
    blocks = [_Block(2 * p5, p5, 5, e5), _Block(p5, p5, 5, e5), _Block(p5, p5, 5, e5)]
    o5 = node([-1, 9], *blocks, *([_Block(p5, p4, 5, e4)] if deep else [])) - 4 * more
    rows.append((_Detect((p3, p4, 2 * p5 if deep else p5)), [o3, o4, o5]))
    return rows


class LeYOLOOfficial(nn.Module):
    def __init__(self, deep=False, until=None):
        super().__init__()
        rows = layers(deep)
        self.model = nn.ModuleList(nn.Identity() if layer is None else layer for layer, _ in rows)
        self.reads = [read for _, read in rows]
        self.until = until

    def forward(self, x):
        seen = [x]
        for layer, read in zip(self.model, self.reads, strict=True):
            found = [seen[-1 if i == -1 else i + 1] for i in (read if isinstance(read, list) else [read])]
            if isinstance(layer, _Detect):
                return torch.cat([y.flatten(1) for y in layer(found)], 1)
            seen.append(layer(torch.cat(found, 1)))
            if self.until == len(seen) - 2:
                return seen[-1]
        raise AssertionError


def detector(deep):
    def make():
        norm_cfg = dict(type='BN', eps=1e-3)
        neck = LeYOLOFPAN(WIDTHS[1:], hidden_channels=HIDDEN, deep=deep, official_taps=deep, norm_cfg=norm_cfg)
        head = leyolo_dnin_head(CLASSES, neck.out_channels, norm_cfg=norm_cfg)
        whole = nn.Sequential()
        for name, part in (('backbone', LeYOLO(**BACKBONE)), ('neck', neck), ('bbox_head', head)):
            whole.add_module(name, part)
        head.forward = head.branches
        whole.register_forward_hook(
            lambda _, args, outs: torch.cat([torch.cat(p, 1).flatten(1) for p in zip(*outs[::-1], strict=True)], 1)
        )
        return whole

    return make


def backbone():
    net = LeYOLO(**BACKBONE)
    net.register_forward_hook(lambda _, args, outs: outs[-1])
    return net


DETECTOR = dict(options={'part': 'detector'}, input_shape=(2, 3, 64, 96))
CASES = {
    'backbone': Case(lambda: LeYOLOOfficial(until=9), backbone, 3, input_shape=(2, 3, 64, 96)),
    'detector': Case(LeYOLOOfficial, detector(False), 3, **DETECTOR),
    'medium': Case(lambda: LeYOLOOfficial(deep=True), detector(True), 3, **DETECTOR),
}
