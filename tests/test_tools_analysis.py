"""The analysis tools: what they print is what the models are."""

import json
from pathlib import Path

import helpers
import pytest

from mmext.errors import UsageError

TOOLS = Path(__file__).parents[1] / 'tools/analysis_tools'
MODEL = """
reference = 'plain.py'
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict({backbone}type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
"""
SWAP = """
_base_ = 'plain.py'
rules = [dict(kernel_size=3, stage=1, to=dict(type={to!r}))]
model = dict(backbone=dict(type='mmext.swap_layers', model='ResNet', rules=rules))
"""


@pytest.fixture
def tool():
    return lambda name: helpers.tool(f'analysis_tools/{name}')


@pytest.fixture
def configs(tmp_path):
    (tmp_path / 'plain.py').write_text(MODEL.format(backbone=''))
    (tmp_path / 'phconv.py').write_text(SWAP.format(to='mmext.PHConv2d'))
    (tmp_path / 'xnor.py').write_text(SWAP.format(to='mmext.XNORConv2d'))
    (tmp_path / 'slot.py').write_text(MODEL.format(backbone="conv_cfg=dict(type='mmext.RefConv2d'), "))
    return tmp_path


def test_show_swap_prints_the_changed_layers_and_three_forms(tool, configs, capsys):
    tool('show_swap').main([str(configs / 'phconv.py'), '--shape', '32', '32'])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith('backbone.')]
    assert [row.split()[0] for row in rows] == [f'backbone.layer1.{b}.conv{c}' for b in (0, 1) for c in (1, 2)]
    # 4 algebra matrices of 4 x 4 and a quarter of the kernel.
    assert all(row.split()[1:6] == ['Conv2d', 'PHConv2d', '576', '->', '208'] for row in rows)
    assert all(row.split()[6] in ('exact', 'near', 'none') for row in rows)
    assert '4 layers change' in out
    forms = {line[:14].strip(): line for line in out.splitlines() if 'GFLOPs' in line}
    assert list(forms) == ['without mmext', 'as trained', 'deployed']

    def numbers(form):
        return forms[form][14:].replace(',', '').split()

    assert numbers('deployed') == numbers('without mmext')
    assert int(numbers('without mmext')[0]) - int(numbers('as trained')[0]) == 4 * (576 - 208)


def test_show_swap_sees_slots_too_and_says_what_cannot_be_deployed(tool, configs, capsys):
    show_swap = tool('show_swap')
    show_swap.main([str(configs / 'slot.py'), '--no-flops'])
    out = capsys.readouterr().out
    assert 'RefConv2d' in out
    assert 'GFLOPs' not in out
    show_swap.main([str(configs / 'xnor.py'), '--no-flops'])
    assert 'not deployable: 4 layers have no plain form' in capsys.readouterr().out


def test_show_swap_reports_modules_that_have_no_plain_form_in_the_config(tool, configs, capsys):
    (configs / 'neck.py').write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='LeNet5'), neck=dict(type='mmext.LENI', num_channels=4))\n"
    )
    tool('show_swap').main([str(configs / 'neck.py'), '--no-flops'])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('neck'))
    assert row.split()[:3] == ['neck', '-', 'LENI']


@pytest.mark.parametrize('shape', [('0', '0'), ('-4', '4'), ('99999999', '4')])
def test_show_swap_refuses_sizes_that_are_none(tool, configs, shape, capsys):
    with pytest.raises(SystemExit):
        tool('show_swap').main([str(configs / 'slot.py'), '--shape', *shape])
    assert 'whole number from 1 to' in capsys.readouterr().err


def test_show_swap_refuses_a_config_without_anything_of_ours(tool, configs):
    with pytest.raises(UsageError, match=r'plain\.py changes nothing'):
        tool('show_swap').main([str(configs / 'plain.py')])


def test_compare_ranks_within_each_reference_and_does_not_repeat_jobs(tool, configs, monkeypatch, capsys):
    compare = tool('compare')
    order = []

    def run(command, **_):
        config, work_dir = Path(command[2]), Path(command[4])
        order.append(config.stem)
        seed = int(next(c for c in command if c.startswith('randomness.seed=')).partition('=')[2])
        (work_dir / '1/vis_data').mkdir(parents=True)
        score = {'plain': 50, 'phconv': 60, 'xnor': 40}[config.stem] + seed
        (work_dir / '1/vis_data/scalars.json').write_text(
            json.dumps({'accuracy/top1': 1.0}) + '\n' + json.dumps({'accuracy/top1': score})
        )
        return type('Done', (), {'returncode': 0})

    monkeypatch.setattr(compare.subprocess, 'run', run)
    monkeypatch.setattr(
        compare, 'interleave', lambda c, *_: {name: dict(median=2.0 if name == 'phconv' else 1.0) for name in c}
    )
    arguments = [str(configs / f'{n}.py') for n in ('xnor', 'phconv', 'plain')]
    arguments += ['--seeds', '0', '2', '--jobs', '1', '--shape', '32', '32', '--out', str(configs / 'out/compare')]
    compare.main(arguments)
    assert order == ['plain', 'plain', 'xnor', 'xnor', 'phconv', 'phconv'], 'references first'
    rows = json.loads((configs / 'out/compare.json').read_text())
    assert [row['name'] for row in rows] == ['plain', 'phconv', 'xnor']
    assert {row['reference'] for row in rows} == {'plain'}
    assert (rows[1]['mean'], rows[1]['spread'], rows[1]['training_ratio']) == (61, 1, 2)
    assert rows[1]['deployed_parameters'] == rows[0]['parameters'] > rows[1]['parameters']
    assert '| phconv | 61.0 ± 1.0 |' in (configs / 'out/compare.md').read_text()
    assert (configs / 'out/compare.png').stat().st_size > 1000
    compare.main(arguments)
    assert len(order) == 6

    monkeypatch.setattr(compare.subprocess, 'run', lambda *_, **__: type('Done', (), {'returncode': 1}))
    with pytest.raises(UsageError, match=r'phconv\.py with seed 7 did not finish'):
        compare.main([str(configs / 'phconv.py'), '--seeds', '7', '--out', str(configs / 'out/compare')])


def test_compare_takes_coordinate_networks_and_one_reference_for_all(tool, tmp_path, monkeypatch):
    compare = tool('compare')
    small = TOOLS.parents[1] / 'configs/inr/small'
    configs = [small / f'{name}_28x10_1k_camera-64.py' for name in ('bn', 'cn', 'relu')]
    scores = {'bn': 30.0, 'cn': 31.0, 'relu': 20.0}
    monkeypatch.setattr(compare, 'train', lambda config, *_: scores[config.stem.partition('_')[0]])
    arguments = [*map(str, configs), '--metric', 'signal/PSNR', '--shape', '8', '8', '--out', str(tmp_path / 'inr')]
    compare.main([*arguments, '--reference', str(configs[2])])
    rows = json.loads((tmp_path / 'inr.json').read_text())
    assert [row['name'].partition('_')[0] for row in rows] == ['relu', 'cn', 'bn']
    # Batch norm folds into the layers before it, cross norm does not.
    deployed = {row['name'].partition('_')[0]: row['deployed_parameters'] for row in rows}
    assert deployed['bn'] == deployed['relu'] < deployed['cn']
    assert '| PSNR (dB) |' in (tmp_path / 'inr.md').read_text()
    with pytest.raises(UsageError, match='is not among the configs'):
        compare.main([*arguments, '--reference', 'other.py'])


def test_compare_measures_networks_whose_frequencies_the_training_has_chosen(tool, tmp_path, monkeypatch):
    compare = tool('compare')
    text = "model = dict(type='mmext.SignalModel', network=dict(type='mmext.CoordMLP', encoding=ENCODING))\n"
    text = text.replace('ENCODING', "dict(type='mmext.PositionalEncoding', num_octaves={})")
    (tmp_path / 'open.py').write_text(text.format("'fresh'"))

    def train(config, seed, work_dir, metric):
        work_dir.mkdir(parents=True)
        (work_dir / config.name).write_text(text.format(3))
        return 30.0

    monkeypatch.setattr(compare, 'train', train)
    arguments = ['--seeds', '4', '--metric', 'signal/PSNR', '--shape', '8', '8', '--out', str(tmp_path / 'out')]
    compare.main([str(tmp_path / 'open.py'), *arguments])
    (row,) = json.loads((tmp_path / 'out.json').read_text())
    assert row['parameters'] == 7479 + 28 * 12
