"""Official checkpoints: every system's layer, written down from its formulas, against ours with the converted tensors."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official_layers import (
    BinaryOfficial,
    ComplexOfficial,
    DCLSOfficial,
    DEAOfficial,
    GaussianOfficial,
    InceptionOfficial,
    KerasOfficial,
    PartialOfficial,
    PHCOfficial,
    PHMOfficial,
    RefConvOfficial,
    ShiftwiseBlock,
    ShiftwiseOfficial,
    SMPOfficial,
    SPDOfficial,
    TuckerOfficial,
    UniRepLKOfficial,
    WeightedOfficial,
)
from torch import nn

from mmext.convs.binary_weight import BinaryWeightConv2d
from mmext.convs.complex_conv import ComplexConv2d
from mmext.convs.dcls import DCLSConv2d
from mmext.convs.detail_enhanced import DEConv2d
from mmext.convs.dilated_reparam import DilatedReparamConv2d
from mmext.convs.gaussian_conv import GaussianConv2d
from mmext.convs.inception_dwconv import InceptionDWConv2d
from mmext.convs.partial_conv import PartialConv2d
from mmext.convs.phconv import PHConv2d
from mmext.convs.refconv import RefConv2d
from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.convs.smpconv import SMPConv2d
from mmext.convs.spd_conv import SPDConv2d
from mmext.convs.tucker import TuckerConv2d
from mmext.convs.weighted_conv import WeightedConv2d
from mmext.errors import UsageError
from mmext.registry import MODELS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'model_converters'))

import convert as tool  # noqa: E402
from key_maps import SYSTEMS, convert  # noqa: E402


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(model):
    """Eval mode, with statistics and affine parameters of batch norms that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return model.eval()


def depthwise(cls, channels, size, **kwargs):
    return cls(channels, channels, size, padding=size // 2, groups=channels, **kwargs)


# System, the released layer, ours, options, channels of the input.
CASES = {
    'refconv dense': (
        'refconv',
        lambda: RefConvOfficial(4, 6, 1),
        lambda: RefConv2d(4, 6, 3, padding=1, bias=False),
        {},
        4,
    ),
    'refconv grouped': (
        'refconv',
        lambda: RefConvOfficial(4, 6, 2),
        lambda: RefConv2d(4, 6, 3, padding=1, groups=2, bias=False),
        {},
        4,
    ),
    'refconv depthwise': (
        'refconv',
        lambda: RefConvOfficial(4, 4, 4),
        lambda: depthwise(RefConv2d, 4, 3, bias=False),
        {},
        4,
    ),
    'phconv': ('phconv', lambda: PHCOfficial(), lambda: PHConv2d(6, 8, 3, padding=1, n=2, bias=False), {}, 6),
    'dcls v0': (
        'dcls',
        lambda: DCLSOfficial('v0'),
        lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='v0'),
        {'version': 'v0'},
        4,
    ),
    'dcls v1': (
        'dcls',
        lambda: DCLSOfficial('v1'),
        lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='v1'),
        {'version': 'v1'},
        4,
    ),
    'dcls max': (
        'dcls',
        lambda: DCLSOfficial('max'),
        lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3, version='max'),
        {},
        4,
    ),
    'dcls gauss': ('dcls', lambda: DCLSOfficial('gauss'), lambda: depthwise(DCLSConv2d, 4, 5, kernel_count=3), {}, 4),
    'dcls not square': (
        'dcls',
        lambda: DCLSOfficial('gauss', (5, 9)),
        lambda: DCLSConv2d(4, 4, (5, 9), padding=(2, 4), groups=4, kernel_count=3),
        {'window': '5x9'},
        4,
    ),
    'smpconv shared': (
        'smpconv',
        lambda: SMPOfficial(True),
        lambda: depthwise(SMPConv2d, 4, 7, n_points=6, bias=False),
        {},
        4,
    ),
    'smpconv general': (
        'smpconv',
        lambda: SMPOfficial(False),
        lambda: SMPConv2d(2, 4, 7, padding=3, n_points=6, shared_points=False, bias=False),
        {},
        2,
    ),
    'weighted fixed': (
        'weighted_conv',
        lambda: WeightedOfficial([0.3, 0.8], False),
        lambda: WeightedConv2d(4, 3, 5, padding=2),
        {},
        4,
    ),
    'weighted trained': (
        'weighted_conv',
        lambda: WeightedOfficial([0.3, 0.8], True),
        lambda: WeightedConv2d(4, 3, 5, padding=2, trainable=True),
        {},
        4,
    ),
    'weighted 1x1': ('weighted_conv', lambda: WeightedOfficial([], False, 1), lambda: WeightedConv2d(4, 3, 1), {}, 4),
    'detail_enhanced': ('detail_enhanced', lambda: DEAOfficial(), lambda: DEConv2d(3, 4, 3, padding=1), {}, 3),
    'dilated_reparam': (
        'dilated_reparam',
        lambda: UniRepLKOfficial(),
        lambda: depthwise(DilatedReparamConv2d, 4, 9, bias=False),
        {},
        4,
    ),
    'dilated_reparam merged, to a plain layer': (
        'dilated_reparam',
        lambda: UniRepLKOfficial(merged=True),
        lambda: depthwise(nn.Conv2d, 4, 9),
        {},
        4,
    ),
    'dilated_reparam merged, to ours': (
        'dilated_reparam',
        lambda: UniRepLKOfficial(merged=True),
        lambda: depthwise(DilatedReparamConv2d, 4, 9),
        {},
        4,
    ),
    'gaussian iso': (
        'gaussian_conv',
        lambda: GaussianOfficial(1.3),
        lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, bias=False),
        {},
        3,
    ),
    'gaussian diag': (
        'gaussian_conv',
        lambda: GaussianOfficial([0.7, 1.3]),
        lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, covariance='diag', bias=False),
        {},
        3,
    ),
    'gaussian full': (
        'gaussian_conv',
        lambda: GaussianOfficial([0.1, 0.4, 0.2]),
        lambda: GaussianConv2d(3, 4, 3, max_sigma=1.5, covariance='full', bias=False),
        {},
        3,
    ),
    'tucker with room': (
        'tucker',
        lambda: TuckerOfficial(),
        lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(4, 3)),
        {},
        5,
    ),
    'tucker cut': (
        'tucker',
        lambda: TuckerOfficial(),
        lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(3, 2)),
        {'ranks': 'live'},
        5,
    ),
    'tucker with two ranks': (
        'tucker',
        lambda: TuckerOfficial(),
        lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(4, 3)),
        {},
        5,
    ),
    'binary': (
        'binary_weight',
        lambda: BinaryOfficial(3, 4, 3, padding=1),
        lambda: BinaryWeightConv2d(3, 4, 3, padding=1, center=True),
        {'layers': '.*'},
        3,
    ),
    'complex': ('complex_conv', lambda: ComplexOfficial(), lambda: ComplexConv2d(4, 6, 3, padding=1), {}, 4),
    'complex, Keras': ('complex_conv', lambda: KerasOfficial(), lambda: ComplexConv2d(4, 6, 3, padding=1), {}, 4),
    'inception': (
        'inception_dwconv',
        lambda: InceptionOfficial(),
        lambda: depthwise(InceptionDWConv2d, 16, 11),
        {},
        16,
    ),
    'spd': (
        'spd_conv',
        lambda: SPDOfficial(12, 4, 3, padding=1),
        lambda: SPDConv2d(3, 4, 3, stride=2, padding=1),
        {'layers': '.*'},
        3,
    ),
    'partial': (
        'partial_conv',
        lambda: PartialOfficial(3, 4, 3, padding=1),
        lambda: PartialConv2d(3, 4, 3, padding=1),
        {},
        3,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_our_layer_computes_what_the_official_one_does(case):
    system, make_official, make_ours, options, channels = CASES[case]
    official, ours = shaken(make_official()), make_ours()
    x = torch.randn(2, channels, 12, 14)
    state = {f'stages.0.dwconv.{k}': v for k, v in official.state_dict().items()}
    if case == 'tucker with two ranks':
        state['stages.0.dwconv.r'] = state['stages.0.dwconv.r'][:2]
    head = dict(norm=torch.randn(3), head=torch.randn(5, 5))
    new = convert(system, {**head, **state}, options)
    assert new.layers == ['stages.0.dwconv']
    assert all(new.state.pop(k) is v for k, v in head.items())
    holder = nn.ModuleDict({'stages': nn.ModuleList([nn.ModuleDict({'dwconv': ours})])})
    holder.load_state_dict(new.state, strict=True)
    expected = official(x)
    assert expected.std() > 0.1
    # The released general form of SMPConv adds 1e-6 to its counts, ours does not.
    tolerance = 1e-5 if case == 'smpconv general' else 1e-10
    assert (ours.eval()(x) - expected).abs().max() < tolerance * expected.abs().max()


def test_every_system_is_compared_with_the_official_layer_and_has_configs():
    assert {system for system, *_ in CASES.values()} | {'shiftwise'} == set(SYSTEMS)
    assert all((ROOT / 'configs' / name).is_dir() for name in SYSTEMS)
    assert all(entry.target in MODELS for entry in SYSTEMS.values())


def moved(tensor, official):
    """The channels of a released Shiftwise layer, which come convolved ones first, in their own order."""
    order = torch.cat([official.rep, official.ghost])
    return torch.empty_like(tensor).index_copy(1, order, tensor)


@pytest.mark.parametrize(('big', 'merged'), [(13, False), (11, True)])
def test_shiftwise_layer_alone(big, merged):
    official = shaken(ShiftwiseOfficial(12, big, paths=1 if merged else 2, reps=3, merged=merged))
    ours = depthwise(ShiftwiseConv2d, 12, big, bias=False, n_path=1 if merged else 2, n_rep=3, seed=5)
    new = convert('shiftwise', official.state_dict(), {'n_rep': '3', 'channels': '12'})
    ours.load_state_dict(new.state, strict=True)
    assert 'stands alone' in new.notes[0]
    x = torch.randn(2, 12, 9, 17)
    expected = moved(official(x), official)
    torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(expected[:, official.ghost], x[:, official.ghost])


@pytest.mark.parametrize('prefix', ['', 'stages.0.1.'])
def test_shiftwise_block_gets_its_channels_back(prefix):
    official = shaken(ShiftwiseBlock(ShiftwiseOfficial(12, 13), 12))
    ours = shaken(ShiftwiseBlock(depthwise(ShiftwiseConv2d, 12, 13, bias=False, seed=5), 12))
    new = convert('shiftwise', {f'{prefix}{k}': v for k, v in official.state_dict().items()})
    assert not new.dropped
    assert not new.notes
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in new.state.items()}, strict=True)
    x = torch.randn(2, 12, 9, 10)
    torch.testing.assert_close(ours(x), official(x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours.norm.weight, official.norm.weight)


def test_shiftwise_tables_are_those_of_the_global_generators():
    official = ShiftwiseOfficial(40, big=51)
    state = official.state_dict()
    torch.manual_seed(7)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    new = convert('shiftwise', state, {'channels': '40'}).state
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(new['channels'], official.rep)
    for name, orders in (('slots_h', official.horizontal), ('slots_v', official.vertical)):
        counted = torch.zeros(new[name].shape, dtype=torch.uint8)
        for order in orders:
            for channel, kernels in enumerate(order):
                for place, kernel in enumerate(kernels):
                    counted[channel, place, kernel] += 1
        assert torch.equal(new[name], counted)
    counted = torch.zeros(new['slots_s'].shape, dtype=torch.uint8)
    for order in official.center:
        counted[torch.arange(len(order)), order] += 1
    assert torch.equal(new['slots_s'], counted)


def test_shiftwise_asks_where_the_file_does_not_tell():
    state = ShiftwiseOfficial(12).state_dict()
    with pytest.raises(
        UsageError, match=r'convolves 8 of its channels, which could be \[11, 12\] in all; --options chan'
    ):
        convert('shiftwise', state)
    with pytest.raises(UsageError, match=r"ghost_ratio= needs a number, got 'a'"):
        convert('shiftwise', state, {'ghost_ratio': 'a'})
    with pytest.raises(UsageError, match=r'convolves 8 of 12 channels, not 10; --options ghost_ratio'):
        convert('shiftwise', state, {'channels': '12', 'ghost_ratio': '0.1'})


def test_sources_of_kernels_are_marked():
    """A plain layer must refuse what is no kernel, although the official file writes it like one."""
    for case in ('refconv dense', 'weighted fixed', 'detail_enhanced', 'gaussian iso', 'binary'):
        system, official, _, options, _ = CASES[case]
        assert convert(system, official().state_dict(), options).state['weight'].ndim == 5


def test_phc_bias_is_dropped_and_linear_layers_fold():
    layer, linear = PHCOfficial(), PHMOfficial()
    state = {f'{n}.{k}': v for n, m in (('conv', layer), ('fc', linear)) for k, v in m.state_dict().items()}
    new = convert('phconv', state)
    assert new.layers == ['conv', 'fc']
    assert new.dropped == ['conv.bias']
    assert set(new.state) == {'conv.algebra', 'conv.filters', 'fc.weight', 'fc.bias'}
    x = torch.randn(3, 12)
    torch.testing.assert_close(F.linear(x, new.state['fc.weight'], new.state['fc.bias']), linear(x))


def test_phc_leaves_other_dimensions_alone():
    state = dict(PHCOfficial().state_dict(), **{'audio.A': torch.zeros(2, 2, 2), 'audio.F': torch.zeros(2, 4, 3, 3)})
    new = convert('phconv', state)
    assert new.layers == ['']
    assert new.state['audio.F'] is state['audio.F']


def test_dcls_axes():
    state = DCLSOfficial('v1').state_dict()
    as_v0, as_v1 = (convert('dcls', state, {'version': v}).state['P'] for v in ('v0', 'v1'))
    assert torch.equal(as_v0, state['P'])
    assert torch.equal(as_v1, state['P'].flip(0))
    widths = DCLSOfficial('max').state_dict()
    assert torch.equal(convert('dcls', widths).state['SIG'], widths['SIG'].flip(0))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, r'version= needs one of v0, v1, got none'),
        ({'version': 'gauss'}, r'version= needs one of v0, v1, got gauss'),
        ({'version': 'v1', 'window': '5'}, r'window=HxW needs two numbers'),
        ({'versoin': 'v1'}, r'takes the options layers, version, window, got versoin'),
    ],
)
def test_dcls_options(options, message):
    with pytest.raises(UsageError, match=message):
        convert('dcls', DCLSOfficial('v1').state_dict(), options)


def test_dcls_keeps_a_copy_per_block_of_shared_positions():
    first, second = DCLSOfficial('v0'), DCLSOfficial('v0')
    second.P = first.P
    state = nn.ModuleList([first, second]).state_dict()
    new = convert('dcls', state, {'version': 'v0'})
    assert new.layers == ['0', '1']
    assert torch.equal(new.state['0.P'], new.state['1.P'])


def test_smp_grid_is_dropped():
    assert convert('smpconv', SMPOfficial(True).state_dict()).dropped == ['kernel_coord']


def test_tucker_slices_by_the_live_ranks():
    official = TuckerOfficial()
    state = official.state_dict()
    cut, room = (convert('tucker', state, {'ranks': ranks}).state for ranks in ('live', 'room'))
    assert cut['core'].shape == (3, 2, 3, 3)
    assert torch.equal(cut['factor_out'], official.Us[0][:, :3])
    assert room['core'].shape == (4, 3, 3, 3)
    assert not room['core'][3:].any()
    assert not room['factor_in'][:, 2:].any()
    assert torch.equal(room['core'][:3, :2], cut['core'])
    assert cut['live_rank'].tolist() == [3, 2, 3, 3]
    assert torch.equal(cut['bias'], 2 * official.bias)


def test_tucker_needs_the_list_of_ranks():
    state = TuckerOfficial().state_dict()
    with pytest.raises(UsageError, match=r'ranks \[9, 2, 3, 3\] and a core of \(4, 3, 3, 3\)'):
        convert('tucker', {**state, 'r': [9, 2, 3, 3]})
    del state['r']
    with pytest.raises(UsageError, match=r'has S, .* and no r; is it a layer of this system'):
        convert('tucker', state)


def test_dea_adds_five_biases_and_copies_the_simplified_form():
    official = DEAOfficial()
    new = convert('detail_enhanced', official.state_dict()).state
    inner = (official.conv1_1, official.conv1_2, official.conv1_3, official.conv1_4)
    torch.testing.assert_close(new['bias'], sum(c.conv.bias for c in inner) + official.conv1_5.bias)
    kernel = sum(official.kernels()) + official.conv1_5.weight
    simplified = {'block.weight': kernel.detach(), 'block.bias': new['bias']}
    copied = convert('detail_enhanced', simplified)
    assert copied.state == simplified
    assert 'released, simplified form' in copied.notes[0]
    ours = nn.ModuleDict({'block': DEConv2d(3, 4, 3, padding=1)})
    ours.load_state_dict(copied.state)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(ours.block.eval()(x), official(x))


def test_dilated_branches_outside_of_the_table_keep_the_order_of_the_file():
    class Other(UniRepLKOfficial):
        branches = ((3, 4), (5, 1))

    official = shaken(Other())
    ours = depthwise(DilatedReparamConv2d, 4, 9, branches=('3x3@4', '5x5'), bias=False)
    new = convert('dilated_reparam', official.state_dict())
    assert "branches=['3x3@4', '5x5']" in new.notes[0]
    ours.load_state_dict(new.state, strict=True)
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(ours.eval()(x), official(x))


def test_gaussian_says_how_far_the_window_reaches():
    assert 'reaches 3 pixels; max_sigma=1.5' in convert('gaussian_conv', GaussianOfficial(-1.3).state_dict()).notes[0]
    with pytest.raises(UsageError, match=r'has 4 values of sigma'):
        convert('gaussian_conv', GaussianOfficial([1.0] * 4).state_dict())


def test_long_lists_are_cut(tmp_path, capsys):
    layers = nn.ModuleList(GaussianOfficial(1.0) for _ in range(20))
    run('gaussian_conv', saved(tmp_path, layers.state_dict()), tmp_path / 'dst.pth')
    out = capsys.readouterr().out
    assert out.count('note: ') == 12
    assert 'and 8 more notes' in out


def test_refconv_map_must_fit_the_basis():
    state = RefConvOfficial(4, 6, 1).state_dict()
    with pytest.raises(UsageError, match=r'has a map over 24 slices and a basis of 3 x 4'):
        convert('refconv', {**state, 'weight': state['weight'][:3]})


def test_plain_keys_must_be_pointed_at():
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)).state_dict()
    with pytest.raises(UsageError, match=r'binary_weight needs --options layers=REGEX: the binary layers'):
        convert('binary_weight', state)
    with pytest.raises(UsageError, match=r"layers= takes a regular expression, '\(' is none"):
        convert('binary_weight', state, {'layers': '('})
    new = convert('binary_weight', state, {'layers': '.*'})
    assert new.layers == ['0', '1']
    new = convert('binary_weight', state, {'layers': '^1$'})
    assert new.layers == ['1']
    assert new.state['0.weight'] is state['0.weight']


def test_names_that_are_not_there():
    with pytest.raises(UsageError, match=r"no system is called 'dlcs'; the nearest are dcls"):
        convert('dlcs', {})
    with pytest.raises(
        UsageError, match=r'no layer of refconv among the 3 entries \(weight, P, bias, .*are they of dcls\?'
    ):
        convert('refconv', DCLSOfficial('v0').state_dict())
    with pytest.raises(UsageError, match=r'file of another system, or already folded'):
        convert('refconv', nn.Conv2d(3, 4, 3).state_dict())


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
    assert 'of another shape: filters 2, 4, 4, 3, 3 <- 2, 4, 3, 3, 3' in out
    with pytest.raises(UsageError, match=r'nothing fits the model of .*--prefix'):
        run('phconv', src, tmp_path / 'no.pth', '--prefix', '=a.', '--config', config(tmp_path, **PHC))
    assert not (tmp_path / 'no.pth').exists()


@pytest.mark.parametrize('nest', [None, 'state_dict', 'model', 'model_ema'])
def test_nests_and_wrapped_names(tmp_path, nest):
    state = {f'module.conv.{k}': v for k, v in PHCOfficial().state_dict().items()}
    src = saved(tmp_path, state if nest is None else {'epoch': 3, nest: state})
    run('phconv', src, tmp_path / 'dst.pth')
    assert set(torch.load(tmp_path / 'dst.pth')['state_dict']) == {'conv.algebra', 'conv.filters'}


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
    for folder_or_src in (tmp_path, src):
        with pytest.raises(UsageError, match='is a folder or SRC itself'):
            run('phconv', src, folder_or_src, '--force')
    with pytest.raises(UsageError, match='does not exist'):
        run('phconv', tmp_path / 'none.pth', dst, '--force')


def test_written_views_do_not_carry_what_they_are_views_of(tmp_path):
    state = TuckerOfficial().state_dict()
    state['S'], state['Us.0'] = torch.randn(400, 3, 3, 3), torch.randn(6, 400)
    run('tucker', saved(tmp_path, state), tmp_path / 'dst.pth', '--options', 'ranks=live')
    assert (tmp_path / 'dst.pth').stat().st_size < 20_000


def test_renaming():
    state = {k: torch.zeros(1) for k in ('stages.0.dw.weight', 'stages.1.dw.weight', 'head.bias')}
    renamed = tool.rename(state, {'stages.': 'backbone.stages.', 'stages.1.': 'last.'}, {r'\.dw\.': '.depthwise.'})
    assert list(renamed) == ['backbone.stages.0.depthwise.weight', 'last.depthwise.weight', 'head.bias']
    assert list(tool.rename(state, {'': 'b.'}, {}))[2] == 'b.head.bias'
    for prefixes, patterns, message in (
        ({'stage.': ''}, {}, r"no name begins with 'stage\.'; the nearest beginnings are stages"),
        ({}, {'absent': ''}, r"'absent' is found in no name"),
        ({}, {'(': ''}, r'takes a regular expression'),
        ({}, {r'\d': '0'}, r'give 2 tensors the name stages\.0\.dw\.weight'),
    ):
        with pytest.raises(UsageError, match=message):
            tool.rename(state, prefixes, patterns)
    with pytest.raises(UsageError, match=r'--prefix takes KEY=VALUE, got a, b'):
        tool.pairs(['a', 'b'], '--prefix')


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
