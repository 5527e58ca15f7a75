"""What the benchmarks share."""

import json
import sys

import pytest
import torch

from mmext.analysis.timing import main, shares


def test_shares_are_of_the_whole_and_name_what_is_slow():
    x = torch.randn(200, 200)
    found = shares(lambda: x @ x + x)
    assert found[0][0] == 'aten::mm'
    assert sum(share for _, share in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ([], ['a', 'b']),
        (['--only', 'b'], ['b']),
        (['--profile'], ['profile']),
        (['--only', 'a', '--profile'], ['profile']),
    ],
)
def test_a_section_with_an_option_of_its_own_runs_when_asked_and_alone(options, expected, monkeypatch, tmp_path):
    def section(name):
        return lambda report, rounds: report.add(name, rounds, None, True)

    monkeypatch.setattr(sys, 'argv', ['benchmark', '--out', str(tmp_path / 'out'), *options])
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)
    sections = {name: section(name) for name in ('a', 'b')}
    assert main(sections, 'A benchmark.', 'out', 3, dict(profile=section('profile'))) == 0
    rows = json.loads((tmp_path / 'out.json').read_text())['rows']
    assert [row['figure'] for row in rows] == expected
    assert rows[0]['value'] == 3
