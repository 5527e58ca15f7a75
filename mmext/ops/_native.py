"""Whether the compiled operators run, decided once per process: the single truth for the pack, the doctor and the tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import lru_cache
from typing import NamedTuple

import torch
from mmengine.logging import print_log

__all__ = ['NativeStatus', 'announce', 'native_status']


class NativeStatus(NamedTuple):
    """Which implementation runs, ``'native'`` or ``'reference'``, and why."""

    which: str
    reason: str


@lru_cache(maxsize=1)
def native_status() -> NativeStatus:
    """Load ``mmext._C`` if that is possible and wanted, and say what came of it; never raises."""
    if os.environ.get('MMEXT_FORCE_REFERENCE', '0') not in ('', '0'):
        return NativeStatus('reference', 'MMEXT_FORCE_REFERENCE is set')
    if importlib.util.find_spec('mmext._C') is None:
        return NativeStatus('reference', 'mmext._C was not built; `make native` builds it')
    try:
        built = importlib.import_module('mmext._C')
    except (ImportError, OSError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return NativeStatus(
            'reference', f'mmext._C does not load into torch {torch.__version__} ({cause}); rebuild it: `make native`'
        )
    return NativeStatus('native', f'mmext._C with {"CPU and CUDA" if built.with_cuda else "CPU"} kernels')


@lru_cache(maxsize=1)
def announce() -> None:
    """Log, once per process, which implementation the neighbourhood operators use."""
    which, reason = native_status()
    print_log(f'mmext neighbourhood operators: {which} ({reason})', logger='current')
