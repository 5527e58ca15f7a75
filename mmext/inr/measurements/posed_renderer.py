"""Pictures from cameras that are not quite where they are said to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Count, Natural
from mmext.inr.measurements.rigid import rigid_motion
from mmext.inr.measurements.volume_renderer import VolumeRenderer
from mmext.registry import MODELS

__all__ = ['PosedVolumeRenderer']


@MODELS.register_module()
class PosedVolumeRenderer(VolumeRenderer):
    r"""Volume rendering that learns where the cameras are, together with the field.

    Chng, Ramasinghe, Sherrah, Lucey, *Gaussian Activated Neural Radiance Fields for High Fidelity Reconstruction and Pose
    Estimation*, ECCV 2022, arXiv 2204.05735.

    .. math:: T_v \leftarrow \exp(\xi_v)\, T_v

    Rays come as the given camera has them, with the number of their view, and are moved by the motion of that view. The
    authors move points of the world instead, by the inverse. The motions start at none. Their rate of learning is set by
    ``paramwise_cfg=dict(custom_keys={'operator.twist': dict(lr_mult=...)})``.

    Args:
        views: Number of training views.
        hold: Steps in which the cameras stay where they are.
        **kwargs: Those of :class:`mmext.VolumeRenderer`.

    Shape:
        Rays (n, 7), origin, unit direction and number of the view, to (n, 4). Rays (..., 6) are taken as they are.

    Raises:
        ValueError: If a ray is of a view that does not exist.

    Example:
        >>> renderer = PosedVolumeRenderer(views=3, samples=8)
        >>> rays = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0, -1.0, 2.0]])
        >>> renderer.world_rays(rays)
        tensor([[ 0.,  0.,  3.,  0.,  0., -1.]], grad_fn=<CatBackward0>)
    """

    example = dict(views=3, samples=4)

    def __init__(self, views: Count = 24, hold: Natural = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hold = hold
        self.twist = nn.Parameter(torch.zeros(views, 6))

    def motions(self) -> Tensor:
        """Return the motions of all cameras, (V, 3, 4)."""
        return rigid_motion(self.twist)

    def world_rays(self, coords: Tensor) -> Tensor:
        """Return rays where their cameras have been found to be."""
        if coords.shape[-1] == 6:
            return coords
        index = coords[..., 6].long()
        if len(index) and int(index.max()) >= len(self.twist):
            raise ValueError(
                f'PosedVolumeRenderer has {len(self.twist)} views, got a ray of view {int(index.max())}; set views to the '
                'number of the data set'
            )
        held = self.training and self.hold > 0 and self.step < self.hold
        # Held, and yet with a gradient, which is zero.
        motion = (rigid_motion(0 * self.twist) if held else self.motions())[index]
        origin = (motion[..., :3] @ coords[..., :3, None])[..., 0] + motion[..., 3]
        return torch.cat((origin, (motion[..., :3] @ coords[..., 3:6, None])[..., 0]), dim=-1)
