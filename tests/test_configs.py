"""Every shipped config: it loads and builds offline, takes a training step on the embedded data, and says what is true."""

from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope

import mmext  # noqa: F401  (teaches mmengine where mmseg:: bases live)
from mmext.analysis.samples import batch_for, fewest_classes, take_step
from mmext.contracts import TakesOneSize, find
from mmext.folding import fold
from mmext.inr.networks.fresh import open_frequencies
from mmext.registry import require, takes

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').glob('*/*/*.py') if '_base_' not in p.parts)
SYSTEMS = sorted(p.name for p in (ROOT / 'configs').iterdir() if p.is_dir() and p.name != 'demo')
ROWS = {
    row['Config']: row
    for system in SYSTEMS
    for row in yaml.safe_load((ROOT / f'configs/{system}/metafile.yml').read_text())['Models']
}
SIZE = 64


def without_pretrained(cfg):
    """Return ``cfg`` without the weights that ``init_weights`` would download, or read from an earlier job."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretrained(c) for c in cfg if not is_pretrained(c))
    if not isinstance(cfg, dict):
        return cfg
    return {k: without_pretrained(v) for k, v in cfg.items() if k != 'pretrained' and not is_pretrained(v)}


def is_pretrained(cfg):
    return isinstance(cfg, dict) and cfg.get('type') == 'Pretrained'


def load(path):
    cfg = Config.fromfile(ROOT / path if path.startswith('configs/') else path)
    if cfg.get('default_scope') == 'mmengine':
        data = cfg.train_dataloader.dataset
        small = dict(size=SIZE // 2, rays=8, points=64, views=3, supersample=1)
        data.update({k: v for k, v in small.items() if takes(require(data, DATASETS), k)})
        # What is chosen from the signal is the first candidate, unless the choice is what is tested.
        for request in open_frequencies(cfg.model.to_dict(), ('model',)):
            _, (first, *_) = require(reduce(getitem, (*request.path, request.part), cfg)).frequency
            cfg.merge_from_dict({'.'.join((*request.path, request.part, request.argument)): first})
    return cfg


def build(cfg):
    """Build a config's model as the runner does on one CPU."""
    init_default_scope(cfg.default_scope)
    model = without_pretrained(cfg.model.to_dict())
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    # Two-stage detectors read settings as attributes, which a plain dict does not have.
    return revert_sync_batchnorm(MODELS.build(ConfigDict(model)))


def count(model):
    return sum(p.numel() for p in model.parameters())


def size_for(model):
    """Return the side of the images: small, or the only one that the model takes."""
    return next((net.fixed_size[0] for _, net in find(model, TakesOneSize)), SIZE)


def batch_of(cfg, size):
    """Return a batch of the embedded data as the host's pipeline packs it."""
    if cfg.default_scope == 'mmengine':  # a coordinate network, whose data set is one signal
        item = DATASETS.build(cfg.train_dataloader.dataset)[0]
        return {key: [value] for key, value in item.items()}
    return batch_for(cfg.default_scope, size=size, classes=fewest_classes(cfg.model.to_dict()))


@pytest.mark.parametrize('path', CONFIGS)
def test_takes_a_training_step(path):
    cfg = load(path)
    model = build(cfg)
    if path in ROWS:
        metadata = ROWS[path]['Metadata']
        assert metadata.get('Parameters') == count(model), f'{path}: set Parameters: {count(model)} in its metafile'
    model.init_weights()
    model.train()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with_gradient = {}
    for name, p in learning.items():
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: with_gradient.update({name: bool(p.grad.isfinite().all())})
        )
    before = {name: p.detach().clone() for name, p in learning.items()}

    size = size_for(model)
    log = take_step(model, cfg.optim_wrapper, batch_of(cfg, size), size)

    assert torch.isfinite(torch.as_tensor(log['loss']))
    assert set(learning) == set(with_gradient)
    assert all(with_gradient.values())
    assert any(not torch.equal(p, before[name]) for name, p in learning.items())
    assert all(p.isfinite().all() for p in learning.values())

    if path in ROWS and not any(getattr(m, 'cannot_fold', None) for m in model.modules()):
        folded = count(fold(model.eval()))
        assert metadata.get('Deployed Parameters', metadata['Parameters']) == folded, (
            f'{path}: set Deployed Parameters: {folded} in its metafile'
        )


MOBILENET, RESNET = 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py', 'resnet/resnet50_8xb32_in1k.py'
PAIRS = [
    ('configs/refconv/cls/mobilenet-v2-refconv_8xb32_in1k.py', MOBILENET, 'map_weight'),
    ('configs/refconv/cls/resnet50-refconv_8xb32_in1k.py', RESNET, 'map_weight'),
    ('configs/leni/cls/resnet50-leni_8xb32_in1k.py', RESNET, 'relu'),
    ('configs/dcls/cls/mobilenet-v3-large-dcls_8xb128_in1k.py', 'mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py', None),
    ('configs/dcls/cls/resnet50-dcls_8xb32_in1k.py', RESNET, None),
    ('configs/detail_enhanced/cls/resnet50-detail-enhanced_8xb32_in1k.py', RESNET, None),
    ('configs/spd_conv/cls/resnet50-spd-conv_8xb32_in1k.py', RESNET, None),
    ('configs/weighted_conv/cls/resnet50-weighted-conv_8xb32_in1k.py', RESNET, None),
    ('configs/cond_conv/cls/resnet50-cond-conv_8xb32_in1k.py', RESNET, None),
    ('configs/fd_conv/cls/resnet50-fd-conv_8xb32_in1k.py', RESNET, None),
]


@pytest.mark.parametrize(('path', 'stock', 'new'), PAIRS)
def test_starts_as_the_stock_model_whose_checkpoint_it_takes(path, stock, new, tmp_path):
    (tmp_path / 'stock.py').write_text(f"_base_ = 'mmpretrain::{stock}'\n")
    plain, model = build(Config.fromfile(tmp_path / 'stock.py')), build(load(path))
    model.init_weights()
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    # A layer that takes the kernel over into its own parameters misses none.
    assert bool(result.missing_keys) == bool(new)
    assert all(new in key for key in result.missing_keys)
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('path', CONFIGS)
def test_is_found_by_every_tool(path):
    """mmengine knows no ``mmext::`` before mmext is imported, which ``mim train mmdet`` does not do."""
    text = (ROOT / path).read_text()
    assert 'mmext::' not in text
    assert 'custom_imports' not in text  # the prefix suffices


@pytest.mark.parametrize('system', SYSTEMS)
def test_system_has_readme_and_metafile(system):
    folder = ROOT / 'configs' / system
    index = yaml.safe_load((folder / 'metafile.yml').read_text())
    readme = (folder / 'README.md').read_text()
    (collection,) = index['Collections']
    assert collection['README'] == f'configs/{system}/README.md'
    assert collection['Paper']['URL'] in readme
    shipped = {path for path in CONFIGS if path.startswith(f'configs/{system}/')}
    assert {row['Config'] for row in index['Models']} == shipped
    for row in index['Models']:
        assert row['Name'] == Path(row['Config']).stem
        assert row['In Collection'] == collection['Name']
        assert f'({row["Config"].removeprefix(f"configs/{system}/")})' in readme, 'the README has a row for each config'
    assert 'verified here' in readme.lower()
