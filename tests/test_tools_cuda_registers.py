"""What the compiler reports of the CUDA kernels is read form by form."""

import pytest
from helpers import tool

from mmext.errors import UsageError

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5mmext4cuda16aggregate_kernelIN3c104HalfEiLi8ELi2ELb1ELb0EEEvNS0_4' for 'sm_90'
ptxas info    : Function properties for _ZN5mmext4cuda16aggregate_kernelIN3c104HalfEiLi8ELi2ELb1ELb0EEEvNS0_4ViewIT0_EE
    32 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers
ptxas info    : Compiling entry function '_ZN5mmext4cuda16correlate_kernelIdlLi1ELb1EEEvNS0_4ViewIT0_EEPKT_S7' for 'sm_90'
ptxas info    : Function properties for _ZN5mmext4cuda16correlate_kernelIdlLi1ELb1EEEvNS0_4ViewIT0_EEPKT_S7_PS5_S4_S4_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 0 barriers
ptxas info    : Compiling entry function '_ZN2at6nativeEv' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_every_form_has_its_row_and_what_is_not_ours_has_none():
    registers = tool('misc/cuda_registers')
    assert list(registers.forms(REPORT)) == [
        registers.Form('aggregate', 'half', 32, 8, 2, True, False, 128, 12, 8),
        registers.Form('correlate', 'double', 64, 0, 1, False, True, 96, 0, 0),
    ]


def test_it_prints_what_was_found(monkeypatch, capsys):
    registers = tool('misc/cuda_registers')
    monkeypatch.setattr(registers, 'report_of', lambda arch: REPORT)
    registers.main(['--arch', '80'])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[1].split()[:6] == ['aggregate', 'half', '32', '8', '2', 'adjoint']
    assert out[-1] == '2 forms for sm_80, at most 128 registers, 1 with spills'


def test_without_a_compiler_it_says_so(monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    monkeypatch.delenv('MMEXT_REQUIRE_NATIVE', raising=False)
    monkeypatch.setenv('FORCE_CUDA', '0')
    with pytest.raises(UsageError, match='nvcc'):
        tool('misc/cuda_registers').report_of('90')
