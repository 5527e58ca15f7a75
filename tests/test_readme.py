"""What the README states is checked here, so that it stays true."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from registered import COMPONENTS
from torch import nn

from mmext.convs.refconv import RefConv2d
from mmext.folding import fold
from mmext.registry import MODELS

ROOT = Path(__file__).parents[1]
STACKS = sorted(folder.name for folder in (ROOT / 'requirements').iterdir() if folder.is_dir())
README = (ROOT / 'README.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_every_path_exists():
    linked = re.findall(r'\]\((?!http)([^)#]+)\)', README)
    named = re.findall(r'\b(tools/[\w/.]+\.(?:py|sh))', README)
    assert linked
    assert named
    for path in linked + named:
        assert (ROOT / path).exists(), path


def test_every_make_target_exists():
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    used = set(re.findall(r'`?make (?:\w+=\w+ )?([a-z-]+)', README))
    assert {'demo', 'test', 'help'} <= used <= targets


def test_the_retinanet_example_is_a_ten_line_diff_that_changes_nothing_at_the_start(tmp_path):
    block = next(b for b in PYTHON if 'mmdet::retinanet' in b)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    (tmp_path / 'my_config.py').write_text(block)
    cfg = Config.fromfile(tmp_path / 'my_config.py')
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    model = ROOT_MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'ResNet'
    assert sum(isinstance(m, RefConv2d) for m in model.backbone.modules()) == 16
    model.backbone.eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model.backbone(x)
    fold(model)
    for a, b in zip(expected, model.backbone(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('block', PYTHON)
def test_an_example_is_a_config_whose_components_exist(block, tmp_path):
    (tmp_path / 'my_config.py').write_text(block)
    Config.fromfile(tmp_path / 'my_config.py')
    names = re.findall(r"'mmext\.(\w+)'", block)
    assert names
    assert set(names) <= set(COMPONENTS)


def test_the_example_component_works_as_printed():
    layer_block, operator_block = re.findall(r'```python\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.DOTALL)
    try:
        exec(compile(layer_block, 'CONTRIBUTING.md', 'exec'), {})
        layer = MODELS.get('ScaledConv2d')(4, 4, 3)
        with torch.no_grad():
            layer.scale.fill_(2.0)
        x = torch.randn(1, 4, 5, 5)
        assert type(layer.fold()) is nn.Conv2d
        torch.testing.assert_close(layer.fold()(x), layer(x))
        exec(compile(operator_block, 'CONTRIBUTING.md', 'exec'), {})
        operator = MODELS.get('SoftmaxConv2d')(4, 4, 3, stride=2, padding=1)
        torch.testing.assert_close(operator(x), operator.by_definition(x))
    finally:
        for name in ('ScaledConv2d', 'SoftmaxConv2d'):
            MODELS.module_dict.pop(name, None)


@pytest.mark.parametrize('stack', STACKS)
def test_the_version_table_is_the_pinned_one(stack):
    pins = dict(
        re.findall(
            r'^([\w-]+)==([\d.]+)',
            '\n'.join(p.read_text() for p in (ROOT / 'requirements' / stack).glob('*.txt')),
            re.MULTILINE,
        )
    )
    header = re.search(r'^\| \| `STACK=.*$', README, re.MULTILINE)[0]
    column = 1 + re.findall(r'STACK=(\w+)', header).index(stack)
    for label in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
        cell = re.search(rf'^\| {label} \|(.*)\|$', README, re.MULTILINE)[1].split('|')[column - 1]
        name, version = cell.split()
        assert pins[name] == version, label
    torch_cell = re.search(r'^\| torch, torchvision \|(.*)\|$', README, re.MULTILINE)[1].split('|')[column - 1]
    assert torch_cell.strip() == f'{pins["torch"]}, {pins["torchvision"]}'
