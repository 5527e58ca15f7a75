"""Networks that run in groups of blocks, so that something can happen between the groups.

The file is long because a plain vision transformer stands in it: those of the hosts have no windows, and one has a wrong norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Count, DropRate, Natural, NonNegative, Positive, Repeats, at_most
from mmext.blocks.recomputed import recomputed
from mmext.contracts import RunsInSteps
from mmext.numerics import at_least_float32, attend, full_precision

__all__ = ['Branch', 'NetworkBranch', 'ViTBranch', 'draw_layers']

Size = tuple[int, int]


class Branch(BaseModule):
    """A network that runs in steps on tokens, (N, L, C), of a grid; the steps are dealt into groups.

    A subclass has ``steps``, the modules, and sets ``step_widths`` and ``step_strides``, what is true after each.
    """

    step_widths: Sequence[int]
    step_strides: Sequence[int]

    def deal(self, groups: Sequence[int] | None, number: int, name: str, with_cp: bool) -> None:
        """Deal the steps into ``number`` groups: of the given sizes, or as equal as they can be within each scale.

        Raises:
            ValueError: If the sizes do not fit.
        """
        total = len(self.steps)
        if groups is None:
            scales = [len(list(same)) for _, same in itertools.groupby(self.step_strides)]
            groups = _dealt(scales if len(scales) <= number else [total], number)
        counts = isinstance(groups, Sequence) and all(isinstance(g, int) for g in groups)
        if not counts or len(groups) != number or min(groups) < 1 or sum(groups) > total:
            raise ValueError(
                f'PIIP needs groups of {name} as {number} sizes, each 1 or more, of {total} blocks in all, got '
                f'{groups}; lower interactions, or choose a deeper network'
            )
        ends = [sum(groups[: i + 1]) for i in range(number)]
        self.ranges = [range(end - size, end) for end, size in zip(ends, groups, strict=True)]
        self.widths = [self.step_widths[end - 1] for end in ends]
        self.strides = [self.step_strides[end - 1] for end in ends]
        self.with_cp = with_cp

    @property
    def steps(self) -> Sequence[nn.Module]:
        """The modules that run one after the other."""
        raise NotImplementedError

    def keep(self, groups: int) -> None:
        """Keep the first groups; what stands behind them loses its parameters."""
        self.ranges = self.ranges[:groups]

    def begin(self, x: Tensor) -> tuple[Tensor, Size]:
        """Return the tokens of an image before the first step, and the size of their grid."""
        raise NotImplementedError

    def advance(self, group: int, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        """Run a group of steps."""
        raise NotImplementedError


def _dealt(scales: Sequence[int], number: int) -> list[int]:
    """Deal the blocks of each scale into groups, so that the longest are short, and every scale ends with a group."""
    counts = [1] * len(scales)
    for _ in range(number - len(scales)):
        longest = max(range(len(scales)), key=lambda i: scales[i] / counts[i])
        counts[longest] += 1
    return [(i + 1) * n // c - i * n // c for n, c in zip(scales, counts, strict=True) for i in range(c)]


class ViTBranch(Branch):
    """A plain vision transformer with a learned scale behind each part of a block, and without a class token.

    Touvron et al., *DeiT III: Revenge of the ViT*, ECCV 2022, arXiv 2204.07118. Names are those of its released files. A code
    of positions with a class token, or of another grid, is taken as well.

    Args:
        in_channels: Channels of the image.
        depth: Blocks.
        embed_dims: Channels of a token.
        num_heads: Attention heads, a divisor of them.
        window_size: Side of the windows within which tokens attend; 0 for the whole grid. One for all blocks, or one for each.
        drop_path_rate: Drop probability of each part of each block.
        patch_size: Side of a patch.
        pretrain_size: Side of the images for which the code of positions is made.
        mlp_ratio: Channels inside of the feed-forward layer, relative to the tokens'.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale: Start of the learned scales.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        in_channels: Count = 3,
        depth: Repeats = 12,
        embed_dims: Count = 384,
        num_heads: Repeats = 6,
        window_size: Annotated[Natural, at_most(2**12)] | Sequence[Annotated[Natural, at_most(2**12)]] = 0,
        drop_path_rate: DropRate = 0.0,
        patch_size: Repeats = 16,
        pretrain_size: Repeats = 224,
        mlp_ratio: Annotated[Positive, at_most(64)] = 4,
        qkv_bias: bool = True,
        layer_scale: NonNegative = 1.0,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        windows = [window_size] * depth if isinstance(window_size, int) else list(window_size)
        if embed_dims % num_heads or len(windows) != depth:
            raise ValueError(
                f'a branch of PIIP needs num_heads that divide embed_dims, and one window_size for each of its {depth} blocks '
                f'or for all, got {embed_dims=}, {num_heads=}, {window_size=}'
            )
        self.patch_size, self.grid = patch_size, max(pretrain_size // patch_size, 1)
        self.layer_scale = layer_scale
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, embed_dims))
        self.blocks = ModuleList(
            _Block(embed_dims, num_heads, mlp_ratio, qkv_bias, window, drop_path_rate, layer_scale)
            for window in windows
        )
        self.step_widths, self.step_strides = [embed_dims] * depth, [patch_size] * depth

    @property
    def steps(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _fit_positions(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def keep(self, groups: int) -> None:
        super().keep(groups)
        self.blocks = self.blocks[: self.ranges[-1].stop]

    def draw(self) -> None:
        """Draw linear layers and positions from a truncated normal distribution of width 0.02."""
        draw_layers(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            nn.init.constant_(block.gamma_1, self.layer_scale)
            nn.init.constant_(block.gamma_2, self.layer_scale)

    def begin(self, x: Tensor) -> tuple[Tensor, Size]:
        side = self.patch_size
        proj: Any = self.patch_embed.proj
        x = proj(F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side)))
        size = (int(x.shape[2]), int(x.shape[3]))
        code = self.pos_embed.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        with full_precision(x):
            code = F.interpolate(at_least_float32(code), size, mode='bicubic', align_corners=False)
        return (x + code.to(x.dtype)).flatten(2).transpose(1, 2), size

    def advance(self, group: int, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        for i in self.ranges[group]:
            x = recomputed(self.blocks[i], x, size, with_cp=self.with_cp and x.requires_grad)
        return x, size


def _fit_positions(branch: ViTBranch, state: dict[str, Any], prefix: str) -> None:
    """Take what a released file holds, and bring its code of positions to the grid, without that of a class token."""
    if isinstance(inside := state.pop(f'{prefix}model', None), Mapping):
        state.update({f'{prefix}{name}': tensor for name, tensor in inside.items()})
    code = state.get(f'{prefix}pos_embed')
    own = branch.pos_embed
    if not isinstance(code, Tensor) or code.ndim != 3 or code.shape == own.shape or code.shape[2] != own.shape[2]:
        return
    side = math.isqrt(code.shape[1])
    code = code[:, code.shape[1] - side**2 :]
    maps = code.transpose(1, 2).unflatten(2, (side, side)).float()
    fitted = F.interpolate(maps, (branch.grid, branch.grid), mode='bicubic', align_corners=False)
    state[f'{prefix}pos_embed'] = fitted.flatten(2).transpose(1, 2).to(code.dtype)


class _Attention(nn.Module):
    """Self-attention in windows, which are padded with zeros where the grid ends, or in the whole grid."""

    def __init__(self, channels: int, num_heads: int, bias: bool, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv, self.proj = nn.Linear(channels, 3 * channels, bias=bias), nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        side, grid = self.window, size
        if side:
            x = F.pad(x.unflatten(1, size), (0, 0, 0, -size[1] % side, 0, -size[0] % side))
            grid = (int(x.shape[1]), int(x.shape[2]))
            # (N, rows, side, columns, side, C) to a batch of windows.
            x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        found = attend(q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)).transpose(-3, -2).flatten(-2)
        if side:
            rows, columns = grid[0] // side, grid[1] // side
            found = found.view(-1, rows, columns, side, side, found.shape[-1]).transpose(2, 3)
            found = found.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]].flatten(1, 2)
        return self.proj(found)


class _Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Attention and a feed-forward layer, each on the normed tokens, scaled, and added."""

    def __init__(
        self, channels: int, num_heads: int, ratio: float, bias: bool, window: int, rate: float, scale: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn = _Attention(channels, num_heads, bias, window)
        self.mlp = _Mlp(channels, max(int(channels * ratio), 1))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((channels,), float(scale))) for _ in range(2))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), size))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class NetworkBranch(Branch):
    """A backbone of the pack or of a host, run step by step.

    It must be one whose last map is that of a stem and blocks in series: one of the pack with ``steps``, or a ResNet, a
    ConvNeXt or a plain vision transformer of a host. What the series does not use loses its parameters: norms of outputs, a
    class token, and all that stands behind.

    Args:
        net: The backbone.

    Raises:
        ValueError: If it is another one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.series()

    def series(self) -> tuple[Callable[[Tensor], Any], Sequence[nn.Module]]:
        """Return what makes the first map of an image, and the blocks that follow."""
        net: Any = self.net
        if isinstance(net, RunsInSteps):
            first, *blocks = net.steps()
            return first, blocks
        if hasattr(net, 'res_layers'):
            return partial(_resnet_stem, net), [b for name in net.res_layers for b in getattr(net, name)]
        if hasattr(net, 'downsample_layers') and hasattr(net, 'stages'):
            first, *between = net.downsample_layers
            heads: list[list[nn.Module]] = [[], *([layer] for layer in between)]
            return first, [b for head, stage in zip(heads, net.stages, strict=True) for b in (*head, *stage)]
        if all(hasattr(net, name) for name in ('patch_embed', 'pos_embed', 'layers')):
            return partial(_patches, net), list(net.layers)
        raise ValueError(
            f'PIIP runs networks block by block, and cannot see the blocks of {type(net).__name__}; use a ResNet, a ConvNeXt '
            'or a plain vision transformer of a host, or a backbone of mmext that is a stem and stages'
        )

    @property
    def steps(self) -> Sequence[nn.Module]:
        return self.series()[1]

    @property
    def takes_tokens(self) -> bool:
        """Whether the blocks map tokens."""
        return hasattr(self.net, 'patch_embed')

    def deal(self, groups: Sequence[int] | None, number: int, name: str, with_cp: bool) -> None:
        self._try()
        super().deal(groups, number, name, with_cp)

    def keep(self, groups: int) -> None:
        super().keep(groups)
        used = self._try()
        for name, parameter in list(self.net.named_parameters()):
            if id(parameter) not in used:
                parent, _, own = name.rpartition('.')
                self.net.get_submodule(parent).register_parameter(own, None)

    def _try(self) -> set[int]:
        """Run all steps on a small image, note their widths and strides, and return which parameters were used."""
        net, side = self.net, 64
        was, needed = net.training, {name: p.requires_grad for name, p in net.named_parameters()}
        net.eval()
        net.requires_grad_(True)
        self.step_widths, self.step_strides = [], []
        last = self.ranges[-1].stop if hasattr(self, 'ranges') else None
        with torch.random.fork_rng([]), torch.enable_grad():
            enter, steps = self.series()
            x = enter(next(net.parameters()).new_zeros(1, 3, side, side))
            x, size = x if isinstance(x, tuple) else (x, None)
            for step in steps[:last]:
                x = step(x)
                rows = size[0] if size else x.shape[2]
                self.step_widths.append(int(x.shape[2 if size else 1]))
                self.step_strides.append(round(side / rows))
            parameters = list(net.parameters())
            found = torch.autograd.grad(x.sum(), parameters, allow_unused=True)
        net.train(was)
        for name, p in net.named_parameters():
            p.requires_grad_(needed[name])
        return {id(p) for p, grad in zip(parameters, found, strict=True) if grad is not None}

    def begin(self, x: Tensor) -> tuple[Tensor, Size]:
        found = self.series()[0](x)
        return found if isinstance(found, tuple) else _tokens(found)

    def advance(self, group: int, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        steps = self.steps
        if not self.takes_tokens:
            x = x.transpose(1, 2).unflatten(2, size)
        for i in self.ranges[group]:
            x = recomputed(steps[i], x, with_cp=self.with_cp)
        return (x, size) if self.takes_tokens else _tokens(x)


def _tokens(x: Tensor) -> tuple[Tensor, Size]:
    """Return the pixels of a map as tokens, and its size."""
    return x.flatten(2).transpose(1, 2), (int(x.shape[2]), int(x.shape[3]))


def _resnet_stem(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x) if net.deep_stem else net.relu(net.norm1(net.conv1(x)))
    return net.maxpool(x)


def _patches(net: Any, x: Tensor) -> tuple[Tensor, Size]:
    """Return the patches of a host's vision transformer with the code of their positions, without class tokens."""
    x, size = net.patch_embed(x)
    code = net.pos_embed
    side = math.isqrt(code.shape[1])
    code = code[:, code.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    x = x + F.interpolate(code, tuple(size), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    return getattr(net, 'pre_norm', nn.Identity())(x), (int(size[0]), int(size[1]))


def draw_layers(module: nn.Module) -> None:
    """Draw plain linear layers from a truncated normal distribution, convolutions by their fan-out; biases are zero."""
    layer: Any
    for layer in module.modules():
        if type(layer) is nn.Linear:
            nn.init.trunc_normal_(layer.weight, std=0.02)
        elif type(layer) in (nn.Conv2d, nn.ConvTranspose2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
