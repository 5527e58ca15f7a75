"""What the tools say to a config or an argument that cannot work: one sentence, exit code 2, no traceback."""

import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmext import cli
from mmext.errors import CheckpointError, UsageError

ROOT = Path(__file__).parents[1]
GOOD = """
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
             neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=64))
"""
UNREADABLE = {
    'syntax': 'model = dict(',
    'exception': 'raise RuntimeError("boom")',
    'division': 'model = dict(type="X", depth=1 / 0)',
    'base': "_base_ = 'nowhere.py'",
    'own-base': "_base_ = 'config.py'",
    'undefined': 'model = dict(type=Undefined)',
    'nul': 'model = dict(type="a\0b")\n\0',
    'no-model': 'optimizer = 3',
    'model-is-a-number': 'model = 3',
    'exit': 'import sys; sys.exit(0)',
}
UNBUILDABLE = {
    'no-type': GOOD + 'del model["type"]',
    'unknown-type': GOOD.replace("'ResNet'", "'mmext.NoSuchBackbone'"),
    'unknown-host-type': GOOD.replace("'ImageClassifier'", "'NoSuchClassifier'"),
    'wrong-argument': GOOD.replace('depth=18', 'depth=18, colour=3'),
    'wrong-value': GOOD.replace('depth=18', 'depth=17'),
    'wrong-scope': GOOD.replace("'mmpretrain'", "'mmnowhere'"),
    'wrong-kind': GOOD.replace(
        "backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)", 'backbone=5'
    ),
}
RUN = (
    GOOD
    + """
train_dataloader = dict(batch_size=2, dataset=dict(type='ImageNet'), sampler=dict(type='DefaultSampler'))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
)
UNRUNNABLE = {
    'hooks-are-a-number': RUN + 'custom_hooks = 5',
    'hook-without-type': RUN + 'custom_hooks = [dict(interval=1)]',
    'hook-is-a-string': RUN + "custom_hooks = ['EMAHook']",
    'unknown-hook': RUN + "custom_hooks = [dict(type='mmext.NoSuchHook')]",
    'load-from-a-number': RUN + 'load_from = 5',
    'no-environment': RUN + 'env_cfg = None',
    'default-hooks-are-a-number': RUN + 'default_hooks = 5',
    'a-default-hook-is-a-number': RUN + 'default_hooks = dict(checkpoint=5)',
    'hook-is-none': RUN + 'custom_hooks = [None]',
    'unknown-argument-of-the-checkpoint': RUN
    + "default_hooks = dict(checkpoint=dict(type='CheckpointHook', intervall=1))",
    'no-epochs': RUN.replace('max_epochs=1', 'max_epochs=0'),
    'no-number': RUN.replace('lr=0.1', "lr=float('nan')"),
    'unknown-clipping': RUN.replace('lr=0.1)', 'lr=0.1), clip_grad=dict(max_nrm=1)'),
    'unknown-optimizer': RUN.replace("'SGD'", "'SDG'"),
    'lr-is-a-word': RUN.replace('lr=0.1', "lr='x'"),
    'no-data': RUN,
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a tool as ``__main__`` does; return its exit code and what it said."""

    def run(tool, text, *arguments):
        path = tmp_path / 'config.py'
        path.write_bytes(text.encode())
        argv = [tool, str(path), *map(str, arguments)]
        monkeypatch.setattr('sys.argv', argv)
        monkeypatch.chdir(tmp_path)
        # The loggers of tools that ran before hold streams of tests that have ended.
        monkeypatch.setattr('logging.raiseExceptions', False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return stop.value.code, capsys.readouterr().err

    return run


def assert_one_sentence(code, said):
    lines = [line for line in said.splitlines() if ' error: ' in line]
    assert code == 2
    assert len(lines) == 1, said
    assert 'Traceback' not in said


@pytest.mark.parametrize('case', [*UNREADABLE, *UNBUILDABLE, *UNRUNNABLE])
def test_train_says_what_is_wrong_with_a_config(run, tmp_path, case):
    text = {**UNREADABLE, **UNBUILDABLE, **UNRUNNABLE}[case]
    assert_one_sentence(*run('train.py', text, '--work-dir', tmp_path / 'work'))


@pytest.mark.parametrize('tool', ['test.py', 'deploy.py', 'analysis_tools/show_swap.py'])
@pytest.mark.parametrize('case', [*UNREADABLE, *UNBUILDABLE])
def test_other_tools_say_what_is_wrong_with_a_config(run, tmp_path, tool, case):
    torch.save({'state_dict': {'backbone.conv1.weight': torch.ones(8, 3, 7, 7)}}, tmp_path / 'x.pth')
    more = {'test.py': ['x.pth', '--work-dir', 'work'], 'deploy.py': ['x.pth', 'out.pth']}.get(tool, [])
    assert_one_sentence(*run(tool, {**UNREADABLE, **UNBUILDABLE}[case], *more))
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('case', 'words'),
    [
        ('exit', 'cannot be read (SystemExit'),
        ('default-hooks-are-a-number', 'default_hooks is a dict of names'),
        ('a-default-hook-is-a-number', 'got checkpoint=5'),
        ('hook-is-none', 'custom_hooks is a list of dict(type=...), got None'),
        ('unknown-argument-of-the-checkpoint', 'no argument intervall; the nearest name is interval'),
        ('no-epochs', 'train_cfg.max_epochs is a whole number from 1 on, got 0'),
        ('no-number', 'takes finite numbers, got lr=nan'),
        ('unknown-clipping', 'takes type, max_norm, norm_type, error_if_nonfinite, foreach, got max_nrm'),
        ('unknown-optimizer', 'SDG in '),
        ('wrong-scope', "default_scope='mmnowhere' is no package that is installed"),
    ],
)
def test_what_mmengine_would_not_name_is_named(run, tmp_path, case, words):
    text = {**UNREADABLE, **UNBUILDABLE, **UNRUNNABLE}[case]
    assert words in run('train.py', text, '--work-dir', tmp_path / 'work')[1]


@pytest.mark.parametrize('option', ['a', '=1', 'model=3', 'model.backbone.depth.x=1'])
def test_options_that_do_not_parse(run, tmp_path, option):
    assert_one_sentence(*run('train.py', GOOD, '--work-dir', tmp_path / 'work', '--cfg-options', option))


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(UsageError, match='cannot be read') as error:
        run('train.py', UNREADABLE['syntax'], '--debug')
    assert isinstance(error.value.__cause__, SyntaxError)


def test_an_error_while_training_keeps_its_traceback(monkeypatch):
    def fail():
        cli._Begun.now = True
        raise TypeError('a bug')

    monkeypatch.setattr(cli._Begun, 'now', False)
    with pytest.raises(TypeError, match='a bug'):
        cli.run(fail)


def test_a_long_circle_of_bases_is_named(tmp_path):
    for one, other in (('a', 'b'), ('b', 'c'), ('c', 'a')):
        (tmp_path / f'{one}.py').write_text(f"_base_ = '{other}.py'")
    with pytest.raises(UsageError, match=r'is its own base \(a.py -> b.py -> c.py -> a.py\)'):
        cli.read_config(str(tmp_path / 'a.py'))


def test_a_base_that_two_others_share_is_no_circle(tmp_path):
    (tmp_path / 'root.py').write_text(GOOD)
    (tmp_path / 'left.py').write_text("_base_ = 'root.py'")
    (tmp_path / 'both.py').write_text("_base_ = ['left.py']\nx = 1")
    assert cli.read_config(str(tmp_path / 'both.py')).x == 1


@pytest.mark.parametrize('under', ['folder', 'file/out.md'])
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, under):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(UsageError, match='choose another'):
        cli.refuse_unwritable(tmp_path / under)
    cli.refuse_unwritable(tmp_path / 'new/deep/out.md')


@pytest.mark.parametrize('text', ['0', '-4', '1.5', 'nan', '4000000000', ''])
def test_sizes_are_positive(text):
    with pytest.raises(cli.argparse.ArgumentTypeError, match='whole number from 1'):
        cli.positive(text)


def test_load_subject_builds_in_eval_mode_and_takes_whole_weights_only(tmp_path):
    (tmp_path / 'config.py').write_text(GOOD)
    cfg = Config.fromfile(tmp_path / 'config.py')
    model = cli.load_subject(cfg)
    assert not model.training
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'whole.pth')
    again = cli.load_subject(cfg, str(tmp_path / 'whole.pth'))
    assert torch.equal(again.backbone.conv1.weight, model.backbone.conv1.weight)
    torch.save({'state_dict': dict(list(model.state_dict().items())[:3])}, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=r'part\.pth'):
        cli.load_subject(cfg, str(tmp_path / 'part.pth'))
