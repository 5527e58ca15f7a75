"""A run that is stopped anywhere and resumed ends bit by bit as one that was not: weights, optimizer, schedules, data."""

import copy
import errno
import gc
import logging
import os
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmext.checkpoints import read_checkpoint
from mmext.errors import CheckpointError, UsageError
from mmext.export import unfinished
from mmext.files import write_whole
from mmext.hooks import checkpoint as hook_module
from mmext.resume import (
    gradients_of,
    hook_states,
    is_sharded,
    plain_form,
    random_states,
    seed_loader,
    set_hook_states,
    set_random_state,
    transforms_with_memory,
)

train = runpy.run_path(str(Path(__file__).parents[1] / 'tools' / 'train.py'))


@MODELS.register_module()
class ResumeNet(BaseModel):
    """Small, with all that is random in a model: dropout, and a mix of the batch by numpy and Python."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, inputs, targets=None, mode='tensor'):
        if mode == 'loss':
            lam = np.random.beta(1, 1) * random.random()
            inputs = inputs + lam * inputs[torch.randperm(len(inputs))]
        out = self.net(inputs)[:, 0]
        return {'loss': (out - targets).square().mean()} if mode == 'loss' else [o for o in out]


class Mixing:
    """Keeps samples of earlier iterations and mixes one in, as mmdet's CachedMosaic does."""

    def __init__(self):
        self.results_cache = []

    def __call__(self, x):
        self.results_cache.append(x.clone())
        if len(self.results_cache) > 5:
            self.results_cache.pop(random.randrange(6))
        return x + random.choice(self.results_cache)


@DATASETS.register_module()
class ResumeData(torch.utils.data.Dataset):
    """Samples that are augmented with the random numbers of Python, numpy and torch."""

    metainfo = {'classes': ('a',)}

    def __init__(self, size=12, remembers=False):
        self.size = size
        self.pipeline = Mixing() if remembers else None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        x = torch.linspace(-1, 1, 4) * (index + 1) / self.size
        x = x + 0.1 * torch.randn(4) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        x = x if self.pipeline is None else self.pipeline(x)
        return {'inputs': x, 'targets': torch.tensor(index / self.size)}


@METRICS.register_module()
class ResumeMetric(BaseMetric):
    default_prefix = 'x'

    def process(self, data_batch, data_samples):
        self.results += [float(o) for o in data_samples]

    def compute_metrics(self, results):
        return {'acc': float(np.mean(results))}


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch):
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)  # asks compilers for their versions


class StopError(Exception):
    """Stands for SIGKILL."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the process as a kill would, at the n-th call of a method."""

    priority = 'HIGHEST'
    at: tuple = ()

    def __init__(self):
        self.calls = {}
        for name in ('before_train_iter', 'before_val_iter', 'after_val_epoch', 'after_train_epoch'):
            setattr(self, name, lambda *args, _name=name, **kwargs: self.count(_name))

    def count(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1
        if (name, self.calls[name]) == StopHook.at:
            raise StopError


BASE = """
default_scope = 'mmengine'
model = dict(type='ResumeNet')
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers={persistent},
                        sampler=dict(type='{sampler}', shuffle=True),
                        dataset=dict(type='ResumeData', remembers={remembers}),
                        collate_fn=dict(type='default_collate'))
val_dataloader = dict(batch_size=4, num_workers={workers}, persistent_workers={persistent},
                      sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(type='ResumeData', size=8),
                      collate_fn=dict(type='default_collate'))
val_evaluator = dict(type='ResumeMetric')
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts={counts}, clip_grad=dict(max_norm=1.0))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval={interval}, by_epoch={by_epoch}, save_best='x/acc',
                                     rule='greater', max_keep_ckpts=3))
custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='StopHook')]
randomness = dict(seed={seed})
log_level = 'ERROR'
"""
EPOCHS = """
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=1)
param_scheduler = [dict(type='OneCycleLR', eta_max=0.05, total_steps=30, by_epoch=False),
                   dict(type='ReduceOnPlateauLR', monitor='x/acc', rule='greater', patience=0, factor=0.5)]
"""
ITERATIONS = """
train_cfg = dict(by_epoch=False, max_iters=30, val_interval=5)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=20, by_epoch=False)]
"""


def config(tmp_path, loop=EPOCHS, **options):
    values = dict(
        workers=0,
        persistent=False,
        sampler='DefaultSampler',
        counts=1,
        interval=1,
        by_epoch=True,
        seed=3,
        remembers=False,
    )
    path = tmp_path / 'config.py'
    path.write_text(BASE.format(**{**values, **options}) + loop)
    return str(path)


def run(path, work, at=(), resume=True):
    StopHook.at = at
    MessageHub._instance_dict.clear()  # two runs of one second would share it
    try:
        return train['main']([path, '--work-dir', str(work), *(['--resume'] if resume else [])])
    finally:
        for thing in gc.get_objects():  # a killed process has no workers left
            if type(thing) is _MultiProcessingDataLoaderIter:  # a proxy of what is gone would raise in isinstance()
                thing._shutdown_workers()


def last(work):
    return read_checkpoint((work / 'last_checkpoint').read_text())


def differences(a, b, place=''):
    """Name what differs between two nests of tensors and plain values, by as little as a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f'{place}.{k}' for k in a.keys() ^ b.keys()]
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f'{place}.{k}')]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in differences(x, y, f'{place}[{i}]')]
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [place]
    return [] if a == b else [place]


def assert_same(a, b):
    """Compare two checkpoints: all but times and paths."""
    for x in (a, b):
        for key in ('cfg', 'time', 'experiment_name', 'mmengine_version'):
            del x['meta'][key]
        hub = x['message_hub']
        for key in ('last_ckpt', 'best_ckpt', 'cfg', 'experiment_name', 'epoch', 'iter'):
            hub['runtime_info'].pop(key, None)
        hub['log_scalars'] = {k: v for k, v in hub['log_scalars'].items() if 'time' not in k}
    assert not (found := differences(a, b)), found


VARIANTS = {
    'plain': {},
    'accumulation across epochs': dict(counts=4),
    'no seed in the config': dict(seed=None),
    'early stopping': dict(
        loop=EPOCHS
        + "custom_hooks += [dict(type='EarlyStoppingHook', monitor='x/acc', patience=2, rule='greater', min_delta=9.0)]"
    ),
    'workers': dict(workers=2),
    'persistent workers': dict(workers=2, persistent=True),
    'checkpoints inside epochs': dict(by_epoch=False, interval=4),
    'checkpoints inside epochs, accumulation': dict(by_epoch=False, interval=2, counts=5),
    'checkpoints inside epochs, persistent workers, samples kept': dict(
        by_epoch=False, interval=4, workers=2, persistent=True, remembers=True
    ),
    'iterations': dict(loop=ITERATIONS, by_epoch=False, interval=5),
    'iterations, endless': dict(loop=ITERATIONS, by_epoch=False, interval=5, sampler='InfiniteSampler'),
    'iterations, endless, workers, samples kept': dict(
        loop=ITERATIONS,
        by_epoch=False,
        interval=4,
        sampler='InfiniteSampler',
        workers=2,
        persistent=True,
        counts=3,
        remembers=True,
    ),
}
STOPS = {
    'training': [('before_train_iter', 15)],
    'validation': [('before_val_iter', 5)],
    'three times': [('after_val_epoch', 2), ('before_train_iter', 9), ('before_val_iter', 3)],
}
CASES = [(name, stops) for i, name in enumerate(VARIANTS) for j, stops in enumerate(STOPS) if not i or (i + j) % 3 == 0]


@pytest.mark.parametrize(('variant', 'where'), CASES)
def test_resumed_runs_end_as_whole_ones(tmp_path, variant, where):
    options, stops = VARIANTS[variant], STOPS[where]
    path = config(tmp_path, **options)
    whole = run(path, tmp_path / 'whole')
    cut = tmp_path / 'cut'
    if options.get('seed', 3) is None:  # the same random seed as the whole run, which only its checkpoints tell
        Path(path).write_text(Path(path).read_text().replace('seed=None', f'seed={whole.seed}'))
    for number, at in enumerate(stops):
        with pytest.raises(StopError):
            run(path, cut, at)
        if number == 0 and options.get('seed', 3) is None:
            Path(path).write_text(Path(path).read_text().replace(f'seed={whole.seed}', 'seed=None'))
    run(path, cut)
    assert_same(last(tmp_path / 'whole'), last(cut))
    best = [sorted(p.name for p in folder.glob('best_*')) for folder in (tmp_path / 'whole', cut)]
    assert set(best[0]) <= set(best[1])


def test_a_hook_that_stops_early_counts_on(tmp_path):
    path = config(tmp_path, **VARIANTS['early stopping'])
    whole = run(path, tmp_path / 'whole')
    assert whole.epoch == 3  # no validation is better by 9: the third one ends it
    with pytest.raises(StopError):
        run(path, tmp_path / 'cut', ('before_train_iter', 14))
    assert run(path, tmp_path / 'cut').epoch == 3
    kept = last(tmp_path / 'cut')['mmext']['hooks']['EarlyStoppingHook 1']
    assert kept['wait_count'] == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_cached_mosaic_goes_on_inside_an_epoch(workers):
    transforms = pytest.importorskip('mmdet.datasets.transforms')
    from mmcv.transforms import Compose, RandomApply
    from mmdet.structures.bbox import HorizontalBoxes

    class Pictures(torch.utils.data.Dataset):
        def __init__(self):
            mosaic = transforms.CachedMosaic(img_scale=(8, 8), max_cached_images=4)
            mixup = transforms.CachedMixUp(img_scale=(8, 8), max_cached_images=4, prob=1.0)
            self.pipeline = Compose([mosaic, RandomApply([mixup], prob=0.9)])

        def __len__(self):
            return 24

        def __getitem__(self, index):
            boxes = HorizontalBoxes(torch.tensor([[1.0, 1.0, 6.0, 6.0]]))
            sample = dict(
                img=np.full((8, 8, 3), index + random.random(), np.float32), img_shape=(8, 8), gt_bboxes=boxes
            )
            sample.update(gt_bboxes_labels=np.array([index]), gt_ignore_flags=np.array([False]))
            return self.pipeline(sample)['img']

    data = Pictures()
    kept = transforms_with_memory(torch.utils.data.ConcatDataset([ResumeData(), data]))
    assert [type(t).__name__ for t in kept] == ['CachedMosaic', 'CachedMixUp']
    loader = seed_loader(torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers, collate_fn=list), 5)
    whole = [[x.tolist() for x in batch] for batch in loader]
    loader.plan.skip = 7
    assert [[x.tolist() for x in batch] for batch in loader] == whole[7:]
    assert len({np.shape(x) for batch in whole[7:] for x in batch}) == 1  # all of them are mixed
    with pytest.MonkeyPatch.context() as patch:  # it is those transforms that this is about
        patch.setattr('mmext.resume.transforms_with_memory', lambda data: [])
        loader.plan.skip = 7
        assert [[x.tolist() for x in batch] for batch in loader] != whole[7:]


def test_hooks_that_keep_a_state_get_their_own(tmp_path):
    class Keeper:
        value = 0

        def run_state(self, runner):
            return {'value': self.value}

        def set_run_state(self, runner, state):
            self.value = state['value']

    first, second = Keeper(), Keeper()
    first.value, second.value = 1, torch.ones(2)
    states = plain_form(hook_states(SimpleNamespace(hooks=[first, StopHook(), second])))
    others = [Keeper(), Keeper()]
    set_hook_states(SimpleNamespace(hooks=[*others, StopHook()]), states)
    assert others[0].value == 1
    assert torch.equal(others[1].value, torch.ones(2))


DAMAGED = {
    'gradients of another shape': ({'gradients': {'weight': torch.ones(3)}}, 'the waiting gradients'),
    'gradients that are none': ({'gradients': {'weight': 'x'}}, 'the waiting gradients'),
    'a count that is none': ({'counts': {'': 'x'}}, 'the waiting gradients'),
    'hooks that are none': ({'hooks': 5}, 'the state of the hooks'),
    'a random state that is none': ({'random': [5]}, 'the random state'),
    'half a random state': ({'random': [dict(random_states()[0], numpy=('MT19937',))]}, 'the random state'),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_a_damaged_state_of_a_run_is_one_sentence(case):
    saved, what = DAMAGED[case]
    net = nn.Linear(1, 1)
    wrapper = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1))
    runner = SimpleNamespace(model=net, optim_wrapper=wrapper, hooks=[StopHook()], train_loop=None)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with pytest.raises(
            CheckpointError, match=rf'^cannot resume: {what} in the checkpoint cannot be restored \(.+\)'
        ):
            hook_module.CheckpointHook(interval=1)._go_on(runner, saved)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def test_gradients_of_parts_are_not_saved_as_those_of_a_whole():
    net = nn.Sequential(nn.Linear(1, 1))
    assert not is_sharded(net)
    net[0].__class__ = type('FullyShardedDataParallel', (nn.Linear,), {})
    assert is_sharded(net)


@pytest.mark.parametrize(
    ('options', 'stop', 'saved'),
    [({}, 10, (1, 8)), (dict(loop=ITERATIONS, by_epoch=False, interval=3), 12, (0, 8))],
    ids=['epochs', 'iterations'],
)
def test_a_checkpoint_waits_for_gradients_that_it_cannot_hold(options, stop, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(hook_module, 'is_sharded', lambda model: True)
    path = config(tmp_path, counts=4, **options)
    run(path, tmp_path / 'whole')
    with pytest.raises(StopError):
        run(path, tmp_path / 'work', ('before_train_iter', stop))
    meta = last(tmp_path / 'work')['meta']
    assert (meta['epoch'], meta['iter']) == saved
    run(path, tmp_path / 'work')
    assert_same(last(tmp_path / 'whole'), last(tmp_path / 'work'))


def _accumulate(rank, store):
    """Check that accumulation goes on from the saved mean as from what each of two processes held."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    first, second = torch.randn(2, 2, 5, 3)[:, rank]
    wrapped = [nn.parallel.DistributedDataParallel(net) for net in nets]
    with wrapped[0].no_sync():
        wrapped[0](first).square().mean().backward()
    saved = gradients_of(nets[0])
    assert set(saved) == set(dict(nets[0].named_parameters()))
    for name, p in nets[1].named_parameters():
        p.grad = saved[name].clone()
    for net in wrapped:
        net(second).square().mean().backward()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    # A part that one process alone has used counts as zero in the other, as in a common step.
    lone = nn.Linear(1, 1, bias=False)
    if rank:
        lone.weight.grad = torch.full((1, 1), 4.0)
    assert gradients_of(lone)['weight'].item() == 2
    _shard(Path(store).parent)
    torch.distributed.destroy_process_group()


def _shard(folder):
    """Check that the checkpoint of a model that FSDP has cut into parts waits for the step."""
    cpu, saved = torch.device('cpu'), []
    forms = [
        lambda net: FullyShardedDataParallel(net, device_id=cpu),
        lambda net: FullyShardedDataParallel(net, device_id=cpu, use_orig_params=True),
    ]
    if hasattr(torch.distributed.fsdp, 'fully_shard'):  # that of torch 2.5 is a draft, and wants a GPU
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (2,))
        forms.append(lambda net: torch.distributed.fsdp.fully_shard(net, mesh=mesh))
    for number, form in enumerate(forms):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        net = form(copy.deepcopy(plain))
        assert is_sharded(net)
        hook = hook_module.CheckpointHook(interval=1, by_epoch=False)
        hook.out_dir, hook.file_backend = str(folder), hook_module.LocalBackend()
        runner = SimpleNamespace(
            model=net, logger=logging.getLogger('sharded'), epoch=0, iter=0, hooks=[], work_dir=folder
        )
        runner.optim_wrapper = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1), accumulative_counts=2)
        runner.message_hub = MessageHub.get_instance(f'sharded {number}')
        runner.save_checkpoint = lambda folder, name, *args, **kwargs: saved.append(name)
        reference = OptimWrapper(torch.optim.SGD(plain.parameters(), lr=0.1), accumulative_counts=2)
        for step in (1, 2):
            x = torch.full((4, 3), float(step))  # the same in both processes
            reference.update_params(plain(x).square().mean())
            runner.optim_wrapper.update_params(net(x).square().mean())
            runner.iter = step - 1
            if step == 1:
                hook._save_checkpoint_with_step(runner, step, {})
                assert len(saved) == number
            else:
                hook.after_train_iter(runner, 0)
        assert saved[number:] == ['iter_2.pth']
        torch.testing.assert_close(net(x), plain(x))


def test_waiting_gradients_of_two_processes_are_saved_as_their_mean(tmp_path):
    torch.multiprocessing.spawn(_accumulate, (str(tmp_path / 'store'),), nprocs=2)


def test_states_of_gpus_in_use_are_saved_and_set(monkeypatch):
    given, cuda = [], torch.cuda
    monkeypatch.setattr(cuda, 'is_available', lambda: True)
    monkeypatch.setattr(cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(cuda, 'get_rng_state_all', lambda: [torch.tensor([1]), torch.tensor([2])])
    monkeypatch.setattr(cuda, 'set_rng_state_all', given.extend)
    (state,) = plain_form(random_states())
    set_random_state([state])
    assert [int(t) for t in given] == [1, 2]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr('os.fsync', lambda handle: done.append('sync'))
    replace = os.replace
    monkeypatch.setattr('os.replace', lambda *paths: (done.append('rename'), replace(*paths)))
    write_whole(tmp_path / 'a' / 'x', b'1')
    with unfinished(tmp_path / 'y') as partial:
        partial.write_bytes(b'2')
    assert done == ['sync', 'rename', 'sync', 'sync', 'rename']

    def unknown(handle):
        raise OSError(errno.EINVAL, 'no such thing here')

    monkeypatch.setattr('os.fsync', unknown)
    write_whole(tmp_path / 'x', b'3')
    assert (tmp_path / 'x').read_bytes() == b'3'


def test_checkpoints_need_no_class(tmp_path):
    run(config(tmp_path), tmp_path / 'work')
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        files = sorted((tmp_path / 'work').glob('*.pth'))
        for path in files:
            torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(list(allowed))
    assert any('best' in path.name for path in files)
    assert not list((tmp_path / 'work').glob('*.partial'))
    names = last(tmp_path / 'work')['mmext']['parameters']['']
    assert names == [[n for n, _ in ResumeNet().named_parameters()]]


def test_a_kill_in_the_first_checkpoint_starts_over(tmp_path, monkeypatch):
    path, work = config(tmp_path), tmp_path / 'work'
    run(path, tmp_path / 'whole')

    def cut_off(target, content):
        Path(f'{target}.partial').write_bytes(content[: len(content) // 2])
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(hook_module, 'write_whole', cut_off)
        with pytest.raises(StopError):
            run(path, work)
    assert [p.name for p in work.glob('epoch*')] == ['epoch_1.pth.partial']
    run(path, work)
    assert_same(last(tmp_path / 'whole'), last(work))
    assert not list(work.glob('*.partial'))


def test_a_full_disk_is_one_sentence_and_room_goes_on(tmp_path, monkeypatch):
    path, work = config(tmp_path), tmp_path / 'work'
    run(path, tmp_path / 'whole')
    bare, calls = Path.write_bytes, []

    def full(self, content):
        calls.append(self)
        if len(calls) == 5:
            bare(self, content[:100])
            raise OSError(28, 'No space left on device')
        return bare(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_bytes', full)
        with pytest.raises(UsageError, match=r'cannot be written \(No space left') as refusal:
            run(path, work)
    assert '\n' not in str(refusal.value)
    assert not list(work.glob('*.partial'))
    run(path, work)
    assert_same(last(tmp_path / 'whole'), last(work))


def test_the_best_is_removed_after_the_new_one_is_there(tmp_path, monkeypatch):
    path, work, seen = config(tmp_path), tmp_path / 'work', []
    bare = write_whole

    def watched(target, content):
        if 'best' in Path(target).name:
            seen.append(len(list(work.glob('best_*.pth'))))
        bare(target, content)

    monkeypatch.setattr(hook_module, 'write_whole', watched)
    run(path, work)
    assert len(seen) > 1
    assert seen[1:] == [1] * (len(seen) - 1)
    assert len(list(work.glob('best_*.pth'))) == 1


def test_a_checkpoint_names_no_file_outside_as_the_best(tmp_path):
    path, work, mine = config(tmp_path), tmp_path / 'work', tmp_path / 'mine.txt'
    with pytest.raises(StopError):
        run(path, work, ('before_train_iter', 8))
    mine.write_text('mine')
    saved = last(work)
    saved['message_hub']['runtime_info'].update(best_ckpt=str(mine), best_score=-1e9)
    torch.save(saved, work / 'epoch_1.pth')
    run(path, work)
    assert mine.exists()


def test_data_that_changed_inside_an_epoch_are_refused(tmp_path):
    path, work = config(tmp_path, by_epoch=False, interval=4), tmp_path / 'work'
    with pytest.raises(StopError):
        run(path, work, ('before_train_iter', 6))
    Path(path).write_text(Path(path).read_text().replace("type='ResumeData',", "type='ResumeData', size=20,", 1))
    with pytest.raises(
        CheckpointError, match=r'inside epoch 1, after 4 iterations of epochs of 6 batches, .* now have 10'
    ):
        run(path, work)


def test_what_is_not_plain_is_left_out(tmp_path):
    value = {
        'a': np.float32(0.5),
        'b': [np.arange(2), (1, 'x'), {3}],
        'c': print,
        'd': Path('x'),
        'e': torch.ones(1),
        'f': object(),
    }
    assert plain_form(value) == {'a': 0.5, 'b': [[0, 1], (1, 'x'), [3]], 'd': 'x', 'e': torch.ones(1)}
    torch.save(plain_form(value), tmp_path / 'x.pth')
    torch.load(tmp_path / 'x.pth', weights_only=True)


def test_loading_a_sample_leaves_the_random_states_alone():
    loader = seed_loader(torch.utils.data.DataLoader(ResumeData(), batch_size=3), 5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [batch['inputs'] for batch in loader]
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    loader.plan.skip = 2
    rest = [batch['inputs'] for batch in loader]
    assert len(rest) == 2
    assert all(map(torch.equal, first[2:], rest))
    loader.plan.epoch = 1
    assert not torch.equal(first[0], next(iter(loader))['inputs'])
    assert loader.dataset.size == 12
