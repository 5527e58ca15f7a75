"""The table of backbones: what it says is what they are."""

from pathlib import Path

import helpers
import pytest
import torch

from mmext.analysis.backbones import HOSTS_OWN, cells, cost, variants
from mmext.errors import UsageError

DOC = Path(__file__).parents[1] / 'docs/backbones.md'


@pytest.fixture
def tool():
    return helpers.tool('analysis_tools/list_backbones')


def listed():
    rows = [line.strip('| ').split(' | ') for line in DOC.read_text().splitlines() if line.startswith('| ')]
    return {row[0]: row for row in rows[2:]}


def test_the_page_lists_every_variant():
    assert set(listed()) == {*variants(), *HOSTS_OWN}, 'print it again, the command stands in its second line'


def test_the_page_names_the_command_that_measures_times_too(tool):
    assert DOC.read_text().startswith(tool.HEAD)
    assert f'{tool.COMMAND}\n' in tool.__doc__
    assert '--time ' in tool.COMMAND


@pytest.mark.parametrize('name', ['InceptionNeXt-atto', 'UniRepLKNet-A', 'XMLP-T', 'mmpretrain MobileNetV2'])
def test_the_page_says_what_is_true(name):
    assert cells(cost(name, {**variants(), **HOSTS_OWN}[name]))[:7] == listed()[name][:7]


def test_known_costs():
    row = cost('mmpretrain ResNet-50', HOSTS_OWN['mmpretrain ResNet-50'])
    assert round(row.parameters / 1e6, 2) == 23.51
    assert row.operations[0] == pytest.approx(4.09, abs=0.01)
    assert row.strides == (4, 8, 16, 32)
    assert row.channels == (256, 512, 1024, 2048)
    assert row.milliseconds is None


def test_the_random_numbers_stay_where_they_are():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    cost('FalconNet-base', variants()['FalconNet-base'])
    assert torch.equal(torch.rand(1), expected)


def test_the_tool_prints_times_and_draws(tool, tmp_path, capsys):
    tool.main(['FalconNet', '--time', '0.01'])
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == 'FalconNet-base'
    assert float(last[-1]) >= 0
    tool.main(['FalconNet', '--markdown', '--time', '0.01', '--plot', str(tmp_path / 'plot.png')])
    assert (tmp_path / 'plot.png').stat().st_size > 1000
    page = capsys.readouterr().out
    assert f'Measured with torch {torch.__version__}' in page
    assert '](plot.png)' in page
    row = page.splitlines()[-1].strip('| ').split(' | ')
    assert row[:3] == ['FalconNet-base', '0.89', '0.83']
    assert float(row[-1]) >= 0


def test_a_name_that_no_backbone_has(tool):
    with pytest.raises(UsageError, match='no backbone has Falkon in its name'):
        tool.main(['Falkon'])
