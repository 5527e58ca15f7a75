"""Every argument of every component meets hostile values: it is accepted and works, or refused in one sentence."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from registered import ARGUMENTS, COMPONENTS
from torch import Tensor, nn

import mmext
from mmext.arguments import laws_of
from mmext.inr.base import CoordNetwork
from mmext.inr.grid import coordinate_grid
from mmext.inr.operators import MeasurementOperator

HOSTILE = [None, math.nan, math.inf, -math.inf, -1, 0, 1.5, 1e9, 10**9, 'no such', [], {}, object(), True, (1, 2)]
PACKAGE = str(Path(mmext.__file__).parent)

#: Arguments that are not ours to judge, and why.
FREE = {
    ('MetaLightBlock', 'co1'): 'it sets them itself, so that Python refuses them',
    ('MetaLightBlock', 'so2'): 'as co1',
    ('MetaLightBlock', 'co2'): 'as co1',
    ('SAGD', 'params'): 'torch judges them',
    ('swap_layers', 'rules'): 'mmext.surgery judges them',
}


def arguments_of(component):
    """Return the names of what a component takes: its own arguments, and where it passes others on, those of its bases."""
    calls = [component] if inspect.isfunction(component) else [b.__dict__.get('__init__') for b in component.__mro__]
    names = {}
    for call in filter(inspect.isfunction, calls):
        if not call.__module__.startswith('mmext.') and call is not nn.Conv2d.__init__:
            break
        parameters = list(inspect.signature(call).parameters.values())
        names.update({p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    names.pop('self', None)
    return list(names)


def example_of(name):
    arguments = dict(ARGUMENTS.get(name, {}))
    if name == 'SAGD':
        arguments['params'] = [nn.Parameter(torch.ones(2))]
    if name in ('SAGDOptimWrapper', 'SAGDAmpOptimWrapper'):
        arguments['optimizer'] = COMPONENTS['SAGD']([nn.Parameter(torch.ones(2))])
    return arguments


def outputs(name, built):
    """Return what a component computes from the input of its kind; nothing if its kind has none."""
    channels = next(
        (ARGUMENTS[name][k] for k in ('in_channels', 'num_channels', 'channels') if k in ARGUMENTS.get(name, {})), 8
    )
    kind = COMPONENTS[name].__module__.split('.')[1]
    if kind in ('convs', 'activations', 'blocks'):
        return built(torch.randn(2, channels, 24, 24))
    if kind == 'norms':
        return built(torch.randn(8, 8))
    if kind == 'backbones':
        return built(torch.randn(2, 3, 64, 64))
    if kind == 'necks':
        return built([torch.randn(1, channels, n, n) for n in (40, 20, 10, 5, 3)[: built.num_outs]])
    if kind == 'heads' and name != 'PairHead':
        return built([torch.randn(2, c, 4, 4) for c in built.in_channels])
    if isinstance(built, CoordNetwork) and not hasattr(built, 'set_signal'):
        return built(coordinate_grid(6, 5))
    if isinstance(built, MeasurementOperator):
        return built.measure(torch.rand(16, 16, 1))
    if kind == 'inr' and name.endswith('Activation'):
        return built(torch.randn(5, 8))
    if kind == 'inr' and name.endswith(('Encoding', 'Features')):
        return built(torch.rand(5, built.in_features))
    return []


def tensors(values):
    return [values] if isinstance(values, Tensor) else [t for value in values for t in tensors(value)]


def fault(name, argument, value):
    """Return what is wrong with the answer of a component to a value of an argument, None if nothing is."""
    component = COMPONENTS[name]
    try:
        built = component(**{**example_of(name), argument: value})
    except KeyError as error:
        return None if value == 'no such' and 'regist' in str(error) else f'raw {error!r}'
    except (TypeError, ValueError) as error:
        ours = inspect.getinnerframes(error.__traceback__)[-1].filename.startswith(PACKAGE)
        # A component inside may answer for what it is given.
        clear = argument in str(error) and any(owner in str(error) for owner in COMPONENTS)
        return None if ours and clear else f'raw {error!r}'
    except Exception as error:
        return f'raw {error!r}'
    try:
        bad = [tuple(t.shape) for t in tensors(outputs(name, built)) if not t.isfinite().all()]
    except Exception as error:
        return f'accepted, then {error!r}'
    return f'accepted, then {bad} are not finite' if bad else None


@pytest.mark.parametrize('name', COMPONENTS)
def test_a_hostile_value_works_or_is_refused_in_one_sentence(name):
    faults = [
        f'{argument}={value!r}: {wrong}'
        for argument in arguments_of(COMPONENTS[name])
        if (name, argument) not in FREE
        for value in HOSTILE
        if (wrong := fault(name, argument, value))
    ]
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('name', COMPONENTS)
def test_every_argument_has_a_law_that_its_default_obeys(name):
    component = COMPONENTS[name]
    call = component.__init__ if inspect.isclass(component) else component
    if not inspect.isfunction(call) or not call.__module__.startswith('mmext.'):
        pytest.skip('a constructor of the host')
    laws = laws_of(call)
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == 'self':
            continue
        assert parameter.name in laws or (name, parameter.name) in FREE, parameter.name
        if parameter.default is not parameter.empty and parameter.name in laws:
            assert laws[parameter.name].holds(parameter.default), parameter.name
