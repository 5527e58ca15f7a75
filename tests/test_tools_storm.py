"""The draw of rewired host models: a short fixed one passes, and nothing that happens to one config reaches the others."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from helpers import TOOLS, tool
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from mmext.analysis.isolated import compare, limited
from mmext.analysis.rewire import Move, draw_moves, rewired
from mmext.analysis.samples import batch_for, fewest_classes
from mmext.analysis.stages import _trained, _undrawn_is_nan
from mmext.errors import UsageError

TOOL = TOOLS / 'analysis_tools/storm.py'
SMALL = [
    'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
]
LARGE = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'


@pytest.fixture(scope='module')
def storm():
    return tool('analysis_tools/storm')


def test_a_short_fixed_draw_trains_deploys_and_is_stock_again_where_it_can_be(tmp_path):
    out = tmp_path / 'draw.json'
    command = [
        sys.executable,
        str(TOOL),
        *SMALL,
        LARGE,
        '--seed',
        '4',
        '--count',
        '4',
        '--most',
        '12',
        '--out',
        str(out),
    ]
    done = subprocess.run([*command, '--limit', '600'], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row['config']: row for row in json.loads(out.read_text())}
    assert rows.keys() == {*SMALL, LARGE}
    assert rows[LARGE]['skipped'] == 'it has 26 million parameters, more than 12'
    for config in SMALL:
        row = rows[config]
        assert row['moves']
        reached = {key: row[key] for key in ('trains', 'deploys', 'reason', 'skipped')}
        assert reached == dict(trains=True, deploys=True, reason='', skipped='')
        # Which layers are drawn depends on what is registered; some have no plain form, and the file then says so.
        assert row['stock'] is not bool(row['needs'])
        assert all('has no plain form' in need for need in row['needs'])
    stock = sum(rows[config]['stock'] for config in SMALL)
    assert f'3 configs: 3 train, 3 deploy, {stock} are stock again, {3 - stock} need mmext' in done.stdout
    assert list(tmp_path.iterdir()) == [out]


def test_a_draw_depends_on_the_seed_alone_and_takes_each_config_once(storm):
    configs = [f'{host}::{folder}/{i}.py' for host in ('mmdet', 'mmseg') for folder in 'ab' for i in range(5)]
    first, again, other = (list(storm.drawn(configs, random.Random(seed))) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == configs
    assert [config.partition('::')[0] for config in first[:4]] == ['mmdet', 'mmseg', 'mmdet', 'mmseg']


@pytest.mark.parametrize('config', ['resnet.py', 'mmnope::a/b.py', 'mmdet::no/such.py', 'mmdet::'])
def test_a_config_that_is_none_is_refused_before_the_work(storm, config, tmp_path):
    with pytest.raises(UsageError):
        storm.main([config, '--out', str(tmp_path / 'o.json')])


def hang():
    time.sleep(60)


def compute():
    while True:
        pass


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    sys.stdout.write('about to fail')
    raise MemoryError


@pytest.mark.parametrize(
    ('work', 'sentence'),
    [
        (hang, 'within 2 s'),
        (compute, 'within 1 s of the processor'),
        (crash, 'signal 9'),
        (fail, 'an error of its own'),
        (time.time, ''),
    ],
)
def test_a_process_of_its_own_ends_alone(work, sentence, tmp_path):
    ended = limited(work, 1 if work is compute else 60, tmp_path / 'log.txt', 2 if work is hang else 300)
    assert sentence in ended
    assert bool(ended) == bool(sentence)
    if work is fail:
        text = (tmp_path / 'log.txt').read_text()
        assert 'about to fail' in text
        assert 'MemoryError' in text


@pytest.mark.parametrize('stage', ['stock', 'training'])
def test_a_config_whose_process_ends_is_a_row(storm, stage, tmp_path, monkeypatch):
    def examine(row, path, folder, *_):
        row.stage = stage
        (folder / 'row.json').write_text(json.dumps(vars(row)))
        crash()

    monkeypatch.setattr(storm, 'examine', examine)
    row = storm.run_one(SMALL[0], tmp_path / 'one', storm.parse_args([]), reloader=None)
    sentences = [f'{stage}: its process was ended by signal 9', '']
    assert [row.skipped, row.reason] == (sentences if stage == 'stock' else sentences[::-1])
    assert [row.trains, row.deploys, row.stock] == [False] * 3
    assert storm.summary([row]).startswith(f'{int(stage == "training")} configs: 0 train, 0 deploy')


def test_outputs_that_differ_and_configs_that_fail_are_told(tmp_path):
    model = "model = dict(type='ToyStormModel')\ndefault_scope = 'mmengine'\nlog_level = 'ERROR'\n"
    (tmp_path / 'plain.py').write_text(model)
    x = torch.randn(2, 3, 8, 8)
    torch.save(dict(inputs=x, outputs=[x]), tmp_path / 'expected.pt')
    (tmp_path / 'deployed.py').write_text(model + "custom_hooks = [dict(type='NoSuchHook')]\n")
    assert 'ToyStormModel is not in' in compare(tmp_path)
    assert compare(tmp_path).endswith('(so does the plain config)')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 5, groups=8), nn.Sigmoid())
        self.head = nn.Linear(8, 2)


def test_moves_name_layers_that_are_there():
    cfg = dict(type='Net', backbone=dict(type='Sequential'), head=dict(type='Linear'))
    kinds = Counter()
    for seed in range(200):
        for move in draw_moves(cfg, Net(), random.Random(seed)):
            kinds[move.place, move.rule.get('layer', 'conv')] += 1
            assert move.rule.get('layer') in (None, 'ReLU')
            assert move.rule.get('kernel_size') in (None, 3, 5)
            assert ('depthwise' in move.rule) == (move.rule.get('kernel_size') == 5)
    assert kinds.keys() == {('', 'conv'), ('backbone', 'conv'), ('', 'ReLU'), ('backbone', 'ReLU')}
    with pytest.raises(ValueError, match='no layer that this pack replaces'):
        draw_moves(cfg, nn.Linear(2, 2), random.Random(0))
    # DETR builds its encoder itself, from arguments without a type.
    cfg['backbone'] = dict(depth=18)
    assert {move.place for seed in range(50) for move in draw_moves(cfg, Net(), random.Random(seed))} == {''}


def test_rules_of_one_place_share_one_surgery_and_the_config_is_not_changed():
    rule = dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))
    cfg = dict(type='ResNet', backbone=dict(type='ResNet', depth=18), neck=dict(type='FPN'))
    new = rewired(
        cfg, [Move('backbone', rule), Move('backbone', rule), Move('neck', conv_cfg=dict(type='a')), Move('', rule)]
    )
    assert new['type'] == 'mmext.swap_layers'
    assert new['model']['backbone'] == dict(type='mmext.swap_layers', model=cfg['backbone'], rules=[rule, rule])
    assert new['model']['neck']['conv_cfg'] == dict(type='a')
    assert cfg['neck'] == dict(type='FPN')


def test_a_weight_that_a_host_never_draws_is_told_before_the_step():
    class Undrawn(BaseModel):
        def __init__(self):
            super().__init__()
            self.drawn, self.weight = nn.Linear(2, 2), nn.Parameter(torch.empty(3))

        def forward(self, inputs):
            raise NotImplementedError

    with _undrawn_is_nan():
        model = Undrawn()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match=r'^1 of its tensors are drawn neither .* such as weight$'):
        _trained(model, Config(), 64)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_labels_fit_into_few_classes(scope):
    batch = batch_for(scope, number=3, size=48, classes=2)
    assert [tuple(image.shape) for image in batch['inputs']] == [(3, 48, 48)] * 3
    for sample in batch['data_samples']:
        labels = dict(
            mmdet=lambda s: s.gt_instances.labels, mmseg=lambda s: s.gt_sem_seg.data, mmpretrain=lambda s: s.gt_label
        )[scope](sample)
        assert 0 <= int(labels.min()) <= int(labels.max()) < 2
    assert (
        fewest_classes(dict(a=[dict(num_classes=80), dict(num_classes=5)], num_classes=None, b=dict(num_classes=-1)))
        == 5
    )
    assert fewest_classes(dict(a=3)) is None
