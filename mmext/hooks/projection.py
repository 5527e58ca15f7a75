"""Parameters that must stay inside of a set: put back after every optimizer step."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmext.checkpoints import unwrap
from mmext.contracts import Projects, find
from mmext.registry import HOOKS

__all__ = ['ProjectionHook']


@HOOKS.register_module()
class ProjectionHook(Hook):
    """Keeps parameters inside their sets after every step: DCLS positions, SMPConv radii (ours).

    DCLS keeps its positions inside of the window so, SMPConv its radii, Gaussian composition its standard deviations. It comes
    before an EMA hook, which then averages what the model computes with; the average is inside of these sets as well.

    Raises:
        ValueError: If no module of the model defines it.

    Example:
        >>> custom_hooks = [dict(type='mmext.ProjectionHook')]
    """

    priority = 'HIGH'

    def __init__(self) -> None:
        self._modules: list[Projects] = []

    def before_train(self, runner: Runner) -> None:
        """Find the modules; a checkpoint, too, may have brought parameters from outside."""
        model = unwrap(runner.model)
        self._modules = [m for _, m in find(model, Projects)]
        if not self._modules:
            raise ValueError(
                f'ProjectionHook found no module with project_parameters() in {type(model).__name__}; remove it from '
                'custom_hooks, or put a layer such as mmext.DCLSConv2d into the model'
            )
        self._project()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Project what the step has changed."""
        self._project()

    def after_train(self, runner: Runner) -> None:
        """Let go of the modules."""
        self._modules = []

    def _project(self) -> None:
        for module in self._modules:
            module.project_parameters()
