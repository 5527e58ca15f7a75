"""SpaRTAN: two receptive fields mix positions, and products with one gathered channel mix channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, Repeats
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.build import with_num_channels
from mmext.blocks.squeeze_excite import SqueezeExcite
from mmext.numerics import at_least_float32, full_precision
from mmext.registry import MODELS

__all__ = ['SpaRTAN']

BATCH, GROUP = dict(type='BN', eps=1e-6), dict(type='GN', num_groups=1, eps=1e-6)


class _Layers:
    """What the parts of a network are built with."""

    def __init__(self, conv_cfg: dict | None, norm_cfg: dict | None, act_cfg: dict | None) -> None:
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg

    def act(self, channels: int, default: str = 'GELU') -> nn.Module:
        return build_activation_layer(with_num_channels(self.act_cfg or dict(type=default), channels))

    def norm(self, channels: int, default: dict) -> nn.Module:
        return build_norm_layer(self.norm_cfg or default, channels)[1]

    def conv(self, before: int, after: int, size: int = 3, stride: int = 1, **geometry: Any) -> nn.Module:
        cfg = self.conv_cfg if size > 2 else None
        return build_conv_layer(cfg, before, after, size, stride, bias=False, **geometry)

    def normed(
        self, before: int, after: int, size: int = 3, stride: int = 1, act: str = 'GELU', **geometry: Any
    ) -> nn.Sequential:
        """Return a convolution with norm and activation."""
        conv = self.conv(before, after, size, stride, **geometry)
        return nn.Sequential(conv, self.norm(after, BATCH), self.act(after, act))


class _SpatialMixer(nn.Module):
    """Halve the channels, sharpen, convolve near and far, gate both, and fuse."""

    def __init__(self, channels: int, groups: int, layers: _Layers) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = nn.Conv2d(channels, half, 1)
        self.sharpness = nn.Parameter(torch.full((half,), 1e-5))
        self.near = layers.normed(half, half, padding=1, groups=groups)
        self.far = nn.Sequential(
            layers.conv(half, half, padding=2, dilation=2, groups=groups),
            *layers.normed(half, half, padding=2, dilation=2, groups=groups),
        )
        self.near_gate, self.far_gate = (SqueezeExcite(half, half // 4, dict(type='ReLU')) for _ in range(2))
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        x = x + self.sharpness.view(-1, 1, 1) * (x - x.mean((2, 3), keepdim=True))
        return self.fuse(torch.cat([self.near_gate(self.near(x)), self.far_gate(self.far(x))], 1))


class _ChannelMixer(nn.Module):
    """Products of two projections, plus that of the strongest channel; then waves, a convolution, a gate."""

    def __init__(self, channels: int, ratio: int, groups: int, layers: _Layers) -> None:
        super().__init__()
        hidden = channels * ratio
        self.phase = nn.Conv2d(channels, hidden, 1)
        self.act = layers.act(hidden)
        self.weight = nn.Conv2d(channels, hidden, 1)
        self.wave = nn.Parameter(torch.empty(hidden // 2, 2))
        self.local = layers.normed(hidden, hidden, padding=1, groups=groups)
        self.gate = SqueezeExcite(hidden, channels // 4, dict(type='ReLU'))
        self.project = nn.Conv2d(hidden, channels, 1)

    def turned(self, x: Tensor) -> Tensor:
        """Multiply pairs of channels, read as complex numbers, by a learned one each."""
        with full_precision(x):
            a, b = at_least_float32(x).unflatten(1, (-1, 2)).unbind(2)
            real, imaginary = at_least_float32(self.wave).view(-1, 2, 1, 1).unbind(1)
            y = torch.stack([a * real - b * imaginary, a * imaginary + b * real], 2).flatten(1, 2)
        return y.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        strongest = x.argmax(1, keepdim=True)
        y = self.weight(x) * self.act(self.phase(x))
        y = y + y.gather(1, strongest)
        return self.project(self.gate(self.local(self.turned(y))))


class _Block(nn.Module):
    """Mix positions, then channels; each mixer sees a norm of the map, is scaled and added."""

    def __init__(self, channels: int, token: nn.Module, channel: nn.Module, rate: float, layers: _Layers) -> None:
        super().__init__()
        self.mixers: Any = nn.ModuleList([token, channel])
        self.norms: Any = nn.ModuleList(layers.norm(channels, GROUP) for _ in range(2))
        self.scales = nn.ParameterList(torch.full((channels,), 1e-5) for _ in range(2))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        for mixer, norm, scale in zip(self.mixers, self.norms, self.scales, strict=True):
            x = x + self.drop_path(scale.view(-1, 1, 1) * mixer(norm(x)))
        return x


@MODELS.register_module()
class SpaRTAN(StagedBackbone):
    r"""SpaRTAN: a light network whose blocks see near and far, and whose channels turn like waves.

    *SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition*, IJCNN 2025, arXiv 2507.10999.

    The spatial mixer is 1 x 1 to C / 2, a learned step away from the mean, a 3 x 3 beside two dilated ones, a gate (squeeze
    and excitation) for each, and 1 x 1. With projections w and :math:`\theta` to r C and the strongest channel m of a pixel,
    the channel mixer computes

    .. math:: f = w \odot \theta + w_m\, \theta_m, \qquad (f_{2k} + i f_{2k+1}) \leftarrow c_k\, (f_{2k} + i f_{2k+1})

    and then a 3 x 3 with norm and activation, a gate, and 1 x 1. The convolutions of the first half of the stages are dense in
    the spatial mixer and depthwise in the channel mixer. In the second half they are depthwise, and in C groups.

    Args:
        arch: ``'3.8M'``, or ``dict(depths=, channels=, ratios=)``: per stage the number of blocks, their channels and r.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of both mixers; that of block i of n is i / n of it.
        out_norm: Norm of each returned map.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of all kernels of 3 x 3.
        norm_cfg: Norm; by default batch norm behind convolutions. Mixers begin with a group norm of one group, which sees the
            whole map: what a map is padded with changes it.
        act_cfg: Activation; by default GELU, and SiLU between stages.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). The stem rounds sizes up, the transitions round them down.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, or channels are no multiples of 8.

    Example:
        >>> net = SpaRTAN(dict(depths=(1, 1), channels=(8, 16), ratios=(2, 2)), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 8, 9, 9), (1, 16, 4, 4)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(depths=(1, 2, 1), channels=(8, 8, 16), ratios=(3, 2, 2)), out_indices=(0, 1, 2)
    )

    #: The one variant that is published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        '3.8M': dict(depths=(3, 3, 12, 2), channels=(32, 64, 128, 256), ratios=(4, 4, 2, 2))
    }

    def __init__(
        self,
        arch: str | Mapping = '3.8M',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        depths, layers = self.arch['depths'], _Layers(conv_cfg, norm_cfg, act_cfg)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width, ratio = self.channels[stage], self.arch['ratios'][stage]
            early = stage < len(depths) // 2
            token = _SpatialMixer(width, 1 if early else width // 2, layers)
            channel = _ChannelMixer(width, ratio, width * ratio if early else width, layers)
            return _Block(width, token, channel, rate, layers)

        width = self.channels[0]
        self.stem = nn.Sequential(
            layers.normed(in_channels, width // 2, stride=2, padding=1),
            layers.normed(width // 2, width, stride=2, padding=1),
        )
        last = drop_path_rate * (sum(depths) - 1) / sum(depths)
        self.build_stages(lambda a, b: layers.normed(a, b, 2, 2, 'SiLU'), block, last)
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(  # type: ignore[override]
        depths: Sequence[Few], channels: Sequence[Count], ratios: Sequence[Repeats]
    ) -> None:
        """State the laws of an architecture."""
        one_entry_per_stage(depths, channels=channels, ratios=ratios)
        if any(width % 8 for width in channels):
            raise ValueError(f'SpaRTAN needs channels that are multiples of 8, got {tuple(channels)}')

    @torch.no_grad()
    def draw(self) -> None:
        """Draw kernels from a normal distribution of variance 2 / (outputs * taps / groups), as the authors do."""
        for module in self.modules():
            if type(module) is nn.Conv2d:
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _ChannelMixer):
                nn.init.normal_(module.wave)
