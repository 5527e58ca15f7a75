"""The embedded data: what is drawn is what is annotated, nothing leaks, nothing is overwritten, and it is reproducible."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmext.datasets import CLASSES, DigitScenes, create, digit_files, digit_scenes, load_sources, make_scene

SMALL = DigitScenes(train=3, val=2, size=64, cls_size=16, cls_views=1)


@pytest.fixture(scope='module')
def few_digits():
    """Keep 20 digits per split: writing all 1,797 in every test would take most of its time."""
    sources = load_sources(0)
    for source in sources.values():
        for name in ('digits', 'labels', 'indices'):
            object.__setattr__(source, name, getattr(source, name)[:20])
    return sources


@pytest.fixture(scope='module')
def root(tmp_path_factory, few_digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_files, 'load_sources', lambda seed: few_digits)
        out = tmp_path_factory.mktemp('data') / 'set'
        assert create(SMALL, out)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def decode(rle: dict) -> np.ndarray:
    h, w = rle['size']
    values = np.arange(len(rle['counts'])) % 2
    return np.repeat(values, rle['counts']).reshape(w, h).T.astype(bool)


def test_split_shares_no_digit_and_no_photograph():
    sources = load_sources(0)
    train, val = sources['train'], sources['val']
    assert not set(train.indices) & set(val.indices)
    assert len(train.indices) + len(val.indices) == 1797
    assert not set(digit_scenes.PHOTOGRAPHS['train']) & set(digit_scenes.PHOTOGRAPHS['val'])
    for source in (train, val):
        assert set(source.labels) == set(range(10))
    assert not np.array_equal(load_sources(1)['val'].indices, val.indices)


def test_hidden_share_stays_below_the_bound(monkeypatch, few_digits):
    pasted = []
    monkeypatch.setattr(digit_scenes, '_paste', lambda region, alpha, rng: pasted.append((alpha > 0.5).sum()))
    hidden = []
    for number in range(30):
        pasted.clear()
        scene = make_scene(few_digits['train'], 64, 0.25, np.random.default_rng(number))
        seen = np.bincount(scene.owner.ravel())[1:]
        assert len(seen) == len(pasted) == len(scene.labels)
        hidden += list(1 - seen / np.array(pasted))
    assert 0 < max(hidden) <= 0.25


def test_digit_stands_out_from_what_is_below_it(monkeypatch, few_digits):
    luma, paste, contrasts = np.array([0.299, 0.587, 0.114]), digit_scenes._paste, []

    def measured(region, alpha, rng):
        inside, below = alpha > 0.5, region @ luma
        paste(region, alpha, rng)
        contrasts.append(abs((region @ luma - below)[inside].mean()))

    monkeypatch.setattr(digit_scenes, '_paste', measured)
    for number in range(20):
        make_scene(few_digits['val'], 96, 0, np.random.default_rng(number))
    # The colors differ by 100 at least; opacity and soft edges take their part.
    assert min(contrasts) > 60


def test_annotations_maps_and_images_agree(root):
    for split, count in (('train', 3), ('val', 2)):
        coco = json.loads((root / 'det' / 'annotations' / f'{split}.json').read_text())
        assert [c['name'] for c in coco['categories']] == list(CLASSES)
        assert len(coco['images']) == count
        assert len({a['id'] for a in coco['annotations']}) == len(coco['annotations'])
        for image in coco['images']:
            picture = np.asarray(Image.open(root / 'det' / split / image['file_name']))
            assert picture.shape == (image['height'], image['width'], 3) == (64, 64, 3)
            semantic = np.zeros((64, 64), np.uint8)
            for ann in (a for a in coco['annotations'] if a['image_id'] == image['id']):
                mask = decode(ann['segmentation'])
                assert not semantic[mask].any(), 'masks of visible parts are disjoint'
                semantic[mask] = ann['category_id']
                ys, xs = np.nonzero(mask)
                assert ann['area'] == mask.sum() > 0
                assert ann['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            np.testing.assert_array_equal(semantic, np.asarray(Image.open(root / 'seg' / split / image['file_name'])))


def test_masks_read_the_same_through_pycocotools(root):
    from pycocotools.coco import COCO

    path = root / 'det' / 'annotations' / 'train.json'
    coco = COCO(str(path))
    for ann in json.loads(path.read_text())['annotations']:
        np.testing.assert_array_equal(coco.annToMask(ann).astype(bool), decode(ann['segmentation']))


def test_hosts_load_the_set(root):
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmpretrain.datasets import CustomDataset
    from mmseg.datasets import BaseSegDataset

    det = CocoDataset(
        ann_file='annotations/val.json',
        data_root=str(root / 'det'),
        data_prefix={'img': 'val'},
        metainfo={'classes': CLASSES},
        pipeline=[],
    )
    info = LoadAnnotations(with_mask=True)(det.get_data_info(0) | {'ori_shape': (64, 64)})
    assert len(det) == 2
    assert len(info['gt_masks'].masks) == len(info['gt_bboxes_labels']) > 0
    seg = BaseSegDataset(
        data_root=str(root),
        data_prefix={'img_path': 'det/val', 'seg_map_path': 'seg/val'},
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo={'classes': digit_scenes.SEG_CLASSES, 'palette': digit_scenes.SEG_PALETTE},
    )
    assert len(seg) == 2
    assert Path(seg[0]['seg_map_path']).is_file()
    cls = CustomDataset(data_root=str(root / 'cls' / 'train'))
    assert tuple(cls.CLASSES) == CLASSES
    assert len(cls) == 20


def test_same_parameters_give_the_same_bytes_and_a_larger_set_begins_alike(root, tmp_path, monkeypatch, few_digits):
    monkeypatch.setattr(digit_files, 'load_sources', lambda seed: few_digits)
    create(SMALL, tmp_path / 'again')
    assert files(tmp_path / 'again') == files(root)
    create(DigitScenes(train=4, val=2, size=64, cls_size=16, cls_views=1), tmp_path / 'larger')
    name = 'det/train/000002.png'
    assert (tmp_path / 'larger' / name).read_bytes() == (root / name).read_bytes()
    create(DigitScenes(train=3, val=2, size=64, cls_size=16, cls_views=1, seed=1), tmp_path / 'other')
    assert (tmp_path / 'other' / name).read_bytes() != (root / name).read_bytes()


def test_existing_set_is_kept_skipped_or_replaced(root, tmp_path, monkeypatch, few_digits):
    monkeypatch.setattr(digit_files, 'load_sources', lambda seed: few_digits)
    out = tmp_path / 'set'
    create(SMALL, out)
    (out / 'mine.txt').write_text('kept')
    assert not create(SMALL, out)
    other = DigitScenes(train=2, val=2, size=64, cls_size=16, cls_views=1)
    with pytest.raises(FileExistsError, match=r'other parameters .* --force'):
        create(other, out)
    assert (out / 'mine.txt').exists()
    assert create(other, out, force=True)
    assert len(list((out / 'det' / 'train').iterdir())) == 2
    assert not (out / 'mine.txt').exists()
    assert [p.name for p in tmp_path.iterdir()] == ['set']


def test_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='not a digit-scenes set'):
        create(SMALL, tmp_path, force=True)
    assert (tmp_path / 'thesis.tex').read_text() == 'precious'


def test_interrupted_run_leaves_nothing_that_looks_complete(tmp_path, monkeypatch, few_digits):
    monkeypatch.setattr(digit_files, 'load_sources', lambda seed: few_digits)

    def stop_at_val(items, description):
        if description == 'val digits':
            raise KeyboardInterrupt
        return items

    with pytest.raises(KeyboardInterrupt):
        create(SMALL, tmp_path / 'set', track=stop_at_val)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [{'train': 0}, {'size': 32}, {'overlap': 0.6}, {'cls_size': 8}, {'seed': -1}])
def test_wrong_parameters_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf'digit scenes need .*{name}'):
        DigitScenes(**wrong)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(digit_scenes, 'find_spec', lambda name: None if name == 'skimage' else object())
    with pytest.raises(ModuleNotFoundError, match='pip install scikit-image'):
        load_sources()


def test_command_line(tmp_path, monkeypatch, capsys, few_digits):
    monkeypatch.setattr(digit_files, 'load_sources', lambda seed: few_digits)
    tool = Path(__file__).parents[1] / 'tools' / 'dataset_converters' / 'digit_scenes.py'
    main = runpy.run_path(str(tool))['main']
    flags = [f'--out={tmp_path / "set"}', '--train=3', '--val=2', '--size=64', '--cls-size=16', '--cls-views=1']
    main(flags)
    assert 'contact_sheet.png' in capsys.readouterr().out
    main(flags)
    assert 'nothing to do' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*flags, '--overlap', '0.9'])
    assert stop.value.code == 2
    assert 'overlap' in capsys.readouterr().err
