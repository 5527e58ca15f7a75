import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image

from mmext.errors import UsageError
from mmext.inr import draw_progress, draw_reconstruction, psnr, radial_spectrum, save_figure
from mmext.inr.tasks import signal_picture_hook
from mmext.registry import DATASETS, MODELS

SIZE = (12, 16)


def config(work_dir, max_iters=4, hook=None, data=None, **settings) -> dict:
    """Return what fits a tiny picture, and validates at every second iteration."""
    data = dict(type='mmext.SignalDataset', **(data or dict(image='coffee', size=SIZE)))
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    evaluator = [dict(type='mmext.ReconstructionMetric')] if 'image' in data else []
    return dict(
        model=dict(type='mmext.SignalModel', network=dict(type='mmext.CoordMLP', width=6, depth=2)),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, sampler=dict(type='InfiniteSampler', shuffle=False)),
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
        custom_hooks=[dict(type='mmext.SignalPictureHook', dpi=40, **(hook or {}))],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        log_processor=dict(by_epoch=False),
        log_level='ERROR',
        randomness=dict(seed=0),
        **settings,
    )


_runs = iter(range(1000))


def run(work_dir, mode='train', **options) -> Runner:
    # Runners within one second would share their name, and with it their message hub.
    runner = Runner(**config(work_dir, experiment_name=f'pictures{next(_runs)}', **options))
    getattr(runner, mode)()
    return runner


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def history(folder: Path) -> list[dict]:
    return json.loads((folder / 'pictures/progress.json').read_text())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.format == 'PNG'
        return np.asarray(opened.convert('RGB'))


def sample(*shape: int, dtype=torch.float32, **values) -> BaseDataElement:
    made = dict(target=torch.rand(shape).to(dtype), prediction=(1.4 * torch.rand(shape) - 0.2).to(dtype))
    made.update(values)
    return BaseDataElement(**{k: v for k, v in made.items() if v is not None})


def panels(figure) -> dict:
    """Return the array that every panel shows, by its title; None for curves."""
    return {a.get_title(): a.images[0].get_array() if a.images else None for a in figure.axes if a.get_title()}


# --- the hook ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_pictures_and_its_progress(tmp_path):
    runner = run(tmp_path)
    folder = tmp_path / 'pictures'
    expected = {'iter_000002.png', 'iter_000004.png', 'progress.png', 'progress.json'}
    assert files(folder) == expected
    for name in expected - {'progress.json'}:
        assert len(np.unique(pixels(folder / name).reshape(-1, 3), axis=0)) > 50
    scalars = runner.message_hub.log_scalars['val/signal/PSNR'].data[0]
    assert [(p['iter'], p['PSNR']) for p in history(tmp_path)] == [(2, scalars[0]), (4, scalars[1])]
    assert set(history(tmp_path)[0]) == {'iter', 'PSNR', 'SSIM', 'bpp'}
    drawn = pixels(folder / 'iter_000004.png')
    runner.test()
    assert files(folder) == expected | {'test.png'}
    assert np.array_equal(pixels(folder / 'test.png'), drawn), 'the same network after the same number of iterations'


def test_a_resumed_run_goes_on_with_its_progress_and_a_new_one_does_not(tmp_path):
    def steps(**options):
        run(tmp_path, hook=dict(interval=99), **options)
        return [p['iter'] for p in history(tmp_path)]

    assert steps() == [2, 4]
    first = history(tmp_path)
    # The checkpoint is older than the validation of its iteration, whose point must not be lost.
    assert steps(max_iters=6, load_from=str(tmp_path / 'iter_4.pth'), resume=True) == [2, 4, 6]
    assert history(tmp_path)[:2] == first
    # What came after the checkpoint is not part of a run from there.
    assert steps(max_iters=4, load_from=str(tmp_path / 'iter_2.pth'), resume=True) == [2, 4]
    assert steps(max_iters=2) == [2]


def test_a_damaged_history_begins_anew(tmp_path, monkeypatch):
    run(tmp_path, max_iters=2, hook=dict(interval=99))
    (tmp_path / 'pictures/progress.json').write_text('[{"iter": 2, "PS')
    said = []
    monkeypatch.setattr(signal_picture_hook, 'print_log', lambda message, *_: said.append(message))
    run(tmp_path, load_from=str(tmp_path / 'iter_2.pth'), resume=True, hook=dict(interval=99))
    assert [p['iter'] for p in history(tmp_path)] == [4]
    assert len(said) == 1
    assert 'progress.json is damaged' in said[0]


def test_a_checkpoint_that_is_evaluated_knows_its_iteration(tmp_path):
    run(tmp_path, hook=dict(interval=99))
    before = history(tmp_path)
    run(tmp_path, 'val', load_from=str(tmp_path / 'iter_2.pth'))
    assert files(tmp_path / 'pictures') == {'iter_000002.png', 'iter_000004.png', 'progress.png', 'progress.json'}
    assert history(tmp_path) == before


def test_the_interval_spares_pictures_but_not_the_last_one(tmp_path):
    run(tmp_path / 'run', max_iters=5, hook=dict(interval=2, out_dir=str(tmp_path / 'elsewhere/drawn')))
    assert not (tmp_path / 'run/pictures').exists()
    assert {n for n in files(tmp_path / 'elsewhere/drawn') if 'iter' in n} == {'iter_000004.png', 'iter_000005.png'}
    points = json.loads((tmp_path / 'elsewhere/drawn/progress.json').read_text())
    assert [p['iter'] for p in points] == [2, 4, 5]
    with pytest.raises(ValueError, match=r'^SignalPictureHook needs an interval of at least 1, got interval=0'):
        HOOKS.build(dict(type='mmext.SignalPictureHook', interval=0))


def test_a_measurement_without_truth_is_drawn_without_progress(tmp_path):
    np.save(tmp_path / 'measured.npy', np.random.default_rng(0).random((*SIZE, 3)))
    run(tmp_path, max_iters=2, data=dict(measurement=str(tmp_path / 'measured.npy'), size=SIZE))
    assert files(tmp_path / 'pictures') == {'iter_000002.png'}


@pytest.mark.parametrize('missing', ['matplotlib.figure', 'skimage.metrics'])
def test_a_missing_package_is_said_once_and_the_training_goes_on(missing, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(signal_picture_hook, 'print_log', lambda message, *_: said.append(message))
    options = config(tmp_path, experiment_name=f'missing {missing}')
    options.update(val_evaluator=[], test_evaluator=[])  # SSIM needs scikit-image
    runner = Runner(**options)
    monkeypatch.setitem(sys.modules, missing, None)  # not before: mmengine's own visualizer needs matplotlib
    runner.train()
    assert runner.iter == 4
    assert len(said) == 1
    assert said[0].startswith('SignalPictureHook draws nothing in this run: ')
    assert f'pip install {dict(matplotlib="matplotlib", skimage="scikit-image")[missing.partition(".")[0]]}' in said[0]
    assert not list(tmp_path.rglob('*.png'))


def test_only_the_main_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(signal_picture_hook, 'is_main_process', lambda: False)
    run(tmp_path, max_iters=2)
    assert not (tmp_path / 'pictures').exists()


@pytest.mark.parametrize(
    ('operator', 'title'),
    [
        (dict(type='mmext.RadonOperator', views=5), 'sinogram'),
        (dict(type='mmext.MaskedFourierOperator', mask='cartesian'), 'measured frequencies (25.0%)'),
        (dict(type='mmext.DownsamplingOperator'), 'measurement'),
    ],
)
def test_what_was_measured_stands_under_the_baseline(operator, title, monkeypatch):
    monkeypatch.setattr(signal_picture_hook, 'save_figure', lambda figure, *_: found.append(panels(figure)))
    found = []
    cfg = config('unused', data=dict(image='coffee', size=(16, 16)))
    model = MODELS.build(dict(cfg['model'], operator=operator))
    item = DATASETS.build(cfg['val_dataloader']['dataset'])[0]
    (output,) = model([item['inputs']], [item['data_samples']], mode='predict')
    hook = HOOKS.build(cfg['custom_hooks'][0])
    runner = type('Runner', (), dict(iter=0, model=model, work_dir='unused'))
    hook.after_test_iter(runner, 0, None, [output])
    hook.after_test_iter(runner, 1, None, [])
    hook.after_test_epoch(runner, {})
    assert len(found) == 1
    names = list(found[0])
    assert [n.partition(':')[0] for n in names[:4]] == ['target', 'baseline', 'prediction', 'absolute error']
    assert names[4:] == ['spectrum of target', title, 'spectrum of prediction', 'mean magnitude over rings']
    shown, measured = np.asarray(found[0][title]), model.operator.measure(item['data_samples'].target)
    if title.startswith('measured'):
        assert shown.sum() == len(measured)
        assert shown[:, 8].all(), 'the frequency zero stands in the center'
    else:
        scale = measured.max() - measured.min() if title == 'sinogram' else 1
        offset = measured.min() if title == 'sinogram' else 0
        np.testing.assert_allclose(shown, (measured - offset) / scale, atol=1e-6)


# --- the drawings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('shape', 'baseline'), [((16, 16, 1), False), ((9, 40, 3), True), ((41, 8, 1), False), ((4, 5, 3), True)]
)
def test_a_drawing_shows_what_it_says(shape, baseline, tmp_path):
    one = sample(*shape, baseline=torch.rand(shape) if baseline else None)
    figure = draw_reconstruction(one, 'a title')
    shown = panels(figure)
    columns = ['target', 'baseline', 'prediction'] if baseline else ['target', 'prediction']
    captions = [name.partition(':')[0] for name in shown]
    spectra = [f'spectrum of {name}' for name in columns]
    assert captions == [*columns, 'absolute error', *spectra, 'mean magnitude over rings']
    limited = one.prediction.clamp(0, 1)
    title = f'prediction: {psnr(limited, one.target):.2f} dB'
    (caption,) = (name for name in shown if name.startswith(title))
    expected = limited if shape[2] == 3 else limited[..., 0]
    np.testing.assert_allclose(shown[caption], expected)
    np.testing.assert_allclose(shown['absolute error'], (limited - one.target).abs().mean(-1), atol=1e-6)
    center = shown['spectrum of target'][shape[0] // 2, shape[1] // 2]
    constant = one.target.sum() / math.sqrt(shape[0] * shape[1])
    assert center == pytest.approx(math.log10(constant), abs=1e-5)
    assert figure.get_suptitle() == 'a title'
    save_figure(figure, tmp_path / 'new/drawn.png', dpi=30)
    height, width, _ = pixels(tmp_path / 'new/drawn.png').shape
    assert (width, height) == pytest.approx(tuple(30 * figure.get_size_inches()), abs=1)


def test_curves_are_those_of_the_images():
    one = sample(20, 15, 3)
    (axes,) = (a for a in draw_reconstruction(one).axes if a.get_title() == 'mean magnitude over rings')
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ['target', 'prediction', 'error']
    limited = one.prediction.clamp(0, 1)
    for name, image in dict(target=one.target, prediction=limited, error=limited - one.target).items():
        frequencies, values = radial_spectrum(image.double())
        np.testing.assert_allclose(lines[name].get_xdata(), frequencies)
        np.testing.assert_allclose(lines[name].get_ydata(), values, rtol=1e-5)


def test_a_picture_without_truth_has_no_error():
    one = sample(8, 9, 1, target=None)
    assert list(panels(draw_reconstruction(one))) == [
        'prediction',
        'spectrum of prediction',
        'mean magnitude over rings',
    ]
    one.baseline = torch.rand(8, 9, 1)
    shown = panels(draw_reconstruction(one, measured=('rays', torch.rand(5, 4, 1))))
    above = ['baseline', 'prediction', 'rays']
    assert list(shown) == [*above, 'spectrum of baseline', 'spectrum of prediction', 'mean magnitude over rings']


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    ('kind', 'dtype'),
    [('nan', torch.float16), ('same', torch.bfloat16), ('black', torch.float64), ('beyond', torch.float32)],
)
def test_any_image_can_be_drawn(kind, dtype, tmp_path):
    one = sample(12, 9, 3, dtype=dtype)
    if kind == 'black':
        one.target.zero_()
        one.prediction.zero_()
    elif kind == 'same':
        one.prediction = one.target.clone()
    else:
        one.prediction.fill_(float('nan') if kind == 'nan' else float('inf'))
    save_figure(draw_reconstruction(one), tmp_path / 'drawn.png', dpi=30)
    assert pixels(tmp_path / 'drawn.png').std() > 10


def test_a_radial_spectrum_by_a_loop():
    image = torch.rand(9, 14, 3, dtype=torch.float64)
    height, width = 9, 14
    magnitude = torch.fft.fft2(image, dim=(0, 1)).abs().sum(-1) / math.sqrt(height * width)
    rings: dict[int, list[float]] = {}
    for row in range(height):
        for column in range(width):
            u = (row if row <= height // 2 else row - height) / height
            v = (column if column <= width // 2 else column - width) / width
            rings.setdefault(round(9 * math.hypot(u, v)), []).append(magnitude[row, column].item())
    frequencies, values = radial_spectrum(image)
    assert frequencies.tolist() == pytest.approx([1 / 9, 2 / 9, 3 / 9, 4 / 9])
    assert values.tolist() == pytest.approx([np.mean(rings[k]) for k in (1, 2, 3, 4)])


@pytest.mark.parametrize(('frequencies', 'ring'), [((0, 5), 5), ((3, -4), 5), ((-7, 0), 7)])
def test_a_wave_has_one_ring(frequencies, ring):
    rows, columns = torch.meshgrid(*[torch.arange(32, dtype=torch.float64)] * 2, indexing='ij')
    wave = torch.cos(2 * math.pi / 32 * (frequencies[0] * rows + frequencies[1] * columns))[..., None]
    at, values = radial_spectrum(0.5 + 0.3 * wave)
    assert values.argmax() == ring - 1
    assert at[ring - 1] == ring / 32
    assert values.sum() - values.max() < 1e-10


def test_progress_shows_every_point_and_the_baseline():
    points = [dict(iter=10 * k, PSNR=20.0 + k, SSIM=0.5 - 0.1 * k, baseline_PSNR=21.5) for k in (1, 2, 3)]
    left, right = draw_progress(points).axes
    curve, dashed = left.get_lines()
    np.testing.assert_array_equal(curve.get_xydata(), [(10, 21), (20, 22), (30, 23)])
    assert set(dashed.get_ydata()) == {21.5}
    assert dashed.get_linestyle() == '--'
    assert left.get_title() == 'PSNR 23.00 dB'
    assert [text.get_text() for text in left.get_legend().get_texts()] == ['baseline 21.50 dB']
    assert right.get_title() == 'SSIM 0.200, best 0.400 at 10'
    assert len(right.get_lines()) == 1


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('values', [[], [float('nan')], [20.0, float('nan')]])
def test_progress_of_little(values, tmp_path):
    points = [dict(iter=k + 1, PSNR=v, SSIM=v) for k, v in enumerate(values)]
    figure = draw_progress(points)
    save_figure(figure, tmp_path / 'drawn.png', dpi=30)
    if len(values) == 2:
        assert figure.axes[0].get_title() == 'PSNR nan dB, best 20.00 dB at 1'


def test_an_interrupted_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'drawn.png'
    save_figure(draw_progress([]), path, dpi=30)
    old = path.read_bytes()
    figure = draw_progress([dict(iter=1, PSNR=1.0, SSIM=0.1)])
    monkeypatch.setattr('mmext.files.os.replace', lambda *_: (_ for _ in ()).throw(OSError('killed')))
    with pytest.raises(UsageError, match='killed'):
        save_figure(figure, path, dpi=30)
    assert path.read_bytes() == old
    monkeypatch.undo()
    save_figure(figure, path, dpi=30)
    assert path.read_bytes() != old
    assert files(tmp_path) == {'drawn.png'}


def test_the_state_of_matplotlib_stays_as_it_is(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    mine = plt.figure()
    before = dict(matplotlib.rcParams)
    save_figure(draw_reconstruction(sample(8, 8, 1)), tmp_path / 'drawn.png', dpi=30)
    assert plt.get_fignums() == [mine.number]
    assert plt.gcf() is mine
    assert dict(matplotlib.rcParams) == before
    plt.close(mine)
