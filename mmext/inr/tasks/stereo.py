"""A pair of photographs with the true disparity, and how near an estimate comes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmext.inr.grid import coordinate_grid
from mmext.inr.measurements.warp import match_blocks
from mmext.inr.tasks.scenes import in_package, photograph
from mmext.registry import DATASETS, METRICS

__all__ = ['StereoDataset', 'StereoMetric']

#: Pixels that the largest disparity of the embedded pair is rounded up to.
_LARGEST = 72


@DATASETS.register_module()
class StereoDataset(Dataset):
    """Two photographs of a motorcycle from cameras side by side, with the true disparity (ours).

    They are of Middlebury's data of 2014 and ship with scikit-image, 500 x 741 pixels. Left[i, j] is right[i, j - d]; the
    docstring of scikit-image says it the other way round.

    Args:
        scale: The photographs are made that many times smaller; 2, 4, 5 or 10.
        max_disparity: Disparities are shares of this, in pixels after scaling; 72 / scale by default.

    Shape:
        ``inputs``, the grid (H, W, 2), and ``data_samples`` with ``measurement`` (H, W, 6), left and right, ``target``, the
        true shares (H, W, 1), zero where they are unknown, ``mask`` (H, W) of what is known, and ``baseline`` by block
        matching.

    Raises:
        ImportError: If scikit-image is not installed.

    Example:
        >>> StereoDataset(scale=10)[0]['data_samples'].measurement.shape
        torch.Size([50, 74, 6])
    """

    example = dict(scale=10)

    def __init__(self, scale: Literal[1, 2, 4, 5, 10] = 4, max_disparity: float | None = None) -> None:
        self.scale = scale
        self.max_disparity = _LARGEST / scale if max_disparity is None else max_disparity

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in (0, -1):
            raise IndexError(f'StereoDataset has one item, got the index {index}')
        return dict(inputs=coordinate_grid(*self.sample.size), data_samples=self.sample)

    def overview(self) -> Tensor:
        """Return the left photograph, (1, 3, H, W)."""
        return self.sample.measurement[..., :3].movedim(-1, 0)[None]

    @functools.cached_property
    def sample(self) -> BaseDataElement:
        """The one sample."""
        left, right = (_smaller(photograph(f'motorcycle_{side}.png'), self.scale) for side in ('left', 'right'))
        with np.load(in_package('skimage', 'data/motorcycle_disp.npz', 'scikit-image')) as file:
            true = torch.from_numpy(file['arr_0'].astype(np.float32))[None, None]
        known = _smaller(true.isfinite().float(), self.scale)[..., 0]
        mean = _smaller(torch.where(true.isfinite(), true, 0), self.scale)[..., 0] / known.clamp_min(1e-6)
        mask = (known > 0.99).float()
        matched = match_blocks(left, right, int(self.max_disparity))
        return BaseDataElement(
            metainfo=dict(signal='motorcycle', size=tuple(mask.shape), max_disparity=self.max_disparity),
            measurement=torch.cat((left, right), dim=-1),
            target=(mask * mean / self.scale / self.max_disparity)[..., None],
            mask=mask,
            baseline=matched[..., None] / self.max_disparity,
        )


def _smaller(image: Tensor, scale: int) -> Tensor:
    """Return means over blocks, (H, W, C) from (1, C, h, w)."""
    height, width = (side // scale * scale for side in image.shape[2:])
    return F.avg_pool2d(image[..., :height, :width], scale)[0].movedim(0, -1)


@METRICS.register_module()
class StereoMetric(BaseMetric):
    """How far disparities are from the true ones where these are known, beside those of block matching (ours).

    Reported are ``EPE``, the mean absolute error in pixels, ``median``, and ``bad1``, the share that is off by more than one
    pixel; ``baseline_EPE`` and so on are those of the sample's ``baseline``.

    Args:
        collect_device: As in mmengine.
        prefix: Stands before the names, ``stereo/EPE`` by default.
        collect_dir: As in mmengine.

    Raises:
        ValueError: If a sample has no true disparity.

    Example:
        >>> val_evaluator = dict(type='mmext.StereoMetric')
    """

    default_prefix = 'stereo'

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare every sample with the truth."""
        for sample in data_samples:
            if sample.get('target') is None or sample.get('mask') is None:
                raise ValueError(
                    'StereoMetric compares with a true disparity and got a sample without target or mask; where the truth is '
                    'unknown, set val_evaluator=[] and test_evaluator=[]'
                )
            known = sample['mask'] > 0
            found = {}
            for prefix, name in (('', 'prediction'), ('baseline_', 'baseline')):
                if sample.get(name) is not None:
                    error = (sample[name] - sample['target']).abs()[..., 0][known] * sample['max_disparity']
                    found[f'{prefix}EPE'] = float(error.mean())
                    found[f'{prefix}median'] = float(error.median())
                    found[f'{prefix}bad1'] = float((error > 1).float().mean())
            self.results.append(found)

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average over the samples."""
        return {name: sum(r[name] for r in results) / len(results) for name in results[0]}
