"""tools/train.py and tools/test.py: real runs of the three tasks, resuming after damage and kills, and bad input."""

import logging
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from registered import ALL
from torch import nn

import mmext.cli as cli
from mmext.checkpoints import newest_checkpoint, read_checkpoint
from mmext.convs import RefConv2d, RepSO2d
from mmext.datasets import DigitScenes, create
from mmext.errors import CheckpointError, UsageError
from mmext.hooks.checkpoint_guard import CheckpointGuardHook

TOOLS = Path(__file__).parents[1] / 'tools'
train = runpy.run_path(str(TOOLS / 'train.py'))
test = runpy.run_path(str(TOOLS / 'test.py'))

COMMON = """
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1))
env_cfg = dict(dist_cfg=dict(backend='nccl'))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=100)
val_cfg = dict()
test_cfg = dict()
log_level = 'WARNING'
"""

CLS = """
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, to_rgb=True, num_classes=10),
             backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
             neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='CustomDataset', data_root='{data}/cls/val', pipeline=pipeline, indices=16))
val_dataloader = dict(batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='CustomDataset', data_root='{data}/cls/val', pipeline=pipeline, indices=8))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
"""

DET = """
default_scope = 'mmdet'
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(backbone=dict(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None),
             neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
             bbox_head=dict(num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(64, 64)),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
metainfo = dict(classes=tuple('0123456789'))
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='CocoDataset', data_root='{data}/det', ann_file='annotations/train.json',
                                     data_prefix=dict(img='train/'), metainfo=metainfo, pipeline=pipeline))
val_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(type='CocoDataset', data_root='{data}/det', ann_file='annotations/val.json',
                                   data_prefix=dict(img='val/'), metainfo=metainfo, pipeline=pipeline, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file='{data}/det/annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
"""

SEG = """
default_scope = 'mmseg'
model = dict(type='EncoderDecoder',
             data_preprocessor=dict(type='SegDataPreProcessor', mean=[127] * 3, std=[64] * 3, size=(64, 64), bgr_to_rgb=True),
             backbone=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8),
             decode_head=dict(type='FCNHead', in_channels=64, channels=8, in_index=3, num_classes=11, num_convs=1),
             test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
common = dict(type='BaseSegDataset', data_root='{data}', img_suffix='.png', seg_map_suffix='.png', pipeline=pipeline,
              metainfo=dict(classes=('background', *'0123456789'), palette=[[k, k, k] for k in range(11)]))
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(data_prefix=dict(img_path='det/train', seg_map_path='seg/train'), **common))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(data_prefix=dict(img_path='det/val', seg_map_path='seg/val'), **common))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digit_scenes'
    create(DigitScenes(train=8, val=4, size=64, cls_size=32, cls_views=1), out)
    return out


@pytest.fixture
def config(tmp_path, data):
    """Return a function that writes a config file and gives its path."""

    def write(text: str, *more: str) -> str:
        path = tmp_path / 'tiny.py'
        path.write_text('\n'.join((COMMON, text, *more)).replace('{data}', str(data)))
        return str(path)

    return write


@pytest.fixture
def work(tmp_path):
    return tmp_path / 'work'


def run_train(config, work, *args) -> Runner:
    return train['main']([config, '--work-dir', str(work), *map(str, args)])


def truncate(path: Path) -> None:
    with path.open('r+b') as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(('text', 'metric'), [(CLS, 'accuracy/top1'), (DET, 'coco/bbox_mAP_50'), (SEG, 'mIoU')])
def test_every_task_trains_resumes_and_tests(config, work, tmp_path, text, metric):
    path = config(text)
    assert run_train(path, work).iter == 2
    saved = work / 'epoch_1.pth'
    runner = run_train(path, work, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert (runner.epoch, runner.iter) == (2, 4)
    out = tmp_path / ('maps' if text is SEG else 'predictions.pkl')
    # An untrained detector may find nothing, which mmdet reports as no metric at all.
    metrics = test['main']([path, str(saved), '--work-dir', str(work), '--out', str(out)])
    assert metric in metrics or text is DET
    assert (len(list(out.iterdir())) == 4) if text is SEG else out.is_file()
    with pytest.raises(UsageError, match='--force'):
        test['main']([path, str(saved), '--work-dir', str(work), '--out', str(out)])


def test_resume_continues_as_if_never_stopped(config, work, tmp_path):
    options = ['--cfg-options', 'randomness.seed=3', 'train_cfg.max_epochs=2']
    whole = run_train(config(CLS), work, *options)
    killed = tmp_path / 'killed'
    shutil.copytree(work, killed)
    (killed / 'epoch_2.pth').unlink()
    (killed / 'last_checkpoint').write_text('')  # killed while it was being written
    resumed = run_train(config(CLS), killed, '--resume', *options)
    assert resumed.cfg.load_from.endswith('epoch_1.pth')
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_resume_skips_truncated_checkpoints(config, work, monkeypatch):
    said = []
    monkeypatch.setattr('mmext.checkpoints.print_log', lambda message, *args: said.append(message))
    path = config(CLS)
    run_train(path, work, '--cfg-options', 'train_cfg.max_epochs=2')
    truncate(work / 'epoch_2.pth')
    assert (work / 'last_checkpoint').read_text().endswith('epoch_2.pth')
    runner = run_train(path, work, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert runner.cfg.load_from.endswith('epoch_1.pth')
    assert runner.iter == 4
    assert len(said) == 1
    assert 'skipped' in said[0]
    assert 'epoch_2.pth' in said[0]
    read_checkpoint(work / 'epoch_2.pth')
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        truncate(work / name)
    with pytest.raises(CheckpointError, match=r'no checkpoint in .* loads .*start without --resume'):
        run_train(path, work, '--resume')


def test_newest_means_latest_written_in_the_work_dir_wherever_the_pointer_points(tmp_path):
    old, new = tmp_path / 'epoch_12.pth', tmp_path / 'epoch_3.pth'
    for age, path in ((100, old), (10, new)):
        torch.save({'state_dict': {}}, path)
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert newest_checkpoint(tmp_path)[0] == str(new)
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'last_checkpoint').write_text(str(new))
    assert newest_checkpoint(elsewhere) is None
    assert newest_checkpoint(elsewhere, tmp_path)[0] == str(new)
    assert newest_checkpoint(tmp_path / 'empty') is None


def test_resume_of_a_run_that_saved_nothing_starts_it(config, work):
    assert run_train(config(CLS), work, '--resume').iter == 2


def test_resume_without_a_checkpoint_starts_from_load_from_and_with_one_goes_on(config, work, tmp_path):
    path = config(CLS)
    run_train(path, work)
    start = f'load_from={work / "epoch_1.pth"}'
    second = tmp_path / 'second'
    options = ('--resume', '--cfg-options', 'optim_wrapper.optimizer.lr=0.0', start)
    runner = run_train(path, second, *options)
    assert runner.epoch == 1
    saved = torch.load(work / 'epoch_1.pth', weights_only=False)['state_dict']
    assert torch.equal(runner.model.state_dict()['head.fc.weight'], saved['head.fc.weight'])
    runner = run_train(path, second, *options, 'train_cfg.max_epochs=2')
    assert runner.cfg.load_from == str(second / 'epoch_1.pth')
    assert runner.epoch == 2


def test_one_spare_checkpoint_is_kept(config, work):
    run_train(config(CLS), work, '--cfg-options', 'train_cfg.max_epochs=3', 'default_hooks.checkpoint.max_keep_ckpts=1')
    assert {p.name for p in work.glob('*.pth')} == {'epoch_2.pth', 'epoch_3.pth'}


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text', 'missing', 'list', 'nothing in it'])
def test_damaged_checkpoint_gives_one_sentence(config, work, tmp_path, damage):
    bad = tmp_path / 'bad.pth'
    torch.save({'state_dict': nn.Linear(100, 100).state_dict()}, bad)
    if damage == 'truncated':
        truncate(bad)
    elif damage == 'empty':
        bad.write_bytes(b'')
    elif damage == 'text':
        bad.write_text('<html>404 not found</html>')
    elif damage == 'missing':
        bad.unlink()
    elif damage == 'list':
        torch.save([1, 2], bad)
    else:
        torch.save({'meta': {}, 'message_hub': {}}, bad)
    sentence = {'missing': 'does not exist', 'list': 'holds a list', 'nothing in it': 'holds no state_dict'}
    match = sentence.get(damage, 'is truncated or corrupt')
    path = config(CLS)
    for call in (
        lambda: run_train(path, work, '--resume', bad),
        lambda: run_train(path, work, '--cfg-options', f'load_from={bad}'),
        lambda: test['main']([path, str(bad), '--work-dir', str(work)]),
    ):
        with pytest.raises(CheckpointError, match=match) as error:
            call()
        assert '\n' not in str(error.value)


def test_tool_prints_the_sentence_and_not_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['tools/test.py', 'no.py', 'no.pth'])
    with pytest.raises(SystemExit) as stop:
        cli.run(test['main'])
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'test.py: error: config no.py does not exist; check the path\n'


class Model(nn.Module):
    def __init__(self, conv=nn.Conv2d):
        super().__init__()
        self.stem = conv(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


class StubRunner:
    logger = logging.getLogger('guard')

    def __init__(self, model, resume=False):
        self.model, self._resume = model, resume


def guard(model, checkpoint, resume=False):
    CheckpointGuardHook().after_load_checkpoint(StubRunner(model, resume), checkpoint)


def test_guard_refuses_unfolded_kernels_in_a_plain_model_only():
    training, plain = Model(RefConv2d), Model()
    with pytest.raises(CheckpointError, match=r'unfolded kernel of stem .*tools/deploy\.py'):
        guard(plain, {'state_dict': training.state_dict()})
    guard(training, {'state_dict': training.state_dict()})
    guard(training, {'state_dict': plain.state_dict()})
    training.stem = training.stem.fold()
    guard(plain, {'state_dict': training.state_dict()})


def test_guard_counts_a_plain_kernel_as_loaded_where_a_layer_can_start_from_it(caplog):
    def grouped(*args):
        return RepSO2d(*args, branches=('kxk', '1x1'))

    model, plain = Model(grouped), Model()
    with caplog.at_level(logging.INFO, 'guard'):
        guard(model, {'state_dict': plain.state_dict()})
    assert caplog.messages[-1] == 'checkpoint: 7 tensors loaded, 0 missing, 0 unexpected, 0 of another shape'
    model.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(model.eval().stem.fold().weight, plain.stem.weight)


def test_guard_reports_what_fits(caplog):
    state = {f'module.{k}': v for k, v in Model().state_dict().items() if 'num_batches' not in k}
    state['module.norm.weight'] = torch.ones(5)
    state['module.extra'] = state.pop('module.norm.bias')
    with caplog.at_level(logging.INFO, 'guard'):
        guard(Model(), {'state_dict': state})
    assert caplog.messages[-1] == (
        'checkpoint: 4 tensors loaded, 1 (norm.bias) missing, 1 (extra) unexpected, 1 (norm.weight) of another shape'
    )


def test_guard_refuses_another_models_checkpoint_and_weights_to_resume_from():
    with pytest.raises(CheckpointError, match=r'checkpoint: no tensor fits .*another model'):
        guard(Model(), {'state_dict': nn.Linear(2, 2).state_dict()})
    with pytest.raises(CheckpointError, match=r'without meta and message_hub .*load_from'):
        guard(Model(), Model().state_dict(), resume=True)


def test_guard_looks_at_init_cfg_too(config, work, tmp_path):
    run_train(config(CLS), work)
    conv = "conv_cfg=dict(type='mmext.RefConv2d'), "
    refocused = CLS.replace('depth=18, ', f'depth=18, {conv}')
    run_train(config(refocused), tmp_path / 'refocused')
    init = "model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='{}', prefix='{}')"

    def start(text, checkpoint, prefix='backbone.'):
        return run_train(config(text, init.format(checkpoint, prefix)), tmp_path / 'next')

    plain, unfolded = work / 'epoch_1.pth', tmp_path / 'refocused' / 'epoch_1.pth'
    start(refocused, plain)
    with pytest.raises(CheckpointError, match='unfolded kernel of conv1 '):
        start(CLS, unfolded)
    with pytest.raises(CheckpointError, match='for backbone: no tensor fits'):
        start(CLS, plain, 'neck.')
    truncate(plain)
    with pytest.raises(CheckpointError, match='truncated or corrupt'):
        start(CLS, plain)


def test_guard_is_added_once_and_runs_by_name(config, work):
    path = config(CLS, "custom_hooks = [dict(type='mmext.CheckpointGuardHook'), dict(type='EMAHook')]")
    runner = run_train(path, work)
    assert sum(isinstance(hook, CheckpointGuardHook) for hook in runner.hooks) == 1


WRAPPERS = [n for n in ALL['optim_wrapper'].module_dict if not n.endswith('AmpOptimWrapper')]


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        (None, 'AmpOptimWrapper'),
        ('OptimWrapper', 'AmpOptimWrapper'),
        ('AmpOptimWrapper', 'AmpOptimWrapper'),
        *((f'mmext.{name}', f'mmext.{name.replace("OptimWrapper", "AmpOptimWrapper")}') for name in WRAPPERS),
    ],
)
def test_amp_maps_the_wrapper(monkeypatch, kind, expected):
    cfg = Config({'optim_wrapper': {'type': kind} if kind else {}})
    monkeypatch.setitem(train['enable_amp'].__globals__, 'is_cuda_available', lambda: True)
    train['enable_amp'](cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == (expected, 'dynamic')


def test_amp_and_auto_scale_lr_say_what_they_need(config, work, monkeypatch):
    with pytest.raises(UsageError, match='ApexOptimWrapper has none'):
        run_train(config(CLS, "optim_wrapper = dict(type='ApexOptimWrapper')"), work, '--amp')
    monkeypatch.setitem(train['enable_amp'].__globals__, 'is_cuda_available', lambda: False)
    with pytest.raises(UsageError, match='--amp needs an accelerator'):
        run_train(config(CLS), work, '--amp')
    with pytest.raises(UsageError, match=r'auto_scale_lr = dict\(base_batch_size=N\)'):
        run_train(config(CLS), work, '--auto-scale-lr')


def test_auto_scale_lr_scales(config, work):
    runner = run_train(config(CLS, 'auto_scale_lr = dict(base_batch_size=16)'), work, '--auto-scale-lr')
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(0.005)


def test_test_tool_says_what_it_needs(config, work, tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    for more, match in (
        (['--out', 'x.json'], 'must end with .pkl'),
        (['--show-dir', 'x'], 'visualization hook'),
        (['--tta'], 'tta_model and tta_pipeline'),
    ):
        with pytest.raises(UsageError, match=match):
            test['main']([config(CLS), str(tmp_path / 'a.pth'), '--work-dir', str(work), *more])


def test_work_dir_defaults_to_the_configs_name(config, monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    parser = cli.argparse.ArgumentParser()
    parser.add_argument('config')
    cli.add_common_arguments(parser)
    args = cli.parse(parser, [config(CLS), '--local-rank', '3'])
    assert Path(cli.load_config(args).work_dir) == Path('work_dirs/tiny')
    assert os.environ['LOCAL_RANK'] == '3'


@pytest.fixture
def launch(config, work):
    """Return a function that trains in two processes; none of them outlives the test."""
    started = []

    def start(*args: str) -> subprocess.Popen:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        env = {'PORT': str(port), 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        command = [str(TOOLS / 'dist_train.sh'), config(CLS), '2', '--work-dir', str(work), *args]
        with (work.parent / 'log').open('a') as log:
            inherited = {k: v for k, v in os.environ.items() if k != 'LOCAL_RANK'}
            process = subprocess.Popen(command, env=inherited | env, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill(process)


def kill(launcher: subprocess.Popen) -> None:
    """SIGKILL the launcher and its workers, which live in sessions of their own and would go on."""
    children = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
    for pid in (launcher.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    launcher.wait()


@pytest.mark.slow
def test_two_processes_train_are_killed_and_resume(launch, work):
    log = (work.parent / 'log').read_text
    first = launch('--cfg-options', 'train_cfg.max_epochs=100000')
    deadline = time.monotonic() + 300
    while not (work / 'epoch_2.pth').exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.poll() is None, log()
    kill(first)
    last = read_checkpoint(newest_checkpoint(work)[0])['meta']['epoch'] + 1
    second = launch('--resume', '--cfg-options', f'train_cfg.max_epochs={last}')
    assert second.wait(timeout=300) == 0, log()
    assert 'through gloo' in log()
    meta = read_checkpoint(work / f'epoch_{last}.pth')['meta']
    # 16 images in batches of 8 are one step per process and epoch.
    assert (meta['epoch'], meta['iter']) == (last, last), log()
    scalars = sorted(work.glob('*/vis_data/scalars.json'))[-1]
    assert scalars.read_text().count('"loss"') == 1
