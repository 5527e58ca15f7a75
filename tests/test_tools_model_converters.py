"""The command line that converts official checkpoints."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from official_layers.gaussian_conv import GaussianOfficial
from official_layers.phconv import PHCOfficial
from official_layers.tucker import TuckerOfficial
from torch import nn

from mmext.converters import SYSTEMS
from mmext.errors import UsageError
from mmext.registry import MODELS

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools' / 'model_converters'))

import convert as tool

pytestmark = pytest.mark.usefixtures('double_precision')


def config(tmp_path, **model):
    path = tmp_path / 'config.py'
    path.write_text(f"default_scope = 'mmengine'\nmodel = {model!r}\n")
    return str(path)


def saved(tmp_path, content, name='src.pth'):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def run(*args):
    tool.main([str(a) for a in args])


PHC = dict(type='mmext.PHConv2d', in_channels=6, out_channels=8, kernel_size=3, n=2, bias=False)


def test_command_line(tmp_path, capsys):
    src, dst = saved(tmp_path, PHCOfficial().state_dict()), tmp_path / 'new' / 'dst.pth'
    run('phconv', src, dst, '--config', config(tmp_path, **PHC))
    out = capsys.readouterr().out
    assert 'layers converted to PHConv2d: 1' in out
    assert 'dropped: bias' in out
    assert '2 loaded, 0 missing, 0 unexpected, 0 of another shape' in out
    written = torch.load(dst, weights_only=True)
    assert set(written['state_dict']) == {'algebra', 'filters'}
    assert written['meta']['mmext']['system'] == 'phconv'
    assert [p.name for p in dst.parent.iterdir()] == ['dst.pth']


def test_report_names_what_does_not_fit(tmp_path, capsys):
    src = saved(tmp_path, PHCOfficial().state_dict() | {'extra': torch.ones(1)})
    run('phconv', src, tmp_path / 'dst.pth', '--config', config(tmp_path, **{**PHC, 'in_channels': 8, 'bias': True}))
    out = capsys.readouterr().out
    assert '1 loaded, 1 missing, 1 unexpected, 1 of another shape' in out
    assert 'missing: bias' in out
    assert 'unexpected: extra' in out
    assert 'of another shape: filters (8, 4, 3, 3) <- (8, 3, 3, 3)' in out
    with pytest.raises(UsageError, match=r'no tensor fits .* prefix'):
        run('phconv', src, tmp_path / 'no.pth', '--prefix', '=a.', '--config', config(tmp_path, **PHC))
    assert not (tmp_path / 'no.pth').exists()


@pytest.mark.parametrize('nest', [None, 'state_dict', 'model', 'model_ema'])
def test_nests_and_wrapped_names(tmp_path, nest):
    state = {f'module.conv.{k}': v for k, v in PHCOfficial().state_dict().items()}
    src = saved(tmp_path, state if nest is None else {'epoch': 3, nest: state})
    run('phconv', src, tmp_path / 'dst.pth')
    assert set(torch.load(tmp_path / 'dst.pth')['state_dict']) == {'conv.algebra', 'conv.filters'}


def test_two_tensors_of_one_name_are_refused(tmp_path):
    state = PHCOfficial().state_dict()
    with pytest.raises(UsageError, match='holds A twice, with and without'):
        run('phconv', saved(tmp_path, {**state, **{f'module.{k}': v for k, v in state.items()}}), tmp_path / 'dst.pth')


def test_key_chooses_among_nests(tmp_path):
    src = saved(
        tmp_path, {'model': PHCOfficial().state_dict(), 'ema': {'A': torch.zeros(1, 1, 1), 'F': torch.zeros(5 * [1])}}
    )
    run('phconv', src, tmp_path / 'dst.pth', '--key', 'ema')
    assert torch.load(tmp_path / 'dst.pth')['state_dict']['algebra'].numel() == 1
    with pytest.raises(UsageError, match='has no best, only model, ema'):
        run('phconv', src, tmp_path / 'dst2.pth', '--key', 'best')


def test_pickled_objects_need_trust(tmp_path):
    content = {'model': PHCOfficial().state_dict(), 'args': argparse.Namespace(lr=1)}
    src, dst = saved(tmp_path, content), tmp_path / 'dst.pth'
    with pytest.raises(UsageError, match=r'holds more than tensors \(argparse\.Namespace\).*pass --trust'):
        run('phconv', src, dst)
    assert not dst.exists()
    run('phconv', src, dst, '--trust')
    assert set(torch.load(dst, weights_only=True)['state_dict']) == {'algebra', 'filters'}


def test_whole_models_are_read_with_trust(tmp_path):
    run('phconv', saved(tmp_path, PHCOfficial()), tmp_path / 'dst.pth', '--trust')
    assert set(torch.load(tmp_path / 'dst.pth')['state_dict']) == {'algebra', 'filters'}


def test_a_files_code_is_not_run_without_trust(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)

    with pytest.raises(UsageError, match='--trust'):
        run('phconv', saved(tmp_path, {'model': PHCOfficial().state_dict(), 'x': Touch()}), tmp_path / 'dst.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('trust', [[], ['--trust']])
@pytest.mark.parametrize('content', [b'', b'no checkpoint', 'truncated'])
def test_damaged_files_are_refused_without_advising_trust(tmp_path, content, trust):
    path = tmp_path / 'src.pth'
    if content == 'truncated':
        content = Path(saved(tmp_path, PHCOfficial().state_dict())).read_bytes()[:-300]
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r'is damaged|cannot be loaded') as refusal:
        run('phconv', path, tmp_path / 'dst.pth', *trust)
    assert '--trust' not in str(refusal.value)
    assert '\n' not in str(refusal.value)


def test_files_without_a_state_dict(tmp_path):
    with pytest.raises(UsageError, match=r'no state dict in the checkpoint, only epoch'):
        run('phconv', saved(tmp_path, {'epoch': 3}), tmp_path / 'dst.pth')
    with pytest.raises(UsageError, match=r'does not exist'):
        run('phconv', tmp_path / 'none.pth', tmp_path / 'dst.pth')


def test_nothing_is_overwritten(tmp_path):
    src, dst = saved(tmp_path, PHCOfficial().state_dict()), tmp_path / 'dst.pth'
    dst.write_text('mine')
    with pytest.raises(UsageError, match=r'exists and is not overwritten; choose another DST or pass --force'):
        run('phconv', src, dst)
    assert dst.read_text() == 'mine'
    run('phconv', src, dst, '--force')
    assert 'algebra' in torch.load(dst)['state_dict']
    with pytest.raises(UsageError, match='is SRC itself'):
        run('phconv', src, src, '--force')
    with pytest.raises(UsageError, match='does not exist'):
        run('phconv', tmp_path / 'none.pth', dst, '--force')


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    src, file = saved(tmp_path, PHCOfficial().state_dict()), tmp_path / 'file'
    file.write_text('mine')
    for dst, why in ((tmp_path, 'is a folder'), (file / 'dst.pth', 'is no folder')):
        with pytest.raises(UsageError, match=why):
            run('phconv', src, dst, '--force')
    assert file.read_text() == 'mine'


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def half(path, content):
        path.write_text('half')
        raise OSError(28, 'No space left on device')

    src = saved(tmp_path, PHCOfficial().state_dict())
    monkeypatch.setattr(Path, 'write_bytes', half)
    with pytest.raises(UsageError, match='No space left'):
        run('phconv', src, tmp_path / 'new' / 'dst.pth')
    assert not list((tmp_path / 'new').iterdir())


def test_written_views_do_not_carry_what_they_are_views_of(tmp_path):
    state = TuckerOfficial().state_dict()
    state['S'], state['Us.0'] = torch.randn(400, 3, 3, 3), torch.randn(6, 400)
    run('tucker', saved(tmp_path, state), tmp_path / 'dst.pth', '--options', 'ranks=live')
    assert (tmp_path / 'dst.pth').stat().st_size < 20_000


def test_long_lists_are_cut(tmp_path, capsys):
    layers = nn.ModuleList(GaussianOfficial(1.0) for _ in range(20))
    run('gaussian_conv', saved(tmp_path, layers.state_dict()), tmp_path / 'dst.pth')
    out = capsys.readouterr().out
    assert out.count('note: ') == 12
    assert 'and 8 more notes' in out


def test_list_names_systems_and_options(capsys):
    with pytest.raises(SystemExit) as leaving:
        run('--list')
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SYSTEMS)
    assert '--options version=: v0 or v1' in out


def test_a_network_with_official_names_becomes_the_hosts(tmp_path, capsys):
    """ConvNeXt with DCLS as its authors call everything, in a stock ConvNeXt of mmpretrain."""
    path = tmp_path / 'config.py'
    path.write_text("""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmext.swap_layers', model='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[4, 4, 8, 8]),
                  rules=[dict(depthwise=True, to=dict(type='mmext.DCLSConv2d', kernel_size=9, padding=4, version='v0'))]),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=8))
""")
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(path).model)
    names = {'backbone.norm3.': 'norm.', 'head.fc.': 'head.', 'backbone.': '', 'depthwise_conv': 'dwconv'}
    names |= {'pointwise_conv': 'pwconv', 'point_weight': 'weight'}
    official = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        official[key] = tensor
    run(
        *('dcls', saved(tmp_path, {'model': official}), tmp_path / 'dst.pth', '--options', 'version=v0'),
        *('--prefix', 'norm.=backbone.norm3.', 'head.=head.fc.', 'stages.=backbone.stages.'),
        *(
            'downsample_layers.=backbone.downsample_layers.',
            '--config',
            path,
            '--rename',
            r'\.dwconv\.=.depthwise_conv.',
            'pwconv=pointwise_conv',
        ),
    )
    assert f'{len(official)} loaded, 0 missing, 0 unexpected, 0 of another shape' in capsys.readouterr().out
    written = torch.load(tmp_path / 'dst.pth')['state_dict']
    assert all(torch.equal(written[k], v) for k, v in model.state_dict().items())


def test_options_are_pairs():
    with pytest.raises(UsageError, match=r'--prefix takes KEY=VALUE, got a, b'):
        tool.pairs(['a', 'b'], '--prefix')


def test_a_file_of_none_of_the_systems_layers_writes_nothing(tmp_path):
    src = saved(tmp_path, {f'{i}.weight': torch.zeros(4, 4, 3, 3) for i in range(98)})
    with pytest.raises(UsageError, match='no layer of detail_enhanced among the 98 entries'):
        run('detail_enhanced', src, tmp_path / 'dst.pth')
    assert not (tmp_path / 'dst.pth').exists()
