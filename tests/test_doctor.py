"""The doctor finds this environment sound, and names a remedy for each way in which one can be ill."""

import importlib
import sys

import pytest

from mmext import doctor
from mmext.registry import ALL

ONEDL = {name: [names[0]] for name, names in doctor.HOSTS.items()}
OPENMMLAB = {name: [names[1]] for name, names in doctor.HOSTS.items()}
real_import = importlib.import_module


@pytest.fixture
def ill(monkeypatch):
    """Return a function that makes imports fail, and packages and versions look different."""

    def make(errors=None, distributions=None, versions=None):
        def import_module(name, *args):
            if error := (errors or {}).get(name):
                raise error
            return real_import(name, *args)

        monkeypatch.setattr(importlib, 'import_module', import_module)
        if distributions is not None:
            monkeypatch.setattr(doctor, 'packages_distributions', lambda: distributions)
        if versions is not None:
            monkeypatch.setattr(doctor, 'version', versions.__getitem__)
        return doctor.diagnose()

    return make


def missing(name):
    return ModuleNotFoundError(f'No module named {name!r}', name=name)


def the_only(problems):
    (problem,) = problems
    assert '\n' not in problem
    return problem


def line_of(report, start):
    (line,) = [line for line in report if line.startswith(start)]
    return line


def test_this_environment_is_sound(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert 'problems' not in out
    for name in ('torch', *doctor.HOSTS):
        assert f'\n{name} ' in out
        assert sys.modules[name].__version__ in out
    assert 'mmcv ops    compiled' in out
    assert 'mmext ops   native' in out or 'mmext ops   reference' in out
    for kind, registry in ALL.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f'  {kind}: ')]
        assert all(name in line for name in registry.module_dict)


def test_problems_are_printed_and_change_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'diagnose', lambda: (['report'], ['this is wrong; do that']))
    assert doctor.main([]) == 1
    assert capsys.readouterr().out == 'report\nproblems\n  - this is wrong; do that\n'


@pytest.mark.parametrize('argument', ['--foo', 'foo'])
def test_an_argument_is_refused(argument, capsys):
    with pytest.raises(SystemExit) as caught:
        doctor.main([argument])
    assert caught.value.code == 2
    assert f'unrecognized arguments: {argument}' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_host_that_is_not_installed_is_no_problem_and_has_its_command(name, ill):
    report, problems = ill({name: missing(name)})
    assert not problems
    assert f'pip install {doctor.HOSTS[name][0]} (or {doctor.HOSTS[name][1]}, ' in line_of(report, f'{name} ')
    assert 'components' in report


def test_missing_mmengine_is_one_problem_not_five(ill):
    errors = {name: missing('mmengine') for name in doctor.HOSTS}
    report, problems = ill(errors)
    assert 'mmengine is not installed' in the_only(problems)
    assert 'pip install onedl-mmengine (or mmengine, ' in problems[0]
    assert line_of(report, 'mmdet ').endswith('not usable without mmengine')


def test_missing_torch(ill):
    _, problems = ill({'torch': missing('torch'), 'mmcv': missing('torch')})
    assert the_only(problems).endswith('pip install torch')


def test_a_missing_dependency_of_a_host_is_named(ill):
    _, problems = ill({'mmseg': missing('ftfy')})
    assert the_only(problems) == 'mmseg needs ftfy, which is not installed; pip install ftfy'


def test_a_host_that_refuses_another_version(ill):
    _, problems = ill({'mmdet': AssertionError('MMCV==9 is used but incompatible')})
    assert 'mmdet refuses an installed version; install the set of requirements/' in the_only(problems)
    assert 'MMCV==9' in problems[0]


def test_mmcv_built_for_another_torch(ill):
    _, problems = ill({'mmcv': ImportError('undefined symbol: _ZN3c10')})
    assert 'reinstall mmcv built for the installed torch (undefined symbol: _ZN3c10)' in the_only(problems)
    report, problems = ill({'mmcv._ext': ImportError('undefined symbol: _ZN3c10')})
    assert line_of(report, 'mmcv ops') == 'mmcv ops    missing: undefined symbol: _ZN3c10'
    assert 'MMCV_WITH_OPS=1 pip install --no-cache-dir' in the_only(problems)


@pytest.mark.parametrize('distributions', [ONEDL, OPENMMLAB])
def test_mmcv_without_operators(distributions, ill):
    report, problems = ill({'mmcv._ext': missing('mmcv._ext')}, distributions, {'torch': '2.5.1'})
    assert line_of(report, 'mmcv ops') == 'mmcv ops    missing: mmcv was built without ops'
    assert 'mmcv was built without ops; ' in the_only(problems)
    assert 'MMCV_WITH_OPS=1' in problems[0]
    assert f' {distributions["mmcv"][0]}, ' in problems[0]
    assert 'components' in report


@pytest.mark.parametrize(
    'distributions',
    [
        {**ONEDL, 'mmdet': ['mmdet']},
        {
            **ONEDL,
            'mmcv': ['onedl-mmcv', 'mmcv'],
        },  # both in one folder: the one installed last has overwritten the other
    ],
)
def test_mixed_stacks(distributions, ill):
    report, problems = ill(distributions=distributions, versions={'torch': '2.11.0'})
    assert 'packages of both stacks are mixed' in the_only(problems)
    assert 'fresh environment' in problems[0]
    assert line_of(report, 'stack') == 'stack       onedl + openmmlab'


@pytest.mark.parametrize(
    ('distributions', 'torch', 'says'),
    [
        (ONEDL, '2.3.1+cpu', 'torch 2.3.1+cpu is older than the oldest that mmext supports; install torch >= 2.4'),
        (OPENMMLAB, '2.6.0', 'install torch < 2.6, or the onedl stack'),
        (OPENMMLAB, '2.11.0+cu130', 'install torch < 2.6, or the onedl stack'),
        (OPENMMLAB, '2.5.1', None),
        (ONEDL, '2.11.0', None),
        (ONEDL, '2.4.0', None),
    ],
)
def test_torch_versions(distributions, torch, says, ill):
    _, problems = ill(distributions=distributions, versions={'torch': torch, 'mmengine': '0.10.7'})
    if says is None:
        assert not problems
    else:
        assert says in the_only(problems)
