"""How near the surface that a field represents is to the true one."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmext.arguments import Repeats
from mmext.checkpoints import unwrap
from mmext.inr.tasks.meshes import surface_distances
from mmext.inr.tasks.surfaces import extract_mesh
from mmext.registry import HOOKS

__all__ = ['SurfaceHook']


@HOOKS.register_module()
class SurfaceHook(Hook):
    """Compares the surface of a field with that of the embedded scene that it was trained on (ours).

    After each validation and test both surfaces are extracted on one grid, and ``surface/chamfer``,
    ``surface/normal_consistency`` and ``surface/f_score`` are added to the metrics, see
    :func:`mmext.inr.surface_distances`. ``surface/chamfer_floor`` is what the true surface and itself give. Photographs have
    no true surface, and nothing is added.

    Args:
        resolution: Points of the grid on each axis.

    Example:
        >>> custom_hooks = [dict(type='mmext.SurfaceHook', resolution=96)]
    """

    serves_testing = True

    def __init__(self, resolution: Repeats = 96) -> None:
        self.resolution = resolution

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add what is found to the metrics of a validation."""
        self._measure(runner, metrics, 'val')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add what is found to the metrics of a test."""
        self._measure(runner, metrics, 'test')

    def _measure(self, runner: Runner, metrics: dict[str, float] | None, mode: str) -> None:
        dataset: Any = DATASETS.build(runner.cfg.test_dataloader.dataset)
        level = getattr(dataset, 'level', None)
        if level is None:
            return
        model: Any = unwrap(runner.model)
        cell = 2 / max(self.resolution - 1, 1)
        field = partial(model.operator.solid, model.image, cell=cell)
        found = extract_mesh(field, self.resolution, device=next(model.parameters()).device)
        true = extract_mesh(lambda points: -level(points), self.resolution)
        distances = surface_distances(found, true)
        values = {f'surface/{name}': distances[name] for name in ('chamfer', 'normal_consistency', 'f_score')}
        values['surface/chamfer_floor'] = surface_distances(true, true, seed=100)['chamfer']
        if metrics is not None:
            metrics.update(values)
        for name, value in values.items():
            runner.message_hub.update_scalar(f'{mode}/{name}', value)
