"""Pictures of one scene from cameras that are known: what a field of color and density is trained on, and tested with."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmext.arguments import Count, Few, Natural, NonNegative, Positive, Repeats, Seed, Share, above, below
from mmext.errors import UsageError
from mmext.inr.measurements.rays import Lens, camera_rays, look_at, orbit, pixel_rays, simple_lens, unit_ball
from mmext.inr.measurements.rigid import rigid_motion
from mmext.inr.tasks.scenes import SCENES
from mmext.inr.tasks.view_layouts import Photographs, read_photographs
from mmext.registry import DATASETS

__all__ = ['ViewDataset']

#: Rays that the statistics of norms are measured on.
_STATISTICS = 2048
_STEPS = 1_000_000


@DATASETS.register_module()
class ViewDataset(Dataset):
    r"""Views of one scene in the unit ball: rays for training, whole held-out pictures for testing (ours).

    Training has an item for each of a million steps. Its rays are drawn by the number of the item: pixels of all views, or of
    one. Rays that miss the unit ball show nothing but the background, and are not drawn. A test has one item for each
    held-out view. Views are split by cameras, never by pixels.

    Args:
        scene: An embedded scene: ``'blocks'``, solids with photographs of scikit-image on them, or ``'terrain'``, measured
            heights that ship with matplotlib. Their cameras stand on a spiral.
        split: ``'train'``, ``'val'`` or ``'test'``.
        views: Training views of an embedded scene.
        held_out: Views of its tests. They stand on a spiral of their own, half a step on.
        size: Rows and columns of an embedded scene's pictures, 64 by default. Of photographs the height; they keep their
            own by default.
        field_of_view: Of an embedded scene's cameras, in degrees.
        radius: Their distance from the origin.
        rays: Rays of an item in training.
        one_view: Draw all of them from one view, drawn anew each time.
        supersample: A pixel of an embedded scene is the mean over that many rows and columns of rays.
        background: Brightness behind the scene.
        indices: Which views of the split; all by default.
        root: A folder with photographs and cameras instead: NeRF's ``transforms_*.json``, LLFF's ``poses_bounds.npy``, or
            ``sparse/0`` of COLMAP. Every eighth photograph of the latter two is held out.
        scale: Times the positions of the cameras of ``root``. The scene must lie in the unit ball; that of NeRF's own
            pictures does with 0.66.
        noise: Standard deviation of noise on the colors of training views.
        pose_noise: Training sees cameras that are moved by a random rigid motion, with this standard deviation of its six
            coordinates, in radians and scene units.
        view_index: Rays of training carry the number of their view, for :class:`mmext.PosedVolumeRenderer`.
        seed: Of all draws.

    Shape:
        Training: ``inputs`` (n, 6), origins and unit directions, with the number of the view as a seventh; ``measurement``
        (n, 4), color over the background and opacity, or (n, 3) where photographs have no alpha channel. Tests: ``inputs``
        (H, W, 6), ``target`` (H, W, 3), ``baseline``, the picture of the nearest training camera, and where they are known
        ``mask`` (H, W) and ``true_depth`` (H, W) along the rays, zero where nothing is.

    Raises:
        ValueError: If a folder is not what its layout asks for, a camera does not see the unit ball, or photographs are
            missing or differ in size.
        ImportError: If the package that an embedded scene is from is not installed.

    Example:
        >>> item = ViewDataset(size=8, rays=16)[0]
        >>> item['inputs'].shape, item['data_samples'].measurement.shape
        (torch.Size([16, 6]), torch.Size([16, 4]))
    """

    example = dict(size=8, rays=16, views=2, held_out=1)

    def __init__(
        self,
        scene: Literal['blocks', 'terrain'] = 'blocks',
        split: Literal['train', 'val', 'test'] = 'train',
        views: Repeats = 24,
        held_out: Repeats = 6,
        size: Repeats | None = None,
        field_of_view: Annotated[float, above(0), below(180)] = 30.0,
        radius: Annotated[float, above(1)] = 3.0,
        rays: Count = 512,
        one_view: bool = False,
        supersample: Annotated[Few, above(0)] = 2,
        background: Share = 1.0,
        indices: Sequence[Natural] | None = None,
        root: str | Path | None = None,
        scale: Positive = 1.0,
        noise: NonNegative = 0.0,
        pose_noise: NonNegative = 0.0,
        view_index: bool = False,
        seed: Seed = 0,
    ) -> None:
        self.training = split == 'train'
        self.rays = rays
        self.one_view = one_view
        self.background = background
        self.noise = noise
        self.view_index = view_index
        self.seed = seed
        self.name = scene if root is None else str(root)
        #: Of an embedded scene, negative in the solid alone.
        self.level = SCENES[scene].level if root is None else None
        self._views: Any
        if root is not None:
            read = functools.partial(read_photographs, Path(root), size=size, scale=scale)
            self._views = read(split, indices=indices)
            self._trained = self._views if self.training else _or_none(functools.partial(read, 'train', indices=None))
        else:
            side = 64 if size is None else size
            lens = simple_lens((side, side), math.radians(field_of_view))
            embedded = functools.partial(
                _Embedded,
                scene=scene,
                views=views,
                radius=radius,
                size=(side, side),
                lens=lens,
                supersample=supersample,
            )
            self._trained = embedded(tuple(map(float, range(views))))
            places = self._trained.places
            if not self.training:
                embedded = functools.partial(embedded, views=held_out)
                places = tuple(k + 0.5 for k in range(held_out))
            if indices is not None:
                if wrong := [k for k in indices if k >= len(places)]:
                    raise UsageError(
                        f'ViewDataset has {len(places)} views of this split, got indices={wrong}; leave them out'
                    )
                places = tuple(places[k] for k in indices)
            if not places:
                raise UsageError('ViewDataset needs one view at least, got indices=[]; leave it out for all')
            self._views = embedded(places)
        self.size: tuple[int, int] = self._views.size
        self.lens: Lens = self._views.lens
        #: True poses, (V, 3, 4), and those that training is given.
        self.poses: Tensor = self._views.poses
        self.given_poses = self.poses
        if pose_noise and self.training:
            motion = pose_noise * torch.randn(len(self.poses), 6, generator=self._generator(2))
            self.given_poses = rigid_motion(motion.double()).float() @ _homogeneous(self.poses)
        self._see_the_scene()

    def __len__(self) -> int:
        # Not one item: a resumed run asks for those that it has not had, in whatever process they are made.
        return _STEPS if self.training else len(self.poses)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f'ViewDataset has {len(self)} items, got the index {index}')
        index %= len(self)
        return self._draw(self.rays, self._generator(0, index)) if self.training else self._picture_item(index)

    def statistics_sample(self) -> Tensor:
        """Return rays of training for the statistics of norms: the same each time, whatever else was drawn."""
        return self._draw(_STATISTICS, self._generator(1))['inputs']

    def overview(self) -> Tensor:
        """Return all pictures, (V, 3, H, W), over the background."""
        return torch.stack([self.picture(k).movedim(-1, 0) for k in range(len(self.poses))])

    def path(self, frames: int) -> Iterator[Tensor]:
        """Yield the rays (H, W, 6) of cameras on a circle, as high and as far as the cameras are on average."""
        centers = self.poses[..., 3]
        distance = centers.norm(dim=-1).mean()
        height = centers[:, 2].mean().clamp(-0.95 * distance, 0.95 * distance)
        flat = (distance.square() - height.square()).sqrt()
        start = torch.atan2(centers[0, 1], centers[0, 0])
        for k in range(frames):
            angle = start + 2 * math.pi * k / frames
            yield camera_rays(
                look_at(torch.stack((flat * angle.cos(), flat * angle.sin(), height))), self.size, self.lens
            )

    def picture(self, index: int) -> Tensor:
        """Return a picture over the background, (H, W, 3), without noise."""
        return self._over_background(self._views.image(index)[..., :4])

    def _over_background(self, image: Tensor) -> Tensor:
        return image[..., :3] + (1 - image[..., 3:4]) * self.background

    def _generator(self, *key: int) -> torch.Generator:
        # Mixed, because near seeds give alike numbers in some generators.
        mixed = functools.reduce(
            lambda a, b: (a * 6364136223846793005 + b + 1442695040888963407) % 2**63, key, self.seed
        )
        return torch.Generator().manual_seed(mixed)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What is known of every item."""
        return dict(signal=self.name, size=self.size, background=self.background)

    # --- training --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _all(self) -> Tensor:
        return torch.stack([self._measurement(k) for k in range(len(self.poses))])

    def _measurement(self, view: int) -> Tensor:
        """Return what training sees of a view, (H, W, 4), or (H, W, 3) without an opacity."""
        image = self._views.image(view)[..., :4]
        color = self._over_background(image)
        if self.noise:
            color = color + self.noise * torch.randn(color.shape, generator=self._generator(3, view))
        return torch.cat((color, image[..., 3:]), dim=-1) if self._views.masked else color

    def _draw(self, number: int, generator: torch.Generator) -> dict[str, Any]:
        """Return an item of that many rays."""
        draw = functools.partial(torch.randint, generator=generator)
        (height, width), chosen, missing = self.size, [], number
        one = draw(len(self.poses), ()) if self.one_view else None
        while missing > 0:
            shape = (2 * missing + 16,)
            view = draw(len(self.poses), shape) if one is None else one.expand(shape)
            places = torch.stack((view, draw(height, shape), draw(width, shape)), dim=-1)
            rays = pixel_rays(self.given_poses[view], places[:, 1] + 0.5, places[:, 2] + 0.5, self.lens)
            seen = (unit_ball(rays)[1] > 0).nonzero().squeeze(1)[:missing]
            chosen.append((places[seen], rays[seen]))
            missing -= len(seen)
        places, rays = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        view, row, column = places.unbind(-1)
        measurement = self._all[view, row, column] if one is None else self._measurement(int(one))[row, column]
        if self.view_index:
            rays = torch.cat((rays, view[:, None].to(rays)), dim=-1)
        return dict(inputs=rays, data_samples=BaseDataElement(metainfo=self.metainfo, measurement=measurement))

    def _see_the_scene(self) -> None:
        """Refuse cameras that look past the unit ball."""
        for index, pose in enumerate(self.given_poses):
            if not (unit_ball(camera_rays(pose, (8, 8), _smaller(self.lens, self.size, (8, 8))))[1] > 0).any():
                where = ', '.join(f'{v:.3g}' for v in pose[:, 3].tolist())
                raise UsageError(
                    f'ViewDataset has a camera, view {index} of {self.name} at ({where}), that does not see the unit ball, in '
                    'which the scene must lie; change radius, scale or pose_noise, or leave the view out by indices'
                )

    # --- tests -----------------------------------------------------------------------------------------------------------

    def _picture_item(self, index: int) -> dict[str, Any]:
        image = self._views.image(index)
        values = dict(target=self._over_background(image[..., :4]))
        if self._views.masked:
            values['mask'] = image[..., 3]
        if image.shape[-1] > 4:
            values['true_depth'] = image[..., 4]
        if self._trained is not None and self._trained.size == self.size:
            nearest = int((self._trained.poses[..., 3] - self.poses[index, :, 3]).norm(dim=-1).argmin())
            values['baseline'] = self._over_background(self._trained.image(nearest)[..., :4])
        inputs = camera_rays(self.poses[index], self.size, self.lens)
        return dict(inputs=inputs, data_samples=BaseDataElement(metainfo={**self.metainfo, 'view': index}, **values))


class _Embedded:
    """Views of an embedded scene, in the way of :class:`mmext.inr.tasks.view_layouts.Photographs`."""

    masked = True

    def __init__(
        self,
        places: tuple[float, ...],
        scene: str,
        views: int,
        radius: float,
        size: tuple[int, int],
        lens: Lens,
        supersample: int,
    ) -> None:
        self.settings = (scene, views, radius, size, lens, supersample)
        self.places = places
        self.size = size
        self.lens = lens
        self.poses = orbit(torch.tensor(places), views, radius)

    def image(self, index: int) -> Tensor:
        """Return (H, W, 5): colors times their opacity, opacity, and the depth along the ray where something is."""
        return _render(self.places[index], *self.settings)


@functools.lru_cache(maxsize=512)
def _render(
    place: float, scene: str, views: int, radius: float, size: tuple[int, int], lens: Lens, supersample: int
) -> Tensor:
    fine = (size[0] * supersample, size[1] * supersample)
    rays = camera_rays(orbit(torch.tensor(place), views, radius), fine, _smaller(lens, size, fine))
    color, depth = SCENES[scene].trace(rays.reshape(-1, 6))
    solid = depth.isfinite()
    parts = torch.cat((color * solid[:, None], solid[:, None], torch.where(solid, depth, 0)[:, None]), dim=-1)
    mean = parts.view(size[0], supersample, size[1], supersample, 5).mean((1, 3))
    mean[..., 4] /= mean[..., 3].clamp_min(1 / supersample**2)
    return mean


def _smaller(lens: Lens, size: tuple[int, int], other: tuple[int, int]) -> Lens:
    """Return the same lens before a picture of another size."""
    down, across = other[0] / size[0], other[1] / size[1]
    return lens[0] * across, lens[1] * down, lens[2] * across, lens[3] * down


def _homogeneous(poses: Tensor) -> Tensor:
    last = poses.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(len(poses), 1, 4)
    return torch.cat((poses, last), dim=1)


def _or_none(read: Any) -> Photographs | None:
    try:
        return read()
    except UsageError:  # a folder of test views alone has no nearest training picture
        return None
