"""Figures without pyplot: nothing of the user's own backend is touched, and a file is there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mmext.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['new_figure', 'save_figure']


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib ({error}); pip install matplotlib') from error
    figure = Figure((width, height))
    figure.set_layout_engine('constrained', w_pad=0.08, h_pad=0.08)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure as PNG; who looks at the file while it is replaced sees the old one or the new one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # a canvas of its own: neither pyplot nor the backend that the user has chosen are touched
    drawn = io.BytesIO()
    figure.savefig(drawn, format='png', dpi=dpi)
    write_whole(path, drawn.getvalue())
