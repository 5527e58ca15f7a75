"""GLNet: a depthwise convolution at full resolution beside attention among a few slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Few, OddSize, Positive
from mmext.backbones.staged import StagedBackbone, one_entry_per_stage
from mmext.blocks.attention import MapAttention, SelfAttention
from mmext.blocks.build import with_num_channels
from mmext.numerics import adaptive_mean
from mmext.registry import MODELS

__all__ = ['GLNet']

LAYER = dict(type='mmext.LayerNorm2d', eps=1e-6)
SWIN_LIKE: dict[str, Any] = dict(
    depths=(2, 2, 6, 2),
    channels=(96, 192, 384, 768),
    mixers=('slots', 'slots', 'slots', 'attention'),
    ratio=4,
    overlapping=False,
    positions=False,
    local=False,
)


class _SlotMixer(nn.Module):
    """Gather pixels in slots, let the slots attend to each other, give them back, and add a depthwise branch."""

    def __init__(self, channels: int, heads: int, slots: int, learned: bool, attends: bool, local: nn.Module) -> None:
        super().__init__()
        self.side = isqrt(slots)
        self.slots = nn.Parameter(torch.empty(1, slots, channels)) if learned else None
        self.temperature = nn.Parameter(torch.tensor(channels**-0.5))
        self.attention = SelfAttention(channels, heads) if attends else nn.Identity()
        self.local = local

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Ask for no decay of the temperature, which is one number."""
        return dict(temperature=dict(decay_mult=0.0))

    def seeds(self, x: Tensor) -> Tensor:
        """Return what pixels are compared with, (N, S, C): means over regions of ``x``, or learned vectors."""
        if self.slots is not None:
            return self.slots
        return adaptive_mean(x, (self.side, self.side)).flatten(2).transpose(1, 2)

    def logits(self, tokens: Tensor, seeds: Tensor) -> Tensor:
        """Return the scaled cosines of slots and pixels, (N, S, L)."""
        keys = F.normalize(tokens, dim=-1).transpose(1, 2)
        return (F.normalize(seeds, dim=-1) * self.temperature) @ keys

    def shared(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Return the branch of the slots: they gather ``x``, attend, and are given back to the pixels."""
        tokens = x.flatten(2).transpose(1, 2)
        logits = self.logits(tokens, seeds)
        slots = self.attention(logits.softmax(2) @ tokens)
        return (logits.softmax(1).transpose(1, 2) @ slots).transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor, seeds: Tensor) -> Tensor:
        return self.shared(x, seeds) + self.local(x)


class _ChannelMixer(nn.Module):
    """1 x 1 to r C, a depthwise 3 x 3 added where there is one, activation, 1 x 1 back."""

    def __init__(self, channels: int, hidden: int, local: nn.Module | None, act_cfg: dict) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.local = local
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        if self.local is not None:
            y = y + self.local(y)
        return self.project(self.act(y))


class _Block(nn.Module):
    """Add a depthwise convolution, then mix positions, then channels; each mixer sees a norm of the map."""

    def __init__(
        self,
        channels: int,
        position: nn.Module | None,
        token: _SlotMixer | MapAttention,
        channel: nn.Module,
        scale: float | None,
        rate: float,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        self.position, self.token = position, token
        self.channel: Any = channel
        self.norms: Any = nn.ModuleList(build_norm_layer(norm_cfg, channels)[1] for _ in range(2))
        scales = () if scale is None else (torch.full((channels,), scale) for _ in range(2))
        self.scales = nn.ParameterList(scales)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        seeds = self.token.seeds(x) if isinstance(self.token, _SlotMixer) else None
        if self.position is not None:
            x = x + self.position(x)
        normed = self.norms[0](x)
        y = self.token(normed) if seeds is None else self.token(normed, seeds)
        x = x + self.drop_path(self._scaled(y, 0))
        return x + self.drop_path(self._scaled(self.channel(self.norms[1](x)), 1))

    def _scaled(self, y: Tensor, number: int) -> Tensor:
        return y * self.scales[number].view(-1, 1, 1) if len(self.scales) else y


@MODELS.register_module()
class GLNet(StagedBackbone):
    r"""GLNet: pixels are gathered softly in 64 slots that attend to each other, beside a depthwise convolution.

    Zhu et al., *Revisiting the Integration of Convolution and Attention for Vision Backbone*, NeurIPS 2024,
    arXiv 2411.14429.

    A block (GLMix) compares the pixels z with slots s, which are means over 8 x 8 regions:

    .. math::
        L = \tau \cos(s, z), \qquad u = \mathrm{MHA}(\mathrm{softmax}_z(L)\, z), \qquad y = \mathrm{softmax}_s(L)^T u + l(z)

    l is 1 x 1, depthwise 5 x 5, 1 x 1. Then comes an inverted bottleneck over the channels. In later stages some blocks
    attend over all pixels instead.

    ::

        map ─ 8 x 8 means ───────────── slots ─┐
          └─ + depthwise 3 x 3 ─ norm ─┬─ gather ─ attend ─ give back ─ + ─ scale ─ +
                                       └─ 1 x 1 ─ 5 x 5 ─ 1 x 1 ────────┘

    Args:
        arch: ``'STL'``, ``'STL-learned'``, ``'4G'``, ``'9G'``, ``'16G'``, or ``dict(depths=, channels=, mixers=, ratio=,
            head_channels=, overlapping=, positions=, local=, layer_scale=, slots=, learned=, slot_attention=, kernel_size=)``.
            Per stage: blocks, channels, and ``'slots'``, ``'attention'`` or ``'alternating'``, which starts with slots. Then r
            of the bottleneck and channels of a head. Whether stem and transitions overlap, blocks begin with a depthwise
            3 x 3, and bottlenecks have one. Then the start of learned scales, None for none, the number of slots, whether they
            are learned, whether they attend, and the size of the kernels beside them.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned, of strides 4, 8, 16, 32.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        drop_path_rate: Drop probability of both mixers of the last block; it rises linearly from 0 at the first.
        out_norm: Norm of each returned map. The authors' classifiers use ``dict(type='BN')``.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        conv_cfg: Conv layer of all kernels of 3 x 3 and of the depthwise convolutions.
        norm_cfg: Norm; by default batch norm in the stem and the transitions, and layer norm in the blocks.
        act_cfg: Activation.
        init_cfg: As in mmengine.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i). Strided convolutions round sizes up where they overlap, else down.
        A map may be smaller than 8 x 8: its regions overlap then.

    Raises:
        ValueError: If ``arch``, ``out_indices`` or ``frozen_stages`` contradict each other, heads do not divide the channels,
            or the regions make up no square.

    The temperature tau starts at C^(-1/2). So every slot is nearly the mean of all pixels at first, as released.

    Example:
        >>> net = GLNet(dict(depths=(1, 2), channels=(32, 64), mixers=('slots', 'alternating')), out_indices=(0, 1))
        >>> [tuple(x.shape) for x in net(torch.randn(1, 3, 33, 33))]
        [(1, 32, 9, 9), (1, 64, 5, 5)]
    """

    example: Mapping[str, Any] = dict(
        arch=dict(
            depths=(1, 2, 1),
            channels=(8, 8, 16),
            mixers=('slots', 'alternating', 'attention'),
            head_channels=4,
            slots=16,
            layer_scale=0.1,
        ),
        out_indices=(0, 1, 2),
    )

    #: As published.
    arch_zoo: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'STL': SWIN_LIKE,
        'STL-learned': {**SWIN_LIKE, 'learned': True},
        '4G': dict(depths=(4, 4, 18, 4), channels=(64, 128, 256, 512)),
        '9G': dict(depths=(4, 4, 18, 4), channels=(96, 192, 384, 768)),
        '16G': dict(depths=(4, 4, 18, 4), channels=(128, 256, 512, 1024), layer_scale=1e-4),
    }

    def __init__(
        self,
        arch: str | Mapping = '4G',
        in_channels: Count = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: DropRate = 0.0,
        out_norm: Cfg | None = None,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg = dict(type='GELU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(arch, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        kind, overlaps = self.arch, self.arch['overlapping']

        def norm(channels: int) -> nn.Module:
            return build_norm_layer(norm_cfg or dict(type='BN'), channels)[1]

        def halve(before: int, after: int) -> list[nn.Module]:
            return [build_conv_layer(conv_cfg, before, after, 3, 2, padding=1), norm(after)]

        def shrink(before: int, after: int) -> nn.Module:
            if overlaps:
                return nn.Sequential(*halve(before, after))
            return nn.Sequential(norm(before), nn.Conv2d(before, after, 2, 2))

        def depthwise(channels: int, size: int = 3) -> nn.Module:
            return build_conv_layer(conv_cfg, channels, channels, size, padding=size // 2, groups=channels)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            width = self.channels[stage]
            heads, mixer = width // kind['head_channels'], kind['mixers'][stage]
            if mixer == 'attention' or (mixer == 'alternating' and index % 2):
                token: Any = MapAttention(width, heads)
            else:
                local = nn.Sequential(
                    nn.Conv2d(width, width, 1), depthwise(width, kind['kernel_size']), nn.Conv2d(width, width, 1)
                )
                token = _SlotMixer(width, heads, kind['slots'], kind['learned'], kind['slot_attention'], local)
            hidden = max(int(width * kind['ratio']), 1)
            channel = _ChannelMixer(width, hidden, depthwise(hidden) if kind['local'] else None, act_cfg)
            position = depthwise(width) if kind['positions'] else None
            return _Block(width, position, token, channel, kind['layer_scale'], rate, norm_cfg or LAYER)

        width, half = self.channels[0], max(self.channels[0] // 2, 1)
        if overlaps:
            act = build_activation_layer(with_num_channels(act_cfg, half))
            self.stem = nn.Sequential(*halve(in_channels, half), act, *halve(half, width))
        else:
            self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 4, 4), norm(width))
        self.build_stages(shrink, block, drop_path_rate)
        self.set_staged_outputs(out_norm)
        self.finish()

    @staticmethod
    def arch_laws(
        depths: Sequence[Few],
        channels: Sequence[Count],
        mixers: Sequence[Literal['slots', 'attention', 'alternating']] = ('slots', 'slots', 'alternating', 'attention'),
        ratio: Positive = 3,
        head_channels: Count = 32,
        overlapping: bool = True,
        positions: bool = True,
        local: bool = True,
        layer_scale: Positive | None = None,
        slots: Count = 64,
        learned: bool = False,
        slot_attention: bool = True,
        kernel_size: OddSize = 5,
    ) -> None:
        """State the laws of an architecture and its defaults."""
        one_entry_per_stage(depths, channels=channels, mixers=mixers)
        if any(width % head_channels for width in channels):
            raise ValueError(
                f'GLNet needs heads that divide the channels, got {head_channels} channels a head for {tuple(channels)}'
            )
        if not learned and isqrt(slots) ** 2 != slots:
            raise ValueError(
                f'GLNet pools slots from a square of regions, got {slots=}; take a square, or learned=True'
            )

    @torch.no_grad()
    def draw(self) -> None:
        """Draw attention and learned slots as the authors do; convolutions start as torch's."""
        self.reset_kernels()
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.xavier_uniform_(module.qkv.weight)
                nn.init.trunc_normal_(module.project.weight, std=0.02)
                nn.init.zeros_(module.qkv.bias)
                nn.init.zeros_(module.project.bias)
            elif isinstance(module, _SlotMixer) and module.slots is not None:
                nn.init.normal_(module.slots, std=0.02)
            elif isinstance(module, _Block) and isinstance(module.token, MapAttention) and not self.arch['local']:
                # These two are linear layers of tokens in the released network.
                for layer in (module.channel.expand, module.channel.project):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
