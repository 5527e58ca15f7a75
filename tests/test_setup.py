"""What setup.py decides, with the surroundings faked: what is built, what is left out, and that the log says why."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    for name in ('FORCE_CUDA', 'MMEXT_SKIP_NATIVE', 'TORCH_CUDA_ARCH_LIST', 'MMEXT_REQUIRE_NATIVE'):
        monkeypatch.delenv(name, raising=False)
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
    assert not any('march=native' in flag for flag in extension.extra_compile_args['cxx'])


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
    script.os.environ.pop('TORCH_CUDA_ARCH_LIST')


def test_a_failing_build_leaves_a_python_installation(script, monkeypatch, capsys):
    from setuptools import Distribution
    from torch.utils.cpp_extension import BuildExtension

    def fail(self):
        raise RuntimeError('c++: not found\nand more')

    monkeypatch.setattr(BuildExtension, 'build_extensions', fail)
    modules, builder = script.native()
    command = builder(Distribution({'name': 'mmext', 'ext_modules': modules}))
    command.extensions = modules
    command.build_extensions()
    assert command.extensions == []
    (line,) = (text for text in capsys.readouterr().out.splitlines() if 'left out' in text)
    assert 'c++: not found' in line
    monkeypatch.setenv('MMEXT_REQUIRE_NATIVE', '1')
    with pytest.raises(RuntimeError, match='not found'):
        command.build_extensions()


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
