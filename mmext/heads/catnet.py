"""CATNet's RoI extractor: every box is pooled from all levels, and gates choose what of each is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Positive, some
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['HierarchicalRoIExtractor']


@MODELS.register_module()
class HierarchicalRoIExtractor(BaseModule):
    r"""Pool each box from all levels, and add them one after the other, each through a gate that knows the sum so far.

    Liu, Li, Hu, et al., *Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images*,
    TNNLS 2024, arXiv 2111.11057.

    ::

        box ─┬─ level 0 ── f_0 ── x gate(0, f_0) ──── r_0
             ├─ level 1 ── f_1 ── x gate(r_0, f_1) ── + r_0 ── r_1
             ├─ level 2 ── f_2 ── x gate(r_1, f_2) ── + r_1 ── r_2
             └─ ...                                              └── pooled box
        gate(r, f) = sigmoid(1x1 [r, f]), one for each level

    ``'bottom_up'`` begins at the finest level, as here, ``'top_down'`` at the coarsest. No box is assigned to a level. It
    stands in the place of mmdet's ``SingleRoIExtractor``, whose other arguments hold::

        roi_head=dict(bbox_roi_extractor=dict(type='mmext.HierarchicalRoIExtractor', direction='bottom_up'))

    The names of the tensors are the authors'. Boxes keep their precision where maps are half as exact, see ``half_rois``. An
    image without a box gives every parameter a gradient of zero, as training on several processes needs it.

    Args:
        direction: ``'bottom_up'``, the authors' choice for boxes, or ``'top_down'``, that for masks.
        roi_layer: A RoI layer of mmcv.ops.
        out_channels: Channels of the maps, and of the result.
        featmap_strides: Stride of each level.
        half_rois: Whether the boxes are rounded to the type of the maps, as the authors and mmdet do. In bfloat16 a box at
            1000 pixels then moves by up to four.
        conv_cfg: Type of the 1x1 convolutions.
        init_cfg: As in mmengine.

    Shape:
        Maps (N, C, H_i, W_i) and boxes (K, 5), each an image's number and x1, y1, x2, y2, to (K, C, *output_size).

    Raises:
        ImportError: If mmdet is not installed.
        ValueError: If another number of maps comes in than ``featmap_strides`` names.

    Example:
        >>> layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
        >>> extractor = HierarchicalRoIExtractor('bottom_up', layer, out_channels=8, featmap_strides=[4, 8])
        >>> extractor([torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)], torch.tensor([[0.0, 0, 0, 20, 20]])).shape
        torch.Size([1, 8, 7, 7])
    """

    example = dict(
        direction='bottom_up',
        roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=0),
        out_channels=8,
        featmap_strides=(4, 8),
    )

    def __init__(
        self,
        direction: Literal['bottom_up', 'top_down'],
        roi_layer: Cfg,
        out_channels: Count,
        featmap_strides: Annotated[Sequence[Positive], some],
        half_rois: bool = False,
        conv_cfg: Cfg | None = None,
        init_cfg: dict | list[dict] | None = dict(type='Caffe2Xavier', layer='Conv2d'),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg)
        self.direction, self.half_rois = direction, half_rois
        self.out_channels, self.featmap_strides = out_channels, list(featmap_strides)
        # The host's own extractor makes the RoI layers and enlarges boxes.
        pooling = dict(roi_layer=roi_layer, out_channels=out_channels, featmap_strides=self.featmap_strides)
        self.pooling: Any = build_from_host(dict(pooling, type='mmdet.SingleRoIExtractor'), 'HierarchicalRoIExtractor')
        self.atts = nn.ModuleList(
            ConvModule(2 * out_channels, out_channels, 1, conv_cfg=conv_cfg, act_cfg=None) for _ in featmap_strides
        )

    @property
    def num_inputs(self) -> int:
        """Number of levels."""
        return len(self.featmap_strides)

    @property
    def roi_layers(self) -> nn.ModuleList:
        """The RoI layer of each level."""
        return self.pooling.roi_layers

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pool ``rois`` from all of ``feats``; with a factor the boxes are enlarged first."""
        if len(feats) != self.num_inputs:
            raise ValueError(
                f'HierarchicalRoIExtractor has featmap_strides for {self.num_inputs} levels, got {len(feats)} maps; name the '
                'stride of each'
            )
        if roi_scale_factor is not None:
            rois = self.pooling.roi_rescale(rois, roi_scale_factor)
        size: Any = self.roi_layers[0].output_size
        pooled = feats[0].new_zeros(len(rois), self.out_channels, *size)
        levels = range(self.num_inputs)
        for i in levels if self.direction == 'bottom_up' else reversed(levels):
            here = self._crop(i, feats[i], rois)
            pooled = pooled + here * self.atts[i](torch.cat([pooled, here], 1)).sigmoid()
        return pooled

    def _crop(self, level: int, feat: Tensor, rois: Tensor) -> Tensor:
        layer = self.roi_layers[level]
        if self.half_rois:
            return layer(feat, rois.type_as(feat))
        wide = torch.promote_types(feat.dtype, torch.float32)
        with torch.autocast(feat.device.type, enabled=False):
            return layer(feat.to(wide), rois.to(wide)).to(feat.dtype)
