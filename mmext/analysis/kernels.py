"""Which input pixels the output pixels of a layer are made of: kernels, static, generated and dynamic, as maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmext.contracts import AttendsTokens, EvolvesKernel, Folds
from mmext.drawing import new_figure
from mmext.errors import UsageError, reason
from mmext.export import TensorMode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['LayerKernels', 'draw_kernels', 'kernel_layers', 'kernel_maps', 'read_kernels']

#: Places in the image, (x, y) as shares of its sides.
Point = tuple[float, float]
DYNAMIC = (EvolvesKernel, AttendsTokens)


@dataclass
class LayerKernels:
    """What a layer does with an image at some of its pixels.

    Args:
        name: Of the layer in its model.
        kind: Of the layer: the name of its class.
        same: Whether every output pixel has the same kernel.
        maps: The weight of every pixel that the layer reads, (points, channels, H, W): in the input channel that counts most.
        pixels: The output pixels, (row, column), one for each point.
        channels: The output channels that were looked at.
        size: (Ho, Wo) of the output.
    """

    name: str
    kind: str
    same: bool
    maps: Tensor
    pixels: list[tuple[int, int]]
    channels: list[int]
    size: tuple[int, int]


def kernel_layers(model: nn.Module, match: str | None = None, most: int = 3) -> list[str]:
    """Return the names of layers whose kernels are worth a look.

    Args:
        model: The model.
        match: Those whose name this regular expression finds. By default the layers with generated or evolving kernels, or
            all convolutions of more than one tap where there are none; no layer inside of another.
        most: At most so many by default, spread evenly over the depth.

    Raises:
        UsageError: If there is none, or the expression is none.
    """
    convs = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, *DYNAMIC))}
    if match is not None:
        try:
            found = [name for name in convs if re.search(match, name)]
        except re.error as error:
            raise UsageError(f'{match!r} is no regular expression ({error})') from error
        if not found:
            some = ', '.join(list(convs)[:5])
            raise UsageError(f'no convolution is called like {match!r}; there are {len(convs)}, such as {some}')
        return found
    special = [name for name, m in convs.items() if isinstance(m, (*DYNAMIC, Folds))]
    wide = [n for n, m in convs.items() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    found = _outermost(special or wide)
    if not found:
        raise UsageError('the model has no convolution of more than one tap and no layer with an evolving kernel')
    if len(found) > most:
        found = [found[round(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]
    return found


def _outermost(names: Sequence[str]) -> list[str]:
    return [n for n in names if not any(n.startswith(f'{other}.') for other in names)]


def kernel_maps(
    layer: nn.Module, x: Tensor, points: Sequence[Point], channels: int
) -> tuple[Tensor, list[tuple[int, int]], list[int], tuple[int, int]]:
    r"""Return with which weights output pixels read the pixels of the input.

    .. math:: M_{p,o,i} = \sum_{n:\, s_n(p) = i} E(p)_{n,o,c}

    The kernel is that of ``x`` and is held fixed. So this is the kernel that aggregates, not the derivative of the layer.
    Of the input channels, c is the one with the largest weights.

    Args:
        layer: A convolution of any kind, an operator with an evolving kernel, or attention over tokens.
        x: Its input, of which the first image is taken, (B, Ci, H, W), or tokens.
        points: Places p in the image, as shares of its width and height.
        channels: How many output channels o, or heads, spread evenly over all.

    Returns:
        The maps, (points, channels, H, W), the output pixels of the points, (row, column), the channels, and the size of the
        output.
    """
    read, channel_count, size = (
        _attended(layer, x[:1]) if isinstance(layer, AttendsTokens) else _aggregated(layer, x[:1])
    )
    count, (rows, columns) = min(channels, channel_count), size
    chosen = [i * channel_count // count for i in range(count)]
    pixels = [(min(int(v * rows), rows - 1), min(int(u * columns), columns - 1)) for u, v in points]
    maps = torch.stack([torch.stack([read(channel, row, column) for channel in chosen]) for row, column in pixels])
    return maps, pixels, chosen, (rows, columns)


#: What gives the map of an output channel, row and column; the number of channels; the size of the output.
Reader = tuple[Callable[[int, int, int], Tensor], int, tuple[int, int]]


def _attended(layer: AttendsTokens, x: Tensor) -> Reader:
    """Read the weights of an attention module; its heads are the channels."""
    with torch.no_grad():
        weights = layer.dense_kernel(x)[0]
    first, size = layer.num_extra_tokens, layer.size(x.shape[1])
    return (
        lambda head, row, column: weights[head, first + row * size[1] + column, first:].unflatten(0, size),
        len(weights),
        size,
    )


def _aggregated(layer: nn.Module, x: Tensor) -> Reader:
    """Read what a layer does with each pixel of its input, by the derivative of the part that is linear in it."""
    function, x = _linear_part(layer, x)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(x)[0]

    def read(channel: int, row: int, column: int) -> Tensor:
        weights = torch.autograd.grad(y[channel, row, column], x, retain_graph=True)[0][0]
        return weights[weights.abs().sum((1, 2)).argmax()]

    return read, len(y), (y.shape[1], y.shape[2])


def _linear_part(layer: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what is linear in a layer with its kernel held fixed, and what that is applied to."""
    if not isinstance(layer, EvolvesKernel):
        return layer, x
    with torch.no_grad():
        return layer.evolution_kernel(x).aggregate, layer.features(x)


def read_kernels(
    model: nn.Module, inputs: Tensor, names: Sequence[str], points: Sequence[Point], channels: int = 2
) -> list[LayerKernels]:
    """Run a model and return the kernels that its layers apply to the first image.

    Args:
        model: A host's model or a bare component, in eval mode.
        inputs: Images, (N, 3, H, W).
        names: Of the layers, see :func:`kernel_layers`.
        points: Places in the image, as shares of its width and height.
        channels: How many output channels of each layer, spread evenly. A layer with the same kernel everywhere shows as
            many as fill the place of all points.

    Raises:
        UsageError: If the model does not run, or a layer is not called.
    """
    modules, seen = dict(model.named_modules()), dict[str, Tensor]()

    def keep(name: str) -> Any:
        # A head that serves several levels is called for each, the finest first. A copy: what follows may work in place.
        return lambda module, args: None if name in seen else seen.update({name: args[0].detach().clone()})

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            TensorMode(model, inputs)(inputs)
    except Exception as error:  # the hosts raise anything
        raise UsageError(f'the model does not run on this image ({reason(error)}); choose another --shape') from error
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name in names:
        if name not in seen:
            raise UsageError(f'the layer {name} is not called in a forward; choose another one')
        layer = modules[name]
        same = not (isinstance(layer, DYNAMIC) and getattr(layer, 'spatial_specific', True))
        places = [(0.5, 0.5)] if same else points
        count = channels * len(points) if same else channels
        maps, pixels, chosen, size = kernel_maps(layer, seen[name], places, count)
        found.append(LayerKernels(name, type(layer).__name__, same, maps.cpu(), pixels, chosen, size))
    return found


def draw_kernels(image: np.ndarray, found: Sequence[LayerKernels]) -> Figure:
    """Draw kernels over the image that they were made for, or apply to, and beside it enlarged.

    A row shows a layer: the image with its kernels at their places, then every kernel for itself, red where it adds and blue
    where it subtracts. Every kernel has its own scale. A layer with the same kernel everywhere has a panel for each channel;
    another has a row for each channel and a panel for each point. What lies outside of the image is gray.

    Args:
        image: (H, W, 3), bytes, in the order blue, green, red.
        found: What :func:`read_kernels` returns.

    Raises:
        ImportError: If matplotlib is missing.
    """
    rows = [row for layer in found for row in _rows(layer)]
    columns = 1 + max(len(row.panels) for row in rows)
    figure = new_figure(1.9 * columns, 2.15 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        _draw_overlay(axes[0], image, row)
        for panel, place in zip(row.panels, axes[1:], strict=False):
            _draw_map(place, panel)
        for place in axes[1 + len(row.panels) :]:
            place.set_axis_off()
    return figure


@dataclass
class _Panel:
    title: str
    window: np.ndarray  # NaN outside of the image
    top: int
    left: int
    center: tuple[int, int]


@dataclass
class _Row:
    title: str
    grid: tuple[int, int]
    panels: list[_Panel]


def _rows(layer: LayerKernels) -> list[_Row]:
    """Return the rows of a layer, each kernel cut to the window that it needs."""
    height, width = layer.maps.shape[-2:]
    centers = [
        (int((r + 0.5) * height / layer.size[0]), int((c + 0.5) * width / layer.size[1])) for r, c in layer.pixels
    ]
    used = layer.maps.abs().amax(1) > 0
    reach = 1
    for center, map_ in zip(centers, used, strict=True):
        for seen, middle in zip(map_.nonzero().T, center, strict=True):
            reach = max([reach, *(seen - middle).abs().tolist()])

    # A kernel that reaches far shows the image as it is.
    whole = 2 * reach + 1 > max(height, width)

    def panel(point: int, channel: int, title: str) -> _Panel:
        if whole:
            return _Panel(title, layer.maps[point, channel].numpy(), 0, 0, centers[point])
        top, left = (middle - reach for middle in centers[point])
        window = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
        rows = slice(max(top, 0), min(top + 2 * reach + 1, height))
        columns = slice(max(left, 0), min(left + 2 * reach + 1, width))
        inside = layer.maps[point, channel, rows, columns].numpy()
        window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
        return _Panel(title, window, top, left, centers[point])

    kind = f'{_short(layer.name)}\n{layer.kind}'
    if layer.same:
        panels = [panel(0, i, f'channel {c}') for i, c in enumerate(layer.channels)]
        return [_Row(kind, (height, width), panels)]
    points = range(len(centers))
    return [
        _Row(f'{kind}, channel {c}', (height, width), [panel(p, i, f'point {p + 1}') for p in points])
        for i, c in enumerate(layer.channels)
    ]


def _short(name: str, most: int = 30) -> str:
    """Return the end of a long name: it tells layers apart."""
    return name if len(name) <= most else f'...{name[-most:].lstrip(".")}'


def _draw_overlay(axes: Axes, image: np.ndarray, row: _Row) -> None:
    height, width = image.shape[:2]
    step = (height / row.grid[0], width / row.grid[1])
    gray = image.mean(-1)
    axes.imshow(gray, cmap='gray', vmin=-128, vmax=255)  # pale, so that colors stand out
    # One in the place of all that lie on each other.
    shown = {(panel.top, panel.left): panel for panel in reversed(row.panels)}
    for panel in reversed(list(shown.values())):
        rows, columns = panel.window.shape
        top, left = panel.top * step[0] - 0.5, panel.left * step[1] - 0.5
        bottom, right = top + rows * step[0], left + columns * step[1]
        limit = _limit(panel.window)
        options: dict[str, Any] = dict(cmap='RdBu_r', vmin=-limit, vmax=limit, extent=(left, right, bottom, top))
        axes.imshow(panel.window, alpha=np.nan_to_num(np.abs(panel.window) / limit), zorder=2, **options)
        box = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        axes.plot(*box, color='#f2b705', linewidth=1, zorder=3)
    points = list(dict.fromkeys(panel.center for panel in row.panels))
    for number, (y, x) in enumerate(points if len(points) > 1 else (), start=1):
        place = ((x + 0.5) * step[1] - 0.5, (y + 0.5) * step[0] - 0.5)
        axes.text(*place, str(number), color='#f2b705', fontsize=8, ha='center', va='center', weight='bold', zorder=4)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
    axes.set_title(row.title, fontsize=7)


def _draw_map(axes: Axes, panel: _Panel) -> None:
    limit = _limit(panel.window)
    axes.set_facecolor('#bbbbbb')
    axes.imshow(panel.window, cmap='RdBu_r', vmin=-limit, vmax=limit)
    axes.set(xticks=(), yticks=())
    axes.set_title(f'{panel.title}, {f"up to {limit:.2g}" if np.nanmax(np.abs(panel.window)) else "zero"}', fontsize=7)


def _limit(window: np.ndarray) -> float:
    return max(float(np.nanmax(np.abs(window), initial=0)), 1e-12)
