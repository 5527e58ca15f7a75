"""The effective receptive field: which part of the image the center of a map is really made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mmext.drawing import new_figure
from mmext.errors import UsageError, reason
from mmext.export import TensorMode, same_draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['SHARES', 'Square', 'draw_receptive_fields', 'receptive_field', 'smallest_squares']

#: Shares of the field that are asked for.
SHARES = (0.2, 0.3, 0.5, 0.99)


def receptive_field(model: nn.Module, inputs: Tensor, layer: str | None = None) -> Tensor:
    r"""Return how much every pixel of the image adds to the center of a map.

    .. math:: F_{ij} = \mathrm{mean}_b \sum_c \mathrm{relu}\Big(
        \frac{\partial \sum_k Y_{b,k,\lfloor H/2 \rfloor,\lfloor W/2 \rfloor}}{\partial X_{b,c,i,j}} \Big)

    Ding et al., *Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs*, CVPR 2022, arXiv 2203.06717,
    measure it so. The field itself is that of Luo et al., 2016.

    Args:
        model: A host's model or a bare component, in eval mode.
        inputs: Images, (B, 3, H, W).
        layer: Name of the module whose output is the map. By default the backbone, or the model itself where it has none. Of
            several maps the last one is taken, and of several calls the first one.

    Returns:
        F, (H, W).

    Raises:
        UsageError: If there is no such module, it gives no map, or the map does not depend on the image.
    """
    modules = dict(model.named_modules())
    layer = layer if layer is not None else 'backbone' if 'backbone' in modules else ''
    if layer not in modules:
        some = ', '.join(list(modules)[1:6])
        raise UsageError(f'the model has no module {layer!r}; it has {len(modules) - 1}, such as {some}')
    seen: list = []
    handle = modules[layer].register_forward_hook(lambda module, args, out: seen.append(out))
    inputs = inputs.detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), same_draws(inputs):
            whole = TensorMode(model, inputs)(inputs)
    except Exception as error:  # the hosts raise anything
        raise UsageError(f'the model does not run on these images ({reason(error)}); choose another --shape') from error
    finally:
        handle.remove()
    maps = [out for out in _flat(seen[0] if layer and seen else whole) if out.ndim == 4 and out.is_floating_point()]
    if not maps:
        raise UsageError(f'{layer or "the model"} gives no map (B, C, H, W); name a layer that does, with --layer')
    center = maps[-1][:, :, maps[-1].shape[2] // 2, maps[-1].shape[3] // 2].sum()
    grad = torch.autograd.grad(center, inputs, allow_unused=True)[0] if center.requires_grad else None
    if grad is None:
        raise UsageError(f'the map of {layer or "the model"} does not depend on the image; choose another --layer')
    return grad.relu().sum(1).mean(0)


def _flat(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else ()
    return [tensor for value in values for tensor in _flat(value)]


class Square(NamedTuple):
    """A square around the center of the image, cut off where the image ends.

    Args:
        reach: Pixels from the center to its last one.
        area: Its part of the image.
    """

    reach: int
    area: float


def smallest_squares(field: Tensor, shares: Sequence[float] = SHARES) -> list[Square]:
    """Return the smallest centered square that holds each share of a field.

    Args:
        field: What :func:`receptive_field` returns, (H, W).
        shares: Parts of the sum of the field, in (0, 1].

    Raises:
        UsageError: If the field is zero or not finite.
    """
    field = field.double()
    total = float(field.sum())
    if not 0 < total < float('inf'):
        raise UsageError(f'the field adds up to {total}, which has no shares; the model or its weights are degenerate')
    row, column = field.shape[0] // 2, field.shape[1] // 2
    squares = []
    for reach in range(max(row, column) + 1):
        part = field[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        squares.append((float(part.sum()) / total, Square(reach, part.numel() / field.numel())))
    # Rounding may leave the last one below the whole.
    return [next(square for held, square in squares if held >= share - 1e-9) for share in shares]


def draw_receptive_fields(fields: Sequence[tuple[str, Tensor]], shares: Sequence[float] = SHARES) -> Figure:
    """Draw fields side by side with the squares that hold the shares; brightness is log10(1 + 10000 F / max F).

    Args:
        fields: Titles and what :func:`receptive_field` returns.
        shares: See :func:`smallest_squares`.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = new_figure(2.5 * len(fields), 2.95)
    for axes, (title, field) in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        height, width = field.shape
        axes.imshow((1 + 1e4 * field / field.max()).log10().cpu().numpy(), cmap='magma', vmin=0, vmax=4)
        squares = smallest_squares(field, shares)
        for square in squares:
            top, left = max(height // 2 - square.reach, 0) - 0.5, max(width // 2 - square.reach, 0) - 0.5
            bottom, right = (min(n // 2 + square.reach + 1, n) - 0.5 for n in (height, width))
            axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], linewidth=0.8, color='w')
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
        axes.set_title(title, fontsize=8)
        numbers = (f'{share:.0%}: {square.area:.1%}' for share, square in zip(shares, squares, strict=True))
        axes.set_xlabel(', '.join(numbers), fontsize=6)
    return figure
