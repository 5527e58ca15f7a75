"""How well a segmentor does near the borders between labels, without and with its dense CRF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mmext.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Borders', 'border_distance', 'compare_borders', 'draw_borders']


@dataclass
class Borders:
    """What was counted.

    Args:
        widths: Bands around the true borders, in pixels to either side; None is the whole image.
        right: Right pixels by way (``'plain'``, ``'refined'``), a number per band.
        pixels: Pixels per band that have a label.
        tables: Confusion by way, (K, K), truth in rows.
        shown: Image, truth and the two predictions of the first images.
    """

    widths: Sequence[int | None]
    right: dict[str, np.ndarray]
    pixels: np.ndarray
    tables: dict[str, np.ndarray]
    shown: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the table: the share of right pixels in each band, and the mean IoU over classes that occur."""
        rows = [f'{"":24s}{"plain":>10s}{"refined":>10s}{"gain":>10s}']
        for k, width in enumerate(self.widths):
            name = 'right, all pixels' if width is None else f'right within {width} px'
            rows.append(_row(name, *(100 * self.right[way][k] / max(1, self.pixels[k]) for way in self.right)))
        rows.append(_row('mean IoU', *(100 * mean_iou(table) for table in self.tables.values())))
        return rows


def _row(name: str, plain: float, refined: float) -> str:
    return f'{name:24s}{plain:10.2f}{refined:10.2f}{refined - plain:+10.2f}'


def mean_iou(table: np.ndarray) -> float:
    """Return the mean over the classes that are there or are predicted."""
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())


def border_distance(labels: np.ndarray) -> np.ndarray:
    """Return the distance in pixels of each pixel from the nearest border: 1 beside it; infinite where there is none."""
    border = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    for edge, one, other in ((down, border[1:], border[:-1]), (right, border[:, 1:], border[:, :-1])):
        one |= edge
        other |= edge
    if not border.any():
        return np.full(labels.shape, np.inf)
    return 1 + cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


@torch.no_grad()
def compare_borders(
    model: nn.Module,
    batches: Iterable[Any],
    number: int | None = None,
    widths: Sequence[int | None] = (1, 2, 4, 8, None),
    show: int = 4,
    ignore: int = 255,
) -> Borders:
    """Predict each image without and with the CRF of ``model``, a :class:`mmext.DenseCRFSegmentor`.

    Args:
        model: The segmentor, in eval mode.
        batches: What its data loader gives.
        number: How many images, None for all.
        widths: See :class:`Borders`.
        show: How many images are kept for a picture.
        ignore: The label that does not count.
    """
    classes = int(model.decode_head.num_classes)  # type: ignore[union-attr, arg-type]
    found = Borders(
        widths,
        {way: np.zeros(len(widths), np.int64) for way in ('plain', 'refined')},
        np.zeros(len(widths), np.int64),
        {way: np.zeros((classes, classes), np.int64) for way in ('plain', 'refined')},
    )
    seen = 0
    for batch in batches:
        predictions = {'plain': _predict(model, batch, plain=True), 'refined': _predict(model, batch, plain=False)}
        for k, sample in enumerate(batch['data_samples']):
            truth = sample.gt_sem_seg.data[0].numpy()
            ways = {way: maps[k] for way, maps in predictions.items()}
            _count(found, truth, ways, ignore)
            if len(found.shown) < show:
                image = batch['inputs'][k].permute(1, 2, 0).numpy()[..., ::-1]
                found.shown.append((image, truth, *ways.values()))
            seen += 1
            if seen == number:
                return found
    return found


def _predict(model: Any, batch: Any, plain: bool) -> list[np.ndarray]:
    crf = model.crf
    try:
        if plain:
            model.crf = _Nothing()
        return [sample.pred_sem_seg.data[0].cpu().numpy() for sample in model.test_step(batch)]
    finally:
        model.crf = crf


class _Nothing(nn.Module):
    """Stands in the place of a CRF."""

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        return logits


def _count(found: Borders, truth: np.ndarray, ways: dict[str, np.ndarray], ignore: int) -> None:
    distance, valid = border_distance(truth), truth != ignore
    bands = [valid if width is None else valid & (distance <= width) for width in found.widths]
    found.pixels += [int(band.sum()) for band in bands]
    for way, labels in ways.items():
        found.right[way] += [int((labels[band] == truth[band]).sum()) for band in bands]
        table = found.tables[way]
        np.add.at(table, (truth[valid], labels[valid].astype(np.int64)), 1)


def draw_borders(found: Borders, palette: Sequence[Sequence[int]]) -> Figure:
    """Draw image, truth, and the prediction without and with the CRF, a row per image."""
    colors = np.asarray(palette, np.uint8)
    figure = new_figure(8.4, 2.15 * max(1, len(found.shown)))
    axes = figure.subplots(max(1, len(found.shown)), 4, squeeze=False)
    for row, (image, *maps) in zip(axes, found.shown, strict=True):
        row[0].imshow(image)
        for axis, labels in zip(row[1:], maps, strict=True):
            axis.imshow(colors[np.minimum(labels, len(colors) - 1)])
            axis.contour(maps[0], levels=np.arange(len(colors)) + 0.5, colors='white', linewidths=0.4)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], ('image', 'truth', 'plain', 'with the dense CRF'), strict=True):
        axis.set_title(title, fontsize=9)
    return figure
