"""The one signal of a coordinate network, as a data set."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmext.arguments import at_least, at_most
from mmext.inr.grid import coordinate_grid
from mmext.registry import DATASETS

__all__ = ['PICTURES', 'SignalDataset', 'load_picture']

#: Pictures inside scikit-image's wheel, which need no download: 512 x 512 in gray or color unless said otherwise.
PICTURES = {
    'astronaut': 'astronaut.png',  # color
    'brick': 'brick.png',
    'camera': 'camera.png',
    'chelsea': 'chelsea.png',  # color, 300 x 451
    'coffee': 'coffee.png',  # color, 400 x 600
    'coins': 'coins.png',  # 303 x 384
    'grass': 'grass.png',
    'gravel': 'gravel.png',
    'hubble': 'hubble_deep_field.jpg',  # color, 872 x 1000
    'moon': 'moon.png',
    'page': 'page.png',  # 191 x 384
    'phantom': 'phantom.png',  # Shepp and Logan's, 400 x 400
    'retina': 'retina.jpg',  # color, 1411 x 1411
    'rocket': 'rocket.jpg',  # color, 427 x 640
    'text': 'text.png',  # 172 x 448
}
_Side = Annotated[int, at_least(1), at_most(2**15)]


@DATASETS.register_module()
class SignalDataset(Dataset):
    """One picture with the grid of its positions, or one measurement of an unknown one (ours).

    Args:
        image: A name in :data:`PICTURES`, or the path of an image file; None if only a measurement is known.
        size: (H, W), or one number for both; the picture is resized to it, smoothly. None keeps its size.
        gray: Take the luminance of a picture in color.
        measurement: Path of a measurement, a ``.npy`` file with the shape that the operator returns. It takes the place of
            one simulated from the picture.

    Shape:
        The item is ``inputs``, the grid (H, W, 2), and ``data_samples``, a ``BaseDataElement`` with ``target`` (H, W, C) in
        [0, 1], ``measurement`` if there is one, and the metainfo ``signal``, a name, and ``size``.

    Raises:
        ValueError: If there is no such picture or file, or it cannot be read, or neither picture nor measurement are given, or
            a measurement is given without picture and size, or the size is none.
        ImportError: If Pillow or scikit-image is not installed.

    Example:
        >>> item = SignalDataset(image='camera', size=16)[0]
        >>> item['inputs'].shape
        torch.Size([16, 16, 2])
    """

    example = dict(image='camera', size=16)

    def __init__(
        self,
        image: str | Path | None = None,
        size: _Side | tuple[_Side, _Side] | None = None,
        gray: bool = False,
        measurement: str | Path | None = None,
    ) -> None:
        shape = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
        if image is None and (measurement is None or shape is None):
            raise ValueError(
                f'SignalDataset needs an image, or a measurement and the size of what was measured, got {measurement=} and '
                f'{size=}; pictures that need no file are {", ".join(PICTURES)}'
            )
        values: dict[str, Tensor] = {}
        if image is not None:
            values['target'] = torch.from_numpy(load_picture(image, shape, gray))
            shape = (values['target'].shape[0], values['target'].shape[1])
        if measurement is not None:
            values['measurement'] = torch.from_numpy(_load_array(measurement))
        assert shape is not None  # for mypy; checked above
        self.grid = coordinate_grid(*shape)
        self.metainfo: dict[str, Any] = dict(signal=str(image if measurement is None else measurement), size=shape)
        self.sample = BaseDataElement(metainfo=self.metainfo, **values)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in (0, -1):
            raise IndexError(f'SignalDataset has one item, got the index {index}')
        return dict(inputs=self.grid, data_samples=self.sample)


def load_picture(name: str | Path, size: tuple[int, int] | None = None, gray: bool = False) -> np.ndarray:
    """Return a picture as (H, W, 1) or (H, W, 3) in [0, 1], float32; one whose three channels agree has one.

    It stands as a camera's EXIF note says; transparency is dropped.

    Args:
        name: A name in :data:`PICTURES`, or a path.
        size: (H, W) to resize it to, with a low pass before it is made smaller.
        gray: Take the luminance of a picture in color.

    Raises:
        ValueError: If there is no such picture, or its values have no known range: integers of at most 16 bits are divided by
            the largest, other numbers are taken as they are and must lie in [0, 1].
        ImportError: If Pillow or scikit-image is not installed.
    """
    for module, package in (('PIL', 'pillow'), ('skimage', 'scikit-image')):
        if find_spec(module) is None:
            raise ImportError(f'the pictures of coordinate networks need {package}; pip install {package}')
    import skimage
    from PIL import Image, ImageOps
    from skimage.transform import resize

    # The files are opened as such: skimage.data's functions may reach for the network.
    path = Path(skimage.__file__).parent / 'data' / PICTURES[str(name)] if str(name) in PICTURES else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), PICTURES, n=3, cutoff=0.0)
        raise ValueError(
            f'SignalDataset finds no image {str(name)!r}, neither a file nor a picture of scikit-image; the nearest '
            f'of these are {", ".join(near)}'
        )
    try:
        with Image.open(path) as opened:
            kept = opened.mode in ('1', 'L', 'I', 'F') or opened.mode.startswith('I;16')
            upright = ImageOps.exif_transpose(opened)
            array = np.asarray(upright if kept else upright.convert('RGB'))
    except Image.DecompressionBombError as error:
        raise ValueError(f'{path} has more pixels than Pillow reads ({error}); save it smaller') from error
    except Exception as error:  # the decoders have no common one
        raise ValueError(f'{path} is no image that Pillow can read ({error}); save it as PNG, JPEG or TIFF') from error
    if array.dtype == bool:
        array = array.astype(np.float64)
    elif np.issubdtype(array.dtype, np.integer):
        # Pillow opens 16 bit files as 32 bit integers.
        array = array / (255.0 if array.dtype == np.uint8 else 65535.0)
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f'{path} has values in [{array.min():.4g}, {array.max():.4g}] of the range [0, 1] that a picture has here; scale '
            'them, or save integers of 8 or 16 bits'
        )
    array = array[..., None] if array.ndim == 2 else array
    if (array == array[..., :1]).all():
        array = array[..., :1]
    elif gray:
        array = array @ np.array([[0.2125], [0.7154], [0.0721]])  # scikit-image's weights
    if size is not None and array.shape[:2] != tuple(size):
        array = resize(array, (*size, array.shape[2]), anti_aliasing=True)
    return np.ascontiguousarray(array, dtype=np.float32).clip(0, 1)


def _load_array(path: str | Path) -> np.ndarray:
    if not Path(path).is_file():
        raise ValueError(f'SignalDataset finds no measurement {path}; save the array with numpy.save')
    try:
        array = np.load(path)
    except Exception as error:  # of a hostile file: ValueError, EOFError, BadZipFile, MemoryError and others
        raise ValueError(f'the measurement {path} is no array of numbers; save it with numpy.save') from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f'the measurement {path} is no single array of numbers; save it with numpy.save')
    if not np.isfinite(array).all():
        raise ValueError(
            f'the measurement {path} holds {(~np.isfinite(array)).sum()} values that are no numbers; replace what was not '
            'measured, or leave it out'
        )
    return array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
