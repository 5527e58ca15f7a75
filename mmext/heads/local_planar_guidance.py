"""BTS: a decoder of depth maps, each of whose cells at coarse scales speaks for a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Law, NonNegative, Positive, Share, at_least, some
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['LocalPlanarGuidanceHead', 'ScaleInvariantLogLoss', 'depth_of_planes', 'planes_of_scores']


def planes_of_scores(scores: Tensor, max_depth: float) -> Tensor:
    r"""Turn three numbers per cell into a plane: its unit normal and its distance.

    With :math:`\theta = \sigma(s_0)\,\pi/3` and :math:`\varphi = 2 \pi\, \sigma(s_1)`, the normal is
    :math:`(\sin\theta \cos\varphi, \sin\theta \sin\varphi, \cos\theta)`. The distance is :math:`\sigma(s_2)\,d_{\max}`.

    Shape:
        (N, 3, H, W) to (N, 4, H, W).
    """
    theta, phi, distance = scores.sigmoid().unbind(1)
    theta, phi = theta * math.pi / 3, phi * 2 * math.pi
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos(), distance * max_depth], 1)


def depth_of_planes(planes: Tensor, ratio: int, least: float = 1e-3) -> Tensor:
    r"""Return the depth that the plane of each cell has at ``ratio`` x ``ratio`` places in it.

    .. math:: d(u, v) = \frac{n_4}{n_1 u + n_2 v + n_3}, \qquad u, v = \frac{i - (k - 1) / 2}{k},\ i = 0 \dots k - 1

    A plane that is nearly parallel to the line of sight has a denominator of at least ``least``.

    Shape:
        (N, 4, H, W) to (N, 1, H * ratio, W * ratio).
    """
    batch, _, height, width = planes.shape
    place = (torch.arange(ratio, dtype=planes.dtype, device=planes.device) - (ratio - 1) / 2) / ratio
    n1, n2, n3, n4 = planes[:, :, :, None, :, None].unbind(1)  # (N, H, 1, W, 1)
    depth = n4 / (n1 * place + n2 * place[:, None, None] + n3).clamp(min=least)
    return depth.reshape(batch, 1, height * ratio, width * ratio)


@MODELS.register_module()
class ScaleInvariantLogLoss(nn.Module):
    r"""The spread of the logarithms of depth, which a common factor changes little.

    Lee et al., *From Big to Small: Multi-Scale Local Planar Guidance for Monocular Depth Estimation*, arXiv 1907.10326.

    With :math:`g = \log \hat d - \log d` over all pixels of the batch with a depth,

    .. math:: L = \alpha \sqrt{\mathrm{mean}(g^2) - \lambda\, \mathrm{mean}(g)^2}

    Args:
        variance_focus: :math:`\lambda`; 1 forgives any common factor.
        loss_weight: :math:`\alpha`.
        min_depth: Pixels whose depth is not above it do not count. 0.1 is the authors' for NYU, 1 for KITTI.
        loss_name: The key of the loss; it begins with ``loss``.

    Shape:
        Two tensors of one shape to a scalar, 0 where no pixel counts.

    Example:
        >>> loss = ScaleInvariantLogLoss(variance_focus=1)
        >>> depth = 1 + torch.rand(2, 1, 4, 4)
        >>> bool(loss(3 * depth, depth) < 0.1)
        True
    """

    def __init__(
        self,
        variance_focus: Share = 0.85,
        loss_weight: NonNegative = 10.0,
        min_depth: NonNegative = 0.1,
        loss_name: str = 'loss_silog',
    ) -> None:
        super().__init__()
        self.variance_focus = variance_focus
        self.loss_weight = loss_weight
        self.min_depth = min_depth
        self.loss_name = loss_name

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        counts = target > self.min_depth
        if not counts.any():
            return 0 * pred.sum()
        g = pred[counts].float().clamp(min=1e-6).log() - target[counts].float().log()
        spread = g.square().mean() - self.variance_focus * g.mean().square()
        return self.loss_weight * spread.clamp(min=1e-12).sqrt()

    def extra_repr(self) -> str:
        return f'variance_focus={self.variance_focus}, min_depth={self.min_depth}'


class _Decoder(BaseModule):
    """What the parts of the decoder share."""

    def __init__(self, conv_cfg: dict | None, norm_cfg: dict) -> None:
        super().__init__()
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg

    def conv(self, before: int, after: int, side: int = 3, dilation: int = 1) -> nn.Module:
        padding = dilation * (side // 2)
        return build_conv_layer(self.conv_cfg, before, after, side, padding=padding, dilation=dilation, bias=False)

    def norm(self, width: int) -> nn.Module:
        return build_norm_layer(self.norm_cfg, width)[1]


class _Atrous(_Decoder):
    """Reduce, then look around with holes; every map before joins in."""

    def __init__(self, before: int, after: int, dilation: int, first_norm: bool, **cfgs: Any) -> None:
        super().__init__(**cfgs)
        self.first_norm = self.norm(before) if first_norm else nn.Identity()
        self.reduce, self.middle_norm = self.conv(before, 2 * after, 1), self.norm(2 * after)
        self.dilated = self.conv(2 * after, after, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.dilated(self.middle_norm(self.reduce(self.first_norm(x).relu())).relu())


class _Reduction(_Decoder):
    """1x1 convolutions that halve the width, and one to the wanted numbers."""

    def __init__(self, before: int, after: int, numbers: int, **cfgs: Any) -> None:
        super().__init__(**cfgs)
        steps: list[nn.Module] = []
        while after >= 8:
            steps += [self.conv(before, after, 1), nn.ELU()]
            before, after = after, after // 2
        self.steps = nn.Sequential(*steps)
        self.last = self.conv(before, numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.steps(x))


class _Up(_Decoder):
    """Enlarge to the size of the next finer map, convolve, and join what stands there."""

    def __init__(self, before: int, after: int, beside: int, joined: int | None = None, **cfgs: Any) -> None:
        super().__init__(**cfgs)
        self.up, self.up_norm = self.conv(before, after), self.norm(after)
        self.join = self.conv(after + beside, joined or after)

    def enlarged(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.up_norm(F.elu(self.up(F.interpolate(x, tuple(size), mode='nearest'))))

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        return F.elu(self.join(torch.cat([x, *beside], 1)))


@MODELS.register_module()
class LocalPlanarGuidanceHead(_Decoder):
    r"""BTS's decoder: at strides 8, 4 and 2 each cell predicts a plane, which guides the depth at full size.

    Lee et al., *From Big to Small: Multi-Scale Local Planar Guidance for Monocular Depth Estimation*, arXiv 1907.10326.

    ::

        stride 32 ── up ──┬── up ──┬── dense atrous ──┬── up ──┬─────────┬── up ──┬─────────┬── up ──┬── conv ── depth
                     stride 16  stride 8              │     stride 4     │     stride 2     │        │
                                                      └─ planes, x8 ─────┼─ planes, x4 ─────┼─ planes, x2 ── and one plain
                                                         (joins stride 4,│  joins stride 2, │  all join at full size)

    Give it to mmseg's ``DepthEstimator``. A plane is that of :func:`planes_of_scores`, its depth that of
    :func:`depth_of_planes`. Unlike the authors' decoder, it takes images of any size: planes that reach beyond are cut. It
    does without the map at stride 2, which many backbones do not return.

    Args:
        in_channels: Widths of the maps at strides 4, 8, 16 and 32, or 2, 4, 8, 16 and 32.
        channels: Width of the decoder's coarsest map, a multiple of 32; the others have fractions of it.
        max_depth: The largest depth, in the unit of the truth; 10 m is the authors' for NYU, 80 m for KITTI.
        dilations: Of the atrous convolutions.
        conv_cfg: Of all convolutions.
        norm_cfg: Of all norms.
        align_corners: How the prediction is resized to the truth.
        loss_decode: Config of the loss, or several.
        init_cfg: As in every OpenMMLab module.

    Shape:
        The maps to depth, (N, 1, 2 H, 2 W) for a first map at stride 2 of (H, W), (N, 1, 4 H, 4 W) for one at stride 4.

    Raises:
        ValueError: If ``in_channels`` are not four or five widths; in ``forward``, if number or width of the maps differ, or
            a map is not half as large as the one before, rounded up.

    Example:
        >>> head = LocalPlanarGuidanceHead(in_channels=(8, 8, 8, 8), channels=32)
        >>> head([torch.randn(2, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]).shape
        torch.Size([2, 1, 64, 96])
    """

    example = dict(in_channels=(8, 8, 8, 8), channels=32)
    num_classes = out_channels = 1
    threshold = None

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], Law('with four or five entries', lambda v: len(v) in (4, 5))],
        channels: Annotated[Count, at_least(32), Law('divisible by 32', lambda v: v % 32 == 0)] = 512,
        max_depth: Positive = 10.0,
        dilations: Sequence[Count] = (3, 6, 12, 18, 24),
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = {'type': 'BN', 'momentum': 0.01, 'eps': 1.1e-5},  # noqa: B006, it is never changed
        align_corners: bool = False,
        loss_decode: Cfg | Annotated[Sequence[Cfg], some] = {'type': 'mmext.ScaleInvariantLogLoss'},  # noqa: B006
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(conv_cfg, norm_cfg)
        self.init_cfg = init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform')
        self.in_channels, self.max_depth, self.align_corners = tuple(in_channels), max_depth, align_corners
        x2, x4, x8, x16, x32 = (0,) * (5 - len(self.in_channels)) + self.in_channels
        half, quarter, eighth, sixteenth = (channels // n for n in (2, 4, 8, 16))
        cfgs: dict[str, Any] = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.up16 = _Up(x32, channels, x16, **cfgs)
        self.up8, self.norm8 = _Up(channels, half, x8, **cfgs), self.norm(half)
        widths = [half] + [half + x8 + n * quarter for n in range(1, len(dilations))]
        self.atrous = nn.ModuleList(
            _Atrous(width, quarter, dilation, n > 0, **cfgs)
            for n, (width, dilation) in enumerate(zip(widths, dilations, strict=False))
        )
        self.atrous_join = self.conv(half + len(dilations) * quarter, quarter)
        self.planes8 = _Reduction(quarter, quarter, 3, **cfgs)
        self.up4, self.planes4 = _Up(quarter, quarter, x4 + 1, **cfgs), _Reduction(quarter, eighth, 3, **cfgs)
        self.up2 = _Up(quarter, eighth, x2 + 1, **cfgs)
        self.planes2 = _Reduction(eighth, sixteenth, 3, **cfgs)
        self.up1 = self.conv(eighth, sixteenth)
        self.plain = _Reduction(sixteenth, sixteenth // 2, 1, **cfgs)
        self.join1 = self.conv(sixteenth + 4, sixteenth)
        self.predict_depth = self.conv(sixteenth, 1)
        losses: Any = loss_decode if isinstance(loss_decode, (list, tuple)) else [loss_decode]
        self.loss_decode = nn.ModuleList(build_from_host(dict(loss), 'LocalPlanarGuidanceHead') for loss in losses)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the depth at full size."""
        *fine, x4, x8, x16, x32 = self._checked(inputs)
        size2 = fine[0].shape[2:] if fine else [2 * side for side in x4.shape[2:]]
        full = [2 * side for side in size2]
        x = x32.relu()
        x = self.up16(self.up16.enlarged(x, x16.shape[2:]), x16)
        x = self._atrous(self.up8.enlarged(x, x8.shape[2:]), x8)
        depth8 = self._guidance(self.planes8(x), 8, full)
        x = self.up4(self.up4.enlarged(x, x4.shape[2:]), x4, self._shrunk(depth8, x4.shape[2:]))
        depth4 = self._guidance(self.planes4(x), 4, full)
        x = self.up2(self.up2.enlarged(x, size2), *fine, self._shrunk(depth4, size2))
        depth2 = self._guidance(self.planes2(x), 2, full)
        x = F.elu(self.up1(F.interpolate(x, tuple(full), mode='nearest')))
        x = F.elu(self.join1(torch.cat([x, self.plain(x).sigmoid(), depth2, depth4, depth8], 1)))
        return self.max_depth * self.predict_depth(x).sigmoid()

    def _checked(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        sizes = [tuple(x.shape[2:]) for x in inputs]
        halves = all(tuple(-(-s // 2) for s in one) == other for one, other in pairwise(sizes))
        if tuple(x.shape[1] for x in inputs) != self.in_channels or not halves:
            raise ValueError(
                f'LocalPlanarGuidanceHead needs maps with in_channels={self.in_channels} channels, each half as large as the '
                f"one before, got shapes {[tuple(x.shape) for x in inputs]}; make in_channels and the backbone's "
                'out_indices agree'
            )
        return inputs

    def _atrous(self, up: Tensor, skip: Tensor) -> Tensor:
        x = self.norm8(self.up8(up, skip))
        seen, found = [up, skip], [x]
        for layer in self.atrous:
            found.append(layer(found[0] if len(found) == 1 else torch.cat(seen, 1)))
            seen.append(found[-1])
        return F.elu(self.atrous_join(torch.cat(found, 1)))

    def _guidance(self, scores: Tensor, ratio: int, full: Sequence[int]) -> Tensor:
        """Return the depth of the planes as a share of the largest."""
        depth = depth_of_planes(planes_of_scores(scores, self.max_depth), ratio)
        return depth[:, :, : full[0], : full[1]] / self.max_depth

    @staticmethod
    def _shrunk(depth: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(depth, tuple(size), mode='nearest')

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: Any = None) -> dict[str, Tensor]:
        """Return the losses of a batch, as mmseg's decode heads do."""
        truth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        depth = self._resized(self(inputs), truth.shape[2:])
        losses: dict[str, Tensor] = {}
        for criterion in self.loss_decode:
            name = str(criterion.loss_name)
            losses[name] = losses.get(name, 0) + criterion(depth, truth)
        return losses

    def predict(self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: Any = None) -> Tensor:
        """Return the depth at the size of the network's input, as mmseg's decode heads do."""
        meta = batch_img_metas[0]
        windows = isinstance(meta['img_shape'], torch.Size)  # set by inference in sliding windows
        size = meta['img_shape'] if windows or 'pad_shape' not in meta else meta['pad_shape']
        return self._resized(self(inputs), size[:2])

    def _resized(self, depth: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(depth, tuple(size), mode='bilinear', align_corners=self.align_corners)
