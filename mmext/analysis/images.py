"""An image from a file, as a host's model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmext.errors import UsageError

__all__ = ['load_image', 'model_inputs']


def load_image(path: str | Path, size: Sequence[int]) -> np.ndarray:
    """Read an image file and resize it.

    Args:
        path: Any format that mmcv reads.
        size: (H, W).

    Returns:
        (H, W, 3), bytes, in the order blue, green, red, as the hosts have it.

    Raises:
        UsageError: If the file cannot be read as an image.
    """
    import mmcv

    try:
        image = mmcv.imread(path)
    except (OSError, ValueError) as error:
        raise UsageError(f'{path} cannot be read ({error}); name an image file') from error
    if image is None:
        raise UsageError(f'{path} is no image; name a file of a format such as PNG or JPEG')
    return mmcv.imresize(image, (size[1], size[0]), interpolation='area' if image.shape[0] > size[0] else 'bilinear')


def model_inputs(model: nn.Module, images: Sequence[np.ndarray]) -> Tensor:
    """Return what the forward of ``model`` takes for these images, (N, 3, H, W): a host's model normalizes by itself.

    A bare component gets values with mean 0 and deviation 1.
    """
    raw = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in images]
    if isinstance(model, BaseModel) and model.data_preprocessor is not None:
        sizes = [dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(image.shape[1:])) for image in raw]
        samples = [BaseDataElement(metainfo={**size, 'scale_factor': (1.0, 1.0)}) for size in sizes]
        return model.data_preprocessor(dict(inputs=raw, data_samples=samples), False)['inputs']
    batch = torch.stack(raw).flip(1).float()
    return (batch - batch.mean((1, 2, 3), keepdim=True)) / batch.std((1, 2, 3), keepdim=True).clamp_min(1)
