"""The analysis tools: what they print is what the models are."""

import json
import shutil
from pathlib import Path

import helpers
import numpy as np
import pytest
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmext.analysis.comparison import draw
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


SCORES = {'plain': 50, 'phconv': 60, 'xnor': 49}


@pytest.fixture
def trainings(monkeypatch):
    """Let trainings end at once with a known score, and list what was trained."""
    done = []

    def run(command, **_):
        config, work_dir = Path(command[2]), Path(command[4])
        seed = int(next(c for c in command if c.startswith('randomness.seed=')).partition('=')[2])
        done.append((config.stem, seed, '--resume' in command))
        logs = work_dir / '1/vis_data'
        logs.mkdir(parents=True)
        lines = [{'accuracy/top1': 1.0}, {'accuracy/top1': SCORES[config.stem] + seed}, {'lr': 0.1}]
        (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        return type('Done', (), {'returncode': 0})

    monkeypatch.setattr('mmext.analysis.trials.subprocess.run', run)
    monkeypatch.setattr(
        'mmext.analysis.comparison.interleave',
        lambda c, *_: {name: dict(median=2.0 if name == 'phconv' else 1.0) for name in c},
    )
    return done


def arguments(configs, *names):
    paths = [str(configs / f'{n}.py') for n in names]
    return [*paths, '--seeds', '0', '2', '--jobs', '1', '--shape', '32', '32', '--out', str(configs / 'out/compare')]


def test_compare_ranks_beside_the_reference_and_says_what_a_difference_is_worth(tool, configs, trainings):
    tool('compare').main(arguments(configs, 'xnor', 'phconv', 'plain'))
    rows = json.loads((configs / 'out/compare.json').read_text())
    assert [row['name'] for row in rows] == ['plain', 'phconv', 'xnor']
    assert {row['reference'] for row in rows} == {'plain'}
    assert [row['family'] for row in rows] == ['stock', 'convs', 'convs']
    assert (rows[1]['mean'], rows[1]['spread'], rows[1]['training_ratio']) == (61, 1, 2)
    assert rows[1]['deployed_parameters'] == rows[0]['parameters'] > rows[1]['parameters']
    # Welch: t = 10 / sqrt(2 / 2 + 2 / 2) with two degrees of freedom.
    assert rows[1]['p'] == pytest.approx(0.0194, abs=1e-4)
    assert (rows[1]['beyond_spread'], rows[2]['beyond_spread']) == (True, False)
    text = (configs / 'out/compare.md').read_text()
    assert '| plain | 51.0 ± 1.0 | the reference |' in text
    assert '| phconv | 61.0 ± 1.0 | +10.0, p = 0.02 * |' in text
    assert '| xnor | 50.0 ± 1.0 | -1.0, p = 0.55 |' in text
    assert (configs / 'out/compare.png').stat().st_size > 1000


def test_compare_repeats_no_training_and_mixes_none(tool, configs, trainings, monkeypatch, capsys):
    compare = tool('compare')
    figures = dict(training=1.0, deployed=1.0, parameters=1, deployed_parameters=1, flops=1.0)
    monkeypatch.setattr(compare, 'cost', lambda models, shape: dict.fromkeys(models, figures))
    compare.main(arguments(configs, 'xnor', 'plain'))
    assert trainings == [('xnor', 0, True), ('xnor', 2, True), ('plain', 0, True), ('plain', 2, True)]
    compare.main(arguments(configs, 'xnor', 'plain', 'phconv'))
    assert trainings[4:] == [('phconv', 0, True), ('phconv', 2, True)], 'the list grows'
    # One that was killed before its result was written goes on in its folder.
    record = configs / 'out/compare/xnor/seed2/trial.json'
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({k: v for k, v in kept.items() if k != 'metrics'}))
    shutil.rmtree(record.parent / '1')
    compare.main(arguments(configs, 'xnor', 'plain', 'phconv'))
    assert trainings[6:] == [('xnor', 2, True)]
    # Another config: what was there is kept under another name, also where a base has changed.
    path = configs / 'plain.py'
    path.write_text(
        path.read_text().replace('base_channels=8', 'base_channels=4').replace('in_channels=64', 'in_channels=32')
    )
    compare.main(arguments(configs, 'xnor', 'plain'))
    assert sorted(trainings[7:]) == [(n, seed, True) for n in ('plain', 'xnor') for seed in (0, 2)]
    folder = f'seed2.{kept["digest"][:8]}'
    assert json.loads((configs / f'out/compare/xnor/{folder}/trial.json').read_text()) == kept
    assert f'kept as {folder}' in capsys.readouterr().out


def test_a_second_stage_comes_after_the_training_it_starts_from(tool, configs, trainings):
    start = str(configs / 'out/compare/plain/seed0/epoch_1.pth')
    (configs / 'phconv.py').write_text((configs / 'phconv.py').read_text() + f'load_from = {start!r}\n')
    compare = tool('compare')
    compare.main(arguments(configs, 'phconv', 'plain'))
    assert [name for name, *_ in trainings] == ['plain', 'plain', 'phconv', 'phconv']
    trials = compare.trials_of([configs / 'phconv.py', configs / 'plain.py'], [0], configs / 'out/compare')
    second, first = trials.values()
    before = second.digest()
    assert second.after is first
    first.seed = 1
    assert second.digest() != before, 'what it starts from decides its result'


def test_a_first_stage_is_trained_once_and_stands_in_no_table(tool, configs, trainings):
    start = str(configs / 'out/compare/xnor/seed0/epoch_1.pth')
    for name, line in (('plain', f'load_from = {start!r}'), ('xnor', 'first_stage = True')):
        path = configs / f'{name}.py'
        path.write_text(path.read_text() + f'\n{line}\n')
    path = configs / 'xnor.py'
    path.write_text(path.read_text().replace("_base_ = 'plain.py'", "_base_ = 'phconv.py'"))
    path = configs / 'phconv.py'
    path.write_text((configs / 'plain.py').read_text().replace(f'load_from = {start!r}', ''))
    tool('compare').main([*arguments(configs, 'plain', 'xnor'), '--metric', 'accuracy/top1', 'lr'])
    assert [(name, seed) for name, seed, _ in trainings] == [('xnor', 0), ('plain', 0), ('plain', 2)]
    text = (configs / 'out/compare.md').read_text()
    assert '| plain | 51.0 ± 1.0 | 0.1 ± 0.0 | the reference |' in text
    assert '| Config | Top-1 (%) | lr | Top-1 (%) beside the reference |' in text
    assert 'xnor' not in text


def test_compare_says_which_training_failed_or_logged_another_metric(tool, configs, trainings, monkeypatch):
    compare = tool('compare')
    with pytest.raises(UsageError, match=r'did not log coco/AP, but accuracy/top1, lr; name one'):
        compare.main([*arguments(configs, 'plain'), '--metric', 'coco/AP'])
    monkeypatch.setattr('mmext.analysis.trials.subprocess.run', lambda *_, **__: type('Done', (), {'returncode': 1}))
    with pytest.raises(
        UsageError, match=r'phconv\.py with seed 0 did not finish.*phconv\.py with seed 2 did not finish'
    ):
        compare.main(arguments(configs, 'phconv', 'plain'))


def test_no_label_of_thirty_systems_covers_another_or_a_point():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rng = np.random.default_rng(0)
    rows = [
        dict(
            name=f'system_{i}',
            reference='system_0',
            family=f'kind {i % 5}',
            training=float(rng.normal(10, 1)),
            mean=float(rng.normal(80, 1)),
            spread=0.1,
        )
        for i in range(30)
    ]
    figure = draw(rows, 'Top-1 (%)')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == 30
    assert {text.get_text() for text in axes.texts} == {f'system_{i}' for i in range(30)}
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    points = axes.transData.transform([(row['training'], row['mean']) for row in rows])
    assert not [1 for box in boxes for x, y in points if box.contains(x, y)]


def test_compare_takes_coordinate_networks_and_one_reference_for_all(tool, tmp_path, monkeypatch):
    compare = tool('compare')
    small = TOOLS.parents[1] / 'configs/inr/small'
    configs = [small / f'{name}_28x10_1k_camera-64.py' for name in ('bn', 'cn', 'relu')]
    scores = {'bn': 30.0, 'cn': 31.0, 'relu': 20.0}

    def run(trials, *_):
        for trial in trials:
            trial.metrics = {'signal/PSNR': scores[trial.config.stem.partition('_')[0]]}

    monkeypatch.setattr(compare, 'run_trials', run)
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

    def run(trials, *_):
        for trial in trials:
            trial.work_dir.mkdir(parents=True)
            (trial.work_dir / trial.config.name).write_text(text.format(3))
            trial.metrics = {'signal/PSNR': 30.0}

    monkeypatch.setattr(compare, 'run_trials', run)
    arguments = ['--seeds', '4', '--metric', 'signal/PSNR', '--shape', '8', '8', '--out', str(tmp_path / 'out')]
    compare.main([str(tmp_path / 'open.py'), *arguments])
    (row,) = json.loads((tmp_path / 'out.json').read_text())
    assert row['parameters'] == 7479 + 28 * 12


def test_flops_are_counted_where_the_hosts_own_print_fails(tool):
    """HRNet holds None among its children, which mmengine's printer of the architecture does not expect."""
    init_default_scope('mmpretrain')
    show_swap = tool('show_swap')
    model = show_swap.build(get_config('mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py').model.to_dict())
    assert show_swap.flops(model, (64, 64)) > 3e8
