"""Pictures of the prototypes of a ProtoPNet, each beside the image that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmext.drawing import new_figure
from mmext.heads.proto_pnet import ProtoPNetHead

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_prototypes', 'part_of', 'show_prototypes']


def part_of(heat: Tensor, quantile: float = 0.95) -> tuple[int, int, int, int]:
    """Return the rows and columns (top, bottom, left, right) of the box around the largest values, as the authors do."""
    high = heat >= torch.quantile(heat, quantile)
    rows, columns = high.any(1).nonzero().flatten(), high.any(0).nonzero().flatten()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@torch.no_grad()
def show_prototypes(model: Any, dataset: Any, classes: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Go through the prototypes that were pushed and are kept.

    Args:
        model: A classifier of mmpretrain with a :class:`ProtoPNetHead`, in eval mode.
        dataset: The images that the prototypes were pushed to.
        classes: Those of which prototypes are shown, None for all.

    Yields:
        The image (H, W, 3), the similarity at its pixels (H, W), the box of its largest values, and a title.
    """
    head: ProtoPNetHead = model.head
    for number, (image, row, column) in enumerate(head.source.tolist()):
        label = int(head.prototype_class[number])
        if image < 0 or not head.kept[number] or (classes is not None and label not in classes):
            continue
        item = dataset[image]
        data = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]), False)
        distance = head.distances(head.patches(model.extract_feat(data['inputs'])))[0, number]
        picture = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
        size = (picture.shape[0], picture.shape[1])
        heat = interpolate(head.similarity_of(distance)[None, None], size, mode='bicubic', align_corners=False)[0, 0]
        yield dict(
            image=np.ascontiguousarray(picture),
            heat=heat.cpu().numpy(),
            box=part_of(heat.cpu()),
            title=f'{number} of class {label}: image {image}, ({row}, {column}), distance {float(distance[row, column]):.1g}',
        )


def draw_prototypes(shown: Sequence[dict[str, Any]]) -> Figure:
    """Draw a row per prototype: the patch, the image with its box, and where the prototype answers in it."""
    figure = new_figure(6.6, 2.3 * max(1, len(shown)))
    axes = figure.subplots(max(1, len(shown)), 3, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, one in zip(axes, shown, strict=False):
        top, bottom, left, right = one['box']
        row[0].imshow(one['image'][top:bottom, left:right])
        for axis in row[1:]:
            axis.imshow(one['image'])
        corners = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        row[1].plot(*(np.array(side) - 0.5 for side in corners), color='yellow', linewidth=1.5)
        row[2].imshow(one['heat'], cmap='inferno', alpha=0.6)
        row[1].set_title(one['title'], fontsize=8)
    return figure
