"""Coordinate networks as signals to be fitted: the data, the model, the hook, and the tools on all of it."""

import re
import runpy
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement

from mmext.errors import CheckpointError, UsageError
from mmext.inr import PICTURES, SignalDataset, coordinate_grid, load_picture, reconstruction_quality, stored_bits

ROOT = Path(__file__).parents[1]
train = runpy.run_path(str(ROOT / 'tools/train.py'))
test = runpy.run_path(str(ROOT / 'tools/test.py'))

NETWORK = dict(type='mmext.CoordMLP', out_features=1, width=8, depth=2, norm_cfg=dict(type='mmext.CrossNorm'))
TINY = """
_base_ = '{root}/configs/inr/_base_/runtime.py'
signal = dict(type='mmext.SignalDataset', image='{image}', size={size})
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
default_hooks = dict(checkpoint=dict(interval=2))
log_level = 'WARNING'
model = dict(type='mmext.SignalModel', operator={operator}, network={network})
"""
OPERATORS = {
    'image': dict(type='mmext.IdentityOperator', noise=0.05),
    'ct': dict(type='mmext.RadonOperator', views=8, noise=0.01),
    'mri': dict(type='mmext.MaskedFourierOperator', mask='cartesian'),
    'mri-complex': dict(type='mmext.MaskedFourierOperator', mask='radial', spokes=8, complex_image=True),
    'super-resolution': dict(type='mmext.DownsamplingOperator', factor=4),
}


def build(network=NETWORK, **args):
    return MODELS.build(dict(type='mmext.SignalModel', network=network, **args))


def batch(image='camera', size=16, **args):
    item = SignalDataset(image, size, **args)[0]
    return [item['inputs']], [item['data_samples']]


@pytest.fixture
def config(tmp_path):
    def write(operator=OPERATORS['image'], network=NETWORK, image='camera', size=16, name='tiny'):
        path = tmp_path / f'{name}.py'
        path.write_text(TINY.format(root=ROOT, image=image, size=size, operator=operator, network=network))
        return str(path)

    return write


def run(path, work, *args):
    return train['main']([path, '--work-dir', str(work), *map(str, args)])


# --- data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PICTURES)
def test_every_picture_is_there_and_in_range(name):
    picture = load_picture(name)
    assert picture.dtype == np.float32
    assert picture.shape[2] in (1, 3)
    assert picture.min() >= 0
    assert 0.7 < picture.max() <= 1


def test_pictures_are_those_of_scikit_image():
    from skimage import color, data

    np.testing.assert_allclose(load_picture('camera')[..., 0], data.camera() / 255, atol=1e-7)
    np.testing.assert_allclose(load_picture('astronaut'), data.astronaut() / 255, atol=1e-7)
    np.testing.assert_allclose(load_picture('phantom')[..., 0], data.shepp_logan_phantom(), atol=1e-6)
    np.testing.assert_allclose(load_picture('coffee', gray=True)[..., 0], color.rgb2gray(data.coffee()), atol=1e-6)


def test_dataset_pairs_pixels_with_positions():
    dataset = DATASETS.build(dict(type='mmext.SignalDataset', image='coffee', size=(6, 9)))
    item = dataset[0]
    assert len(dataset) == 1
    assert torch.equal(item['inputs'], coordinate_grid(6, 9))
    assert item['data_samples'].target.shape == (6, 9, 3)
    assert item['data_samples'].metainfo == dict(signal='coffee', size=(6, 9))
    with pytest.raises(IndexError):
        dataset[1]
    assert SignalDataset('coffee')[0]['inputs'].shape == (400, 600, 2)


def test_files_of_the_user(tmp_path):
    from PIL import Image

    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    np.testing.assert_allclose(load_picture(str(tmp_path / 'deep.png'))[..., 0], deep / 65535, atol=1e-6)
    np.save(tmp_path / 'y.npy', np.ones((5, 7, 1)))
    sample = SignalDataset(measurement=str(tmp_path / 'y.npy'), size=(7, 7))[0]['data_samples']
    assert sample.measurement.dtype == torch.float32
    assert 'target' not in sample
    Image.fromarray(deep.astype('>u2')).save(tmp_path / 'deep.tif')
    with Image.open(tmp_path / 'deep.tif') as opened:
        assert opened.mode == 'I;16B'
    np.testing.assert_allclose(load_picture(str(tmp_path / 'deep.tif'))[..., 0], deep / 65535, atol=1e-6)


def test_a_picture_whose_range_is_unknown_is_refused(tmp_path):
    from PIL import Image

    path = tmp_path / 'picture.tif'
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(load_picture(str(path))[..., 0], values)
    for wrong in (values * 255, values - 1, values * np.nan, (values * 2**20).astype(np.int32)):
        Image.fromarray(wrong).save(path)
        with pytest.raises(ValueError, match=r'picture\.tif has values in \[.*; scale them, or save integers'):
            load_picture(str(path))
    path.write_text('no picture')
    with pytest.raises(ValueError, match='is no image that Pillow can read'):
        load_picture(str(path))


def test_a_measurement_that_is_no_array_of_finite_numbers_is_refused(tmp_path):
    path = tmp_path / 'y.npy'
    for write in (
        lambda: path.write_text('no array'),
        lambda: path.write_bytes(b''),
        lambda: np.save(path, np.array([{}])),
        lambda: np.save(path, np.array(['a'])),
    ):
        write()
        with pytest.raises(ValueError, match=r'y\.npy is no (single )?array of numbers; save it with numpy\.save'):
            SignalDataset(measurement=str(path), size=8)
    np.savez(tmp_path / 'y.npz', np.ones(3))
    with pytest.raises(ValueError, match='is no single array of numbers'):
        SignalDataset(measurement=str(tmp_path / 'y.npz'), size=8)
    np.save(path, np.array([1, np.nan, np.inf]))
    with pytest.raises(ValueError, match='holds 2 values that are no numbers'):
        SignalDataset(measurement=str(path), size=8)


def test_a_hostile_file_is_refused_in_one_sentence(tmp_path):
    from PIL import Image

    path = tmp_path / 'picture.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    assert SignalDataset(str(path))[0]['inputs'].shape == (40, 40, 2)
    for damaged in (b'', whole[:30], whole[: len(whole) // 2], whole[:60] + b'\0' * 60 + whole[120:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'picture\.png is no image that Pillow can read'):
            SignalDataset(str(path))
    header = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = struct.pack('>I', 13) + b'IHDR' + header + struct.pack('>I', zlib.crc32(b'IHDR' + header))
    path.write_bytes(whole[:8] + chunk + whole[33:])
    with pytest.raises(ValueError, match=r'picture\.png has more pixels than Pillow reads .*; save it smaller'):
        SignalDataset(str(path))
    array = tmp_path / 'y.npy'
    np.save(array, np.ones(3))
    saved = array.read_bytes()
    for damaged in (b'PK\x03\x04 no archive', saved[:20], saved[:-8], saved.replace(b'(3,)', b'(10000000000000,)')):
        array.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'y\.npy is no array of numbers'):
            SignalDataset(measurement=str(array), size=8)


def test_dataset_says_what_it_needs():
    with pytest.raises(ValueError, match=r"'camra'.* camera"):
        SignalDataset('camra')
    with pytest.raises(ValueError, match='needs an image, or a measurement and the size'):
        SignalDataset()
    with pytest.raises(ValueError, match='needs an image, or a measurement and the size'):
        SignalDataset(measurement='y.npy')
    with pytest.raises(ValueError, match=r'no measurement y\.npy'):
        SignalDataset(measurement='y.npy', size=8)
    for size in (0, -3, (16,), (4, 4, 3), (4, 0), '16', 2.5, True, 10**9):
        with pytest.raises(ValueError, match=r'SignalDataset needs size as an integer >= 1 .*, got size='):
            SignalDataset('camera', size)


# --- the model -----------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_squared_distance():
    model = build()
    inputs, samples = batch()
    values = model(inputs, samples, mode='tensor')
    expected = (values - samples[0].target).square().mean()
    torch.testing.assert_close(model(inputs, samples, mode='loss')['loss'], expected)
    model = build(operator=OPERATORS['mri'])
    measured = model.measurement(samples[0])
    expected = (model.operator(model(inputs)) - measured).abs().square().mean()
    torch.testing.assert_close(model(inputs, samples, mode='loss')['loss'], expected)


def test_a_batch_of_one_grid_keeps_its_axis():
    model = build()
    grid = model.example_inputs(5, 7)
    assert grid.shape == (1, 5, 7, 2)
    assert model(grid).shape == (1, 5, 7, 1)
    assert torch.equal(model(grid)[0], model(grid[0]))


def test_value_range():
    inputs, samples = batch()
    torch.manual_seed(0)
    plain = build()
    torch.manual_seed(0)
    ranged = build(value_range=(-1, 1))
    torch.testing.assert_close(ranged(inputs, samples), (plain(inputs, samples) + 1) / 2)


def test_a_complex_image_is_two_values_and_evaluated_by_its_magnitude():
    model = build(dict(NETWORK, out_features=2), operator=OPERATORS['mri-complex'])
    inputs, samples = batch()
    image = model(inputs)
    assert image.is_complex()
    assert image.shape == (16, 16, 1)
    torch.testing.assert_close(torch.view_as_real(image)[..., 0, :], model.network(inputs[0]))
    (result,) = model(inputs, samples, mode='predict')
    torch.testing.assert_close(result.prediction, image.abs())
    assert not result.baseline.is_complex()
    assert model(inputs, samples, mode='loss')['loss'].requires_grad


def test_points_are_drawn_and_their_loss_is_that_of_the_whole_on_average():
    network = dict(type='mmext.CoordMLP', out_features=1, width=8, depth=2)
    model = build(network, num_points=64)
    inputs, samples = batch()
    losses = [model(inputs, samples, mode='loss')['loss'].item() for _ in range(200)]
    model.num_points = None
    assert np.std(losses) > 0
    assert np.mean(losses) == pytest.approx(model(inputs, samples, mode='loss')['loss'].item(), rel=0.05)


def test_measurement_is_simulated_once_and_a_given_one_is_taken():
    model = build(operator=OPERATORS['image'])
    _, (sample,) = batch()
    assert model.measurement(sample) is model.measurement(sample.clone())
    assert not torch.equal(model.measurement(sample), sample.target)
    _, (other,) = batch('coins')
    assert not torch.equal(model.measurement(other), model.measurement(sample))
    given = BaseDataElement(metainfo=dict(signal='mine', size=(16, 16)), measurement=torch.rand(16, 16, 1))
    assert model.measurement(given) is given.measurement


@pytest.mark.parametrize('task', OPERATORS)
def test_mixed_precision_leaves_the_measurement_alone(task):
    network = dict(NETWORK, out_features=2 if task == 'mri-complex' else 1)
    inputs, samples = batch('phantom')
    expected = build(network, operator=OPERATORS[task]).measurement(samples[0])
    model = build(network, operator=OPERATORS[task])
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(inputs, samples, mode='loss')['loss']
    assert loss.dtype == torch.float32
    assert torch.equal(model.measurement(samples[0]), expected)


def test_predict_leaves_the_sample_alone():
    model = build(operator=OPERATORS['ct'])
    inputs, samples = batch('phantom')
    (result,) = model(inputs, samples, mode='predict')
    assert set(result.keys()) == {'target', 'prediction', 'baseline'}
    assert result.stored_bits == stored_bits(model.network) > 0
    assert set(samples[0].keys()) == {'target'}


def test_model_says_what_it_needs():
    inputs, samples = batch()
    with pytest.raises(ValueError, match=r'num_points=5 .*RadonOperator'):
        build(operator=OPERATORS['ct'], num_points=5)
    with pytest.raises(ValueError, match='a < b'):
        build(value_range=(1, 1))
    with pytest.raises(ValueError, match='batch of one, got 2'):
        build()(inputs * 2, samples * 2, mode='loss')
    with pytest.raises(ValueError, match=r'\(16, 16, 1\), but \(16, 16, 3\) was measured'):
        build()(*batch('astronaut'), mode='loss')
    with pytest.raises(ValueError, match="modes 'tensor', 'loss' and 'predict', got 'losses'"):
        build()(inputs, samples, mode='losses')
    with pytest.raises(ValueError, match='one position per step at least, got num_points=0'):
        build(num_points=0)
    with pytest.raises(ValueError, match=r'got out_features=1 of the network; set it to 2'):
        build(operator=OPERATORS['mri-complex'])
    with pytest.raises(ValueError, match='a measurement, or a target'):
        build()(inputs, [BaseDataElement(metainfo=dict(size=(16, 16)))], mode='loss')


@pytest.mark.parametrize(
    ('task', 'shape', 'kind', 'message'),
    [
        ('mri', None, torch.float32, 'predicts a complex measurement with MaskedFourierOperator, but a real one'),
        ('image', None, torch.complex64, 'predicts a real measurement with IdentityOperator, but a complex one'),
        ('image', (8, 32, 1), torch.float32, r'\(16, 16, 1\), but \(8, 32, 1\) was measured'),
    ],
)
@pytest.mark.parametrize('num_points', [None, 7])
def test_a_measurement_of_something_else_is_refused(task, shape, kind, message, num_points):
    model = build(operator=OPERATORS[task], num_points=num_points if task == 'image' else None)
    inputs, (sample,) = batch()
    shape = model.measurement(sample).shape if shape is None else shape
    given = BaseDataElement(metainfo=dict(signal='mine', size=(16, 16)), measurement=torch.rand(shape).to(kind))
    with pytest.raises(ValueError, match=message):
        model(inputs, [given], mode='loss')


OFFICIAL = {
    'relu': (7479, 0.91296),
    'siren': (7479, 0.91296),
    'pe': (8599, 1.04968),
    'ln': (8039, 0.98132),
    'gn': (8039, 0.98132),
    'cn': (8039, 0.98132),
    'ln-pe': (9159, 1.11804),
    'gn-pe': (9159, 1.11804),
    'cn-pe': (9159, 1.11804),
    'bn': (8039, 1.05212),
    'bn-pe': (9159, 1.18884),
}


@pytest.mark.parametrize('variant', OFFICIAL)
def test_official_configs_have_the_published_sizes(variant):
    cfg = Config.fromfile(ROOT / f'configs/inr/image/{variant}_28x10_50k_astronaut-512.py')
    model = MODELS.build(cfg.model)
    parameters, bits_per_pixel = OFFICIAL[variant]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert stored_bits(model.network) / 512**2 == pytest.approx(bits_per_pixel, abs=1e-5)
    assert cfg.train_cfg.max_iters == 50_000
    assert cfg.optim_wrapper.optimizer.lr == (2e-4 if variant in ('relu', 'siren', 'pe', 'bn-pe') else 1e-2)
    model.freeze_stats(coordinate_grid(8, 8))
    assert stored_bits(model.network) / 512**2 == pytest.approx(bits_per_pixel, abs=1e-5)


# --- runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('task', OPERATORS)
def test_every_task_trains_resumes_tests_and_draws(task, config, tmp_path):
    network = dict(NETWORK, out_features=2) if task == 'mri-complex' else NETWORK
    image = 'phantom' if task == 'ct' else 'camera'
    path, work = config(OPERATORS[task], network, image), tmp_path / 'work'
    runner = run(path, work)
    assert runner.iter == 4
    assert (work / 'pictures/iter_000004.png').is_file()
    logged = runner.message_hub.get_scalar('val/signal/PSNR').current()
    metrics = test['main']([path, str(work / 'iter_4.pth'), '--work-dir', str(tmp_path / 'test')])
    # The statistics of the training grid are in the checkpoint.
    assert metrics['signal/PSNR'] == pytest.approx(logged, abs=1e-4)
    assert 'signal/baseline_PSNR' in metrics
    assert (tmp_path / 'test/pictures/test.png').is_file()
    assert run(path, work, '--resume', '--cfg-options', 'train_cfg.max_iters=5').iter == 5


def test_resume_continues_as_if_never_stopped(config, tmp_path):
    """A checkpoint holds frozen statistics, which the resumed training must not use."""
    path = config()
    whole = run(path, tmp_path / 'whole', '--cfg-options', 'train_cfg.max_iters=4')
    run(path, tmp_path / 'parts', '--cfg-options', 'train_cfg.max_iters=2')
    parts = run(path, tmp_path / 'parts', '--resume')
    expected = whole.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in parts.model.state_dict().items())


@pytest.mark.parametrize('norm', ['BN', 'mmext.GlobalNorm', 'mmext.CrossNorm'])
def test_checkpoint_evaluates_point_by_point_what_training_saw(norm, config, tmp_path):
    path = config(network=dict(NETWORK, norm_cfg=dict(type=norm)))
    runner = run(path, tmp_path)
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
    model = MODELS.build(Config.fromfile(path).model)
    model.load_state_dict(saved)
    model.eval()
    grid = coordinate_grid(16, 16)
    together = runner.model.train()(grid.to(next(runner.model.parameters()).device))
    torch.testing.assert_close(model(grid), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(grid[3:5]), together[3:5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm', ['BN', 'mmext.CrossNorm'])
def test_a_checkpoint_of_averaged_weights_has_their_statistics(norm, config, tmp_path):
    path = config(network=dict(NETWORK, norm_cfg=dict(type=norm)))
    hooks = "[dict(type='mmext.SignalHook'), dict(type='EMAHook', momentum=0.3)]"
    Path(path).write_text(f'{Path(path).read_text()}custom_hooks = {hooks}\n')
    runner = run(path, tmp_path)
    logged = runner.message_hub.get_scalar('val/signal/PSNR').current()
    metrics = test['main']([path, str(tmp_path / 'iter_4.pth'), '--work-dir', str(tmp_path / 'test')])
    assert metrics['signal/PSNR'] == pytest.approx(logged, abs=1e-4)


def test_saving_does_not_change_the_training(config, tmp_path):
    rare = run(config(), tmp_path / 'rare', '--cfg-options', 'train_cfg.val_interval=100')
    often = run(
        config(), tmp_path / 'often', '--cfg-options', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'
    )
    for name, tensor in rare.model.named_parameters():
        assert torch.equal(tensor, often.model.get_parameter(name))


def test_evaluates_on_another_grid(config, tmp_path):
    path = config(OPERATORS['super-resolution'])
    run(path, tmp_path)
    size = ['--cfg-options', 'test_dataloader.dataset.size=32']
    metrics = test['main']([path, str(tmp_path / 'iter_4.pth'), '--work-dir', str(tmp_path / 't'), *size])
    assert 5 < metrics['signal/PSNR'] < 40


def test_show_dir_takes_the_picture(config, tmp_path):
    path = config()
    run(path, tmp_path)
    where = ['--show-dir', str(tmp_path / 'shown')]
    test['main']([path, str(tmp_path / 'iter_4.pth'), '--work-dir', str(tmp_path / 't'), *where])
    assert (tmp_path / 'shown/test.png').is_file()
    Path(path).write_text(f'{Path(path).read_text()}custom_hooks = []\n')
    with pytest.raises(UsageError, match=r'--show-dir needs .*mmext\.SignalPictureHook'):
        test['main']([path, str(tmp_path / 'iter_4.pth'), '--work-dir', str(tmp_path / 't'), *where])


def test_a_measurement_of_the_unknown_trains_tests_and_draws(config, tmp_path):
    operator = MODELS.build(OPERATORS['ct'])
    _, (sample,) = batch('phantom')
    np.save(tmp_path / 'y.npy', operator.measure(sample.target).numpy())
    path = config(OPERATORS['ct'], image='phantom')
    unknown = f"signal = dict(type='mmext.SignalDataset', size=16, measurement='{tmp_path / 'y.npy'}')"
    text = (
        Path(path).read_text().replace("signal = dict(type='mmext.SignalDataset', image='phantom', size=16)", unknown)
    )
    Path(path).write_text(f'{text}val_evaluator = []\ntest_evaluator = []\n')
    run(path, tmp_path / 'work')
    assert (tmp_path / 'work/pictures/iter_000004.png').is_file()
    test['main']([path, str(tmp_path / 'work/iter_4.pth'), '--work-dir', str(tmp_path / 'test')])
    assert (tmp_path / 'test/pictures/test.png').is_file()


def test_a_network_is_shown_its_signal_once(config, tmp_path):
    """In CT what it is shown is the back-projection, the same again when the run is resumed."""
    network = dict(type='mmext.SPW', network=NETWORK, trunk_dim=4)
    path = config(OPERATORS['ct'], network, 'phantom')
    runner = run(path, tmp_path)
    condition = runner.model.network.condition
    assert condition.std().item() == pytest.approx(1, rel=0.01)
    model = MODELS.build(Config.fromfile(path).model)
    _, (sample,) = batch('phantom')
    view = model.operator.baseline(model.measurement(sample), (16, 16)).clamp(0, 1).movedim(-1, 0)
    model.network.set_signal(view)
    torch.testing.assert_close(condition, model.network.condition)
    model.network.set_signal(sample.target.movedim(-1, 0))
    assert not torch.allclose(condition, model.network.condition)
    again = run(path, tmp_path, '--resume', '--cfg-options', 'train_cfg.max_iters=5')
    assert torch.equal(again.model.network.condition, condition)


def test_the_hook_says_whom_it_serves(config, tmp_path):
    from mmext.inr import SignalHook

    class Runner:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match=r'serves a mmext\.SignalModel, got Linear'):
        SignalHook().before_train(Runner())


# --- frequencies chosen by the run -----------------------------------------------------------------------------------------

FOURIER = dict(
    type='mmext.CoordMLP',
    out_features=1,
    width=8,
    depth=2,
    encoding=dict(
        type='mmext.FourierFeatures', num_frequencies=8, sigma=dict(type='fresh', candidates=[0.5, 4.0], num_inits=1)
    ),
)


def test_train_chooses_and_the_other_tools_read_the_choice(config, tmp_path):
    path, work = config(network=FOURIER), tmp_path / 'work'
    runner = run(path, work)
    sigma = runner.model.network.encoding.sigma
    assert sigma in (0.5, 4.0)
    assert Config.fromfile(work / 'tiny.py').model.network.encoding.sigma == sigma
    # The config as it was written by the user, with another list: what counts is what was trained.
    other = {0.5: 4.0, 4.0: 0.5}[sigma]
    network = {**FOURIER, 'encoding': {**FOURIER['encoding'], 'sigma': dict(type='fresh', candidates=[other])}}
    path = config(network=network, name='other')
    metrics = test['main']([path, str(work / 'iter_4.pth'), '--work-dir', str(tmp_path / 'test')])
    logged = runner.message_hub.get_scalar('val/signal/PSNR').current()
    assert metrics['signal/PSNR'] == pytest.approx(logged, abs=1e-4)
    resumed = run(path, work, '--resume', '--cfg-options', 'train_cfg.max_iters=5')
    assert resumed.model.network.encoding.sigma == sigma


def test_a_checkpoint_that_does_not_tell_the_choice_is_refused(config, tmp_path):
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'bare.pth')
    path = config(network=FOURIER)
    with pytest.raises(UsageError, match=r'model\.network\.encoding\.sigma .* work dir'):
        test['main']([path, str(tmp_path / 'bare.pth'), '--work-dir', str(tmp_path / 'test')])


@pytest.mark.parametrize(
    'part',
    [
        dict(act_cfg=dict(type='mmext.GaussianActivation', scale='fresh')),
        dict(act_cfg=dict(type='mmext.SineActivation', w0=dict(type='fresh'))),
        dict(encoding=dict(type='mmext.FourierFeatures', num_frequencies='fresh')),
    ],
)
def test_a_choice_that_nobody_can_make_is_refused(part, config, tmp_path):
    path = config(network=dict(type='mmext.CoordMLP', out_features=1, **part))
    with pytest.raises(UsageError, match=r"^FreSh chooses .*first_w0 of .* got (scale|w0|num_frequencies)='fresh' in "):
        run(path, tmp_path)


@pytest.mark.parametrize(
    ('kind', 'argument'),
    [('FourierFeatures', 'sigma'), ('PositionalEncoding', 'num_octaves'), ('SineActivation', 'first_w0')],
)
def test_an_open_choice_is_refused_where_nobody_makes_it(kind, argument):
    with pytest.raises(ValueError, match=rf"{kind} is given {argument}='fresh'"):
        MODELS.build({'type': f'mmext.{kind}', argument: 'fresh'})


# --- what cannot be meant --------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_variant_is_refused(config, tmp_path):
    run(config(network=dict(NETWORK, norm_cfg=dict(type='BN'))), tmp_path / 'bn')
    path, saved = config(name='cn'), str(tmp_path / 'bn/iter_4.pth')
    with pytest.raises(CheckpointError, match=r'fits SignalModel in part only: .*running_mean'):
        test['main']([path, saved, '--work-dir', str(tmp_path / 'test')])


@pytest.mark.parametrize(
    'network',
    [
        dict(type='mmext.SPW', network=NETWORK, trunk_dim=4),
        dict(
            type='mmext.ConvINR',
            out_features=1,
            width=4,
            depth=2,
            reparam=dict(type='dynamic', source='given', condition_dim=112),
        ),
    ],
    ids=['spw', 'conv_inr'],
)
def test_a_network_that_was_shown_nothing_sees_the_signal_of_the_first_loss(network):
    model = build(network)
    inputs, samples = batch()
    assert model.network.awaits_signal
    model(inputs, samples, mode='loss')
    assert not model.network.awaits_signal
    shown = build(network)
    shown.describe(samples[0])
    conditions = [[b for n, b in m.named_buffers() if n.endswith('condition')] for m in (model, shown)]
    assert conditions[0]
    assert all(torch.equal(a, b) for a, b in zip(*conditions, strict=True))


def test_a_photograph_stands_upright(tmp_path):
    from PIL import Image

    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / 'turned.png', exif=exif)
    np.testing.assert_allclose(
        load_picture(str(tmp_path / 'turned.png'))[..., 0] * 255, np.rot90(np.asarray(image), -1), atol=1e-4
    )


def test_the_run_in_the_docs_is_one(tmp_path):
    text = (ROOT / 'docs/inr.md').read_text()
    (block,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    path = tmp_path / 'my_config.py'
    path.write_text(block.replace("'configs/", f"'{ROOT}/configs/"))
    small = [f'{loader}_dataloader.dataset.size=16' for loader in ('train', 'val')]
    options = ['--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', *small]
    assert run(str(path), tmp_path / 'work', *options).iter == 2


# --- what they are for -----------------------------------------------------------------------------------------------------


def fit(model, inputs, samples, steps, lr=1e-2):
    """Train with Adam, whose rate falls to a tenth, and return the PSNR with the statistics of the grid."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs, samples, mode='loss')['loss'].backward()
        optimizer.step()
        schedule.step()
    (result,) = model.freeze_stats(inputs[0])(inputs, samples, mode='predict')
    return reconstruction_quality(result)


@pytest.mark.slow
def test_norms_over_positions_alleviate_the_spectral_bias():
    """The ordering that is safe at this size, with room for another machine's rounding; no ranking of the norms."""
    quality = {}
    for variant in ('relu', 'bn', 'cn', 'pe', 'cn-pe'):
        torch.manual_seed(0)
        cfg = Config.fromfile(ROOT / f'configs/inr/small/{variant}_28x10_1k_camera-64.py')
        quality[variant] = fit(MODELS.build(cfg.model), *batch(size=48), steps=300)['PSNR']
    assert quality['bn'] > quality['relu'] + 3
    assert quality['cn'] > quality['relu'] + 3
    assert quality['cn-pe'] > quality['pe'] + 3


def test_a_small_network_reconstructs_more_than_zero_filling():
    cfg = Config.fromfile(ROOT / 'configs/demo/inr/mri_phantom.py')
    quality = fit(MODELS.build(cfg.model), *batch('phantom', 64), steps=150)
    assert quality['PSNR'] > quality['baseline_PSNR'] + 2
