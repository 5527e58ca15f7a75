"""X-MLP: nothing but fully connected layers, along the width, the height and the channels in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import ModuleList, Sequential
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Repeats, Sides
from mmext.backbones.base import Backbone
from mmext.blocks.build import with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.fusing import norm_affine
from mmext.registry import MODELS

__all__ = ['XMLP']

_CHANNELS, _ROWS, _COLUMNS = 1, 2, 3


class _AxisLinear(nn.Linear):
    """A fully connected layer along one axis of (N, C, H, W), shared by all places of the others."""

    def __init__(self, axis: int, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(self.axis, -1)).transpose(self.axis, -1)


class _Block(Recomputed):
    """Three residual branches, each behind a norm: along the rows' pixels, along the columns' pixels, over the channels."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        expansion: int,
        axis_expansion: int | None,
        drop_path_rate: float,
        with_cp: bool,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__(with_cp)

        def branch(axis: int, features: int, wider: int | None) -> nn.Sequential:
            layers: OrderedDict[str, nn.Module] = OrderedDict(norm=build_norm_layer(norm_cfg, channels)[1])
            if wider is None:
                layers['mix'] = _AxisLinear(axis, features, features)
            else:
                layers['expand'] = _AxisLinear(axis, features, wider * features)
                seen = wider * channels if axis == _CHANNELS else channels
                layers['act'] = build_activation_layer(with_num_channels(act_cfg, seen))
                layers['project'] = _AxisLinear(axis, wider * features, features)
            return nn.Sequential(layers)

        self.width = branch(_COLUMNS, size[1], axis_expansion)
        self.height = branch(_ROWS, size[0], axis_expansion)
        self.channel = branch(_CHANNELS, channels, expansion)
        self.drop_path = DropPath(drop_path_rate)

    def compute(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.width(x))
        x = x + self.drop_path(self.height(x))
        return x + self.drop_path(self.channel(x))


@MODELS.register_module()
class XMLP(Backbone):
    r"""X-MLP: fully connected layers along width, height and channels in turn, without patches and convolutions.

    Wang, Cai, Peng, *X-MLP: A Patch Embedding-Free MLP Architecture for Vision*, IJCNN 2023, arXiv 2307.00592.

    A block has three residual branches, with one matrix for all rows, one for all columns, and two for all pixels:

    .. math:: x \leftarrow x + N(x) W_w^T, \quad x \leftarrow x + W_h N(x), \quad x \leftarrow x + W_2 \sigma(W_1 N(x))

    The spatial branches are linear. So what a stage does to the pixels of one channel is one matrix, a Kronecker product, see
    :meth:`spatial_weights`. Between stages matrices of W x W/2 and H x H/2 halve the map and one over the channels widens it.

    That it is made of fully connected layers alone, takes no patches, mixes width, height and channels in turn, and that its
    spatial weights are restorable, is the paper's. All else is our reading, each choice an argument: no code was published,
    and widths, depths and results of the paper are not known to us.

    Args:
        arch: ``'T'``, ``'S'``, ``'B'`` (ours), or ``dict(depths=, channels=)`` with one number per stage.
        img_size: Height and width of the images, or one number. They are fixed: a matrix has one row for each pixel.
        stem_stride: By how much the stem shrinks the image, 4 for photographs, 1 for images of 32 pixels.
        in_channels: Channels of the image.
        expansion: Hidden width of the channel branch, in widths of the stage.
        axis_expansion: None for one matrix in each spatial branch. A number makes them two with an activation between, the
            hidden one that many times as long. Then there are no spatial weights to restore.
        out_indices: Stages whose maps are returned, each behind a norm of its own.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        zero_init_residual: Whether the last matrix of each branch starts at zero, and each block as the identity.
        drop_path_rate: Drop probability of the last block; it rises linearly from 0 at the first.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        norm_cfg: Norm everywhere.
        act_cfg: Activation of the channel branch.
        init_cfg: As in mmengine.

    Shape:
        (N, C, H, W) of ``img_size`` to a tuple of (N, C_i, H_i, W_i).

    Raises:
        ValueError: If the strides do not divide ``img_size``, an image has another size, or ``arch``, ``out_indices`` or
            ``frozen_stages`` contradict each other.

    Example:
        >>> net = XMLP(arch=dict(depths=(1, 1), channels=(8, 16)), img_size=(32, 48), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(2, 3, 32, 48))]
        [(2, 8, 8, 12), (2, 16, 4, 6)]
    """

    example = dict(arch=dict(depths=(1, 2, 1), channels=(8, 16, 24)), img_size=64, out_indices=(0, 1, 2))

    arch_zoo = {
        'T': dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
        'S': dict(depths=(2, 3, 9, 3), channels=(64, 128, 256, 512)),
        'B': dict(depths=(3, 4, 12, 3), channels=(96, 192, 384, 768)),
    }

    @staticmethod
    def arch_laws(depths: Sequence[Repeats], channels: Sequence[Count]) -> None:
        """State the laws of an architecture."""
        if not depths or len(depths) != len(channels):
            raise ValueError(f'XMLP needs one depth and one width per stage, got {depths=}, {channels=}')

    def __init__(
        self,
        arch: str | Mapping = 'T',
        img_size: Sides = 224,
        stem_stride: Repeats = 4,
        in_channels: Count = 3,
        expansion: Repeats = 2,
        axis_expansion: Repeats | None = None,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        zero_init_residual: bool = False,
        drop_path_rate: DropRate = 0.0,
        with_cp: bool = False,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        depths, channels = (self.architecture(arch)[key] for key in ('depths', 'channels'))
        super().__init__(out_indices, len(depths), frozen_stages, norm_eval, init_cfg)
        #: The only size of images, see :class:`mmext.contracts.TakesOneSize`.
        self.fixed_size: tuple[int, int] = (
            (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        )
        strides = [stem_stride, *[2] * (self.num_scales - 1)]
        whole = stem_stride * 2 ** (self.num_scales - 1)
        if any(side % whole for side in self.fixed_size):
            raise ValueError(
                f'XMLP needs an img_size that its strides divide, multiples of {whole} here, got {self.fixed_size}'
            )
        self.zero_init_residual = zero_init_residual
        rates = iter(self.drop_rates(drop_path_rate, sum(depths)))
        common: dict[str, Any] = dict(expansion=expansion, axis_expansion=axis_expansion, with_cp=with_cp)
        size, before = self.fixed_size, int(in_channels)
        self.stages = ModuleList()
        for stage in range(self.num_scales):
            shrink = _shrink(before, channels[stage], size, strides[stage], norm_cfg)
            size = (size[0] // strides[stage], size[1] // strides[stage])
            before = channels[stage]
            blocks = Sequential(
                *(
                    _Block(before, size, drop_path_rate=next(rates), norm_cfg=norm_cfg, act_cfg=act_cfg, **common)
                    for _ in range(depths[stage])
                )
            )
            if stage == 0:
                self.stem = shrink
                self.stages.append(Sequential(OrderedDict(blocks=blocks)))
            else:
                self.stages.append(Sequential(OrderedDict(shrink=shrink, blocks=blocks)))
        strides_out = [stem_stride * 2**i for i in self.out_indices]
        self.set_outputs([channels[i] for i in self.out_indices], strides_out, norm_cfg)
        self.finish()

    def draw(self) -> None:
        """Draw the matrices from a normal distribution of 0.02 that is cut at two; biases are zero."""
        for module in self.modules():
            if isinstance(module, _AxisLinear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if self.zero_init_residual and isinstance(module, _Block):
                for branch in (module.width, module.height, module.channel):
                    nn.init.zeros_(branch[-1].get_parameter('weight'))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, C, H, W), to the maps of ``out_indices``."""
        if tuple(x.shape[-2:]) != self.fixed_size:
            raise ValueError(
                f'XMLP was built for images of {self.fixed_size}, got {tuple(x.shape[-2:])}; resize them, or set img_size'
            )
        return super().forward(x)

    @torch.no_grad()
    def spatial_factors(self, stage: int, channel: int = 0) -> tuple[Tensor, Tensor]:
        r"""Return what the blocks of a stage do along the columns and along the rows of one channel in eval mode.

        .. math:: A_h = \prod_l (I + s_l W_{h,l}), \qquad A_w = \prod_l (I + s'_l W_{w,l})

        with s the scales of the channel's norms. Biases, shifts and the channel branches are left out.

        Args:
            stage: From 0 on.
            channel: From 0 on.

        Returns:
            The matrices, (H, H) and (W, W).

        Raises:
            ValueError: If there is no such stage or channel, the spatial branches are no single matrices, or a norm is no
                affine map in eval mode.
        """
        if not 0 <= stage < len(self.stages):
            raise ValueError(f'XMLP has the stages 0 to {len(self.stages) - 1}, got {stage=}')
        blocks = self.stages[stage].blocks
        if not isinstance(blocks[0].width[-1], _AxisLinear) or len(blocks[0].width) > 2:
            raise ValueError('spatial weights need linear spatial branches; build XMLP with axis_expansion=None')
        wide = blocks[0].channel[-1].out_features
        if not 0 <= channel < wide:
            raise ValueError(f'stage {stage} of XMLP has the channels 0 to {wide - 1}, got {channel=}')
        return (
            reduce(torch.matmul, [_mixer(block.height, channel) for block in reversed(blocks)]),
            reduce(torch.matmul, [_mixer(block.width, channel) for block in reversed(blocks)]),
        )

    def spatial_weights(self, stage: int, channel: int = 0) -> Tensor:
        r"""Return the weight between any two pixels of one channel, over all blocks of a stage, (H W, H W).

        .. math:: A = A_h \otimes A_w

        of :meth:`spatial_factors`, whose arguments it takes. Pixels are counted row by row, and row p of the matrix holds
        what output pixel p takes of each input pixel.
        """
        return torch.kron(*self.spatial_factors(stage, channel))


def _shrink(before: int, after: int, size: tuple[int, int], stride: int, norm_cfg: dict) -> nn.Sequential:
    """Return layers that shrink a map along both axes, then change its channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers['width'] = _AxisLinear(_COLUMNS, size[1], size[1] // stride)
        layers['height'] = _AxisLinear(_ROWS, size[0], size[0] // stride)
    layers['channel'] = _AxisLinear(_CHANNELS, before, after)
    layers['norm'] = build_norm_layer(norm_cfg, after)[1]
    return nn.Sequential(layers)


def _mixer(branch: Any, channel: int) -> Tensor:
    """Return the matrix I + s W of a branch with one linear layer behind a norm."""
    affine = norm_affine(branch.norm)
    if affine is None:
        raise ValueError(
            f'spatial weights need norms that are affine maps in eval mode, as BN is, got {type(branch.norm).__name__}'
        )
    weight = branch.mix.weight
    return torch.eye(len(weight), dtype=weight.dtype, device=weight.device) + affine[0][channel] * weight
