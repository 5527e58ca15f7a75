"""Photographs with known cameras, in the layouts that NeRF's data, LLFF's and COLMAP's have."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.errors import UsageError
from mmext.inr.measurements.rays import Lens, simple_lens

__all__ = ['Photographs', 'check_poses', 'read_photographs']

#: Of photographs without a division of their own every so manieth is held out, as LLFF's code has it.
_HELD_OUT = 8
#: COLMAP's models of cameras without distortion, by number: name, and where fx, fy, cx, cy are in its parameters.
_LENSES = {0: ('SIMPLE_PINHOLE', (0, 0, 1, 2)), 1: ('PINHOLE', (0, 1, 2, 3))}
_DISTORTED = (4, 5, 8, 4, 5, 8, 12, 5, 4, 5, 12)
_IMAGES = {'.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp'}


@dataclass(frozen=True)
class Photographs:
    """Photographs of one size, with their cameras.

    Args:
        poses: (V, 3, 4), as :mod:`mmext.inr.measurements.rays` has them.
        paths: Of the V files.
        lens: Focal lengths fx, fy and principal point cx, cy, in pixels of ``size``.
        size: (H, W).
        masked: Whether the files have an alpha channel.
    """

    poses: Tensor
    paths: list[Path]
    lens: Lens
    size: tuple[int, int]
    masked: bool

    def image(self, index: int) -> Tensor:
        """Return a photograph, (H, W, 4): colors times their alpha, and alpha."""
        return _cached_image(self.paths[index], self.size)


def read_photographs(
    root: Path, split: str, size: int | None, scale: float, indices: Sequence[int] | None
) -> Photographs:
    """Read the cameras of a folder, and see that its photographs are there.

    Args:
        root: A folder with ``transforms_train.json`` and so on (NeRF's synthetic data), ``poses_bounds.npy`` (LLFF) or
            ``sparse/0`` (COLMAP, text or binary).
        split: ``'train'``, ``'val'`` or ``'test'``. The latter two layouts have no division: every eighth photograph is
            held out.
        size: Height of the photographs, None for their own. The width follows.
        scale: Times the positions of the cameras. The scene must come to lie in the unit ball; the latter two layouts are
            brought there first.
        indices: Which photographs of the split.

    Raises:
        UsageError: If the folder has none of the layouts, a file is missing or damaged, a camera is none, or the photographs
            differ in size.
    """
    if (root / f'transforms_{split}.json').is_file() or any(root.glob('transforms_*.json')):
        poses, paths, lens = _read_nerf(root, split)
    else:
        if (root / 'poses_bounds.npy').is_file():
            poses, paths, lens = _read_llff(root)
        elif (folder := _colmap_folder(root)) is not None:
            poses, paths, lens = _read_colmap(root, folder)
        else:
            raise UsageError(
                f'ViewDataset finds no cameras in root={str(root)!r}: neither transforms_{split}.json (NeRF), '
                'poses_bounds.npy (LLFF) nor sparse/0 (COLMAP); name the folder that holds one of them'
            )
        held = [(k % _HELD_OUT == 0) == (split != 'train') for k in range(len(paths))]
        poses, paths = poses[torch.tensor(held)], [p for p, mine in zip(paths, held, strict=True) if mine]
    if indices is not None:
        if wrong := [k for k in indices if not 0 <= k < len(paths)]:
            raise UsageError(f'{root} has {len(paths)} views for {split!r}, got the indices {wrong}; leave them out')
        poses, paths = poses[list(indices)], [paths[k] for k in indices]
    if not paths:
        raise UsageError(f'{root} has no view for {split!r}; a folder needs two photographs at least')
    if missing := [path for path in paths if not path.is_file()]:
        raise UsageError(
            f'{len(missing)} of {len(paths)} photographs of {root} are missing, the first is {missing[0]}; copy them there'
        )
    check_poses(poses, [path.name for path in paths])
    poses = torch.cat((poses[..., :3], poses[..., 3:] * scale), dim=-1).float()
    height, width = _size_of(paths[0])
    for path in paths[1:]:
        if (found := _size_of(path)) != (height, width):
            raise UsageError(
                f'{path.name} has {found[0]} x {found[1]} pixels, but {paths[0].name} has {height} x {width}; photographs of '
                'one scene need one size and one lens'
            )
    wanted = (height, width) if size is None else (size, max(round(width * size / height), 1))
    fx, fy, cx, cy = lens(width, height)
    across, down = wanted[1] / width, wanted[0] / height
    return Photographs(poses, paths, (fx * across, fy * down, cx * across, cy * down), wanted, _has_alpha(paths[0]))


def check_poses(poses: Tensor, names: Sequence[str]) -> None:
    """Refuse what is no camera.

    Raises:
        UsageError: If the shape is not (V, 3, 4), a number is none, or the axes are not orthogonal and right-handed.
    """
    if poses.ndim != 3 or poses.shape[1:] != (3, 4):
        raise UsageError(
            f'a camera is (3, 4): the axes right, up and backward, and the center; got {tuple(poses.shape)} for all of them'
        )
    for pose, name in zip(poses.double(), names, strict=True):
        if not pose.isfinite().all():
            raise UsageError(f'the camera of {name} holds numbers that are none; leave this view out')
        axes = pose[:, :3]
        if (axes.T @ axes - torch.eye(3, dtype=axes.dtype)).abs().max() > 1e-2:
            raise UsageError(
                f'the camera of {name} has axes that are not orthogonal and of length one; a camera here is a rotation '
                'and a center, so put a scale into scale='
            )
        if torch.linalg.det(axes) < 0:
            raise UsageError(
                f'the camera of {name} is left-handed; its axes must be right, up and backward, so turn the sign of one'
            )


def _size_of(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


def _has_alpha(path: Path) -> bool:
    with _opened(path) as image:
        return 'A' in image.getbands() or 'transparency' in image.info


def _read_image(path: Path) -> np.ndarray:
    with _opened(path) as image:
        try:
            return np.asarray(image.convert('RGBA'))
        except Exception as error:  # the decoders have no common one
            raise UsageError(f'{path} is no image that Pillow can read ({error}); save it as PNG or JPEG') from error


@functools.lru_cache(maxsize=512)
def _cached_image(path: Path, size: tuple[int, int]) -> Tensor:
    pixels = _read_image(path)
    rgba = torch.from_numpy(pixels.astype(np.float32) / 255)
    rgba = torch.cat((rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]), dim=-1)
    if pixels.shape[:2] != size:
        rgba = F.interpolate(rgba.movedim(-1, 0)[None], size, mode='area')[0].movedim(0, -1)
    return rgba


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path)
    except Exception as error:  # the decoders have no common one
        raise UsageError(f'{path} is no image that Pillow can read ({error}); save it as PNG or JPEG') from error


# --- NeRF's synthetic data -----------------------------------------------------------------------------------------------

_Lens = Callable[[int, int], Lens]


def _read_nerf(root: Path, split: str) -> tuple[Tensor, list[Path], _Lens]:
    file = root / f'transforms_{split}.json'
    if not file.is_file():
        raise UsageError(f'{root} has no {file.name}; make one, or set split to one of those that are there')
    try:
        content = json.loads(file.read_text())
        angle = float(content['camera_angle_x'])
        frames = [(str(f['file_path']), f['transform_matrix']) for f in content['frames']]
        matrices = [np.asarray(matrix, dtype=np.float64) for _, matrix in frames]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f'{file} is no list of cameras ({type(error).__name__}: {error}); it needs camera_angle_x, and frames with '
            'file_path and transform_matrix'
        ) from error
    if not 0 < angle < math.pi:
        raise UsageError(f'{file} has camera_angle_x={angle:g}; the angle is in radians, between 0 and pi')
    for (name, _), matrix in zip(frames, matrices, strict=True):
        if matrix.shape not in ((4, 4), (3, 4)):
            raise UsageError(
                f'the camera of {name} in {file.name} has shape {matrix.shape}; it must be (4, 4), from camera to world'
            )
    poses = torch.from_numpy(np.stack([m[:3] for m in matrices])) if matrices else torch.zeros(0, 3, 4)
    paths = [root / name if Path(name).suffix.lower() in _IMAGES else root / f'{name}.png' for name, _ in frames]

    def lens(width: int, height: int) -> Lens:
        return simple_lens((height, width), angle)

    return poses, paths, lens


# --- LLFF ----------------------------------------------------------------------------------------------------------------


def _read_llff(root: Path) -> tuple[Tensor, list[Path], _Lens]:
    file = root / 'poses_bounds.npy'
    try:
        table = np.load(file).astype(np.float64)
    except Exception as error:  # of a hostile file: ValueError, EOFError, BadZipFile, MemoryError and others
        raise UsageError(f'{file} is no array of numbers; write it with LLFF') from error
    if table.ndim != 2 or table.shape[1] != 17 or not np.isfinite(table).all():
        raise UsageError(
            f'{file} has shape {table.shape}, or numbers that are none; it needs 17 numbers for each photograph'
        )
    folder = next((f for f in (root / 'images', *sorted(root.glob('images_*'))) if f.is_dir()), root / 'images')
    paths = sorted(p for p in folder.glob('*') if p.suffix.lower() in _IMAGES)
    if len(paths) != len(table):
        raise UsageError(
            f'{folder} has {len(paths)} photographs, but {file.name} has {len(table)} cameras; make them agree'
        )
    raw = torch.from_numpy(table[:, :15].reshape(-1, 3, 5))
    # Its axes are down, right and backward.
    poses = torch.stack((raw[..., 1], -raw[..., 0], raw[..., 2], raw[..., 3]), dim=-1)
    near, far = float(table[:, 15].min()), float(table[:, 16].max())
    rows, columns, focal = (float(v) for v in raw[0, :, 4])
    poses = _into_unit_ball(poses, (near, far), math.atan(max(rows, columns) / (2 * focal)))

    def lens(width: int, height: int) -> Lens:
        return focal * width / columns, focal * height / rows, width / 2, height / 2

    return poses, paths, lens


# --- COLMAP --------------------------------------------------------------------------------------------------------------


def _colmap_folder(root: Path) -> Path | None:
    for folder in (root / 'sparse/0', root / 'sparse', root):
        if any((folder / f'images{end}').is_file() for end in ('.bin', '.txt')):
            return folder
    return None


def _read_colmap(root: Path, folder: Path) -> tuple[Tensor, list[Path], _Lens]:
    binary = (folder / 'images.bin').is_file()
    try:
        cameras = dict(_binary_cameras(folder) if binary else _text_cameras(folder))
        images = list(_binary_images(folder) if binary else _text_images(folder))
        points = _points(folder, binary)
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise UsageError(f'{folder} holds no model of COLMAP that can be read ({error}); export it again') from error
    used = {camera for _, _, camera in images}
    if len(used) != 1:
        raise UsageError(
            f'{folder} has {len(used)} cameras; run COLMAP with --ImageReader.single_camera 1, so that all views have one lens'
        )
    name, parameters, width_, height_ = cameras[used.pop()]
    place = {known: where for known, where in _LENSES.values()}.get(name)
    if place is None:
        raise UsageError(
            f'{folder} has a camera of the model {name}, which bends rays; run colmap image_undistorter and use its output'
        )
    fx, fy, cx, cy = (parameters[k] for k in place)
    images.sort(key=lambda image: image[0])
    poses = []
    for _, (quaternion, shift), _ in images:
        inverse = _rotation(quaternion).T
        # From world to camera with the axes right, down and forward.
        poses.append(np.column_stack((inverse[:, 0], -inverse[:, 1], -inverse[:, 2], -inverse @ shift)))
    half = math.atan(max(width_ / (2 * fx), height_ / (2 * fy)))
    placed = _into_unit_ball(torch.from_numpy(np.stack(poses)), points, half)

    def lens(width: int, height: int) -> Lens:
        across, down = width / width_, height / height_
        return fx * across, fy * down, cx * across, cy * down

    return placed, [root / 'images' / name for name, _, _ in images], lens


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


_Camera = tuple[str, tuple[float, ...], int, int]
_Image = tuple[str, tuple[np.ndarray, np.ndarray], int]


def _rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text().splitlines():
        if not line.startswith('#'):
            yield line.split()


def _text_cameras(folder: Path) -> Iterator[tuple[int, _Camera]]:
    for row in _rows(folder / 'cameras.txt'):
        if row:
            yield int(row[0]), (row[1], tuple(map(float, row[4:])), int(row[2]), int(row[3]))


def _text_images(folder: Path) -> Iterator[_Image]:
    # Each has a second line, with its points.
    for row in list(_rows(folder / 'images.txt'))[::2]:
        if row:
            values = np.array(row[1:8], dtype=np.float64)
            yield ' '.join(row[9:]), (values[:4], values[4:]), int(row[8])


def _take(file: BinaryIO, layout: str) -> tuple:
    size = struct.calcsize(layout)
    return struct.unpack(layout, file.read(size))


def _binary_cameras(folder: Path) -> Iterator[tuple[int, _Camera]]:
    with (folder / 'cameras.bin').open('rb') as file:
        for _ in range(_take(file, '<Q')[0]):
            number, model, width, height = _take(file, '<iiQQ')
            name, count = _LENSES[model][0] if model in _LENSES else f'number {model}', 3 + model
            if model not in _LENSES:
                count = _DISTORTED[model - 2] if model - 2 < len(_DISTORTED) else 4
            yield number, (name, _take(file, f'<{count}d'), width, height)


def _binary_images(folder: Path) -> Iterator[_Image]:
    with (folder / 'images.bin').open('rb') as file:
        for _ in range(_take(file, '<Q')[0]):
            _, *values, camera = _take(file, '<i7di')
            name = bytearray()
            while (letter := file.read(1)) not in (b'\0', b''):
                name += letter
            file.seek(24 * _take(file, '<Q')[0], 1)
            yield name.decode(), (np.array(values[:4]), np.array(values[4:])), camera


def _points(folder: Path, binary: bool) -> Tensor | None:
    """Return the points that COLMAP has found, (n, 3), None without a file of them."""
    path = folder / ('points3D.bin' if binary else 'points3D.txt')
    if not path.is_file():
        return None
    found: list[Any] = []
    if not binary:
        found = [[float(v) for v in row[1:4]] for row in _rows(path) if row]
    else:
        with path.open('rb') as file:
            for _ in range(_take(file, '<Q')[0]):
                found.append(_take(file, '<Q3d3Bd')[1:4])
                file.seek(8 * _take(file, '<Q')[0], 1)
    return torch.tensor(found, dtype=torch.float64) if found else None


# --- where the scene is --------------------------------------------------------------------------------------------------


def _into_unit_ball(poses: Tensor, extent: tuple[float, float] | Tensor | None, half: float) -> Tensor:
    """Return poses in a world whose unit ball holds the scene, and whose z axis is what the cameras call up.

    Args:
        poses: (V, 3, 4).
        extent: The nearest and the farthest depth, or points of the scene, (n, 3), or None.
        half: Half the field of view, in radians.
    """
    axes, centers = poses[..., :3], poses[..., 3]
    if isinstance(extent, Tensor):
        middle = extent.median(0).values
        radius = float((extent - middle).norm(dim=-1).quantile(0.95))
    else:
        forward = -axes[..., 2]
        middle, focused = _focus(centers, forward)
        if focused:
            radius = float((centers - middle).norm(dim=-1).mean()) * math.sin(half)
        else:
            near, far = extent or (0.0, float((centers - centers.mean(0)).norm(dim=-1).max()) * 10)
            middle = centers.mean(0) + F.normalize(forward.mean(0), dim=0) * (near + far) / 2
            radius = (far - near) / 2
    up = F.normalize(axes[..., 1].mean(0), dim=0)
    turn = _turn_to_z(up)
    return torch.cat((turn @ axes, (turn @ (centers - middle).T / max(radius, 1e-12)).T[..., None]), dim=-1)


def _focus(centers: Tensor, forward: Tensor) -> tuple[Tensor, bool]:
    """Return the point nearest to all optical axes, and whether they do meet in front of the cameras."""
    across = torch.eye(3, dtype=centers.dtype) - forward[:, :, None] * forward[:, None, :]
    matrix = across.mean(0)
    point = torch.linalg.lstsq(matrix, (across @ centers[..., None]).mean(0)).solution[:, 0]
    ahead = ((point - centers) * forward).sum(-1)
    # Nearly parallel axes leave the smallest eigenvalue at the squared sine of their spread.
    return point, bool(torch.linalg.eigvalsh(matrix)[0] > 0.05 and (ahead > 0).all())


def _turn_to_z(up: Tensor) -> Tensor:
    """Return the shortest rotation that takes a unit vector to the z axis."""
    x, y, z = up.tolist()
    if z < -1 + 1e-9:
        return torch.diag(up.new_tensor((1.0, -1.0, -1.0)))
    cross = up.new_tensor(((0, 0, -x), (0, 0, -y), (x, y, 0)))
    return torch.eye(3, dtype=up.dtype) + cross + cross @ cross / (1 + z)
