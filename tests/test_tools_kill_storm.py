"""The kill storm in small: three kills of a training, which ends as one that was not killed."""

import runpy
from pathlib import Path

import pytest

from mmext.errors import UsageError

storm = runpy.run_path(str(Path(__file__).parents[1] / 'tools' / 'analysis_tools' / 'kill_storm.py'))


@pytest.mark.slow
def test_three_kills(tmp_path, capsys):
    storm['main'](['--kills', '3', '--per-run', '3', '--out', str(tmp_path / 'storm')])
    said = capsys.readouterr().out
    assert 'equal bit by bit' in said
    assert '1 of 1 runs ended equal' in said
    with pytest.raises(UsageError, match='is not empty'):
        storm['main'](['--out', str(tmp_path / 'storm')])


def test_differences_are_by_the_bit():
    import torch

    differences = storm['differences']
    a = {'x': [torch.tensor([1.0]), 2], 'y': 'z'}
    assert differences(a, {'x': [torch.tensor([1.0]), 2], 'y': 'z'}) == []
    assert differences(a, {'x': [torch.tensor([1.0 + 1e-7]), 2], 'y': 'z'}) == ['.x[0]']
    assert differences(a, {'x': [torch.tensor([1.0]).double(), 3]}) == ['.y', '.x[0]', '.x[1]']
