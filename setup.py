"""Builds ``mmext._C`` against the installed torch and mmcv, and gives the package the ``.mim`` folder that mim looks for.

    pip install -e . --no-build-isolation --no-deps     or     python setup.py build_ext --inplace

CPU kernels by default, CUDA kernels too where torch sees a GPU or with ``FORCE_CUDA=1`` (for sm_80 and sm_90 with PTX unless
``TORCH_CUDA_ARCH_LIST`` says otherwise). What cannot be built is left out with one line that says why: mmext then runs on
its pure-torch references. ``MMEXT_SKIP_NATIVE=1`` leaves it out on purpose.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = 'cuda_ops'


class CannotBuildError(Exception):
    """Why the native operators are left out."""


def say(message: str) -> None:
    """Tell the one who installs."""
    print(f'mmext: {message}', flush=True)  # noqa: T201 - a build script talks to its user


def flag(name: str) -> bool:
    """Return whether an environment variable is set to something else than 0."""
    return os.environ.get(name, '0') not in ('', '0')


def mmcv_headers() -> list[str]:
    """Return the folders of mmcv's native headers, found without importing mmcv."""
    spec = importlib.util.find_spec('mmcv')
    for location in spec.submodule_search_locations or () if spec else ():
        common = Path(location, 'ops', 'csrc', 'common')
        if (common / 'pytorch_device_registry.hpp').is_file():
            return [str(common), str(common / 'cuda')]
    raise CannotBuildError('no mmcv with native headers (mmcv/ops/csrc/common) is installed; mmcv-lite has none')


def cuda_toolkit(torch) -> tuple[list[str], list[str]] | None:
    """Return include and library folders for a CUDA build, or None for a CPU build."""
    if not (flag('FORCE_CUDA') or torch.cuda.is_available()):
        return None
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None or CUDA_HOME is None:
        missing = 'this torch is a CPU build' if torch.version.cuda is None else 'no CUDA toolkit (nvcc) was found'
        say(f'no CUDA kernels: {missing}')
        return None
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0):
        os.environ.setdefault('TORCH_CUDA_ARCH_LIST', '8.0;9.0+PTX')
    toolkit = Path(CUDA_HOME)
    include = []
    if not (toolkit / 'include' / 'cusparse.h').is_file():
        # A toolkit of the compiler alone: the headers of the libraries come with torch's own dependencies.
        wheels = Path(torch.__file__).resolve().parents[1] / 'nvidia'
        include = sorted({str(header.parent) for header in wheels.glob('*/include/cu*.h')})
    # torch takes the folder above nvcc for the toolkit, which is wrong where nvcc on the path is a wrapper or a link.
    homes = (toolkit, toolkit / 'cuda', Path('/usr/local/cuda'))
    folders = (home / name for home in homes for name in ('lib64', 'lib'))
    return include, [str(folder) for folder in folders if (folder / 'libcudart.so').is_file()][:1]


def extensions() -> list:
    """Return the extension to build; raises CannotBuildError."""
    if flag('MMEXT_SKIP_NATIVE'):
        raise CannotBuildError('MMEXT_SKIP_NATIVE is set')
    try:
        import torch
        from torch.utils.cpp_extension import CppExtension, CUDAExtension
    except ImportError as error:
        raise CannotBuildError(
            f'torch is not visible to the build ({error}); install with --no-build-isolation'
        ) from error
    include = mmcv_headers()
    # Vectors are passed between inlined functions only, so their ABI does not matter.
    cxx = [
        '-O3',
        '-ffp-contract=fast',
        '-fvisibility=hidden',
        '-Wno-psabi',
        '-Wno-ignored-attributes',
        '-fopenmp',
        '-g0',
    ]
    sources = [f'{SOURCES}/binding.cpp', f'{SOURCES}/cpu/neighborhood_cpu.cpp']
    common = dict(extra_link_args=['-fopenmp'])
    toolkit = cuda_toolkit(torch)
    if toolkit is None:
        return [CppExtension('mmext._C', sources, include_dirs=include, extra_compile_args={'cxx': cxx}, **common)]
    return [
        CUDAExtension(
            'mmext._C',
            [*sources, f'{SOURCES}/cuda/neighborhood_cuda.cu'],
            include_dirs=include + toolkit[0],
            library_dirs=toolkit[1],
            define_macros=[('MMEXT_WITH_CUDA', None)],
            extra_compile_args={'cxx': cxx, 'nvcc': ['-O3', '-std=c++17', '--expt-relaxed-constexpr']},
            **common,
        )
    ]


def native() -> tuple[list, type[build_ext]]:
    """Return the extensions and the command that builds them, or nothing and the reason in the log."""
    try:
        modules = extensions()
    except CannotBuildError as reason:
        say(f'native operators left out, the pure-torch references will run: {reason}')
        return [], build_ext

    from torch.utils.cpp_extension import BuildExtension

    class BuildNative(BuildExtension):
        """torch's builder, which a missing compiler or a failing build does not stop."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if flag('MMEXT_REQUIRE_NATIVE'):
                    raise
                cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
                say(f'native operators left out, the pure-torch references will run: the build failed ({cause})')
                self.extensions = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    return modules, BuildNative


class BuildPython(build_py):
    """Adds ``mmext/.mim`` with configs, tools and the model index: links in an editable install, copies in a wheel."""

    def run(self) -> None:
        super().run()
        editable = getattr(self, 'editable_mode', False)
        mim = (ROOT if editable else Path(self.build_lib)) / 'mmext' / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            source, target = ROOT / name, mim / name
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)
            if not source.exists():
                continue
            if editable:
                target.symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


if __name__ == '__main__':
    modules, builder = native()
    setup(ext_modules=modules, cmdclass={'build_ext': builder, 'build_py': BuildPython})
