"""RelationNet++: a dense head with the bridge, whose picture of all ways is made and sampled."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import init_default_scope
from torch import nn

from mmext.heads.bvr import bvr_head
from official_layers import Case

WIDTH, HEADS, CLASSES, STRIDES, AREA = 8, 2, 3, (8, 16), (20, 14)
CORNERS = ('top_left_corner', 'bottom_right_corner')
KINDS = (*CORNERS, 'center')
ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=list(STRIDES))


def levels(x):
    return [x, x[..., ::2, ::2]]


def flat(outs):
    return torch.cat([y.flatten(1) for kind in outs for y in kind], 1)


def convs(number, outs=None):
    last = [] if outs is None else [nn.Conv2d(WIDTH, outs, 3, padding=1)]
    return nn.ModuleList([*(ConvModule(WIDTH, WIDTH, 3, padding=1) for _ in range(number)), *last])


def through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


class _Points(nn.Module):
    def __init__(self):
        super().__init__()
        self.keypoint_layers = nn.ModuleDict({kind: convs(2) for kind in KINDS})
        self.keypoint_cls_heads = nn.ModuleDict({kind: convs(1, CLASSES) for kind in KINDS})
        self.keypoint_offset_heads = nn.ModuleDict({kind: convs(1, 2) for kind in KINDS})

    def find(self, kind, x, stride):
        """Return scores, places and pixels of the 20 best."""
        inner = through(self.keypoint_layers[kind], x)
        heat = through(self.keypoint_cls_heads[kind], inner).sigmoid()
        offset = through(self.keypoint_offset_heads[kind], inner).flatten(2)
        peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, 0).flatten(2)
        most = min(20, peaks.shape[2])
        best, where = peaks.topk(most)
        best, order = best.flatten(1).topk(most)
        where = where.flatten(1).gather(1, order)
        center = torch.stack([where % x.shape[3], where // x.shape[3]], -1) * stride + stride // 2
        return best, center + offset.gather(2, where[:, None].expand(-1, 2, -1)).transpose(1, 2) * stride, where


class _Ways(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding_transform = nn.Sequential(ConvModule(WIDTH, HEADS, 1, act_cfg=None))
        y, x = torch.meshgrid(*(torch.arange(-(n // 2), n // 2 + 1) for n in AREA[::-1]), indexing='ij')
        period = 1000 ** (torch.arange(WIDTH // 4) * 4 / WIDTH)
        angles = torch.stack([x, y], -1)[..., None] / period
        self.register_buffer('base_embedding', torch.cat([angles.sin(), angles.cos()], -1).flatten(2)[None])

    def forward(self, ways):
        picture = self.embedding_transform(self.base_embedding.permute(0, 3, 1, 2))
        place = ways / ways.new_tensor(AREA) * 2
        picture = picture.expand(len(ways), -1, -1, -1)
        return F.grid_sample(picture, place, padding_mode='border', align_corners=False).clamp(min=1e-6).log()


class _Transformer(nn.Module):
    def __init__(self, kinds):
        super().__init__()
        self.decoder = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in kinds)
        self.relative_positional_encoding = _Ways()

    def forward(self, x, stride, keys, places):
        rows, columns = (torch.arange(n) * stride + stride // 2 for n in x.shape[2:])
        own = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), -1).reshape(1, -1, 1, 2)
        query = x.flatten(2).transpose(1, 2)
        total = query
        for attention, key, place in zip(self.decoder, keys, places, strict=True):
            bias = self.relative_positional_encoding((place[:, None] - own) / STRIDES[0])
            total = total + attention(query, key, key, attn_mask=bias.flatten(0, 1))[0]
        return total.relu().transpose(1, 2).reshape(x.shape)


class _Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_convs, self.reg_convs = convs(1), convs(1)
        self.retina_cls, self.retina_reg = nn.Conv2d(WIDTH, CLASSES, 3, padding=1), nn.Conv2d(WIDTH, 4, 3, padding=1)


class BVROfficial(nn.Module):
    def __init__(self):
        super().__init__()
        self.bbox_head, self.keypoint_head = _Host(), _Points()
        self.cls_transformer, self.reg_transformer = _Transformer(['center']), _Transformer(CORNERS)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)

    def related(self, maps, inputs, kinds, transformer):
        keys, places = [], []
        for kind in kinds:
            found = [self.keypoint_head.find(kind, x, s) for x, s in zip(inputs, STRIDES, strict=True)]
            scores = torch.cat([f[0] for f in found], 1)
            best = scores.topk(min(50, scores.shape[1])).indices[..., None]
            features = [x.flatten(2).transpose(1, 2) for x in maps]
            features = [
                y.gather(1, f[2][..., None].expand(-1, -1, WIDTH)) for y, f in zip(features, found, strict=True)
            ]
            keys.append(torch.cat(features, 1).gather(1, best.expand(-1, -1, WIDTH)))
            places.append(torch.cat([f[1] for f in found], 1).gather(1, best.expand(-1, -1, 2)))
        return [transformer(x, s, keys, places) for x, s in zip(maps, STRIDES, strict=True)]

    def forward(self, x):
        inputs = levels(x)
        cls = [through(self.bbox_head.cls_convs, y) for y in inputs]
        reg = [through(self.bbox_head.reg_convs, y) for y in inputs]
        cls = self.related(cls, inputs, ['center'], self.cls_transformer)
        reg = self.related(reg, inputs, CORNERS, self.reg_transformer)
        return flat([[self.bbox_head.retina_cls(y) for y in cls], [self.bbox_head.retina_reg(y) for y in reg]])


def head():
    init_default_scope('mmdet')
    sizes = dict(num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1)
    net = bvr_head('mmdet.RetinaHead', num_heads=HEADS, base_size=AREA, anchor_generator=ANCHORS, **sizes)
    net.register_forward_pre_hook(lambda _, args: (levels(args[0]),))
    net.register_forward_hook(lambda _, args, outs: flat(outs))
    return net


CASES = {'around RetinaHead': Case(BVROfficial, head, WIDTH, input_shape=(2, WIDTH, 13, 10), tolerance=1e-9)}
