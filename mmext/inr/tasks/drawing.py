"""Drawings of a reconstructed signal: the image with its spectrum, and how its quality has grown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmext.drawing import new_figure, save_figure
from mmext.inr.tasks.drawing_shapes import draw_shape
from mmext.inr.tasks.drawing_views import draw_views
from mmext.inr.tasks.reconstruction_metric import reconstruction_quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['draw_progress', 'draw_reconstruction', 'draw_samples', 'progress_of', 'radial_spectrum', 'save_figure']

_STYLE: dict[str, dict[str, Any]] = {
    'target': dict(color='#222222', linewidth=1.6),
    'baseline': dict(color='#dd8452', linewidth=1.3, linestyle='--'),
    'prediction': dict(color='#2a6fbb', linewidth=1.6),
    'error': dict(color='#c44e52', linewidth=1.4, linestyle=':'),
}
#: What a progress can show, with unit and digits; the first two that there are.
_PROGRESS = (('PSNR', ' dB', 2), ('SSIM', '', 3), ('IoU', '', 4), ('normal_consistency', '', 3), ('chamfer', '', 4))
_TITLE = 10
_SMALL = 8.5


def draw_samples(
    samples: Sequence[Any],
    title: str = '',
    quality: Mapping[str, float] | None = None,
    measured: tuple[str, Tensor] | None = None,
) -> Figure:
    """Draw the samples of an evaluation, by what they are.

    Volumes (D, H, W, C) are drawn by :func:`mmext.inr.draw_shape`, several samples and those with a ``depth`` by
    :func:`mmext.inr.draw_views`, and an image by :func:`draw_reconstruction`.

    Args:
        samples: As :class:`mmext.SignalModel` predicts them.
        title: Of the whole.
        quality: The metrics of all of them, without prefix.
        measured: See :func:`draw_reconstruction`.

    Raises:
        ImportError: If matplotlib is missing.
    """
    first = samples[0]
    if first.get('prediction').ndim == 4:
        return draw_shape(first, title, quality)
    if len(samples) > 1 or first.get('depth') is not None:
        return draw_views(samples, title, quality)
    return draw_reconstruction(first, title, quality if quality and 'PSNR' in quality else None, measured)


def draw_reconstruction(
    sample: Any, title: str = '', quality: Mapping[str, float] | None = None, measured: tuple[str, Tensor] | None = None
) -> Figure:
    """Draw a reconstructed image beside its target, with their spectra below.

    Every image has a column: the image, limited to [0, 1], and under it the logarithm of the magnitude of its Fourier
    transform with the constant part in the center, all on one scale of four decades. In the last column are the absolute
    error, the mean over the channels, and the spectra as curves, see :func:`radial_spectrum`: frequencies at which the error
    is as large as the target are not learnt.

    Args:
        sample: A mapping or ``BaseDataElement`` with ``prediction`` (H, W, C), and where there are such, ``target`` and
            ``baseline`` of the same shape.
        title: Of the whole.
        quality: What :func:`reconstruction_quality` returns for the sample, if it is known already.
        measured: Name and values, (h, w) or (h, w, C) in [0, 1], of what was measured; shown above the curves where there is
            no target, and under the baseline otherwise.

    Raises:
        ImportError: If matplotlib is missing.
    """
    quality = reconstruction_quality(sample) if quality is None else quality
    found = {name: sample.get(name) for name in ('target', 'baseline', 'prediction')}
    images = {name: tensor.detach().double().cpu().clamp(0, 1) for name, tensor in found.items() if tensor is not None}
    height, width = images['prediction'].shape[:2]
    # A long narrow image stands in a panel of 1 : 2, and none is narrower than its title.
    aspect = min(max(height / width, 0.5), 2)
    columns, side = len(images) + 1, max(2.3, 2.9 / aspect**0.5)
    figure = new_figure(columns * (side + 0.15) + 0.9, 2 * (side * aspect + 0.35) + 0.7)
    figure.suptitle(title, fontsize=_TITLE + 2)
    panels = figure.subplots(2, columns)

    spectra = {name: _magnitude(image) for name, image in images.items()}
    # The brightest few are the constant part and its neighbors, far above all others in a large image.
    reference = spectra.get('target', spectra['prediction']).nan_to_num(0).numpy()
    top = math.log10(max(float(np.quantile(reference, 0.999)), 1e-6))
    for (name, image), (above, below) in zip(images.items(), panels.T, strict=False):
        _show(above, image, _caption(name, quality), vmin=0, vmax=1)
        if name == 'baseline' and measured is not None and 'target' in images:
            _show(below, measured[1], measured[0], vmin=0, vmax=1, aspect='auto').axes.set_box_aspect(aspect)
        else:
            logarithm = spectra[name].clamp_min(1e-12).log10()
            _show(below, torch.fft.fftshift(logarithm), f'spectrum of {name}', vmin=top - 4, vmax=top, cmap='magma')

    above, below = panels[:, -1]
    if 'target' in images:
        error = images['prediction'] - images['target']
        spectra['error'] = _magnitude(error)
        absolute = error.abs().mean(-1)
        # A few outliers would leave the rest black.
        limit = max(float(np.quantile(absolute.nan_to_num(1).numpy(), 0.999)), 1e-6)
        drawn = _show(above, absolute, 'absolute error', vmin=0, vmax=limit, cmap='inferno')
        bar = figure.colorbar(drawn, cax=above.inset_axes((1.03, 0, 0.05, 1)), extend='max')
        bar.ax.tick_params(labelsize=_SMALL)
    elif measured is not None:
        _show(above, measured[1], measured[0], vmin=0, vmax=1, aspect='auto').axes.set_box_aspect(aspect)
    else:
        above.set_axis_off()
    _draw_curves(below, spectra)
    below.set_box_aspect(aspect)
    return figure


def draw_progress(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw PSNR and SSIM over the iterations of a training, the operator's own reconstruction as a dashed line.

    Of shapes it is what :class:`mmext.ShapeMetric` reports.

    Args:
        history: Of each validation, ``iter`` and what the metric reports.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = new_figure(9.6, 3.6)
    shown = progress_of(history[-1]) if history else _PROGRESS[:2]
    for axes, (name, unit, digits) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        # A metric that was not there at every validation has fewer points.
        steps, values = zip(*[(p['iter'], p[name]) for p in history if name in p], strict=True) if history else ((), ())
        axes.plot(steps, values, marker='o', markersize=3, **_STYLE['prediction'])
        if history:
            best = max(range(len(values)), key=lambda i: (values[i] == values[i], values[i]))
            title = f'{name} {values[-1]:.{digits}f}{unit}'
            if best != len(values) - 1:
                title += f', best {values[best]:.{digits}f}{unit} at {steps[best]:,}'
            axes.set_title(title, fontsize=_TITLE)
            if (baseline := history[-1].get(f'baseline_{name}')) is not None:
                axes.axhline(baseline, label=f'baseline {baseline:.{digits}f}{unit}', **_STYLE['baseline'])
                axes.legend(fontsize=_SMALL, loc='best', framealpha=0.9)
            axes.set_xlim(0, steps[-1] * 1.03)
        axes.set_xlabel('iteration', fontsize=_SMALL)
        axes.set_ylabel(f'{name} (dB)' if unit else name, fontsize=_SMALL)
        _lighten(axes)
        axes.margins(y=0.12)
    return figure


def progress_of(quality: Mapping[str, float]) -> tuple[tuple[str, str, int], ...]:
    """Return what a progress shows of some metrics: name, unit and digits of two of them at most."""
    return tuple(known for known in _PROGRESS if known[0] in quality)[:2]


def radial_spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean magnitude of an image's Fourier transform over rings of equal frequency (ours).

    .. math:: S(r) = \mathrm{mean}_{(u, v) \in R_r} \sum_c |\mathrm{FFT}(Y_c)_{uv}|, \qquad
        R_r = \{(u, v):\ \mathrm{round}(n \sqrt{u^2 + v^2}) = n r\}

    with u and v in cycles per pixel and n the shorter side, so that a ring is as wide as the frequencies of that side are
    apart. The transform is orthonormal.

    Args:
        image: (H, W, C).

    Returns:
        The frequencies r, from 1 / n to 1 / 2, and S(r).
    """
    return _rings(_magnitude(image))


def _caption(name: str, quality: Mapping[str, float]) -> str:
    prefix = {'prediction': '', 'baseline': 'baseline_'}.get(name, name)
    if f'{prefix}PSNR' not in quality:
        return name
    return f'{name}: {quality[f"{prefix}PSNR"]:.2f} dB, SSIM {quality[f"{prefix}SSIM"]:.3f}'


def _show(axes: Axes, image: Tensor, title: str, **options: Any) -> Any:
    values = image.numpy()
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] != 3 else values
    axes.set_title(title, fontsize=_TITLE)
    axes.set(xticks=(), yticks=())
    return axes.imshow(values, **{'cmap': 'gray', **options})


def _draw_curves(axes: Axes, spectra: Mapping[str, Tensor]) -> None:
    from matplotlib.ticker import NullFormatter

    for name, magnitude in spectra.items():
        frequencies, values = _rings(magnitude)
        axes.plot(frequencies, values.clamp_min(1e-12), label=name, **_STYLE[name])
    axes.set_yscale('log')
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, 0.5)
    axes.set_title('mean magnitude over rings', fontsize=_TITLE)
    axes.set_xlabel('frequency (cycles per pixel)', fontsize=_SMALL)
    axes.yaxis.tick_right()
    axes.legend(fontsize=_SMALL, loc='upper right', framealpha=0.9)
    _lighten(axes)


def _lighten(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=_SMALL)
    for side in ('top', 'left' if axes.yaxis.get_ticks_position() == 'right' else 'right'):
        axes.spines[side].set_visible(False)


def _magnitude(image: Tensor) -> Tensor:
    return torch.fft.fft2(image, dim=(0, 1), norm='ortho').abs().sum(-1)


def _rings(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    height, width = magnitude.shape
    shorter = min(height, width)
    rows = torch.fft.fftfreq(height, dtype=magnitude.dtype, device=magnitude.device)[:, None]
    columns = torch.fft.fftfreq(width, dtype=magnitude.dtype, device=magnitude.device)
    ring = (shorter * (rows.square() + columns.square()).sqrt()).round().long().flatten()
    total = magnitude.new_zeros(int(ring.max()) + 1)
    count = total.index_add(0, ring, torch.ones_like(magnitude).flatten())
    total = total.index_add(0, ring, magnitude.flatten())
    rings = torch.arange(1, shorter // 2 + 1, device=magnitude.device)
    return rings / shorter, total[rings] / count[rings]
