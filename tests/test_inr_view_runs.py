"""Whole runs on rendered scenes through the tools: training, resuming, testing, deploying, and a film."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmext.errors import UsageError

ROOT = Path(__file__).parents[1]
train = runpy.run_path(str(ROOT / 'tools/train.py'))['main']
evaluate = runpy.run_path(str(ROOT / 'tools/test.py'))['main']

TINY = """
_base_ = '{root}/configs/{config}.py'
scene = dict(size=12, views=3)
train_dataloader = dict(dataset=dict(rays=16, **scene))
val_dataloader = dict(dataset=dict(held_out=1, **scene))
test_dataloader = dict(dataset=dict(held_out=1, **scene))
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
log_level = 'WARNING'
param_scheduler = None
model = dict({model})
"""
RUNS = {
    'volume': ('inr/nvs/bn-pe_64x4_2000_blocks-64', 'operator=dict(samples=4, eval_samples=4), network=dict(width=8)'),
    # Its encoder sees all pictures before the first step.
    'described': (
        'inr/nvs/pe_64x4_2000_blocks-64',
        "operator=dict(samples=4, eval_samples=4), network=dict(_delete_=True, type='mmext.SPW', trunk_dim=8, "
        "network=dict(type='mmext.CoordMLP', in_features=3, out_features=4, width=8, depth=2))",
    ),
    'surface': (
        'inr/mvs/neus_64x4_1200_blocks-64',
        'operator=dict(samples=4), network=dict(sdf=dict(width=8, depth=2), color=dict(width=8))',
    ),
    'posed': (
        'garf/nvs/gauss_64x4_2000_blocks-noise005',
        'operator=dict(samples=4, views=3), network=dict(width=8)',
    ),
}


@pytest.fixture
def config(tmp_path):
    def write(name):
        path = tmp_path / f'{name}.py'
        path.write_text(TINY.format(root=ROOT, config=RUNS[name][0], model=RUNS[name][1]))
        return str(path)

    return write


@pytest.mark.parametrize('name', RUNS)
def test_trains_tests_and_resumes_as_if_never_stopped(name, config, tmp_path):
    path = config(name)
    whole = train([path, '--work-dir', str(tmp_path / 'whole')])
    metrics = evaluate([path, str(tmp_path / 'whole/iter_4.pth'), '--work-dir', str(tmp_path / 'test')])
    logged = whole.message_hub.get_scalar('val/signal/PSNR').current()
    assert metrics['signal/PSNR'] == pytest.approx(logged, abs=1e-4)
    assert {'signal/depth_error', 'signal/mask_IoU', 'signal/baseline_PSNR'} <= set(metrics)
    assert 'signal/bpp' not in metrics
    assert ('pose/rotation' in metrics) == (name == 'posed')
    assert (tmp_path / 'test/pictures/test.png').is_file()
    two = ['--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    train([path, '--work-dir', str(tmp_path / 'parts'), *two])
    parts = train([path, '--work-dir', str(tmp_path / 'parts'), '--resume'])
    expected = whole.model.state_dict()
    for key, value in parts.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_is_deployed_and_filmed(config, tmp_path):
    path = config('volume')
    train([path, '--work-dir', str(tmp_path / 'run')])
    checkpoint, out = str(tmp_path / 'run/iter_4.pth'), tmp_path / 'deployed/model.pth'
    runpy.run_path(str(ROOT / 'tools/deploy.py'))['main']([path, checkpoint, str(out), '--fuse-bn'])
    before = evaluate([path, checkpoint, '--work-dir', str(tmp_path / 'a')])
    after = evaluate([str(out.with_suffix('.py')), str(out), '--work-dir', str(tmp_path / 'b')])
    assert after['signal/PSNR'] == pytest.approx(before['signal/PSNR'], abs=1e-2)
    film = runpy.run_path(str(ROOT / 'tools/visualization/render_path_inr.py'))['main']
    for ending in ('gif', 'png'):
        target = tmp_path / f'turning.{ending}'
        film([path, checkpoint, str(target), '--frames', '3', '--maps', 'prediction', 'depth', '--zoom', '2'])
        with Image.open(target) as opened:
            assert opened.size == (48, 24)
            assert opened.n_frames == 3
    with pytest.raises(UsageError, match='VolumeRenderer renders no normal; choose from'):
        film([path, checkpoint, str(tmp_path / 'x.gif'), '--frames', '1', '--maps', 'normal'])
    with pytest.raises(UsageError, match=r'none of \.gif, \.png'):
        film([path, checkpoint, str(tmp_path / 'x.mp4'), '--frames', '1'])
