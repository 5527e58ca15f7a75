"""Training batches of the hosts, made from the embedded data: digits on photographs, with boxes, masks and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmext.datasets.digit_scenes import Scene, Source, load_sources, make_scene, make_single

__all__ = ['SAMPLES', 'batch_for', 'fewest_classes', 'take_step']


def batch_for(scope: str, number: int = 2, size: int = 64, classes: int | None = None) -> dict[str, list]:
    """Return a batch as the pipelines of a host pack it.

    Args:
        scope: The host, a key of :data:`SAMPLES`.
        number: How many images.
        size: Height and width in pixels.
        classes: How many classes the model knows; labels beyond are wrapped around. The data has ten (maps: eleven).
    """
    made = [SAMPLES[scope](i, size, classes) for i in range(number)]
    return {'inputs': [image for image, _ in made], 'data_samples': [sample for _, sample in made]}


def fewest_classes(cfg: Any) -> int | None:
    """Return the smallest ``num_classes`` that a model's config names anywhere, None if it names none."""
    found: list[int | None] = []
    if isinstance(cfg, (list, tuple)):
        found = [fewest_classes(c) for c in cfg]
    elif isinstance(cfg, Mapping):
        own = cfg.get('num_classes')
        found = [own if isinstance(own, int) and own > 0 else None, *map(fewest_classes, cfg.values())]
    return min((n for n in found if n is not None), default=None)


def take_step(model: Any, optim_wrapper: Mapping[str, Any], batch: dict, size: int = 64) -> dict[str, Tensor]:
    """Take one training step on a CPU, as the runner does, and return what it logs.

    Args:
        model: A host's whole model, in train mode.
        optim_wrapper: The entry of its config. Mixed precision, which mmengine has on accelerators only, is left out.
        batch: See :func:`batch_for`.
        size: Height and width of the images. Segmentors pad to the crop of their training, which is larger.
    """
    from mmengine.optim import build_optim_wrapper

    if getattr(model.data_preprocessor, 'size', None) is not None:
        model.data_preprocessor.size = (size, size)
    return model.train_step(batch, build_optim_wrapper(model, _without_amp(optim_wrapper)))


def _without_amp(cfg: Mapping[str, Any]) -> dict[str, Any]:
    if cfg.get('type') != 'AmpOptimWrapper':
        return dict(cfg)
    return {**{k: v for k, v in cfg.items() if k not in ('loss_scale', 'dtype')}, 'type': 'OptimWrapper'}


@lru_cache
def _source() -> Source:
    return load_sources()['train']


def _scene(number: int, size: int) -> Scene:
    return make_scene(_source(), size, 0.2, np.random.default_rng(number))


def _as_input(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)


def _meta(size: int) -> dict[str, tuple]:
    sides = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size))
    return {**sides, 'scale_factor': (1.0, 1.0)}


def _map(drawn: Scene, classes: int | None) -> Tensor:
    return torch.from_numpy(drawn.semantic.astype(np.int64))[None] % (classes or 256)


def _detection_sample(number: int, size: int, classes: int | None) -> tuple[Tensor, Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    drawn = _scene(number, size)
    boxes = torch.tensor(drawn.boxes(), dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.stack([drawn.owner == k + 1 for k in range(len(drawn.labels))])
    truth = InstanceData(
        bboxes=HorizontalBoxes(boxes),
        labels=torch.tensor(drawn.labels) % (classes or 256),
        masks=BitmapMasks(masks.astype(np.uint8), size, size),
    )
    # Panoptic heads read the map.
    semantic = PixelData(sem_seg=_map(drawn, classes))
    return _as_input(drawn.image), DetDataSample(metainfo=_meta(size), gt_instances=truth, gt_sem_seg=semantic)


def _segmentation_sample(number: int, size: int, classes: int | None) -> tuple[Tensor, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    drawn = _scene(number, size)
    sample = SegDataSample(metainfo=_meta(size))
    sample.gt_sem_seg = PixelData(data=_map(drawn, classes))
    # Depth estimators read this one.
    sample.gt_depth_map = PixelData(data=torch.from_numpy(drawn.depth)[None])
    return _as_input(drawn.image), sample


def _classification_sample(number: int, size: int, classes: int | None) -> tuple[Tensor, Any]:
    from mmpretrain.structures import DataSample

    image = make_single(_source(), number, size, np.random.default_rng(number))
    label = int(_source().labels[number]) % (classes or 256)
    return _as_input(image), DataSample(metainfo=_meta(size)).set_gt_label(label)


#: What makes an image and its sample, by host: (number, size, classes).
SAMPLES: dict[str, Callable[[int, int, int | None], tuple[Tensor, Any]]] = {
    'mmdet': _detection_sample,
    'mmseg': _segmentation_sample,
    'mmpretrain': _classification_sample,
}
