"""Builds ``mmext._C`` against the installed torch and mmcv, and gives the package the ``.mim`` folder that mim looks for.

    pip install -e . --no-build-isolation --no-deps     or     python setup.py build_ext --inplace

The CPU kernels are built by default. The CUDA kernels join them where torch sees a GPU, or with ``FORCE_CUDA=1``. They are
built for sm_80 and sm_90 with PTX, unless ``TORCH_CUDA_ARCH_LIST`` says otherwise.

What cannot be built is left out, and one line says why. Without the CUDA kernels the CPU kernels remain. Without any, mmext
runs on its pure-torch references. ``MMEXT_REQUIRE_NATIVE=1`` makes each of these an error instead, and
``MMEXT_SKIP_NATIVE=1`` leaves the kernels out on purpose.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = 'cuda_ops'

#: Vectors are passed between inlined functions only, so their ABI does not matter.
FLAGS = ['-O3', '-ffp-contract=fast', '-fvisibility=hidden', '-Wno-psabi', '-Wno-ignored-attributes', '-g0']
OPENMP = ['-fopenmp']
#: What the CPU kernels ask of a compiler, and what their threads ask of it.
VECTORS = 'typedef float Lanes __attribute__((vector_size(16)));\nLanes twice(Lanes x) { return x + x; }\n'
THREADS = '#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n'
#: How compilers, linkers and the shell begin the line that names an error.
ERROR = re.compile(
    r'\berror(?: [#\w-]+)?\s?:|^nvcc fatal\s*:|\bundefined reference to\b|\bcannot find -l|: (?:command )?not found$'
    r'|\bout of memory\b',
    re.IGNORECASE,
)


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
        if flag('FORCE_CUDA') and flag('MMEXT_REQUIRE_NATIVE'):
            raise CannotBuildError(f'FORCE_CUDA is set, and {missing}')
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
    """Return the extension to build, as it is for the CPU and, where CUDA is wanted, with it; raises CannotBuildError."""
    if flag('MMEXT_SKIP_NATIVE'):
        raise CannotBuildError('MMEXT_SKIP_NATIVE is set')
    try:
        import torch
        from torch.utils.cpp_extension import CppExtension, CUDAExtension
    except (ImportError, OSError) as error:
        raise CannotBuildError(
            f'torch is not visible to the build ({error}); install with --no-build-isolation'
        ) from error
    include = mmcv_headers()
    sources = [f'{SOURCES}/{name}.cpp' for name in ('binding', 'cpu/neighborhood_cpu', 'cpu/row_messages_cpu')]
    found = [CppExtension('mmext._C', sources, include_dirs=include)]
    toolkit = cuda_toolkit(torch)
    if toolkit is not None:
        with_cuda = CUDAExtension(
            'mmext._C',
            [*sources, f'{SOURCES}/cuda/neighborhood_cuda.cu'],
            include_dirs=include + toolkit[0],
            library_dirs=toolkit[1],
            define_macros=[('MMEXT_WITH_CUDA', None)],
        )
        found.append(with_cuda)
    return found


def first_error(output: str) -> str | None:
    """Return the first line of a build's output that names an error."""
    return next((line.strip() for line in output.splitlines() if ERROR.search(line)), None)


def complaint(compiler: list[str], program: str, flags: list[str]) -> str | None:
    """Return why a compiler makes no shared library of a program, or None if it makes one."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'probe.cpp')
        source.write_text(program)
        command = [*compiler, '-shared', '-fPIC', *flags, str(source), '-o', str(source.with_suffix('.so'))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors='replace')
        except OSError as error:
            return f'{compiler[0]}: {error.strerror}'
    if done.returncode == 0:
        return None
    return first_error(done.stdout + done.stderr) or f'{compiler[0]} ended with status {done.returncode}'


def known_flags(compiler: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags for the kernels that a compiler knows, and its flags for threads; raises CannotBuildError."""
    if reason := complaint(compiler, VECTORS, []):
        raise CannotBuildError(
            f'the compiler {shlex.join(compiler)} cannot build them ({reason}); set CXX to GCC or Clang'
        )
    known = FLAGS
    if complaint(compiler, VECTORS, FLAGS):
        known = [name for name in FLAGS if not complaint(compiler, VECTORS, [name])]
    if reason := complaint(compiler, THREADS, OPENMP):
        say(f'the CPU kernels will run on one thread, because {shlex.join(compiler)} has no OpenMP: {reason}')
        return known, []
    return known, OPENMP


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect in a list what the process and its children print, and print it at the end."""
    collected: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield collected
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(kept, start=1):
                os.dup2(original, number)
                os.close(original)
            file.seek(0)
            output = file.read()
            collected.append(output.decode(errors='replace'))
            with open(1, 'wb', closefd=False) as log:
                log.write(output)


def leave_out(reason: object) -> None:
    """Say why there will be no native operators; raises SystemExit where they are required."""
    if flag('MMEXT_REQUIRE_NATIVE'):
        raise SystemExit(f'mmext: MMEXT_REQUIRE_NATIVE is set, and the native operators cannot be built: {reason}')
    say(f'native operators left out, the pure-torch references will run: {reason}')


def native() -> tuple[list, type[build_ext]]:
    """Return the extension and the command that builds it, or nothing and the reason in the log."""
    for name in ('CC', 'CXX', 'TORCH_CUDA_ARCH_LIST'):
        if not os.environ.get(name, '').strip():
            os.environ.pop(name, None)  # torch takes an empty one for a choice
    try:
        found = extensions()
    except CannotBuildError as reason:
        leave_out(reason)
        return [], build_ext

    from torch.utils.cpp_extension import BuildExtension, get_cxx_compiler

    class BuildNative(BuildExtension):
        """torch's builder. What does not build is left out: the CUDA kernels first, then all."""

        def build_extensions(self) -> None:
            (extension,) = self.extensions
            os.environ['LC_ALL'] = 'C'  # error messages are looked for in English
            try:
                if self.compiler.compiler_type == 'msvc':
                    raise CannotBuildError('MSVC does not know the vector types that the CPU kernels are written in')
                flags, threads = known_flags(shlex.split(get_cxx_compiler()))
            except CannotBuildError as reason:
                self.extensions = []
                leave_out(reason)
                return
            for choice in reversed(found):
                vars(extension).update(vars(choice))
                extension.extra_compile_args = {'cxx': flags + threads, 'nvcc': ['-O3', '--expt-relaxed-constexpr']}
                extension.extra_link_args = threads
                try:
                    with recorded() as output:
                        super().build_extensions()
                    return
                except Exception as error:
                    cause = first_error(''.join(output)) or ' '.join(str(error).split()) or type(error).__name__
                    reason = f'the build failed ({textwrap.shorten(cause, 300)})'
                if choice is not found[0]:
                    if flag('MMEXT_REQUIRE_NATIVE'):
                        break
                    say(f'CUDA kernels left out, the CPU kernels are built alone: {reason}')
            self.extensions = []
            leave_out(reason)

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    return found[-1:], BuildNative


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
