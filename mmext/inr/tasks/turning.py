"""A film of a scene from a camera that goes around it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmext.errors import UsageError
from mmext.files import write_whole

__all__ = ['render_frames', 'save_film']

#: File endings, with what Pillow calls the format.
_FORMATS = {'.gif': 'GIF', '.png': 'PNG', '.apng': 'PNG', '.webp': 'WEBP'}


@torch.no_grad()
def render_frames(model: Any, path: Iterable[Tensor], maps: Sequence[str] = ('prediction',)) -> Iterator[np.ndarray]:
    """Render a picture for each camera of a path, with further maps on its right, as (H, W, 3) bytes.

    Depths are gray, near ones bright, on the scale of the first frame. Normals are drawn as (n + 1) / 2.

    Args:
        model: A :class:`mmext.SignalModel` in eval mode.
        path: Rays of each picture, (H, W, 6).
        maps: Names of what the operator reconstructs: ``'prediction'``, ``'depth'``, ``'opacity'``, ``'normal'``.

    Raises:
        UsageError: If the operator has no such map.
    """
    device, limits = next(model.parameters()).device, None
    for rays in path:
        found = model.operator.reconstruct(model.image, rays.to(device))
        if unknown := [name for name in maps if name not in found]:
            raise UsageError(
                f'{type(model.operator).__name__} renders no {", ".join(unknown)}; choose from {", ".join(found)}'
            )
        panels = []
        for name in maps:
            values = found[name].float().cpu()
            if name == 'depth':
                seen = found['opacity'].cpu() > 0.5
                if limits is None and seen.any():
                    limits = (float(values[seen].min()), float(values[seen].max()))
                near, far = limits or (0.0, 1.0)
                values = torch.where(seen, 1 - 0.8 * (values - near) / max(far - near, 1e-6), 0)
            elif name == 'normal':
                values = (values + 1) / 2
            values = values[..., None].expand(*values.shape, 3) if values.ndim == 2 else values
            panels.append((values.clamp(0, 1) * 255).round().byte().numpy())
        yield np.concatenate(panels, axis=1)


def save_film(frames: Iterable[np.ndarray], path: Path, seconds: float = 3.0, zoom: int = 1) -> int:
    """Write frames as a film that starts again, GIF, APNG or WebP, and return their number.

    Args:
        frames: (H, W, 3) bytes.
        path: Its ending tells the format.
        seconds: Of one round.
        zoom: Each pixel is drawn as so many rows and columns.

    Raises:
        UsageError: If the ending is unknown, or there is no frame.
    """
    from PIL import Image

    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f'{path} is none of {", ".join(_FORMATS)}, the formats of films; choose another ending')
    images = [Image.fromarray(frame.repeat(zoom, 0).repeat(zoom, 1)) for frame in frames]
    if not images:
        raise UsageError(f'{path} would have no frame; ask for one at least')
    content = io.BytesIO()
    if path.suffix.lower() == '.gif':
        # One palette for all, so that colors do not flicker.
        whole = Image.new('RGB', (images[0].width, images[0].height * len(images)))
        for number, image in enumerate(images):
            whole.paste(image, (0, number * image.height))
        palette = whole.quantize(255, dither=Image.Dither.NONE)
        images = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    images[0].save(
        content,
        format=_FORMATS[path.suffix.lower()],
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * seconds / len(images)),
        loop=0,
    )
    write_whole(path, content.getvalue())
    return len(images)
