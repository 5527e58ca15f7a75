"""Official checkpoints: every system's layer, written down from its formulas, against ours with the converted tensors."""

import re
from pathlib import Path

import pytest
import torch
from official_layers import all_cases, shaken
from torch import nn

import mmext.converters
from mmext.backbones.base import Backbone
from mmext.converters import SYSTEMS, convert, recognize, rename
from mmext.converters.engine import system
from mmext.errors import UsageError
from mmext.registry import MODELS

ROOT = Path(__file__).parents[1]
CASES = [pytest.param(name, case, id=f'{name}, {kind}') for name, kind, case in all_cases()]

pytestmark = pytest.mark.usefixtures('double_precision')


def by_name(name):
    return next(case for system, _, case in all_cases() if system == name)


def official_state(case, prefix='stages.0.dwconv.'):
    return {f'{prefix}{k}': v for k, v in case.official().state_dict().items()}


@pytest.mark.parametrize(('name', 'case'), CASES)
def test_our_layer_computes_what_the_official_one_does(name, case):
    official, ours = shaken(case.official()), case.ours()
    x = torch.randn(case.input_shape or (2, case.channels, 12, 14))
    state = {f'stages.0.dwconv.{k}': v for k, v in official.state_dict().items()}
    head = dict(norm=torch.randn(3), head=torch.randn(5, 5))
    new = convert(name, {**head, **state}, case.options)
    assert new.layers == ['stages.0.dwconv']
    assert all(new.state.pop(k) is v for k, v in head.items())
    holder = nn.ModuleDict({'stages': nn.ModuleList([nn.ModuleDict({'dwconv': ours})])})
    holder.load_state_dict(new.state, strict=True)
    expected = official(x)
    assert expected.std() > 0.1
    assert (ours.eval()(x) - expected).abs().max() < case.tolerance * expected.abs().max()


def test_every_file_is_one_system_with_official_layers_and_configs():
    folder = Path(mmext.converters.__file__).parent
    assert {p.stem for p in folder.glob('*.py')} - {'__init__', '_state', 'engine'} == set(SYSTEMS)
    assert {name for name, *_ in all_cases()} == set(SYSTEMS)
    assert {p.stem for p in (ROOT / 'tests/official_layers').glob('*.py')} - {'__init__'} == set(SYSTEMS)
    assert all((ROOT / 'configs' / name).is_dir() for name in SYSTEMS)
    assert all(MODELS.get(entry.target) for entry in SYSTEMS.values())


#: Files whose keys are those of plain convolutions, or of any file of their framework.
LIKE_OTHERS = {
    'binary_weight, plain keys',
    'complex_conv, Keras on TensorFlow',
    'complex_conv, Keras on Theano',
    'partial_conv, plain keys',
    'pfnet, ViT',
    'spd_conv, plain keys',
}


@pytest.mark.parametrize('prefix', ['', 'module.backbone.stages.0.1.'])
@pytest.mark.parametrize(('name', 'case'), [p for p in CASES if p.id not in LIKE_OTHERS])
def test_a_file_is_recognized(name, case, prefix):
    state = official_state(case, prefix)
    assert recognize({'head.weight': torch.randn(3, 3), 'epoch': 3, 7: torch.ones(1), **state}) == name
    # A network holds layers of other systems, whose file the whole is not.
    others = [entry for entry in SYSTEMS.values() if entry.holds(state) and entry.name != name]
    assert all(issubclass(MODELS.get(SYSTEMS[name].target), Backbone) for _ in others)


@pytest.mark.parametrize(('name', 'case'), [p for p in CASES if p.id in LIKE_OTHERS])
def test_a_file_with_plain_keys_is_no_systems(name, case):
    assert recognize(official_state(case)) is None


#: Systems whose layers of ours keep the official names.
SAME_NAMES = {'catnet', 'smpconv'}


@pytest.mark.parametrize(('name', 'case'), [p for p in CASES if p.values[0] not in SAME_NAMES])
def test_our_own_files_are_not_taken_for_official_ones(name, case):
    assert recognize(case.ours().state_dict()) is None


@pytest.mark.parametrize(('name', 'case'), [p for p in CASES if p.values[0] in SAME_NAMES])
def test_converting_our_own_file_changes_nothing(name, case):
    state = case.ours().state_dict()
    new = convert(name, state, case.options).state
    assert set(new) == set(state)
    assert all(torch.equal(v, state[k]) for k, v in new.items())


def test_no_system_is_recognized_in_a_plain_network():
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).state_dict()
    assert recognize(state) is recognize({}) is None


def test_a_network_is_found_before_a_layer_in_it(monkeypatch):
    """A converter of a whole network is one function, too: its layer is the network, wherever it stands."""
    monkeypatch.setattr(mmext.converters.engine, 'SYSTEMS', dict(SYSTEMS))

    @system('FalconNet', r'stem\.weight', takes='.*', signature=(r'stem\.weight', r'stages\.0\.dwconv\..*'))
    def network(layer, options):
        return {k.replace('dwconv', 'depthwise'): layer[k] for k in layer}

    state = {'stem.weight': torch.ones(1), **official_state(by_name('dilated_reparam'))}
    wrapped = {f'backbone.{k}': v for k, v in state.items()}
    assert recognize(state) == recognize(wrapped) == 'network'
    new = convert('network', {**wrapped, 'head.weight': torch.ones(2)})
    assert set(new.state) == {k.replace('dwconv', 'depthwise') for k in wrapped} | {'head.weight'}
    both = {**state, **{f'other.{k}': v for k, v in official_state(CASES[0].values[1]).items()}}
    assert recognize(both) == 'network'


def test_two_systems_in_equal_parts_are_none():
    first, second = (official_state(by_name(n), f'{n}.') for n in ('refconv', 'gaussian_conv'))
    assert len(first) == len(second)
    assert recognize({**first, **second}) is None


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_file_without_any_layer_of_the_system_is_refused(name):
    options = {'layers': '.*'} if 'layers' in SYSTEMS[name].options else {}
    with pytest.raises(UsageError, match=rf'no layer of {name} among the 2 entries .* or already folded'):
        convert(name, nn.Linear(3, 4).state_dict(), options)


@pytest.mark.parametrize('name', [name for name, entry in SYSTEMS.items() if entry.signature])
def test_plain_convolutions_are_refused_where_the_keys_tell(name):
    state = {f'{i}.weight': torch.zeros(4, 4, 3, 3) for i in range(98)}
    with pytest.raises(UsageError, match=rf'no layer of {name} among the 98 entries'):
        convert(name, state)


@pytest.mark.parametrize(('name', 'case'), CASES)
def test_damaged_layers_are_refused_in_one_sentence(name, case):
    state = official_state(case, 'a.')
    refusals = []
    for key in {re.sub(r'\d+', '#', key): key for key in state}.values():  # one of each kind
        for broken in (torch.zeros(()), torch.zeros(2, 2), torch.zeros(1, 3, 5, 7, 2), 'text'):
            try:
                convert(name, {**state, key: broken}, case.options)
            except UsageError as refusal:
                refusals.append(str(refusal))
    assert refusals
    assert not any('\n' in refusal for refusal in refusals)


#: Layers of ours that keep the source of a kernel under the name of a plain one.
SOURCES = [p for p in CASES if getattr(p.values[1].ours().state_dict().get('weight'), 'ndim', 0) == 5]


@pytest.mark.parametrize(('name', 'case'), SOURCES)
def test_sources_of_kernels_are_marked(name, case):
    """A plain layer must refuse what is no kernel, although the official file writes it like one."""
    assert convert(name, official_state(case, ''), case.options).state['weight'].ndim == 5


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
        convert('refconv', official_state(by_name('dcls'), ''))
    with pytest.raises(UsageError, match=r'file of another system, or already folded'):
        convert('refconv', nn.Conv2d(3, 4, 3).state_dict())


def test_renaming():
    state = {k: torch.zeros(1) for k in ('stages.0.dw.weight', 'stages.1.dw.weight', 'head.bias')}
    renamed = rename(state, {'stages.': 'backbone.stages.', 'stages.1.': 'last.'}, {r'\.dw\.': '.depthwise.'})
    assert list(renamed) == ['backbone.stages.0.depthwise.weight', 'last.depthwise.weight', 'head.bias']
    assert list(rename(state, {'': 'b.'}, {}))[2] == 'b.head.bias'
    for prefixes, patterns, message in (
        ({'stage.': ''}, {}, r"no name begins with 'stage\.'; the nearest beginnings are stages"),
        ({}, {'absent': ''}, r"'absent' is found in no name"),
        ({}, {'(': ''}, r'takes a regular expression'),
        ({}, {r'\d': '0'}, r'give 2 tensors the name stages\.0\.dw\.weight'),
    ):
        with pytest.raises(UsageError, match=message):
            rename(state, prefixes, patterns)
