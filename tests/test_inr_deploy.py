"""Coordinate networks on their way out: norms and generated weights folded, plain configs, ONNX, compilers, the tools."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

import mmext.inr.networks.semantics
from mmext.convs.generated import GeneratedConv2d
from mmext.deploy import deploy
from mmext.errors import UsageError
from mmext.export import TensorMode, example_inputs, export_onnx, max_relative_error, outputs_of
from mmext.folding import fold
from mmext.inr import ConvINR, CoordMLP, IdentityOperator, SemanticEncoder, coordinate_grid
from mmext.norms import PositionNorm

TOOLS = Path(__file__).parents[1] / 'tools'
PE = dict(type='mmext.PositionalEncoding', num_octaves=3)
MLP = dict(type='mmext.CoordMLP', width=6, depth=2)
CONV = dict(type='mmext.ConvINR', width=5, depth=2)
BN, LN, GN, CN = ({'type': t} for t in ('BN', 'LN', 'mmext.GlobalNorm', 'mmext.CrossNorm'))
GIVEN = dict(type='dynamic', source='given', condition_dim=112)
SPW = dict(type='mmext.SPW', trunk_dim=4)

# Network, and what it is deployed as: with its norms, and with its norms fused.
FORMS = {
    'relu': (MLP, MLP, MLP),
    'siren': (siren := dict(MLP, act_cfg=dict(type='mmext.SineActivation', w0=1.5)), siren, siren),
    'gauss': (gauss := dict(MLP, act_cfg=dict(type='mmext.GaussianActivation', scale=1.0)), gauss, gauss),
    'wire': (wire := dict(MLP, act_cfg=dict(type='mmext.WaveletActivation', w0=3.0, s0=1.0)), wire, wire),
    'fourier': (ff := dict(MLP, encoding=dict(type='mmext.FourierFeatures', num_frequencies=4)), ff, ff),
    'bn': (dict(MLP, norm_cfg=BN), dict(MLP, norm_cfg=BN), MLP),
    'bn-pe-post-last': (
        post := dict(MLP, encoding=PE, norm_cfg=BN, norm_position='post', norm_last=True),
        post,
        dict(MLP, encoding=PE),
    ),
    'bn-siren': (bn := dict(siren, norm_cfg=BN), bn, siren),
    'ln': (ln := dict(MLP, norm_cfg=LN), ln, ln),
    'gn': (dict(MLP, norm_cfg=GN), dict(MLP, norm_cfg=GN), MLP),
    'gn-post-last': (gn := dict(MLP, norm_cfg=GN, norm_position='post', norm_last=True), gn, MLP),
    'cn': (cn := dict(MLP, norm_cfg=CN), cn, cn),
    'cn-cross-pe': (cross := dict(MLP, norm_cfg=dict(CN, var='cross', divisor='exact'), encoding=PE), cross, cross),
    'mfn': (mfn := dict(type='mmext.MFN', width=6, depth=2, input_scale=8.0), mfn, mfn),
    'conv': (CONV, CONV, dict(CONV, norm_cfg=None)),
    'conv-gn': (dict(CONV, norm_cfg=GN), dict(CONV, norm_cfg=GN), dict(CONV, norm_cfg=None)),
    'conv-cn': (conv_cn := dict(CONV, norm_cfg=CN), conv_cn, conv_cn),
    'structural': (dict(CONV, reparam='structural'), *[dict(CONV, norm_cfg=None)] * 2),
    'static': (dict(CONV, reparam='static'), CONV, dict(CONV, norm_cfg=None)),
    'dynamic': (dict(CONV, reparam='dynamic'), CONV, dict(CONV, norm_cfg=None)),
    'given': (dict(CONV, reparam=GIVEN, semantics=dict(type='x')), CONV, dict(CONV, norm_cfg=None)),
    'spw': (dict(SPW, network=MLP), MLP, MLP),
    'spw-wire': (dict(SPW, network=wire), wire, wire),
    'spw-bn': (dict(SPW, network=dict(MLP, norm_cfg=BN)), dict(MLP, norm_cfg=BN), MLP),
    'spw-cn': (dict(SPW, network=cn, mode='lowrank', rank=2), cn, cn),
    'spw-mfn': (dict(SPW, network=mfn, trunk_dim=None), mfn, mfn),
    'spw-structural': (
        dict(SPW, network=dict(CONV, reparam='structural'), layers='head'),
        *[dict(CONV, norm_cfg=None)] * 2,
    ),
    'spw-static': (dict(SPW, network=dict(CONV, reparam='static')), CONV, dict(CONV, norm_cfg=None)),
}
COMPLEX = ('wire', 'spw-wire')


def shaken(network, dtype=torch.float32, size=(9, 8), frozen=True):
    """Build a network whose every parameter and statistic has moved away from its start."""
    model = MODELS.build(copy.deepcopy(network))
    for module in model.modules():
        if hasattr(module, 'condition'):
            module.condition.normal_()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if dtype is torch.float64:
        model.double()  # which leaves complex numbers as they are
        for tensor in (t for t in model.parameters() if t.is_complex()):
            tensor.data = tensor.data.to(torch.complex128)
    if frozen:
        model.freeze_stats(coordinate_grid(*size, dtype=dtype))
    return model.eval()


def signal_model(network, **kwargs):
    """Return a model's config and the state of a trained one."""
    cfg = dict(type='mmext.SignalModel', network=network, **kwargs)
    model = MODELS.build(copy.deepcopy(cfg))
    model.network = shaken(network)
    return cfg, model.state_dict()


# --- folding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('fuse_bn', [False, True], ids=['norms', 'fused'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', FORMS)
def test_folded_network_computes_the_same_in_plain_layers(name, dtype, fuse_bn):
    network, kept, fused = FORMS[name]
    model = shaken(network, dtype)
    points = coordinate_grid(6, 7, dtype=dtype)
    with torch.no_grad():
        expected = model(points)
        folded = fold(copy.deepcopy(model), fuse_bn)
        tolerance = 1e-12 if dtype is torch.float64 else 1e-5
        torch.testing.assert_close(folded(points), expected, rtol=0, atol=tolerance * expected.abs().max().item())
    assert folded.training is False
    plain = MODELS.build(fused if fuse_bn else kept)
    assert type(folded) is type(plain)
    if any(isinstance(m, PositionNorm) for m in plain.modules()):
        plain.freeze_stats(coordinate_grid(3, 3))
    assert {n: t.shape for n, t in folded.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    left = {type(m) for m in folded.modules()} - {nn.Identity}
    assert left == {type(m) for m in plain.modules()} - {nn.Identity}
    assert not any(isinstance(m, GeneratedConv2d) for m in folded.modules())


@pytest.mark.parametrize('norm', [GN, CN])
def test_norms_without_frozen_statistics_are_left_as_they_are(norm):
    model = shaken(dict(MLP, norm_cfg=norm), frozen=False)
    grid = coordinate_grid(5, 6)
    expected = model(grid)
    folded = fold(copy.deepcopy(model), fuse_bn=True)
    assert torch.equal(folded(grid), expected)
    assert sum(isinstance(m, PositionNorm) for m in folded.modules()) == 2
    assert model.norms[0].affine() is None


def test_batch_norm_without_running_statistics_stays():
    model = MODELS.build(dict(MLP, norm_cfg=dict(BN, track_running_stats=False))).eval()
    grid = coordinate_grid(5, 6)
    expected = model(grid)
    assert torch.equal(fold(model, fuse_bn=True)(grid), expected)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model.modules()) == 2


def test_the_affine_map_of_a_global_norm():
    norm = MODELS.build(dict(GN, num_features=4)).double().eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    rows = 3 * torch.randn(50, 4, dtype=torch.float64) + 1
    norm.freeze(rows)
    scale, shift = norm.affine()
    torch.testing.assert_close(rows[:7] * scale + shift, norm(rows[:7]), rtol=0, atol=1e-13)


def test_a_signal_model_keeps_its_network_where_it_was():
    cfg, state = signal_model(FORMS['spw-bn'][0], value_range=(-1, 1))
    model = MODELS.build(cfg)
    model.load_state_dict(state)
    expected = model.eval()(coordinate_grid(5, 6))
    folded = fold(model, fuse_bn=True)
    assert folded is model
    assert type(model.network) is CoordMLP
    torch.testing.assert_close(model(coordinate_grid(5, 6)), expected, rtol=1e-5, atol=1e-5)


# --- the deployed config -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('fuse_bn', [False, True], ids=['norms', 'fused'])
@pytest.mark.parametrize('name', FORMS)
def test_the_deployed_config_is_a_plain_network(name, fuse_bn):
    network, kept, fused = FORMS[name]
    expected = fused if fuse_bn else kept
    cfg, state = signal_model(network, value_range=(-1, 1))
    trained, rebuilt, new_cfg, error = deploy(cfg, state, (6, 7), fuse_bn)
    assert error < 2e-5
    new_network = {k: v for k, v in new_cfg['network'].items() if v is not None}
    assert new_network == {k: v for k, v in expected.items() if v is not None}
    assert new_cfg['network'].get('norm_cfg', 'unset') == expected.get('norm_cfg', 'unset')
    assert {k: v for k, v in new_cfg.items() if k != 'network'} == {k: v for k, v in cfg.items() if k != 'network'}
    again = MODELS.build(new_cfg)
    again.load_state_dict(rebuilt.state_dict())
    inputs = example_inputs(trained, 5, 4)
    assert inputs.shape == (1, 5, 4, 2)
    assert max_relative_error(outputs_of(trained, inputs), outputs_of(again.eval(), inputs)) < 2e-5, 'on another grid'


@pytest.mark.parametrize('name', ['bn', 'gn', 'cn', 'structural', 'spw', 'spw-cn', 'spw-static'])
def test_a_bare_network_is_deployed_as_well(name):
    network, _, fused = FORMS[name]
    model = shaken(network)
    _, rebuilt, new_cfg, error = deploy(network, model.state_dict(), coordinate_grid(6, 7), fuse_bn=True)
    assert error < 1e-5
    assert new_cfg == fused
    assert type(rebuilt) is type(MODELS.build(fused))


def test_unfrozen_norms_are_deployed_unfused_by_a_plain_config():
    cfg, _ = signal_model(dict(MLP, norm_cfg=GN))
    _, _, new_cfg, error = deploy(cfg, MODELS.build(cfg).state_dict(), (5, 6), fuse_bn=True)
    assert error == 0
    assert new_cfg == cfg


@pytest.mark.parametrize('fuse_bn', [False, True], ids=['norms', 'fused'])
def test_what_has_no_plain_config_keeps_its_own(fuse_bn):
    """Layers that stay as they are remain in the config; where surgery has put them, the network is wrapped."""
    partial = dict(CONV, reparam=dict(type='mmext.PartialConv2d'))
    cfg, state = signal_model(partial)
    _, folded, new_cfg, error = deploy(cfg, state, (6, 7), fuse_bn)
    assert error < 1e-5
    assert new_cfg['network'] == (dict(partial, norm_cfg=None) if fuse_bn else partial)
    assert any(type(m).__name__ == 'PartialConv2d' for m in folded.modules())

    rules = [dict(layer='ReLU', to=dict(type='mmext.LENI'))]
    network = dict(CONV, type='mmext.swap_layers', model='mmext.ConvINR', rules=rules, input_shape=(6, 7, 2))
    cfg, state = signal_model(network)
    _, _, new_cfg, error = deploy(cfg, state, (6, 7), fuse_bn)
    assert error < 1e-5
    assert new_cfg['network'] == dict(type='mmext.folded', model=network, **(dict(fuse_bn=True) if fuse_bn else {}))


def test_complex_images_are_compared(monkeypatch):
    monkeypatch.setattr(IdentityOperator, 'complex_image', True)
    cfg, state = signal_model(dict(MLP, norm_cfg=BN, out_features=2))
    trained, _, _, error = deploy(cfg, state, (5, 6), fuse_bn=True)
    assert 0 < error < 1e-5
    (image,) = outputs_of(trained, example_inputs(trained, 5, 6))
    assert image.is_complex()
    assert max_relative_error([image], [image * 1.5]) == pytest.approx(0.5, rel=1e-5)
    assert max_relative_error([image], [image * float('nan')]) == float('inf')


# --- statistics and signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', ['bn', 'gn', 'cn', 'conv', 'conv-gn', 'structural', 'given', 'spw-bn', 'spw-cn', 'spw-structural']
)
def test_frozen_statistics_are_those_of_training_and_are_saved(name, tmp_path):
    """Every position gives in eval mode what training gave it, after a detour over a file and mmengine's loader too."""
    cfg = dict(type='mmext.SignalModel', network=FORMS[name][0])
    model = MODELS.build(copy.deepcopy(cfg))
    model.network = shaken(FORMS[name][0], frozen=False)
    grid = coordinate_grid(9, 7)
    with torch.no_grad():
        whole = model.train()(grid)
        assert model.freeze_stats(grid) is model
        assert not any(m.training for m in model.modules())
        frozen = model(grid)
        torch.testing.assert_close(frozen, whole, rtol=1e-4, atol=2e-5)
        if isinstance(model.network, CoordMLP) or name in ('spw-bn', 'spw-cn'):
            torch.testing.assert_close(model(grid[2:4, 3:5]), frozen[2:4, 3:5], rtol=1e-4, atol=1e-5)
        before = model.state_dict()
        model.freeze_stats(grid)
        for key, tensor in model.state_dict().items():
            if not key.endswith('num_batches_tracked'):
                assert torch.equal(tensor, before[key]), f'{key}: freezing twice changes nothing'
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        other = MODELS.build(copy.deepcopy(cfg))
        load_checkpoint(other, str(tmp_path / 'model.pth'), map_location='cpu', strict=True)
        assert torch.equal(other.eval()(grid), frozen)
        assert other.state_dict().keys() == model.state_dict().keys()
        # Training goes on with the statistics of the batch, and forgets the frozen ones.
        torch.testing.assert_close(other.train()(grid), whole, rtol=1e-5, atol=1e-6)
        assert not any(m.frozen for m in other.modules() if isinstance(m, PositionNorm))


@pytest.mark.parametrize('var', ['sum', 'cross'])
def test_frozen_cross_norm_of_many_positions(var):
    """Which are normalized in blocks."""
    norm = MODELS.build(dict(CN, num_features=40, var=var)).double()
    rows = 1 + torch.randn(7000, 40, dtype=torch.float64)
    whole = norm(rows)
    norm.freeze(rows)
    frozen = norm.eval()(rows)
    torch.testing.assert_close(frozen, whole, rtol=0, atol=1e-12)
    assert torch.equal(frozen, torch.cat([norm(part) for part in rows.split(100)]))
    assert norm(rows[:0]).shape == (0, 40)


def test_convolutions_see_the_signal_that_a_generator_sees(monkeypatch):
    image = torch.rand(1, 20, 20)
    semantics = dict(type='mmext.SemanticEncoder', size=16)
    spw = MODELS.build(dict(SPW, network=dict(CONV, reparam=GIVEN, semantics=semantics), semantics=semantics))
    conv = ConvINR(width=5, depth=2, reparam=GIVEN, semantics=semantics)
    rng = torch.get_rng_state()
    spw.set_signal(image)
    conv.set_signal(image)
    assert torch.equal(torch.get_rng_state(), rng)
    assert spw.condition.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    layers = [layer[0] for network in (conv, spw.network) for layer in network.layers]
    assert len(layers) == 4
    assert all(torch.equal(layer.condition, spw.condition) for layer in layers)
    assert not [m for m in conv.modules() if isinstance(m, SemanticEncoder)]
    assert {n: t.shape for n, t in conv.state_dict().items()} == {
        n: t.shape for n, t in ConvINR(width=5, depth=2, reparam=GIVEN).state_dict().items()
    }

    def never(*_):
        raise AssertionError('the encoder is built')

    monkeypatch.setattr(mmext.inr.networks.semantics.SemanticEncoder, '__init__', never)
    for reparam in (None, 'static', 'dynamic'):
        other = ConvINR(width=5, depth=2, reparam=reparam)
        state = copy.deepcopy(other.state_dict())
        other.set_signal(image)
        assert all(torch.equal(t, state[n]) for n, t in other.state_dict().items())


def test_weights_are_generated_in_full_precision():
    model = shaken(FORMS['spw'][0])
    expected = model.generated_weights()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        generated = model.generated_weights()
    assert all(torch.equal(generated[n], w) for n, w in expected.items())


# --- compilers and exporters ---------------------------------------------------------------------------------------------


# One for each kind of part; test_inr_networks.py, test_inr_conv_inr.py and test_inr_spw.py do it in training.
PARTS = (
    'siren gauss wire fourier bn ln gn cn cn-cross-pe mfn conv-cn structural static dynamic given spw-cn spw-structural'
)


@pytest.mark.parametrize('name', PARTS.split())
def test_compiles_whole_in_eval_mode(name):
    model, grid = shaken(FORMS[name][0]), coordinate_grid(5, 6)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(grid), model(grid), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', [n for n in FORMS if n not in COMPLEX])
def test_onnx_file_takes_any_grid(name, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    model = MODELS.build(dict(type='mmext.SignalModel', network=MLP))
    model.network = fold(shaken(FORMS[name][0]))
    path = tmp_path / 'model.onnx'
    assert export_onnx(model.eval(), example_inputs(model, 6, 7), path) < 1e-4
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    assert [i.name for i in session.get_inputs()] == ['coords']
    other = example_inputs(model, 9, 4)
    values = [torch.from_numpy(o) for o in session.run(None, {'coords': other.numpy()})]
    assert max_relative_error(outputs_of(model, other), values) < 1e-4


@pytest.mark.parametrize('norm', [BN, GN, CN])
def test_onnx_file_of_norms_without_frozen_statistics(norm, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    model = MODELS.build(dict(type='mmext.SignalModel', network=MLP))
    model.network = shaken(dict(MLP, norm_cfg=norm), frozen=False)
    path = tmp_path / 'model.onnx'
    assert export_onnx(model.eval(), example_inputs(model, 6, 7), path) < 1e-4
    other = example_inputs(model, 9, 4)
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    values = [torch.from_numpy(o) for o in session.run(None, {'coords': other.numpy()})]
    assert max_relative_error(outputs_of(model, other), values) < 1e-4


@pytest.mark.parametrize('complex_image', [False, True], ids=['weights', 'images'])
def test_there_is_no_onnx_file_of_complex_numbers(complex_image, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(IdentityOperator, 'complex_image', complex_image)
    network = dict(MLP, out_features=2) if complex_image else FORMS['wire'][0]
    model = MODELS.build(dict(type='mmext.SignalModel', network=network))
    with pytest.raises(RuntimeError, match='ONNX has no complex numbers, and SignalModel computes with them'):
        export_onnx(model.eval(), example_inputs(model, 4, 5), tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['cn', 'spw-bn'])
def test_a_signal_model_is_compiled_and_exported_whole(name):
    cfg, state = signal_model(FORMS[name][0])
    inputs = coordinate_grid(5, 6)[None]
    _, folded, _, _ = deploy(cfg, state, inputs)
    function, expected = TensorMode(folded, inputs).eval(), outputs_of(folded, inputs)
    with torch.no_grad():
        program = torch.export.export(function, (inputs,), strict=False)
        assert max_relative_error(expected, list(program.module()(inputs))) < 1e-5
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend='eager')
        assert max_relative_error(expected, list(compiled(inputs))) < 1e-5


# --- the tool ------------------------------------------------------------------------------------------------------------

CONFIG = """
default_scope = 'mmengine'
model = dict(type='mmext.SignalModel', network={network!r})
data = dict(type='mmext.SignalDataset', image='camera', size=24)
train_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='InfiniteSampler'),
                        collate_fn=dict(type='pseudo_collate'), dataset=data)
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                      collate_fn=dict(type='pseudo_collate'), dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmext.ReconstructionMetric')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='Adam', lr=0.01))
train_cfg = dict(by_epoch=False, max_iters=5, val_interval=5)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type='mmext.SignalHook')]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5))
log_level = 'WARNING'
"""


def run(tool, *argv):
    return runpy.run_path(str(TOOLS / f'{tool}.py'))['main']([str(a) for a in argv])


@pytest.mark.parametrize(
    ('network', 'fused', 'deployed'),
    [
        (dict(FORMS['bn'][0], out_features=1), True, CoordMLP),
        (dict(FORMS['cn'][0], out_features=1), False, CoordMLP),
        (dict(SPW, condition_dim=112, network=dict(CONV, reparam=GIVEN, out_features=1)), True, ConvINR),
    ],
    ids=['bn', 'cn', 'spw-given'],
)
def test_trained_deployed_and_tested_by_the_tools(network, fused, deployed, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('skimage')
    config = tmp_path / 'train.py'
    config.write_text(CONFIG.format(network=network))
    run('train', config, '--work-dir', tmp_path / 'work')
    before = run('test', config, tmp_path / 'work/iter_5.pth', '--work-dir', tmp_path / 'test')
    capsys.readouterr()
    out = tmp_path / 'out/model.pth'
    flags = ['--onnx', '--shape', '24', '24', *(['--fuse-bn'] if fused else [])]
    run('deploy', config, tmp_path / 'work/iter_5.pth', out, *flags)
    printed = capsys.readouterr().out
    assert 'forward of (1, 24, 24, 2)' in printed
    assert 'onnxruntime differs by' in printed
    assert 'no frozen statistics' not in printed

    new = Config.fromfile(out.with_suffix('.py'))
    assert 'folded' not in str(new.model)
    model = MODELS.build(new.model)
    model.load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    assert type(model.network) is deployed
    assert any(isinstance(m, PositionNorm) for m in model.modules()) != fused
    after = run('test', out.with_suffix('.py'), out, '--work-dir', tmp_path / 'test')
    assert after['signal/PSNR'] == pytest.approx(before['signal/PSNR'], abs=1e-3)
    assert after['signal/bpp'] <= before['signal/bpp']


def test_the_tool_says_what_it_cannot_do(tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    out = tmp_path / 'out.pth'

    def files(network):
        cfg = dict(type='mmext.SignalModel', network=network)
        Config(dict(model=cfg, default_scope='mmengine')).dump(tmp_path / 'train.py')
        torch.save(dict(state_dict=MODELS.build(cfg).state_dict()), tmp_path / 'train.pth')
        return [tmp_path / 'train.py', tmp_path / 'train.pth', out, '--force', '--shape', '6', '5']

    with pytest.raises(
        UsageError, match=r'config are written, but no ONNX file \(ONNX has no complex .*WaveletActivation'
    ):
        run('deploy', *files(FORMS['wire'][0]), '--onnx')
    assert out.exists()
    assert not out.with_suffix('.onnx').exists()
    capsys.readouterr()
    argv = files(dict(MLP, norm_cfg=CN))
    run('deploy', *argv, '--fuse-bn')
    assert '2 norms have no frozen statistics' in capsys.readouterr().out
    torch.save(dict(state_dict=MODELS.build(MLP).state_dict()), tmp_path / 'train.pth')
    with pytest.raises(UsageError, match=r'not deployed: the checkpoint does not fit the model'):
        run('deploy', *argv)
    wide = ['--cfg-options', 'model.network.width=9']
    with pytest.raises(
        UsageError, match=r'fit the model: size mismatch for [^\n]+, and \d+ more like it; pass the config'
    ):
        run('deploy', *files(MLP), *wide)
