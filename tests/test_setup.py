"""What setup.py decides, with the surroundings faked: what is built, what is left out, and that the log says why."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWITCHES = ('FORCE_CUDA', 'MMEXT_SKIP_NATIVE', 'MMEXT_REQUIRE_NATIVE')


@pytest.fixture
def script(monkeypatch):
    for name in (*SWITCHES, 'TORCH_CUDA_ARCH_LIST', 'CC', 'CXX', 'LC_ALL'):
        monkeypatch.setenv(name, '')  # what the script sets is undone after the test
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location('mmext_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_headers_come_from_the_installed_mmcv_without_importing_it(script, monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    common, cuda = script.mmcv_headers()
    assert (Path(common) / 'pytorch_cpp_helper.hpp').is_file()
    assert (Path(cuda) / 'common_cuda_helper.hpp').is_file()
    assert 'mmcv' not in sys.modules


def test_without_mmcv_headers_nothing_is_built_and_one_line_says_so(script, monkeypatch, tmp_path, capsys):
    (tmp_path / 'mmcv').mkdir()
    lite = importlib.util.spec_from_file_location('mmcv', None, submodule_search_locations=[str(tmp_path / 'mmcv')])
    monkeypatch.setattr(script.importlib.util, 'find_spec', lambda name: lite)
    modules, _ = script.native()
    assert modules == []
    (line,) = capsys.readouterr().out.splitlines()
    assert 'left out' in line
    assert 'mmcv-lite' in line


def test_left_out_on_purpose(script, monkeypatch, capsys):
    monkeypatch.setenv('MMEXT_SKIP_NATIVE', '1')
    assert script.native()[0] == []
    assert 'MMEXT_SKIP_NATIVE' in capsys.readouterr().out


def test_cpu_build_by_default(script, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    ((extension,), _) = script.native()
    assert extension.name == 'mmext._C'
    assert not any(source.endswith('.cu') for source in extension.sources)
    assert all((ROOT / source).is_file() for source in extension.sources)
    assert not any('march=native' in flag for flag in script.FLAGS)


def test_forced_cuda_on_a_cpu_torch_builds_for_the_cpu_and_says_so(script, monkeypatch, capsys):
    import torch

    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.setattr(torch.version, 'cuda', None)
    ((extension,), _) = script.native()
    assert not any(source.endswith('.cu') for source in extension.sources)
    assert 'this torch is a CPU build' in capsys.readouterr().out


def test_forced_cuda_finds_headers_libraries_and_architectures(script, monkeypatch):
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None or cpp_extension.CUDA_HOME is None:
        monkeypatch.setattr(torch.version, 'cuda', '13.0')
        monkeypatch.setattr(cpp_extension, 'CUDA_HOME', '/usr/local/cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('FORCE_CUDA', '1')
    include, _ = script.cuda_toolkit(torch)
    folders = [*include, str(Path(cpp_extension.CUDA_HOME) / 'include')]
    if Path(cpp_extension.CUDA_HOME).is_dir() and Path(torch.__file__).parents[1].joinpath('nvidia').is_dir():
        assert any((Path(folder) / 'cusparse.h').is_file() for folder in folders)
    assert script.os.environ['TORCH_CUDA_ARCH_LIST'] == '8.0;9.0+PTX'


@pytest.mark.parametrize('value', ['', ' ', '7.5'])
def test_an_empty_variable_counts_as_unset(script, monkeypatch, value):
    import torch
    from torch.utils import cpp_extension

    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', '/usr/local/cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for name in ('TORCH_CUDA_ARCH_LIST', 'CC', 'CXX'):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('FORCE_CUDA', '1')
    script.native()
    assert script.os.environ['TORCH_CUDA_ARCH_LIST'] == (value.strip() or '8.0;9.0+PTX')
    assert script.os.environ.get('CXX') == (value.strip() or None)


# A compiler that complains of some arguments, and makes an empty file for others.
COMPILER = """#!/bin/sh
for argument; do
    case "$argument" in
        {refused}) echo "in passing" >&2; echo "{error}" >&2; echo "later: error: another" >&2; exit 1 ;;
        -dumpfullversion) echo 12.2.0; exit ;;
        --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;;
    esac
done
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then : >"$2"; fi
    shift
done
"""


@pytest.fixture
def compiler(tmp_path):
    """Return a function that makes a compiler, which ends with an error where an argument fits a pattern of the shell."""

    def make(refused, error='fake: error: unsupported', name='g++'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(COMPILER.format(refused=refused, error=error))
        path.chmod(0o755)
        return str(path)

    return make


def test_a_compiler_gets_the_flags_that_it_knows(script, compiler, capsys):
    assert script.known_flags([compiler('nothing')]) == (script.FLAGS, script.OPENMP)
    assert not capsys.readouterr().out
    flags, threads = script.known_flags([compiler('-g0|-ffp-*')])
    assert flags == [flag for flag in script.FLAGS if flag not in ('-g0', '-ffp-contract=fast')]
    assert threads == script.OPENMP


def test_a_compiler_without_openmp_builds_for_one_thread_and_says_so(script, compiler, capsys):
    flags, threads = script.known_flags([compiler('-fopenmp', "clang: error: unsupported option '-fopenmp'")])
    assert (flags, threads) == (script.FLAGS, [])
    (line,) = capsys.readouterr().out.splitlines()
    assert 'one thread' in line
    assert "unsupported option '-fopenmp'" in line


@pytest.mark.parametrize(
    ('command', 'says'),
    [(['/nowhere/c++'], 'No such file'), (['false'], 'ended with status 1'), (['false', '-x'], 'false -x')],
)
def test_a_compiler_that_cannot_build_is_named(script, command, says):
    with pytest.raises(script.CannotBuildError, match=says):
        script.known_flags(command)


@pytest.mark.parametrize(
    ('before', 'line', 'after'),
    [
        ('In file included from a.h:1:\na.cpp:3:9: warning: unused [-Wall]', 'a.cpp:4:1: error: no x', 'b: error: y'),
        ('', 'binding.cpp:3:10: fatal error: Python.h: No such file or directory', 'compilation terminated.'),
        ('kernels.cpp', 'kernels.h(14): error C2065: undeclared', ''),
        ('', 'LINK : fatal error LNK1181: cannot open input file', ''),
        ('', 'k.cu(3): error: identifier "x" is undefined', '1 error detected'),
        ('', "nvcc fatal   : Unsupported gpu architecture 'compute_1'", ''),
        ('[1/2] c++ -Werror=format -c a.cpp', '/bin/sh: 1: c++: not found', 'ninja: build stopped'),
        ('a.o: in function f:', 'a.cpp:(.text+0x1): undefined reference to `g()', 'collect2: error: ld'),
        ('', '/usr/bin/ld: cannot find -lcudart', 'collect2: error: ld returned 1 exit status'),
        ('', 'c++: fatal error: Killed signal terminated program cc1plus', ''),
        ('UserWarning: Error checking compiler version', None, 'RuntimeError was here'),
    ],
)
def test_the_first_error_of_a_log(script, before, line, after):
    assert script.first_error(f'{before}\n{line or ""}\n{after}\n') == line


def build(script, tmp_path):
    """Run the build of the extension as an installation does; return its command and whether it made a library."""
    from setuptools import Distribution

    modules, builder = script.native()
    command = builder(Distribution({'name': 'mmext', 'ext_modules': modules}))
    command.build_lib, command.build_temp = str(tmp_path / 'lib'), str(tmp_path / 'temp')
    command.ensure_finalized()
    command.run()
    return command, any((tmp_path / 'lib').rglob('_C*'))


@pytest.fixture
def cuda(monkeypatch, compiler, tmp_path):
    """Let torch see a toolkit whose nvcc does not know the kernels, but no GPU."""
    import torch
    from torch.utils import cpp_extension

    compiler('*neighborhood_cuda*', 'kernel.cu(3): error: no such thing', 'bin/nvcc')
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(tmp_path))
    monkeypatch.setenv('FORCE_CUDA', '1')


def test_a_failing_cuda_build_leaves_the_cpu_kernels(script, monkeypatch, compiler, tmp_path, cuda, capfd):
    for name in ('CC', 'CXX'):
        monkeypatch.setenv(name, compiler('nothing'))
    command, built = build(script, tmp_path)
    assert built
    assert not any(source.endswith('.cu') for source in command.extensions[0].sources)
    assert 'MMEXT_WITH_CUDA' not in dict(command.extensions[0].define_macros)
    assert 'cudart' not in command.extensions[0].libraries
    (line,) = (text for text in capfd.readouterr().out.splitlines() if 'left out' in text)
    assert 'CUDA kernels left out' in line
    assert 'kernel.cu(3): error: no such thing' in line


def test_a_cuda_of_another_version_leaves_the_cpu_kernels(script, monkeypatch, compiler, tmp_path, cuda, capfd):
    import torch

    monkeypatch.setattr(torch.version, 'cuda', '11.8')
    for name in ('CC', 'CXX'):
        monkeypatch.setenv(name, compiler('nothing'))
    assert build(script, tmp_path)[1]
    (line,) = (text for text in capfd.readouterr().out.splitlines() if 'left out' in text)
    assert 'mismatches the version' in line


@pytest.mark.parametrize('force', ['0', '1'])
def test_required_kernels_that_do_not_build_are_an_error(script, monkeypatch, compiler, tmp_path, cuda, force):
    monkeypatch.setenv('MMEXT_REQUIRE_NATIVE', '1')
    monkeypatch.setenv('FORCE_CUDA', force)
    for name in ('CC', 'CXX'):
        monkeypatch.setenv(name, compiler('*binding.cpp' if force == '0' else 'nothing', 'binding.cpp: error: first'))
    with pytest.raises(SystemExit, match='kernel.cu' if force == '1' else 'binding.cpp: error: first'):
        build(script, tmp_path)


@pytest.mark.parametrize(('variable', 'says'), [('MMEXT_SKIP_NATIVE', 'SKIP_NATIVE'), ('FORCE_CUDA', 'a CPU build')])
def test_required_kernels_that_cannot_be_built_are_an_error(script, monkeypatch, variable, says):
    import torch

    monkeypatch.setattr(torch.version, 'cuda', None)
    monkeypatch.setenv('MMEXT_REQUIRE_NATIVE', '1')
    monkeypatch.setenv(variable, '1')
    with pytest.raises(SystemExit, match=says):
        script.native()


@pytest.mark.parametrize('refused', ['*binding.cpp', '*'])
def test_a_failing_build_leaves_a_python_installation(script, monkeypatch, compiler, tmp_path, capfd, refused):
    for name in ('CC', 'CXX'):
        monkeypatch.setenv(name, compiler(refused, 'binding.cpp:1:1: error: first'))
    command, built = build(script, tmp_path)
    assert command.extensions == []
    assert not built
    command.copy_extensions_to_source()
    (line,) = (text for text in capfd.readouterr().out.splitlines() if 'left out' in text)
    assert 'the pure-torch references will run' in line
    assert 'binding.cpp:1:1: error: first' in line


def test_msvc_leaves_a_python_installation(script, monkeypatch, capsys):
    from setuptools import Distribution

    modules, builder = script.native()
    command = builder(Distribution({'name': 'mmext', 'ext_modules': modules}))
    command.compiler = type('Compiler', (), {'compiler_type': 'msvc'})()
    command.extensions = modules
    command.build_extensions()
    assert command.extensions == []
    assert 'MSVC does not know' in capsys.readouterr().out


@pytest.mark.parametrize(('condition', 'std'), [('201703L', 17), ('202002L', 20), ('202302L', 23), (None, 17)])
def test_compilers_of_the_version_that_torch_asks_for(monkeypatch, tmp_path, condition, std):
    header = tmp_path / 'torch' / 'include' / 'ATen' / 'ATen.h'
    header.parent.mkdir(parents=True)
    (tmp_path / 'torch' / '__init__.py').touch()
    header.write_text(f'#if !defined(_MSC_VER) && __cplusplus < {condition}\n#endif\n' if condition else '')
    compilers = tmp_path / 'two words'
    compilers.mkdir()
    for name, value in {'PYTHONPATH': tmp_path, 'CXX': 'echo', 'PYTORCH_NVCC': '/bin/echo'}.items():
        monkeypatch.setenv(name, str(value))
    subprocess.run([ROOT / 'tools' / 'misc' / 'torch_std.sh', sys.executable, compilers], check=True)
    given = ['-O2', '-std=c++17', 'a b.cpp', '-std=c++14', '-o', 'a.o']
    for name in ('c++', 'nvcc'):
        passed = subprocess.run([compilers / name, *given], check=True, capture_output=True, text=True).stdout
        assert passed.rstrip() == f'-O2 a b.cpp -o a.o -std=c++{std}'


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ((), 'usage: '),
        (('nope', 'venv'), r'STACK must be one of: latest onedl openmmlab, got .nope.'),
        (('..', 'venv'), 'STACK must be one of: '),
        (('latest', 'tests'), r'VENV is a folder of other things \(tests\)'),
        (('latest', '/proc/venv'), 'cannot write to /proc/venv; choose another folder with VENV'),
    ],
)
def test_the_set_up_refuses_before_it_starts(arguments, says):
    run = subprocess.run([ROOT / 'tools' / 'misc' / 'setup_env.sh', *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert not run.stdout
    (line,) = run.stderr.splitlines()
    assert re.match(says, line)


def test_the_check_of_a_build_removes_only_its_own_folder(tmp_path):
    (tmp_path / 'mine').touch()
    run = subprocess.run(
        [ROOT / 'tools' / 'misc' / 'check_build.sh', tmp_path, sys.executable], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert 'holds other things' in run.stderr
    assert (tmp_path / 'mine').exists()


@pytest.mark.parametrize('editable', [False, True])
def test_the_folder_mim_looks_for(script, monkeypatch, tmp_path, editable):
    from setuptools import Distribution

    source, built = tmp_path / 'source', tmp_path / 'built'
    for name in ('configs', 'tools'):
        (source / name).mkdir(parents=True)
        (source / name / 'a.py').write_text('x = 1\n')
    (source / 'model-index.yml').write_text('Import: []\n')
    monkeypatch.setattr(script, 'ROOT', source)
    command = script.BuildPython(Distribution({'name': 'mmext', 'packages': []}))
    command.ensure_finalized()
    command.build_lib, command.editable_mode = str(built), editable
    for _ in range(2):  # over its own result too
        command.run()
        mim = (source if editable else built) / 'mmext' / '.mim'
        assert (mim / 'configs' / 'a.py').read_text() == (mim / 'tools' / 'a.py').read_text() == 'x = 1\n'
        assert (mim / 'model-index.yml').is_file()
        assert (mim / 'configs').is_symlink() == editable
