"""Drawings of held-out views: target, prediction, error and what else was rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mmext.drawing import new_figure
from mmext.inr.tasks.reconstruction_metric import reconstruction_quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_views']


def draw_views(samples: Sequence[Any], title: str = '', quality: Mapping[str, float] | None = None) -> Figure:
    """Draw views, a row for each: target, prediction, absolute error, depth and normals, as far as they exist.

    The depth of a prediction is drawn on the scale of the true one. Normals (H, W, 3) are drawn as (n + 1) / 2.

    Args:
        samples: Mappings or ``BaseDataElement`` with ``prediction`` (H, W, C), and where there are such, ``target`` and
            ``baseline`` of the same shape, ``depth`` and ``opacity`` (H, W), ``normal`` (H, W, 3), and the true depth as
            ``true_depth``.
        title: Of the whole.
        quality: Metrics of all views, shown in the title.

    Raises:
        ImportError: If matplotlib is missing.
    """
    rows = [_columns(sample) for sample in samples]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    height, width = samples[0].get('prediction').shape[:2]
    aspect = min(max(height / width, 0.5), 2)
    figure = new_figure(2.1 * len(columns) + 0.3, 2.1 * aspect * len(rows) + 0.5 + 0.3 * len(rows))
    known = quality or {}
    note = ', '.join(f'{name} {known[name]:.{digits}f}' for name, digits in (('PSNR', 2), ('SSIM', 3)) if name in known)
    figure.suptitle(', '.join(filter(None, (title, note))), fontsize=11)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row, sample in zip(panels, rows, samples, strict=True):
        for axes, name in zip(line, columns, strict=True):
            axes.set(xticks=(), yticks=())
            if name not in row:
                axes.set_axis_off()
                continue
            values, options = row[name]
            caption = name
            if name == 'prediction' and sample.get('target') is not None:
                caption = f'{name}: {reconstruction_quality(sample)["PSNR"]:.2f} dB'
            axes.set_title(caption, fontsize=8.5)
            axes.imshow(values, **options)
    return figure


def _columns(sample: Any) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return the pictures of a view, and how they are shown."""
    found: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    gray = dict(cmap='gray', vmin=0, vmax=1)
    for name in ('target', 'baseline', 'prediction'):
        if (image := sample.get(name)) is not None:
            found[name] = _picture(image.clamp(0, 1)), gray
    if 'target' in found:
        error = (sample.get('prediction').clamp(0, 1) - sample.get('target')).abs().mean(-1)
        limit = max(float(np.quantile(_picture(error), 0.999)), 1e-6)
        found['absolute error'] = _picture(error), dict(cmap='inferno', vmin=0, vmax=limit)
    true, mask = sample.get('true_depth'), sample.get('mask')
    seen = sample.get('opacity') if sample.get('opacity') is not None else mask
    for name, depth in (('true depth', true), ('depth', sample.get('depth'))):
        if depth is None:
            continue
        known = mask if name == 'true depth' else seen
        values = _picture(depth.squeeze())
        if known is not None:
            values = np.where(_picture(known.squeeze()) > 0.5, values, np.nan)
        reference = found['true depth'][0] if 'true depth' in found else values
        limits = np.nanquantile(reference, (0.01, 0.99)) if np.isfinite(reference).any() else (0, 1)
        found[name] = values, dict(cmap='viridis_r', vmin=limits[0], vmax=limits[1])
    if (normal := sample.get('normal')) is not None:
        found['normals'] = _picture((normal.clamp(-1, 1) + 1) / 2), {}
    return found


def _picture(values: Tensor) -> np.ndarray:
    array = values.detach().float().cpu().numpy()
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
