"""A pair of photographs with the true disparity, and how near an estimate comes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmext.arguments import Positive, at_least, at_most
from mmext.inr.grid import coordinate_grid
from mmext.inr.measurements.warp import match_blocks
from mmext.inr.tasks.scenes import in_package, photograph
from mmext.registry import DATASETS, METRICS

__all__ = ['StereoDataset', 'StereoMetric']

#: Of the embedded pair, without its last column, and what its largest disparity in pixels is rounded up to.
_ROWS, _COLUMNS, _LARGEST = 500, 740, 72


@DATASETS.register_module()
class StereoDataset(Dataset):
    """Two photographs of a motorcycle from cameras side by side, with the true disparity (ours).

    They are of Middlebury's data of 2014 and ship with scikit-image, 500 x 741 pixels. Left[i, j] is right[i, j - d]; the
    docstring of scikit-image says it the other way round.

    Args:
        size: Rows of the photographs, at most 500; 125 is a quarter.
        max_disparity: Disparities are shares of this, in pixels of that size; 72 of 500 rows by default.

    Shape:
        ``inputs``, the grid (H, W, 2), and ``data_samples`` with ``measurement`` (H, W, 6), left and right, ``target``, the
        true shares (H, W, 1), zero where they are unknown, ``mask`` (H, W) of what is known, and ``baseline`` by block
        matching.

    Raises:
        ImportError: If scikit-image is not installed.

    Example:
        >>> StereoDataset(size=50)[0]['data_samples'].measurement.shape
        torch.Size([50, 74, 6])
    """

    example = dict(size=50)

    def __init__(
        self, size: Annotated[int, at_least(8), at_most(_ROWS)] = 125, max_disparity: Positive | None = None
    ) -> None:
        self.size = (size, round(size * _COLUMNS / _ROWS))
        self.max_disparity = _LARGEST * size / _ROWS if max_disparity is None else max_disparity

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
        left, right = (self._smaller(photograph(f'motorcycle_{side}.png')) for side in ('left', 'right'))
        with np.load(in_package('skimage', 'data/motorcycle_disp.npz', 'scikit-image')) as file:
            true = torch.from_numpy(file['arr_0'].astype(np.float32))[None, None]
        known = self._smaller(true.isfinite().float())[..., 0]
        mean = self._smaller(torch.where(true.isfinite(), true, 0))[..., 0] / known.clamp_min(1e-6)
        mean = mean * self.size[1] / _COLUMNS
        mask = (known > 0.5).float()
        matched = match_blocks(left, right, int(self.max_disparity))
        return BaseDataElement(
            metainfo=dict(signal='motorcycle', size=tuple(mask.shape), max_disparity=self.max_disparity),
            measurement=torch.cat((left, right), dim=-1),
            target=(mask * mean / self.max_disparity)[..., None],
            mask=mask,
            baseline=matched[..., None] / self.max_disparity,
        )

    def _smaller(self, image: Tensor) -> Tensor:
        """Return means over areas, (H, W, C) from (1, C, h, w)."""
        return F.interpolate(image[..., :_COLUMNS], self.size, mode='area')[0].movedim(0, -1)


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
