"""The embedded scenes without files, for tasks beyond boxes and maps: depth, and which digits there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from mmengine.dataset import BaseDataset

from mmext.arguments import Cfg, Repeats, Seed, at_least
from mmext.datasets.digit_scenes import SEG_CLASSES, SEG_PALETTE, Source, load_sources, make_scene
from mmext.registry import DATASETS

__all__ = ['DigitSceneDataset']


@lru_cache
def _source(split: str) -> Source:
    return load_sources()[split]


@DATASETS.register_module()
class DigitSceneDataset(BaseDataset):
    """Scenes of digits on photographs, drawn when they are asked for (ours).

    A pipeline begins with the image: there is nothing to load. Beside it stand

    - ``gt_depth_map``, (H, W) in meters, for depth estimators: all digits have one size, so a small one is far away,
    - ``gt_seg_map``, (H, W), for segmentors: 0 for the background, else digit + 1, or 1 for any digit,
    - ``gt_label``, the digits that are in the scene, for classifiers with several labels.

    Args:
        split: ``'train'`` or ``'val'``, which share neither a digit nor a photograph.
        number: How many scenes.
        size: Side of a scene in pixels.
        classes: ``'digits'``: the map tells them apart. ``'foreground'``: it tells them from the background.
        seed: The same seed draws the same scenes.
        pipeline: As in every data set of the hosts.
        test_mode: Whether the set serves testing.

    Raises:
        ModuleNotFoundError: If Pillow, scikit-learn or scikit-image is missing.

    Example:
        >>> scenes = DigitSceneDataset('val', number=2, size=64)
        >>> scenes[1]['img'].shape, float(scenes[1]['gt_depth_map'].max())
        ((64, 64, 3), 8.0)
    """

    example = dict(number=2, size=64)

    def __init__(
        self,
        split: Literal['train', 'val'] = 'train',
        number: Repeats = 400,
        size: Annotated[Repeats, at_least(64)] = 128,
        classes: Literal['digits', 'foreground'] = 'digits',
        seed: Seed = 0,
        pipeline: Sequence[Cfg | Callable] = (),
        test_mode: bool = False,
    ) -> None:
        self.split, self.number, self.size, self.seed = split, number, size, seed
        self.classes = classes
        names = SEG_CLASSES if classes == 'digits' else ('background', 'digit')
        metainfo = dict(classes=names, palette=[list(color) for color in SEG_PALETTE[: len(names)]])
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), test_mode=test_mode, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        """Return the numbers of the scenes."""
        return [dict(sample_idx=i) for i in range(self.number)]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Draw a scene, with all that is known of it."""
        idx = idx % self.number
        scene = make_scene(_source(self.split), self.size, 0.2, np.random.default_rng((self.seed, idx)))
        sides = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), scene.image.shape[:2])
        return dict(
            img=np.ascontiguousarray(scene.image[..., ::-1]),
            img_path=f'{self.split}_{idx:04d}.png',
            gt_depth_map=scene.depth,
            gt_seg_map=scene.semantic if self.classes == 'digits' else np.minimum(scene.semantic, 1),
            gt_label=sorted(set(scene.labels)),
            seg_fields=['gt_seg_map', 'gt_depth_map'],
            sample_idx=idx,
            scale_factor=(1.0, 1.0),
            **sides,
        )
