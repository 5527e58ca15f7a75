"""Reading checkpoints: no file runs code, damage is found, and what the hosts and older versions wrote still loads."""

import io
import pickle
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tool
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmext import cli
from mmext.checkpoints import hand_over, newest_checkpoint, read, read_checkpoint, release, serve, state_dict_of
from mmext.errors import CheckpointError, UntrustedError, UsageError
from mmext.inert import ALLOWED

TOOLS = Path(__file__).parents[1] / 'tools'


class Hostile:
    """Creates a file where it is unpickled."""

    def __init__(self, mark, how='eval'):
        self.mark, self.how = str(mark), how

    def __reduce__(self):
        if self.how == 'eval':
            return eval, (f"open({self.mark!r}, 'w')",)
        if self.how == 'open':
            return open, (self.mark, 'w')
        if self.how == 'system':
            return __import__('os').system, (f'touch {self.mark}',)
        return Path.touch, (Path(self.mark),)


def write(path, kind, bomb):
    """Write a hostile checkpoint of one of the kinds of files that torch reads."""
    good = {'state_dict': {'a': torch.ones(2)}, 'meta': {'epoch': 1, 'iter': 2}, 'message_hub': {}}
    if kind == 'zip':
        torch.save(bomb, path)
    elif kind == 'zip with an extra object':
        torch.save({**good, 'x': bomb}, path)
    elif kind == 'legacy':
        torch.save({**good, 'x': bomb}, path, _use_new_zipfile_serialization=False)
    elif kind == 'zip of protocol 4':
        torch.save({**good, 'x': bomb}, path, pickle_protocol=4)
    elif kind == 'tar':
        content = pickle.dumps(bomb)
        with tarfile.open(path, 'w') as archive:
            for name in ('storages', 'tensors', 'pickle'):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        path.write_bytes(pickle.dumps(bomb, protocol=int(kind[-1])))


KINDS = ['zip', 'zip with an extra object', 'legacy', 'bare pickle 2', 'bare pickle 0', 'bare pickle 4', 'tar']
KINDS.append('zip of protocol 4')


@pytest.mark.parametrize('how', ['eval', 'open', 'system', 'touch'])
@pytest.mark.parametrize('kind', KINDS)
def test_no_kind_of_file_runs_code(tmp_path, kind, how):
    path, mark = tmp_path / 'x.pth', tmp_path / 'ran'
    write(path, kind, Hostile(mark, how))
    with pytest.raises(UntrustedError, match=r'holds more than tensors \(.+\).*pass --trust') as refusal:
        read(path)
    assert not mark.exists()
    assert '\n' not in str(refusal.value)
    name = {'eval': 'eval', 'open': 'open', 'system': 'system', 'touch': r'touch|getattr|pathlib'}[how]
    if kind != 'tar':
        assert any(part in str(refusal.value) for part in name.split('|'))
    if kind == 'zip with an extra object' and how != 'touch':
        read(path, trust=True)
        assert mark.exists()


CONFIG = """
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4, init_cfg={init}),
             neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=2, in_channels=32))
signal = False
train_cfg = dict(by_epoch=True, max_epochs=1)
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='CustomDataset', data_root='nowhere'))
test_dataloader = train_dataloader
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_cfg = dict()
test_evaluator = dict(type='Accuracy')
load_from = {load_from}
"""


SIGNAL = Path(__file__).parents[1] / 'configs/demo/inr/picture_astronaut.py'


@pytest.mark.parametrize('kind', ['zip', 'zip with an extra object', 'legacy', 'bare pickle 2'])
@pytest.mark.parametrize(
    'call', ['resume', 'automatic', 'load_from', 'config', 'pretrained', 'test', 'deploy', 'report', 'convert']
)
def test_no_tool_runs_a_checkpoints_code(tmp_path, monkeypatch, kind, call, tiny_data):
    work = tmp_path / 'work'
    work.mkdir()
    bad, mark = (work / 'epoch_1.pth' if call == 'automatic' else tmp_path / 'bad.pth'), tmp_path / 'ran'
    write(bad, kind, Hostile(mark))
    config = tmp_path / 'config.py'
    init = f"dict(type='Pretrained', checkpoint='{bad}', prefix='a')" if call == 'pretrained' else None
    text = CONFIG.format(init=init, load_from=repr(str(bad)) if call == 'config' else None)
    config.write_text(text.replace("data_root='nowhere'", f"data_root='{tiny_data}', pipeline=[]"))
    if call in ('resume', 'automatic', 'load_from', 'config', 'pretrained'):
        argv = ['train', config, '--work-dir', work]
        argv += {
            'resume': ['--resume', bad],
            'automatic': ['--resume'],
            'load_from': ['--cfg-options', f'load_from={bad}'],
        }.get(call, [])
    else:
        argv = {
            'test': ['test', config, bad, '--work-dir', work],
            'deploy': ['deploy', config, bad, tmp_path / 'out.pth'],
            # It asks first whether the config is one of its kind.
            'report': ['analysis_tools/compression_inr', SIGNAL, bad],
            'convert': ['model_converters/convert', 'refconv', bad, tmp_path / 'out.pth'],
        }[call]
    main = tool(argv[0]).main
    monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
    said = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', said)
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    assert 'holds more than tensors (' in said.getvalue().splitlines()[-1]
    assert 'eval' in said.getvalue()
    assert not mark.exists()
    assert not (tmp_path / 'out.pth').exists()


@pytest.fixture(scope='module')
def tiny_data(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp('images')
    for kind in 'ab':
        (folder / kind).mkdir()
        Image.new('RGB', (8, 8)).save(folder / kind / '0.png')
    return folder


def test_trust_is_for_what_the_command_line_names(tmp_path, tiny_data):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(init=None, load_from=None))
    with pytest.raises(UsageError, match='--trust is for a checkpoint that the command line names'):
        tool('train').main([str(config), '--trust', '--resume', '--work-dir', str(tmp_path)])


def older_training_checkpoint():
    """What the runner of mmengine writes: a history of values, numbers of numpy, and a scheduler with its function."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = OneCycleLR(optimizer, eta_max=0.1, total_steps=10)
    history = HistoryBuffer()
    history.update(1.5, 2)
    return {
        'meta': {'epoch': 1, 'iter': np.int64(3), 'dataset_meta': ConfigDict(classes=('a', 'b'), palette=np.eye(2))},
        'state_dict': net.state_dict(),
        'message_hub': {
            'log_scalars': OrderedDict(loss=history),
            'runtime_info': OrderedDict(
                few={1, 2}, wave=1 + 2j, best=np.float32(0.5), big=np.array([[1, 2]], '>i2', order='F')
            ),
            'resumed_keys': OrderedDict(loss=True),
        },
        'optimizer': optimizer.state_dict(),
        'param_schedulers': [scheduler.state_dict()],
    }


@pytest.mark.parametrize('legacy', [False, True])
def test_what_the_hosts_write_is_read(tmp_path, legacy):
    before = set(torch.serialization.get_safe_globals())
    content = older_training_checkpoint()
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(tmp_path / 'x.pth')
    assert found['meta']['iter'] == 3
    assert found['meta']['dataset_meta']['classes'] == ('a', 'b')
    np.testing.assert_array_equal(found['meta']['dataset_meta']['palette'], np.eye(2))
    history = found['message_hub']['log_scalars']['loss']
    assert type(history) is HistoryBuffer
    assert (history.mean(), history.data[1].tolist()) == (0.75, [2])
    history.update(2)
    info = found['message_hub']['runtime_info']
    assert info['best'] == 0.5
    assert (info['few'], info['wave']) == ({1, 2}, 1 + 2j)
    np.testing.assert_array_equal(info['big'], [[1, 2]])
    assert found['state_dict']._metadata == content['state_dict']._metadata
    saved = found['param_schedulers'][0]
    assert saved == {k: v for k, v in content['param_schedulers'][0].items() if k != 'anneal_func'}
    torch.testing.assert_close(found['optimizer'], content['optimizer'], rtol=0, atol=0)
    after = set(torch.serialization.get_safe_globals())
    assert before <= after
    assert not after & set(ALLOWED)


def test_numpy_1_names_are_read(tmp_path):
    content = pickle.dumps({'a': np.float64(2.5), 'b': np.arange(3)}, protocol=2)
    for name in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
        old = content.replace(b'numpy._core.multiarray', name).replace(b'numpy.core.multiarray', name)
        path = tmp_path / 'x.pth'
        torch.save({}, path, _use_new_zipfile_serialization=False)
        magic, protocol, system = b'', b'', b''
        with path.open('rb') as stream:
            parts = []
            for _ in range(3):
                start = stream.tell()
                pickle.load(stream)
                parts.append((start, stream.tell()))
        raw = path.read_bytes()
        magic, protocol, system = (raw[a:b] for a, b in parts)
        path.write_bytes(magic + protocol + system + old + pickle.dumps([], protocol=2))
        found = read(path)
        assert found['a'] == 2.5
        assert found['b'].tolist() == [0, 1, 2]


class Getattr:
    """Looks up an attribute of an allowed class."""

    def __reduce__(self):
        return getattr, (OrderedDict, 'fromkeys')


@pytest.mark.parametrize(
    'value', [Getattr(), np.array([object()], dtype=object), np.array([{}]), np.zeros(2, 'M8[s]'), np.dtype('f4')]
)
def test_what_is_allowed_cannot_be_misused(tmp_path, value):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'x': value}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'holds more than tensors \('):
        read(tmp_path / 'x.pth')


def test_stand_ins_carry_the_names_that_torch_looks_for():
    names = {f'{stand_in.__module__}.{stand_in.__name__}' for stand_in in ALLOWED}
    assert len(names) == len(ALLOWED)
    assert {'builtins.getattr', 'numpy.ndarray', 'mmengine.logging.history_buffer.HistoryBuffer'} <= names
    assert getattr not in ALLOWED
    assert np.ndarray not in ALLOWED


@pytest.mark.parametrize('where', [0.1, 0.5, 0.9])
def test_flipped_bytes_are_found(tmp_path, where):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'a': torch.randn(10_000)}}, path)
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    content[at : at + 8] = bytes(255 - b for b in content[at : at + 8])
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='truncated or corrupt') as refusal:
        read(path)
    assert '\n' not in str(refusal.value)


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(tmp_path / 'x.pth'))
    with pytest.raises(UntrustedError, match='a TorchScript program'):
        read(tmp_path / 'x.pth')


def test_a_dictionary_with_methods_of_its_own_is_an_ordinary_one(tmp_path):
    class Shadowed:
        def __reduce__(self):
            return OrderedDict, ([('a', torch.ones(1))],), {'items': 5}

    torch.save(Shadowed(), tmp_path / 'x.pth')
    found = read(tmp_path / 'x.pth')
    assert next(iter(found.items()))[0] == 'a'


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)


def test_mmengine_gets_the_checked_content_and_opens_nothing(tmp_path, monkeypatch):
    serve()
    path = tmp_path / 'x.pth'
    torch.save(Model().state_dict(), path)
    content = read_checkpoint(path)
    hand_over(path, content)
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'load', None)
        assert CheckpointLoader.load_checkpoint(str(path), 'cpu') is not None
        assert CheckpointLoader.load_checkpoint(str(path), 'cpu')['fc.bias'] is content['fc.bias']
    release()
    monkeypatch.setattr(torch, 'load', None)
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_file_that_was_exchanged_is_read_again_and_refused(tmp_path):
    serve()
    path, mark = tmp_path / 'x.pth', tmp_path / 'ran'
    torch.save(Model().state_dict(), path)
    hand_over(path, read_checkpoint(path))
    path.unlink()
    write(path, 'zip', Hostile(mark))
    with pytest.raises(UntrustedError):
        CheckpointLoader.load_checkpoint(str(path))
    assert not mark.exists()
    release()


def test_what_a_remote_scheme_loads_is_read_as_tensors(tmp_path, monkeypatch):
    path, mark = tmp_path / 'x.pth', tmp_path / 'ran'
    write(path, 'zip with an extra object', Hostile(mark))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    @CheckpointLoader.register_scheme(prefixes='far://')
    def load_from_far(filename, map_location):
        return torch.load(path, map_location=map_location, weights_only=False)

    serve()
    with pytest.raises(UntrustedError, match=r'far://x holds more than tensors \(.*eval'):
        CheckpointLoader.load_checkpoint('far://x')
    assert not mark.exists()
    torch.save(older_training_checkpoint(), path)
    assert CheckpointLoader.load_checkpoint('far://x')['meta']['iter'] == 3


def test_a_run_that_never_had_a_whole_checkpoint_starts_over(tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    with (tmp_path / 'epoch_1.pth').open('r+b') as file:
        file.truncate(100)
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(CheckpointError, match='start without --resume'):
        newest_checkpoint(tmp_path)


def test_the_pointer_is_not_followed_but_the_configs_folder_is(tmp_path):
    elsewhere, work = tmp_path / 'elsewhere', tmp_path / 'work'
    elsewhere.mkdir()
    work.mkdir()
    mark = tmp_path / 'ran'
    write(elsewhere / 'epoch_9.pth', 'zip', Hostile(mark))
    (work / 'last_checkpoint').write_text(str(elsewhere / 'epoch_9.pth'))
    assert newest_checkpoint(work) is None
    with pytest.raises(UntrustedError):
        newest_checkpoint(work, elsewhere)
    assert not mark.exists()


def test_runner_loads_through_the_reader(tmp_path):
    serve()
    path, mark = tmp_path / 'x.pth', tmp_path / 'ran'
    write(path, 'zip with an extra object', Hostile(mark))
    runner = Runner.__new__(Runner)
    with pytest.raises(UntrustedError):
        runner.load_checkpoint(str(path))
    assert not mark.exists()


@pytest.mark.parametrize('layout', ['to_sparse', 'to_sparse_csr'])
def test_sparse_tensors_are_refused_in_one_sentence(tmp_path, layout):
    torch.save({'state_dict': {'a': torch.ones(1), 'b.weight': getattr(torch.eye(4), layout)()}}, tmp_path / 's.pth')
    with pytest.raises(CheckpointError, match=r'b\.weight .*as torch\.sparse.*to_dense\(\)'):
        state_dict_of(read_checkpoint(tmp_path / 's.pth'))
