"""The embedded data, drawn: handwritten digits pasted on photographs, each pixel with its owner.

The digits are scikit-learn's ``load_digits`` (1,797 of 8 x 8 pixels, UCI ML repository), the photographs those inside
scikit-image's wheel; nothing is downloaded. Train and val share neither a digit nor a photograph.
:mod:`mmext.datasets.digit_files` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

__all__ = [
    'CLASSES',
    'PALETTE',
    'PHOTOGRAPHS',
    'SEG_CLASSES',
    'SEG_PALETTE',
    'DigitScenes',
    'Scene',
    'Source',
    'load_sources',
    'make_scene',
    'make_single',
]

CLASSES = tuple('0123456789')
PALETTE = [
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
]
SEG_CLASSES = ('background', *CLASSES)
SEG_PALETTE = [(0, 0, 0), *PALETTE]

# Both splits hold textures and objects, in gray and in color. Left out: pictures that show print (page, text, clock).
PHOTOGRAPHS = {
    'train': (
        'astronaut.png',
        'brick.png',
        'camera.png',
        'coffee.png',
        'grass.png',
        'ihc.png',
        'motorcycle_left.png',
        'rocket.jpg',
    ),
    'val': ('chelsea.png', 'coins.png', 'gravel.png', 'hubble_deep_field.jpg'),
}
PACKAGES = {'PIL': 'pillow', 'skimage': 'scikit-image', 'sklearn': 'scikit-learn'}


@dataclass(frozen=True)
class DigitScenes:
    """What determines the set, down to the byte.

    Args:
        train: Number of scenes for training.
        val: Number of scenes for validation.
        size: Side of a scene in pixels.
        overlap: Largest share of a digit's pixels that other digits may hide. Only the visible part is annotated.
        cls_size: Side of a classification image in pixels.
        cls_views: Images per training digit, each with another photograph, color and pose; val has one.
        seed: Seed of everything that is drawn, the split included.

    Raises:
        ValueError: If a value is out of its range.
    """

    train: int = 800
    val: int = 200
    size: int = 128
    overlap: float = 0.2
    cls_size: int = 32
    cls_views: int = 4
    seed: int = 0
    # Raise it with every change of the drawing code: a set made by older code then counts as a different one.
    revision: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        lowest = {'train': 1, 'val': 1, 'size': 64, 'cls_size': 16, 'cls_views': 1, 'seed': 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f'digit scenes need {name} >= {low}, got {name}={getattr(self, name)}')
        if not 0 <= self.overlap <= 0.5:
            raise ValueError(
                f'digit scenes need 0 <= overlap <= 0.5, so that a digit stays legible, got {self.overlap=}'
            )


@dataclass(frozen=True)
class Source:
    """What one split draws from: digits (n, 8, 8) in [0, 1], their labels and indices, photographs as PIL images."""

    digits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    photographs: list


@dataclass(frozen=True)
class Scene:
    """One scene: image (H, W, 3), ``owner`` (H, W) = 1 + number of the digit seen at a pixel or 0, and the labels."""

    image: np.ndarray
    owner: np.ndarray
    labels: list[int]

    @property
    def semantic(self) -> np.ndarray:
        """The semantic map, (H, W): 0 for the background, else digit + 1."""
        return np.array([0, *(label + 1 for label in self.labels)], np.uint8)[self.owner]

    @property
    def depth(self) -> np.ndarray:
        """The distance of every pixel in meters, (H, W): all digits are one size, so a smaller one is farther away.

        A digit as high as half of the scene is 1 m away. What is behind is 8 m away.
        """
        heights = [box[3] for box in self.boxes()]
        half = self.owner.shape[0] / 2
        return np.array([8.0, *(min(half / height, 7.0) for height in heights)], np.float32)[self.owner]

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Return the box (x, y, width, height) of each digit's visible part."""
        return [bounding_box(self.owner == k + 1) for k in range(len(self.labels))]


def load_sources(seed: int = 0) -> dict[str, Source]:
    """Split digits (by instance, four to one within each class) and photographs into train and val.

    Raises:
        ModuleNotFoundError: If Pillow, scikit-learn or scikit-image is missing.
    """
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f'the embedded data need {package}, which is not installed: pip install {package}'
            )
    import skimage
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, labels = load_digits().images / 16, load_digits().target
    rng = np.random.default_rng([seed, 2])
    indices: dict[str, list[int]] = {split: [] for split in PHOTOGRAPHS}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = len(members) // 5
        indices['val'].extend(members[:cut])
        indices['train'].extend(members[cut:])
    # The files are opened as such: skimage.data's functions may reach for the network.
    folder = Path(skimage.__file__).parent / 'data'
    sources = {}
    for split, names in PHOTOGRAPHS.items():
        chosen = np.sort(indices[split])
        photographs = [Image.open(folder / name).convert('RGB') for name in names]
        sources[split] = Source(digits[chosen], labels[chosen], chosen, photographs)
    return sources


def make_scene(source: Source, size: int, overlap: float, rng: np.random.Generator) -> Scene:
    """Paste three to eight digits on a crop of a photograph; a later one lies above an earlier one."""
    image, owner = _background(source, size, rng), np.zeros((size, size), np.intp)
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(rng.integers(3, 9)):
        pick = rng.integers(len(source.digits))
        height = size * np.exp(rng.uniform(np.log(0.14), np.log(0.42)))
        alpha = _glyph(source.digits[pick], height, rng)
        h, w = alpha.shape
        for _ in range(20):
            y, x = rng.integers(size - h + 1), rng.integers(size - w + 1)
            trial = owner.copy()
            trial[y : y + h, x : x + w][alpha > 0.5] = len(labels) + 1
            seen = np.bincount(trial.ravel(), minlength=len(labels) + 2)[1:-1]
            if all(s >= (1 - overlap) * a for s, a in zip(seen, areas, strict=True)):
                _paste(image[y : y + h, x : x + w], alpha, rng)
                owner = trial
                labels.append(int(source.labels[pick]))
                areas.append(int((alpha > 0.5).sum()))
                break
    return Scene(image.round().astype(np.uint8), owner, labels)


def make_single(source: Source, number: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Paste the split's digit ``number``, large, on a crop of a photograph: (size, size, 3)."""
    image = _background(source, size, rng)
    alpha = _glyph(source.digits[number], size * rng.uniform(0.65, 0.9), rng)
    y, x = (rng.integers(size - side + 1) for side in alpha.shape)
    _paste(image[y : y + alpha.shape[0], x : x + alpha.shape[1]], alpha, rng)
    return image.round().astype(np.uint8)


def _background(source: Source, size: int, rng: np.random.Generator) -> np.ndarray:
    photograph = source.photographs[rng.integers(len(source.photographs))]
    width, height = photograph.size
    side = rng.uniform(min(size, width, height), min(width, height))
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    crop = np.asarray(photograph.resize((size, size), box=(x, y, x + side, y + side)), np.float64)
    return (crop[:, ::-1] if rng.random() < 0.5 else crop).copy()


def _glyph(digit: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """Return the opacity (h, w) of a smoothly enlarged, slightly turned digit, cut to its strokes; h, w <= height."""
    from PIL import Image

    scale = 4 * height / 8
    shape = (max(1, round(10 * scale * rng.uniform(0.8, 1.1))), max(1, round(10 * scale)))
    # Drawn four times too large and cut out there; shrinking makes the edges smooth. The ramp keeps faint holes visible.
    large = Image.fromarray(np.pad(digit, 1).astype(np.float32)).resize(shape, Image.Resampling.BICUBIC)
    large = large.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    stroke = np.clip((np.asarray(large) - 0.25) / 0.5, 0, 1)
    x, y, w, h = bounding_box(stroke > 0.5)
    fit = height / max(w, h)
    target = (max(1, int(w * fit)), max(1, int(h * fit)))
    shrunk = Image.fromarray(stroke[y : y + h, x : x + w]).resize(target, Image.Resampling.BOX)
    return np.asarray(shrunk, np.float64)


def _paste(region: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Blend a color into ``region`` in place, lighter or darker than what it covers by enough to be read."""
    luma = np.array([0.299, 0.587, 0.114])
    below = (region @ luma)[alpha > 0.5].mean()
    color = rng.uniform(0, 255, 3)
    while abs(color @ luma - below) < 100:
        color = rng.uniform(0, 255, 3)
    weight = alpha[..., None] * rng.uniform(0.85, 1)
    region += weight * (color - region)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box (x, y, width, height) of the pixels that are set; there must be one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
