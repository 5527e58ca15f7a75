"""The tools for coordinate networks: what they print is what a decoder gets."""

from pathlib import Path

import helpers
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmext.errors import UsageError
from mmext.inr import SignalDataset, reconstruction_quality, stored_bits

TOOLS = Path(__file__).parents[1] / 'tools/analysis_tools'
DATA = dict(type='mmext.SignalDataset', image='coffee', size=(24, 30))
CN = dict(type='mmext.CoordMLP', width=12, depth=3, norm_cfg=dict(type='mmext.CrossNorm'))


@pytest.fixture(scope='module')
def tool():
    return helpers.tool('analysis_tools/compression_inr')


@pytest.fixture
def trained(tmp_path):
    """Write the config and the checkpoint of a network that has learnt for a few steps, and return them with the model."""

    def make(network, **settings):
        cfg = Config(dict(model=dict(type='mmext.SignalModel', network=network), test_dataloader=dict(dataset=DATA)))
        cfg.merge_from_dict(settings)
        cfg.dump(tmp_path / 'config.py')
        model = MODELS.build(cfg.model)
        item = SignalDataset(**{k: v for k, v in DATA.items() if k != 'type'})[0]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        model.describe(item['data_samples'])
        for _ in range(30):
            optimizer.zero_grad()
            model.loss(item['inputs'], item['data_samples'])['loss'].backward()
            optimizer.step()
        model.freeze_stats(item['inputs'])
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        return [str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')], model, item

    return make


def table(text: str) -> dict[tuple[str, str], list[str]]:
    """Return the cells behind the first two of each row."""
    rows = [line.split() for line in text.splitlines()]
    return {(row[0], row[1]): row[2:] for row in rows if row[:1] in (['trained'], ['folded'])}


def quality(model, item) -> dict[str, float]:
    return reconstruction_quality(model.predict(item['inputs'], item['data_samples']))


def test_the_report_is_about_what_is_stored(tool, trained, capsys):
    paths, model, item = trained(CN)
    tool.main(paths)
    printed = capsys.readouterr().out
    assert printed.startswith('coffee, 24 x 30 pixels\n')
    rows = table(printed)
    assert list(rows) == [(n, s) for n in ('trained', 'folded') for s in ('float32', 'float16', 'bfloat16')]
    bits = stored_bits(model.network)
    expected = quality(model, item)
    number = sum(p.numel() for p in model.network.parameters())
    assert bits == 32 * number, 'statistics over positions are not stored'
    assert rows['trained', 'float32'] == [
        f'{number:,}',
        f'{bits // 8:,}',
        f'{bits / 720:.4f}',
        f'{expected["PSNR"]:.2f}',
        f'{expected["SSIM"]:.4f}',
    ]
    for half in ('float16', 'bfloat16'):
        assert rows['trained', half][1:3] == [f'{bits // 16:,}', f'{bits / 1440:.4f}']
    assert rows['folded', 'float32'][3:] == rows['trained', 'float32'][3:]


def test_half_precision_is_that_of_the_weights_only(tool, trained):
    """Rounded by hand, with the statistics that follow from the rounded weights, and computed in float32."""
    _, model, item = trained(CN)
    before = {name: value.clone() for name, value in model.network.named_buffers()}
    coarse = tool.rounded(model, torch.bfloat16, item['inputs'])
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.copy_(parameter.bfloat16().float())
    model.freeze_stats(item['inputs'])
    expected = model.network.state_dict()
    assert set(before) < set(expected)
    for name, value in coarse.network.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(before[name], expected[name], rtol=1e-4) for name in before)
    predicted = [m.predict(item['inputs'], item['data_samples']).prediction for m in (coarse, model)]
    torch.testing.assert_close(*predicted, rtol=1e-4, atol=1e-5)


def test_batch_norms_are_stored_and_fused(tool, trained, capsys):
    paths, model, _ = trained(dict(CN, norm_cfg=dict(type='BN')))
    tool.main([*paths, '--formats', 'float32', 'float16'])
    rows = table(capsys.readouterr().out)
    assert set(rows) == {(n, s) for n in ('trained', 'folded') for s in ('float32', 'float16')}
    # Counters of batches are integers and stay so.
    bits = stored_bits(model.network)
    assert rows['trained', 'float16'][1] == f'{(bits - 3 * 64) // 16 + 3 * 8:,}'
    assert rows['folded', 'float32'][3:] == rows['trained', 'float32'][3:]


@pytest.mark.parametrize(
    'network',
    [
        dict(type='mmext.CoordMLP', width=12, depth=2, act_cfg=dict(type='mmext.WaveletActivation')),
        dict(type='mmext.CoordMLP', width=8, depth=2, encoding=dict(type='mmext.FourierFeatures', num_frequencies=8)),
        dict(type='mmext.ConvINR', width=6, depth=2, norm_cfg=None),
    ],
)
def test_every_number_is_halved(network, tool, trained, capsys):
    paths, model, _ = trained(network)
    tool.main([*paths, '--formats', 'float16'])
    row = table(capsys.readouterr().out)['trained', 'float16']
    assert row[1] == f'{stored_bits(model.network) // 16:,}'


def test_a_complex_number_is_rounded_in_both_parts(tool, trained):
    _, model, item = trained(
        dict(type='mmext.CoordMLP', width=12, depth=2, act_cfg=dict(type='mmext.WaveletActivation'))
    )
    weight = model.network.linears[1].weight.detach()
    coarse = tool.rounded(model, torch.bfloat16, item['inputs']).network.linears[1].weight.detach()
    assert torch.equal(coarse, torch.complex(weight.real.bfloat16().float(), weight.imag.bfloat16().float()))


def test_generated_weights_are_not_stored(tool, trained, capsys):
    plain = dict(type='mmext.CoordMLP', width=8, depth=2)
    paths, _, _ = trained(dict(type='mmext.SPW', network=plain, trunk_dim=4))
    tool.main([*paths, '--formats', 'float32'])
    rows = table(capsys.readouterr().out)
    assert rows['folded', 'float32'][0] == f'{sum(p.numel() for p in MODELS.build(plain).parameters()):,}'
    assert int(rows['trained', 'float32'][0].replace(',', '')) > int(rows['folded', 'float32'][0].replace(',', ''))
    assert rows['folded', 'float32'][3:] == rows['trained', 'float32'][3:]


def test_mistakes_are_said_in_a_sentence(tool, trained, tmp_path):
    paths, _, _ = trained(CN)
    with pytest.raises(
        UsageError, match=r'does not fit the model: 0 keys are missing .* and \d+ unexpected .*; pass the config'
    ):
        tool.main([*paths, '--cfg-options', 'model.network.norm_cfg=None'])
    with pytest.raises(UsageError, match=r'\.pth: .* size mismatch for [^\n]+, and \d+ more like it; pass the config'):
        tool.main([*paths, '--cfg-options', 'model.network.width=9'])
    with pytest.raises(UsageError, match=r'config\.py has no test_dataloader'):
        tool.main([*paths, '--cfg-options', 'test_dataloader=None'])
    with pytest.raises(UsageError, match=r'missing\.py does not exist'):
        tool.main([str(tmp_path / 'missing.py'), paths[1]])
    (tmp_path / 'other.py').write_text("model = dict(type='mmext.CoordMLP')\n")
    with pytest.raises(UsageError, match=r'^compression_inr serves .* the model of .*other\.py is a CoordMLP'):
        tool.main([str(tmp_path / 'other.py'), paths[1]])
