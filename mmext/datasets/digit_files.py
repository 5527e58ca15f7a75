"""The embedded data, written: COCO boxes and masks, semantic maps and a classification folder.

Layout under the root (:func:`create`); ids and map values are ``digit + 1``, 0 is the background::

    det/{train,val}/000000.png       scenes, RGB
    det/annotations/{train,val}.json COCO: boxes and RLE masks of what is visible; categories named '0' ... '9'
    seg/{train,val}/000000.png       maps of the same scenes, one byte per pixel
    cls/{train,val}/{0..9}/0000_0.png   single digits: <index in load_digits>_<view>.png
    contact_sheet.png  meta.json

Every image has a random stream of its own, so a larger set begins with the images of a smaller one, and the same
parameters give the same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mmext.datasets.digit_scenes import (
    CLASSES,
    PACKAGES,
    PALETTE,
    PHOTOGRAPHS,
    SEG_PALETTE,
    DigitScenes,
    Scene,
    Source,
    load_sources,
    make_scene,
    make_single,
)

__all__ = ['create']

_SPLITS = tuple(PHOTOGRAPHS)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return np.diff(ends, prepend=0).tolist()


def _annotate(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    size = list(scene.owner.shape)
    annotations = []
    for k, (label, box) in enumerate(zip(scene.labels, scene.boxes(), strict=True)):
        mask = scene.owner == k + 1
        annotations.append(
            {
                'id': first_id + k,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': list(box),
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': {'size': size, 'counts': _run_lengths(mask)},
            }
        )
    return annotations


def _write_scenes(root: Path, split: str, source: Source, params: DigitScenes, track: Callable) -> list[Scene]:
    from PIL import Image

    for folder in ('det', 'seg'):
        (root / folder / split).mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    shown: list[Scene] = []
    for number in track(range(getattr(params, split)), description=f'{split} scenes'):
        rng = np.random.default_rng([params.seed, _SPLITS.index(split), number])
        scene = make_scene(source, params.size, params.overlap, rng)
        name = f'{number:06d}.png'
        Image.fromarray(scene.image).save(root / 'det' / split / name)
        Image.fromarray(scene.semantic).save(root / 'seg' / split / name)
        images.append({'id': number, 'file_name': name, 'width': params.size, 'height': params.size})
        annotations += _annotate(scene, number, len(annotations) + 1)
        shown += [scene] if len(shown) < 8 else []
    categories = [{'id': k + 1, 'name': name} for k, name in enumerate(CLASSES)]
    (root / 'det' / 'annotations').mkdir(exist_ok=True)
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (root / 'det' / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return shown


def _write_singles(root: Path, split: str, source: Source, params: DigitScenes, track: Callable) -> list[np.ndarray]:
    from PIL import Image

    for name in CLASSES:
        (root / 'cls' / split / name).mkdir(parents=True)
    views = params.cls_views if split == 'train' else 1
    shown: list[np.ndarray] = []
    for number in track(range(len(source.digits)), description=f'{split} digits'):
        index, label = source.indices[number], source.labels[number]
        for view in range(views):
            rng = np.random.default_rng([params.seed, len(_SPLITS) + _SPLITS.index(split), index, view])
            image = make_single(source, number, params.cls_size, rng)
            Image.fromarray(image).save(root / 'cls' / split / str(label) / f'{index:04d}_{view}.png')
            shown += [image] if len(shown) < 16 else []
    return shown


def _contact_sheet(scenes: dict[str, list[Scene]], singles: dict[str, list[np.ndarray]]) -> np.ndarray:
    """Return one picture: scenes with their boxes, their maps below them, and a strip of single digits, per split."""
    from PIL import Image, ImageDraw

    tile, rows = 256, []
    for split in scenes:
        pictures, maps = [], []
        for scene in scenes[split]:
            zoom = tile / scene.image.shape[0]
            picture = Image.fromarray(scene.image).resize((tile, tile), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(picture)
            for label, (x, y, w, h) in zip(scene.labels, scene.boxes(), strict=True):
                draw.rectangle([zoom * x, zoom * y, zoom * (x + w), zoom * (y + h)], outline=PALETTE[label], width=2)
                corner = (zoom * x + 4, zoom * y + 2)
                draw.text(corner, str(label), PALETTE[label], font_size=18, stroke_width=2, stroke_fill='black')
            pictures.append(np.asarray(picture))
            painted = np.array(SEG_PALETTE, np.uint8)[scene.semantic]
            maps.append(np.asarray(Image.fromarray(painted).resize((tile, tile), Image.Resampling.NEAREST)))
        strip = [np.asarray(Image.fromarray(image).resize((tile // 2, tile // 2))) for image in singles[split]]
        rows += [np.hstack(tiles) for tiles in (pictures, maps, strip)]
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _untracked(items: Iterable, description: str) -> Iterable:
    return items


def _state(out: Path, params: DigitScenes) -> str:
    """Tell what is at ``out``: 'absent', 'same', 'different', or 'foreign' when it is no set of ours."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return 'absent'
    try:
        found = json.loads((out / 'meta.json').read_text())['digit_scenes']
    except (OSError, ValueError, KeyError, TypeError):
        return 'foreign'
    return 'same' if found == asdict(params) else 'different'


def create(params: DigitScenes, out: str | Path, *, force: bool = False, track: Callable = _untracked) -> bool:
    """Write the whole set to the folder ``out``; it appears there complete or not at all.

    Args:
        params: What to make.
        out: The root of the set.
        force: Replace a set that is there, whatever its parameters. A folder that holds something else is never touched.
        track: Wraps an iterable to show progress, as ``rich.progress.track`` does.

    Returns:
        Whether anything was written: False if the set is there already.

    Raises:
        FileExistsError: If ``out`` holds a set with other parameters and ``force`` is not given, or holds anything else.
    """
    out = Path(out).resolve()
    state = _state(out, params)
    if state == 'same' and not force:
        return False
    if state == 'foreign':
        raise FileExistsError(
            f'{out} exists and is not a digit-scenes set (no meta.json of one); choose another folder'
        )
    if state == 'different' and not force:
        raise FileExistsError(
            f'{out} holds a digit-scenes set with other parameters (see its meta.json); pass --force to replace it, '
            'or choose another folder'
        )
    sources = load_sources(params.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}.partial-', dir=out.parent))
    try:
        scenes = {split: _write_scenes(partial, split, sources[split], params, track) for split in _SPLITS}
        singles = {split: _write_singles(partial, split, sources[split], params, track) for split in _SPLITS}
        _finish(partial, params, _contact_sheet(scenes, singles))
        if out.exists():
            out.rename(partial / 'replaced')
        partial.rename(out)
        shutil.rmtree(out / 'replaced', ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _finish(root: Path, params: DigitScenes, sheet: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(sheet).save(root / 'contact_sheet.png')
    meta = {
        'digit_scenes': asdict(params),
        'classes': CLASSES,
        'photographs': PHOTOGRAPHS,
        'versions': {package: version(package) for package in ('numpy', *PACKAGES.values())},
    }
    (root / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
    # mkdtemp makes a folder that only its owner may enter.
    root.chmod(0o755)
