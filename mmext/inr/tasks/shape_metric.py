"""How near the shape that a network represents is to the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from mmext.arguments import Count, Positive
from mmext.inr.tasks.drawing_shapes import inside_of, overlap
from mmext.inr.tasks.meshes import Mesh, surface_distances
from mmext.inr.tasks.surfaces import mesh_of_grid
from mmext.registry import METRICS

__all__ = ['ShapeMetric']


@METRICS.register_module()
class ShapeMetric(BaseMetric):
    """Overlap of two shapes, and distances of their surfaces, beside what two samples of the true one give (ours).

    Reported are ``IoU``, the intersection over union on the grid of the sample, and where the sample brings its true
    ``surface``, what :func:`mmext.inr.surface_distances` returns for the surface of the prediction on that grid. The same for
    the true surface and itself is ``chamfer_floor``, ``normal_consistency_ceiling`` and ``f_score_ceiling``. Distances are
    NaN where the prediction has no surface.

    Args:
        surfaces: Whether surfaces are compared; overlap alone costs nothing.
        queries: See :func:`mmext.inr.surface_distances`.
        targets: See :func:`mmext.inr.surface_distances`.
        threshold: See :func:`mmext.inr.surface_distances`.
        collect_device: As in mmengine.
        prefix: Stands before the names, ``shape/IoU`` by default.
        collect_dir: As in mmengine.

    Raises:
        ValueError: If a sample has no target.

    Example:
        >>> val_evaluator = dict(type='mmext.ShapeMetric')
    """

    default_prefix = 'shape'

    def __init__(
        self,
        surfaces: bool = True,
        queries: Count = 20_000,
        targets: Count = 200_000,
        threshold: Positive = 0.02,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.surfaces = surfaces
        self.options: dict[str, Any] = dict(queries=queries, targets=targets, threshold=threshold)
        self._floors: tuple[Mesh, dict[str, float]] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare every sample with its target."""
        for sample in data_samples:
            if sample.get('target') is None:
                raise ValueError(
                    'ShapeMetric compares with a target and got a sample that has none; where the truth is unknown, set '
                    'val_evaluator=[] and test_evaluator=[]'
                )
            result = {'IoU': overlap(sample)}
            surface = sample.get('surface')
            if self.surfaces and surface is not None:
                inside = inside_of(sample['prediction'], sample.get('kind', 'occupancy'))[..., 0]
                result |= surface_distances(mesh_of_grid(inside), surface, **self.options)
                result |= self._floors_of(surface)
            self.results.append(result)

    def _floors_of(self, surface: Mesh) -> dict[str, float]:
        if self._floors is None or self._floors[0] is not surface:
            found = surface_distances(surface, surface, seed=100, **self.options)
            floors = {'chamfer_floor': found['chamfer']}
            floors |= {f'{name}_ceiling': found[name] for name in ('normal_consistency', 'f_score')}
            self._floors = surface, floors
        return self._floors[1]

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average over the samples that have a quantity."""
        names = dict.fromkeys(name for result in results for name in result)
        found = {name: [r[name] for r in results if name in r] for name in names}
        return {name: sum(values) / len(values) for name, values in found.items()}
