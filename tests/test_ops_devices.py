"""The native kernels of every device against float64 on the CPU, with 32- and with 64-bit indices, at every half type."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import TOLERANCE

from mmext.ops import neighborhood_aggregate, neighborhood_aggregate_adjoint, neighborhood_correlate

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
DEVICES = ['cpu', pytest.param('cuda', marks=NO_GPU)]
# Kernel, options, size: more channels per group than a thread owns, rows and columns that fill no tile.
CASES = {
    'k3': (3, {}, (17, 41)),
    'k7-interleave': (7, dict(group_map='interleave'), (13, 9)),
    'k13': (13, {}, (15, 33)),
    'stride-dilation': ((3, 5), dict(stride=(2, 1), dilation=(1, 2), padding=(1, 4)), (18, 21)),
    'shift': (5, dict(border='shift'), (12, 35)),
    'shift-dilated': (3, dict(border='shift', dilation=2), (9, 11)),
    'even': (4, dict(padding=2), (10, 14)),
}


@pytest.fixture(params=['', '1'], ids=['narrow', 'wide'])
def index_width(request, monkeypatch):
    """Index width of the CUDA kernels; the CPU's are always 64 bits wide."""
    monkeypatch.setenv('MMEXT_FORCE_64BIT_INDEXING', request.param)


def close(ours, exact):
    error = (ours.double().cpu() - exact).norm() / exact.norm()
    assert error < TOLERANCE[ours.dtype], float(error)


def output_size(kernel, options, size):
    """Return the size of the result, as torch's own convolution tells it."""
    if options.get('border') == 'shift' or 'padding' not in options:
        return size
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    plain = torch.nn.functional.conv2d(
        torch.zeros(1, 1, *size),
        torch.zeros(1, 1, *sides),
        stride=options.get('stride', 1),
        padding=options['padding'],
        dilation=options.get('dilation', 1),
    )
    return tuple(plain.shape[-2:])


@pytest.mark.usefixtures('index_width')
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', CASES)
def test_operators_and_their_gradients(case, dtype, device):
    kernel, options, size = CASES[case]
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    value = torch.randn(2, 20, *size, dtype=torch.float64).to(dtype)
    grid = output_size(kernel, options, size)
    weight = torch.randn(2, 2, height * width, *grid, dtype=torch.float64).to(dtype)
    z = torch.randn(2, 20, *grid, dtype=torch.float64).to(dtype)

    def results(value, weight, z):
        value, weight = value.clone().requires_grad_(), weight.clone().requires_grad_()
        out = neighborhood_aggregate(value, weight, kernel, **options)
        logits = neighborhood_correlate(z, value.detach(), 2, kernel, **options)
        sent = neighborhood_aggregate_adjoint(z, weight.detach(), size, kernel, **options)
        return [out.detach(), logits, sent, *torch.autograd.grad(out, (value, weight), z)]

    exact = results(value.double(), weight.double(), z.double())
    ours = results(value.to(device), weight.to(device), z.to(device))
    again = results(value.to(device), weight.to(device), z.to(device))
    for a, b, c in zip(ours, exact, again, strict=True):
        assert a.device.type == device
        assert torch.equal(a, c), 'the sums have one order'
        close(a, b)


@pytest.mark.parametrize('isa', ['default', 'avx2'])
def test_lower_instruction_sets_pass_too(isa):
    """The choice is made once per process, so each lower one gets a process of its own."""
    environment = {**os.environ, 'ATEN_CPU_CAPABILITY': isa}
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-p',
        'no:xdist',
        '-p',
        'no:cacheprovider',
        __file__,
        '-k',
        'operators and cpu and narrow',
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
