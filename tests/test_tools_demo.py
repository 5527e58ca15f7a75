"""The parts of the demo that are not the tools which it runs."""

import runpy
from pathlib import Path

from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).parents[1]
demo = runpy.run_path(str(ROOT / 'tools/demo.py'))


def test_every_job_has_a_config_with_its_budget():
    jobs = {job for task in demo['TASKS'].values() for chain in task.chains for job in chain}
    assert len(jobs) >= 9
    for job in jobs:
        cfg = Config.fromfile(ROOT / demo['CONFIGS'] / job.config)
        assert job.budget in cfg.train_cfg
        assert cfg.train_cfg[job.budget] > job.per_epoch


def test_a_job_starts_from_one_before_it():
    for task in demo['TASKS'].values():
        for chain in task.chains:
            for number, job in enumerate(chain):
                assert job.start is None or job.start in {earlier.name for earlier in chain[:number]}


def test_table_shows_what_was_measured():
    results = {'a': {'signal/PSNR': 30.123, 'seconds': 7}, 'b': {'signal/PSNR': 20.0, 'signal/SSIM': 0.5}}
    assert demo['table'](results).splitlines() == [
        '| job | PSNR, dB | SSIM | training, s |',
        '|---|---|---|---|',
        '| a | 30.1 |  | 7 |',
        '| b | 20 | 0.5 |  |',
    ]


def test_pictures_are_stacked(tmp_path):
    for name, size, color in (('a', (30, 10), 'red'), ('b', (20, 15), 'blue')):
        Image.new('RGB', size, color).save(tmp_path / f'{name}.png')
    demo['stack']([tmp_path / 'a.png', tmp_path / 'b.png'], tmp_path / 'out.png')
    page = Image.open(tmp_path / 'out.png')
    assert page.size == (30, 25)
    assert page.getpixel((29, 9)) == (255, 0, 0)
    assert page.getpixel((0, 10)) == (0, 0, 255)
    assert page.getpixel((25, 20)) == (255, 255, 255)
