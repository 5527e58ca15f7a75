"""Print registers and spills of every form of the CUDA kernels, as the compiler reports them (ptxas -v); no GPU is needed.

    make native-cuda-registers      # or: python tools/misc/cuda_registers.py [--arch 80]

A form is a kernel with its type, index, channels and columns of a thread, direction and border.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mmext import cli
from mmext.errors import UsageError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / 'cuda_ops' / 'cuda' / 'neighborhood_cuda.cu'
#: A kernel's mangled name: its own, and its template arguments.
NAME = re.compile(
    r'(?P<kernel>aggregate|correlate)_kernelI(?P<type>\w+?)(?P<index>[il])(?P<numbers>(?:Li\d+E)+)(?P<flags>(?:Lb[01]E)+)E'
)
TYPES = {'f': 'float', 'd': 'double', 'N3c104HalfE': 'half', 'N3c108BFloat16E': 'bfloat16'}
SPILLS = re.compile(r'(\d+) bytes spill stores, (\d+) bytes spill loads')


class Form(NamedTuple):
    """A kernel as it is compiled, and what it takes."""

    kernel: str
    type: str
    bits: int
    channels: int
    columns: int
    adjoint: bool
    shift: bool
    registers: int
    stores: int
    loads: int


def forms(report: str) -> Iterator[Form]:
    """Read the report of ptxas, form by form; what is no kernel of ours is passed over."""
    for block in report.split('Compiling entry function')[1:]:
        name, spills, used = NAME.search(block), SPILLS.search(block), re.search(r'Used (\d+) registers', block)
        if name is None or spills is None or used is None:
            continue
        numbers, flags = (
            re.findall(r'\d+', name['numbers']),
            [flag == '1' for flag in re.findall('[01]', name['flags'])],
        )
        kind = TYPES.get(name['type'], name['type'])
        # A correlation has neither channels, for it sums them, nor a direction.
        channels, adjoint = (int(numbers[0]), flags[0]) if len(numbers) == 2 else (0, False)
        yield Form(
            name['kernel'],
            kind,
            32 if name['index'] == 'i' else 64,
            channels,
            int(numbers[-1]),
            adjoint,
            flags[-1],
            int(used[1]),
            int(spills[1]),
            int(spills[2]),
        )


def report_of(arch: str) -> str:
    """Compile the kernels for one architecture and return what ptxas says of them.

    Raises:
        UsageError: If there is no nvcc, or it cannot compile them.
    """
    spec = importlib.util.spec_from_file_location('build_script', ROOT / 'setup.py')
    if spec is None or spec.loader is None:
        raise UsageError('setup.py, which knows the headers, is missing; run this in a checkout')
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    from torch.utils.cpp_extension import CUDA_HOME, include_paths

    os.environ['FORCE_CUDA'] = '1'
    toolkit = build.cuda_toolkit(torch)
    if toolkit is None:
        raise UsageError('nvcc, or a torch with CUDA, was not found; set CUDA_HOME, or install a torch that has CUDA')
    folders = [*include_paths(), *build.mmcv_headers(), *toolkit[0]]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(str(CUDA_HOME), 'bin', 'nvcc')),
            *(f'-I{name}' for name in folders),
            *('-std=c++17', '-O3', '--expt-relaxed-constexpr', '-Xptxas', '-v', '-cubin', f'-arch=sm_{arch}'),
            *('-o', str(Path(folder, 'kernels.cubin')), str(SOURCE)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors='replace')
    if done.returncode != 0:
        raise UsageError(f'nvcc cannot compile the kernels: {build.first_error(done.stderr) or done.returncode}')
    return done.stderr


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compile, and print a row for every form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='90', help='the compute capability, such as 80 or 90')
    args = parser.parse_args(argv)
    found = sorted(forms(report_of(args.arch)))
    print('kernel     type      index  channels  columns  direction  border  registers  spilled bytes: stores  loads')
    for f in found:
        direction, border = 'adjoint' if f.adjoint else 'forward', 'shift' if f.shift else 'zero'
        print(
            f'{f.kernel:10s} {f.type:9s} {f.bits:5d}  {f.channels or "all":>8}  {f.columns:7d}  {direction:9s}  {border:6s}  '
            f'{f.registers:9d}  {f.stores:21d}  {f.loads:5d}'
        )
    spilling = sum(f.stores + f.loads > 0 for f in found)
    most = max((f.registers for f in found), default=0)
    print(f'{len(found)} forms for sm_{args.arch}, at most {most} registers, {spilling} with spills')


if __name__ == '__main__':
    cli.run(main)
