"""Drawings of shapes on a grid: shaded views of the truth and of the prediction, without a library for three dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_shape', 'inside_of', 'overlap', 'shaded_view']

#: What is shown of each view: the axis that it looks along, from its positive end, and the axes to the right and up.
_VIEWS = (('from x', 0, 1, 2), ('from -y', 1, 0, 2), ('from above', 2, 0, 1))
_COLOR = np.array((0.93, 0.88, 0.78))


def draw_shape(sample: Any, title: str = '', quality: Mapping[str, float] | None = None) -> Figure:
    """Draw a shape and its prediction from three sides, and below how far the surfaces seen are apart.

    Args:
        sample: A mapping or ``BaseDataElement`` with ``prediction`` (X, Y, Z, 1), ``target`` of the same shape if there is
            one, and the metainfo ``kind``, see :func:`inside_of`.
        title: Of the whole.
        quality: Metrics, shown in the title.

    Raises:
        ImportError: If matplotlib is missing.
    """
    kind = sample.get('kind', 'occupancy')
    fields = {name: sample.get(name) for name in ('target', 'prediction') if sample.get(name) is not None}
    inside = {name: inside_of(values, kind)[..., 0].detach().float().cpu() for name, values in fields.items()}
    rows = [*inside, *(['apart'] if len(inside) == 2 else [])]
    figure = new_figure(9.3, 3.0 * len(rows) + 0.5)
    shown = (('IoU', 4), ('chamfer', 4), ('normal_consistency', 3))
    known = quality or {}
    note = ', '.join(f'{name.replace("_", " ")} {known[name]:.{digits}f}' for name, digits in shown if name in known)
    figure.suptitle(', '.join(filter(None, (title, note))), fontsize=12)
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for column, (name, axis, right, up) in enumerate(_VIEWS):
        depths = {}
        for line, (label, values) in zip(panels, inside.items(), strict=False):
            image, depths[label] = shaded_view(values, axis, right, up, smooth=kind == 'occupancy')
            line[column].imshow(image, origin='lower', interpolation='bilinear')
            line[column].set_title(f'{label}, {name}', fontsize=10)
        if len(inside) == 2:
            # As shares of the box, at most a twentieth of it.
            apart = (depths['target'] - depths['prediction']).abs().nan_to_num(1)
            apart[depths['target'].isnan() & depths['prediction'].isnan()] = math.nan
            drawn = panels[-1][column].imshow(apart, origin='lower', cmap='inferno', vmin=0, vmax=0.05)
            panels[-1][column].set_title('distance along the view', fontsize=10)
            if column == 2:
                figure.colorbar(drawn, cax=panels[-1][column].inset_axes((1.03, 0, 0.05, 1)), extend='max')
    for axes in panels.flat:
        axes.set(xticks=(), yticks=())
    return figure


def inside_of(values: Tensor, kind: str) -> Tensor:
    """Return a field that is positive inside of the shape, from its occupancy (above 0.5) or signed distance (below 0)."""
    return values - 0.5 if kind == 'occupancy' else -values


def overlap(sample: Any) -> float:
    """Return the intersection over union of a sample's prediction and target on their grid, 1 where both are empty."""
    kind = sample.get('kind', 'occupancy')
    a, b = (inside_of(sample.get(name), kind) > 0 for name in ('prediction', 'target'))
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def shaded_view(inside: Tensor, axis: int, right: int, up: int, smooth: bool = False) -> tuple[np.ndarray, Tensor]:
    r"""Look at a shape along an axis, from its positive end (of y from its negative one).

    Per ray it is the first place at which the field changes its sign, between two points of the grid. The normal is that of
    central differences there, and the shade :math:`0.2 + 0.8 \max(0, n \cdot l)`.

    Args:
        inside: (X, Y, Z), positive inside.
        axis: The axis to look along.
        right: The axis to the right.
        up: The axis upwards.
        smooth: Average over neighbors before normals are taken, for fields that are steps.

    Returns:
        The picture (up, right, 3), white where nothing is, and the distances as shares of the box (up, right), NaN there.
    """
    towards = -1.0 if axis == 1 else 1.0
    field = inside[None, None]
    soft = field.clamp(-0.5, 0.5) if smooth else field
    for _ in range(2 if smooth else 0):
        soft = F.avg_pool3d(F.pad(soft, (1,) * 6, mode='replicate'), 3, 1)
    gradients = torch.stack(torch.gradient(soft[0, 0]))
    order = (up, right, axis)
    values, gradients = inside.permute(order), gradients.permute(0, *(i + 1 for i in order))
    if towards > 0:
        values, gradients = values.flip(-1), gradients.flip(-1)
    count = values.shape[-1]
    hit = (values > 0).any(-1)
    index = (values > 0).int().argmax(-1)
    behind = values.gather(-1, index[..., None])[..., 0]
    before = values.gather(-1, (index - 1).clamp_min(0)[..., None])[..., 0]
    share = torch.where(index > 0, behind / (behind - before).clamp_min(1e-9), 0).clamp(0, 1)
    depth = torch.where(hit, (index - share) / (count - 1), math.nan)
    normal = -gradients.gather(-1, index.expand(3, *index.shape)[..., None])[..., 0]
    normal = normal / normal.norm(dim=0).clamp_min(1e-9)
    light = torch.zeros(3)
    light[axis], light[up], light[right] = 0.75 * towards, 0.5, -0.45
    shade = 0.2 + 0.8 * torch.einsum('chw,c->hw', normal, light / light.norm()).clamp_min(0)
    image = torch.where(hit, shade, 1)[..., None].numpy() * np.where(hit[..., None].numpy(), _COLOR, 1.0)
    return image, depth
