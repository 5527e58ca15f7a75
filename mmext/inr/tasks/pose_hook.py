"""How near cameras that are learned come to the true ones."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import Tensor

from mmext.arguments import Natural, Positive
from mmext.checkpoints import unwrap
from mmext.inr.measurements.posed_renderer import PosedVolumeRenderer
from mmext.inr.measurements.rigid import align, pose_errors, rigid_motion
from mmext.inr.tasks.reconstruction_metric import psnr
from mmext.registry import HOOKS

__all__ = ['PoseHook']

#: Rays of a held-out picture in each step of its refinement.
_RAYS = 512


@HOOKS.register_module()
class PoseHook(Hook):
    """Measures learned cameras, and brings held-out views into the world that they have made up.

    A scene whose cameras are learned may be moved, turned and scaled as a whole. Before a validation or test the similarity
    is found that takes the true camera centers to the learned ones. Held-out views are moved by it. Then each camera is
    refined by its own picture, with the field fixed, as Chng et al., arXiv 2204.05735, do: where a camera is off by
    a pixel, PSNR says nothing about the field.

    Logged are ``pose/rotation`` in degrees and ``pose/distance`` in scene units, the mean errors of the training cameras
    after alignment, and ``pose/PSNR_unrefined``, of the held-out views before the refinement.

    Args:
        refine: Steps of Adam for each held-out view.
        lr: Their rate.

    Raises:
        TypeError: If the operator of the model is no :class:`mmext.PosedVolumeRenderer`.

    Example:
        >>> custom_hooks = [dict(type='mmext.PoseHook', refine=100)]
    """

    serves_testing = True

    def __init__(self, refine: Natural = 100, lr: Positive = 1e-3) -> None:
        self.refine = refine
        self.lr = lr
        self._found: dict[str, Any] = {}

    def before_val_epoch(self, runner: Runner) -> None:
        """Align the learned cameras with the true ones."""
        model: Any = unwrap(runner.model)
        if not isinstance(model.operator, PosedVolumeRenderer):
            raise TypeError(
                f'PoseHook serves a mmext.PosedVolumeRenderer, got {type(model.operator).__name__}; remove the hook'
            )
        dataset: Any = DATASETS.build(runner.cfg.train_dataloader.dataset)
        motion = model.operator.motions().detach().cpu()
        given = dataset.given_poses
        last = given.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(len(given), 1, 4)
        learned = motion @ torch.cat((given, last), dim=1)
        rotation, distance = pose_errors(learned, dataset.poses)
        self._found = dict(rotation=rotation, distance=distance, unrefined=[])
        self._world = align(dataset.poses[..., 3], learned[..., 3])

    before_test_epoch = before_val_epoch

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Move the view of a batch, in place."""
        model: Any = unwrap(runner.model)
        device = next(model.parameters()).device
        rays: Tensor = data_batch['inputs'][0].to(device)
        target: Tensor = data_batch['data_samples'][0].target.to(device)
        scale, turn, shift = (value.to(rays) for value in self._world)
        moved = torch.cat((scale * rays[..., :3] @ turn.T + shift, rays[..., 3:6] @ turn.T), dim=-1)
        prediction = model.operator.reconstruct(model.image, moved)['prediction']
        self._found['unrefined'].append(psnr(prediction.clamp(0, 1), target))
        data_batch['inputs'][0] = self._refined(model, moved, target)

    before_test_iter = before_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add what was measured to the metrics of the validation."""
        self._log(runner, metrics, 'val')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add what was measured to the metrics of the test."""
        self._log(runner, metrics, 'test')

    def _log(self, runner: Runner, metrics: dict[str, float] | None, mode: str) -> None:
        unrefined = self._found.get('unrefined') or [float('nan')]
        found = {
            'pose/rotation': self._found['rotation'],
            'pose/distance': self._found['distance'],
            'pose/PSNR_unrefined': sum(unrefined) / len(unrefined),
        }
        if metrics is not None:
            metrics.update(found)
        for name, value in found.items():
            runner.message_hub.update_scalar(f'{mode}/{name}', value)

    def _refined(self, model: Any, rays: Tensor, target: Tensor) -> Tensor:
        """Return the rays of the camera that shows its picture best."""
        rays, colors, shape = rays.reshape(-1, 6), target.reshape(-1, 3), rays.shape
        learning = {p: p.requires_grad for p in model.parameters()}
        generator = torch.Generator().manual_seed(0)
        twist = torch.zeros(6, device=rays.device, requires_grad=True)
        optimizer = torch.optim.Adam([twist], lr=self.lr)
        try:
            for p in learning:
                p.requires_grad_(False)
            with torch.enable_grad():
                for _ in range(self.refine):
                    chosen = torch.randint(len(rays), (min(_RAYS, len(rays)),), generator=generator).to(rays.device)
                    pixels, _ = model.operator.predict(model.image, _moved(rays[chosen], twist))
                    optimizer.zero_grad()
                    (pixels[..., :3] - colors[chosen]).square().mean().backward()
                    optimizer.step()
        finally:
            for p, flag in learning.items():
                p.requires_grad_(flag)
        return _moved(rays, twist.detach()).view(shape)


def _moved(rays: Tensor, twist: Tensor) -> Tensor:
    motion = rigid_motion(twist)
    return torch.cat((rays[:, :3] @ motion[:, :3].T + motion[:, 3], rays[:, 3:] @ motion[:, :3].T), dim=-1)
