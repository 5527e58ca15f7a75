"""Which path runs and why, in fresh interpreters: nothing about a missing or broken library may stop an import."""

from __future__ import annotations

import os
import subprocess
import sys

from mmext.ops import native_status


def python(code, **env):
    done = subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


AGGREGATE = """
import torch
from mmext.ops import native_status, neighborhood_aggregate
torch.manual_seed(0)
value, weight = torch.randn(2, 4, 6, 7, requires_grad=True), torch.randn(2, 2, 9, 6, 7)
for _ in range(2):
    out = neighborhood_aggregate(value, weight, 3)
out.sum().backward()
with torch.autocast('cpu', dtype=torch.float16):
    half = neighborhood_aggregate(value, weight, 3)
print(native_status().which, '|', native_status().reason)
print(out.sum().item(), value.grad.sum().item(), half.dtype)
"""


def test_forced_reference_computes_the_same():
    here, forced = python(AGGREGATE), python(AGGREGATE, MMEXT_FORCE_REFERENCE='1')
    assert 'reference | MMEXT_FORCE_REFERENCE is set' in forced
    (a, b, kind), (c, d, forced_kind) = (text.splitlines()[-1].split() for text in (here, forced))
    assert abs(float(a) - float(c)) < 1e-4
    assert abs(float(b) - float(d)) < 1e-4
    assert kind == forced_kind == 'torch.float16'


def test_one_line_says_which_path_runs():
    code = AGGREGATE.replace('import torch\n', 'import torch\nfrom mmengine.logging import MMLogger\n', 1).replace(
        'torch.manual_seed(0)', "MMLogger.get_instance('t', log_level='INFO')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if 'neighbourhood operators' in line]
    assert len(lines) == 1, done.stderr
    assert native_status().which in lines[0]


def test_a_broken_library_is_reported_not_raised(tmp_path):
    code = f"""
import importlib.util, sys, types
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmext._C':
            return importlib.util.spec_from_file_location(name, {str(tmp_path / '_C.so')!r})
import importlib.machinery
open({str(tmp_path / '_C.so')!r}, 'wb').write(b'not a library')
sys.meta_path.insert(0, Finder())
{AGGREGATE}
"""
    out = python(code, MMEXT_FORCE_REFERENCE='0')
    assert 'reference | mmext._C does not load into torch' in out
    assert 'make native' in out


def test_a_missing_library_is_reported_not_raised():
    code = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'mmext._C' else find(name, *args)
{AGGREGATE}
"""
    assert 'reference | mmext._C was not built' in python(code, MMEXT_FORCE_REFERENCE='0')


def test_forcing_means_forcing():
    forced = os.environ.get('MMEXT_FORCE_REFERENCE', '0') not in ('', '0')
    assert native_status().which == 'reference' or not forced
