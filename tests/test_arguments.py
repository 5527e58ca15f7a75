"""Every argument of every component meets hostile values: it is accepted and works, or refused in one sentence."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from registered import ARGUMENTS, COMPONENTS
from torch import Tensor, nn

import mmext
from mmext.arguments import Cfg, Count, Pattern, Positive, above, at_most, checked, guard, laws_of, some
from mmext.convs import RefConv2d
from mmext.errors import UsageError
from mmext.evolution.token_attention import TokenAttention
from mmext.inr.grid import coordinate_grid
from mmext.inr.measurements.operators import MeasurementOperator
from mmext.inr.networks.base import CoordNetwork

HOSTILE = [None, math.nan, math.inf, -math.inf, -1, 0, 1.5, 1e9, 10**9, 'no such', [], {}, object(), True, (1, 2)]
PACKAGE = str(Path(mmext.__file__).parent)

#: Arguments that are not ours to judge, and why.
FREE = {
    ('MetaLightBlock', 'co1'): 'it sets them itself, so that Python refuses them',
    ('MetaLightBlock', 'so2'): 'as co1',
    ('MetaLightBlock', 'co2'): 'as co1',
    ('SAGD', 'params'): 'torch judges them',
    ('auto_channels', 'model'): 'as for swap_layers',
    ('DenseCRFSegmentor', 'model'): 'as for swap_layers',
    ('DeepSupervisionDetector', 'model'): 'as for swap_layers',
    ('DistilledClassifier', 'model'): 'as for swap_layers',
    ('swap_layers', 'rules'): 'mmext.surgery judges them',
    ('swap_layers', 'model'): 'as rules',
    ('swap_layers', 'input_shape'): 'as rules',
    ('TimmBackbone', 'in_channels'): 'the image of this test has three',
    ('TimmBackbone', 'checkpoint'): 'the reader of checkpoints judges it',
}


#: What a head takes that is not one map per width or stride.
HEADS = {
    **dict.fromkeys(
        ('ClsCompanion', 'DenseCompanion', 'DilatedContextHead', 'MultiLabelADDGCNHead', 'ProtoPNetHead'),
        lambda head: head([torch.randn(2, 8, 6, 6)]),
    ),
    'DenseCRF': lambda crf: crf(torch.randn(3, 8, 8), 255 * torch.rand(3, 8, 8)),
    'DenseCRFSegmentor': lambda model: model(torch.rand(2, 3, 32, 32)),
    'DeepSupervisionClsHead': lambda head: head([torch.randn(2, 8)]),
    'DeepSupervisionDetector': lambda model: model.backbone(torch.rand(2, 3, 64, 64)),
    'DistilledClassifier': lambda model: model.eval()(torch.rand(2, 3, 64, 64), mode='tensor'),
    'DilatedContext': lambda context: context(torch.randn(2, context.channels, 6, 6)),
    'LocalPlanarGuidanceHead': lambda head: head([torch.randn(2, 8, 16 // k, 16 // k) for k in (1, 2, 4, 8)]),
    'OneVsRestHingeLoss': lambda loss: loss(torch.randn(2, 3), torch.tensor([0, 2])),
    'ScaleInvariantLogLoss': lambda loss: loss(torch.rand(2, 1, 4, 4) + 0.5, torch.rand(2, 1, 4, 4) + 0.5),
}


def ours(call):
    return inspect.isfunction(call) and call.__module__.startswith('mmext.')


def own_parameters(call):
    parameters = inspect.signature(call).parameters.values()
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != 'self']


def arguments_of(component):
    """Return the names of what a component takes: its own arguments, and where it passes others on, those of its bases."""
    calls = [component] if inspect.isfunction(component) else [b.__dict__.get('__init__') for b in component.__mro__]
    names = {}
    for call in filter(inspect.isfunction, calls):
        if not ours(call) and call is not nn.Conv2d.__init__:
            break
        names.update({p.name: None for p in own_parameters(call)})
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(call).parameters.values()):
            break
    return list(names)


def example_of(name):
    arguments = dict(ARGUMENTS.get(name, {}))
    if name == 'SAGD':
        arguments['params'] = [nn.Parameter(torch.ones(2))]
    if name.endswith('OptimWrapper'):
        arguments['optimizer'] = COMPONENTS['SAGD']([nn.Parameter(torch.ones(2))])
    return arguments


def outputs(name, built, arguments):
    """Return what a component computes from the input of its kind; nothing if its kind has none."""
    channels = arguments.get('in_channels', arguments.get('channels', 8))
    kind = COMPONENTS[name].__module__.split('.')[1]
    if name == 'ParallelBranch':
        return built(torch.randn(2, 8, 24, 24), torch.randn(2, built.scale.numel(), 24, 24))
    if name in HEADS:
        return HEADS[name](built)
    if isinstance(built, TokenAttention):
        rows, columns = built.grid or (3, 3)
        return built(torch.randn(2, built.num_extra_tokens + rows * columns, built.embed_dims))
    if kind in ('convs', 'evolution', 'activations', 'blocks'):
        size = built.size if 'other sizes' in getattr(built, 'refuses', ()) else (24, 24)
        return built(torch.randn(2, channels, *size))
    if kind == 'norms':
        return built(torch.randn(8, 8, 8, 8))
    if kind == 'backbones':
        return built(torch.randn(2, 3, 64, 64))
    if kind == 'necks':
        widths = channels if isinstance(channels, tuple) else [channels] * built.num_outs
        return built([torch.randn(1, c, n, n) for c, n in zip(widths, (40, 20, 10, 5, 3), strict=False)])
    if hasattr(built, 'roi_layers'):
        return built([torch.randn(1, channels, n, n) for n in (16, 8)], torch.tensor([[0, 3.0, 2.0, 40.0, 50.0]]))
    if kind == 'heads' and (isinstance(channels, tuple) or hasattr(built, 'strides')):
        widths = channels if isinstance(channels, tuple) else [channels] * len(built.strides)
        return built([torch.randn(2, c, 4, 4) for c in widths])
    if isinstance(built, CoordNetwork) and not hasattr(built, 'set_signal'):
        return built(coordinate_grid(6, 5) if built.in_features == 2 else torch.rand(6, 5, built.in_features))
    if isinstance(built, MeasurementOperator) and not built.simulates:
        # What it evaluates where the network would: of rays six numbers, of a picture its grid.
        values = getattr(built, 'field_values', 1)
        coords = (
            torch.tensor([[0.1, 0.2, 3.0, 0.0, 0.0, -1.0]]) if hasattr(built, 'world_rays') else torch.zeros(3, 4, 2)
        )
        return built.predict(lambda points, **_: 0.1 * torch.ones(*points.shape[:-1], values), coords)[0]
    if isinstance(built, MeasurementOperator):
        return built.measure(torch.rand(16, 16, 1))
    if kind == 'inr' and name.endswith('Activation'):
        return built(torch.randn(5, 8))
    if kind == 'inr' and name.endswith(('Encoding', 'Features')):
        return built(torch.rand(5, built.in_features))
    return []


def tensors(values):
    values = list(values.values()) if isinstance(values, dict) else values
    return [values] if isinstance(values, Tensor) else [t for value in values for t in tensors(value)]


def fault(name, argument, value):
    """Return what is wrong with the answer of a component to a value of an argument, None if nothing is."""
    component = COMPONENTS[name]
    try:
        arguments = {**example_of(name), argument: value}
        built = component(**arguments)
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
        bad = [tuple(t.shape) for t in tensors(outputs(name, built, arguments)) if not t.isfinite().all()]
    except Exception as error:
        return f'accepted, then {error!r}'
    return f'accepted, then {bad} are not finite' if bad else None


# The host builds its wrappers with mixed precision on accelerators only; their arguments are those of the others.
@pytest.mark.parametrize('name', [n for n in COMPONENTS if not n.endswith('AmpOptimWrapper')])
def test_a_hostile_value_works_or_is_refused_in_one_sentence(name):
    faults = [
        f'{argument}={value!r}: {wrong}'
        for argument in arguments_of(COMPONENTS[name])
        if (name, argument) not in FREE
        for value in HOSTILE
        if (wrong := fault(name, argument, value))
    ]
    assert not faults, '\n'.join(faults)


def constructor(component):
    return component.__init__ if inspect.isclass(component) else component


@pytest.mark.parametrize('name', [n for n, c in COMPONENTS.items() if ours(constructor(c))])
def test_every_argument_has_a_law_that_its_default_obeys(name):
    laws = laws_of(constructor(COMPONENTS[name]))
    for parameter in own_parameters(constructor(COMPONENTS[name])):
        assert parameter.name in laws or (name, parameter.name) in FREE, parameter.name
        if parameter.default is not parameter.empty and parameter.name in laws:
            assert laws[parameter.name].holds(parameter.default), parameter.name


# --- the laws ------------------------------------------------------------------------------------------------------------


class Part:
    """What a component takes here, one argument per kind of law."""

    def __init__(
        self,
        width: Count = 8,
        scale: Positive = 1.0,
        share: Annotated[float, above(0), at_most(1)] = 0.5,
        mode: Literal['a', 'b'] = 'a',
        flag: bool = False,
        pair: int | tuple[int, int] = 3,
        names: Annotated[list[str], some] = ('x',),
        match: Pattern = '',
        part: Cfg | None = None,
        table: dict[str, float] | None = None,
        layer: nn.Module | None = None,
        call: Callable[[int], int] | None = None,
        free: Any = None,
    ) -> None:
        self.got = dict(locals())


guard(Part)


@pytest.mark.parametrize(
    ('argument', 'good', 'bad', 'words'),
    [
        ('width', [1, np.int64(7), 2**20], [0, 1.0, True, np.bool_(1), '8', 2**20 + 1, 10**400], 'as an integer >= 1'),
        (
            'scale',
            [1, 2.5, np.float32(0.5), 1e-300],
            [0, -1.0, math.nan, math.inf, 10**400, '1'],
            'as a finite number > 0',
        ),
        ('share', [1, 0.1], [0, 1.01, math.nan, [0.5]], 'as a finite number > 0 and <= 1'),
        ('mode', ['a', 'b'], ['c', 1, None, ['a'], np.array(['a', 'b'])], "'a' or 'b'"),
        ('flag', [True, np.bool_(0)], [0, 1, 'no', None, []], 'True or False'),
        (
            'pair',
            [3, (1, 2), [1, 2]],
            [(1,), [1, 2, 3], (1, 2.0), '12', {1: 2}],
            r'as an integer or as a sequence of 2',
        ),
        (
            'names',
            [['x'], ('x', 'y')],
            [[], 'x', [1], None],
            r'as a sequence \(each a string\) with one entry at least',
        ),
        ('match', ['', r'layer[34]'], ['[', '(', None, b'x'], 'as a string that is a regular expression'),
        ('part', [None, dict(type='X')], [{}, 'X', dict(type=None)], "as a dict with the key 'type' or None"),
        ('table', [None, {}, dict(a=1)], [dict(a='b'), [1]], r'as a dict \(each value a finite number\) or None'),
        ('layer', [None, nn.ReLU()], [nn.ReLU, 'ReLU'], 'as a Module or None'),
        ('call', [None, abs], [3, 'abs'], 'as a callable or None'),
        ('free', HOSTILE, [], ''),
    ],
)
def test_the_annotation_is_the_law(argument, good, bad, words):
    for value in good:
        assert Part(**{argument: value}).got[argument] is value
    for value in bad:
        with pytest.raises(UsageError, match=f'^Part needs {argument} {words}.*, got {argument}='):
            Part(**{argument: value})


def test_the_message_is_one_short_sentence_whatever_the_value():
    with pytest.raises(UsageError, match=r"got mode='x+\.\.\.x+'; leave it out for 'a'$") as error:
        Part(mode='x' * 10**6)
    assert len(str(error.value)) < 250
    assert '\n' not in str(error.value)


def test_a_derived_component_is_checked_in_its_own_name_and_once():
    class Mine(RefConv2d):
        def __init__(self, *args: Any, gain: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.gain = gain

    with pytest.raises(ValueError, match=r"^Mine needs map_init 'zero' or 'default', got map_init='ones'"):
        Mine(4, 4, 3, map_init='ones')
    with pytest.raises(ValueError, match=r'^Mine needs out_channels as an integer .*, got out_channels=\[4\]'):
        Mine(4, [4], 3)
    Mine(4, 4, 3, gain='of a class that is not registered')
    guard(Mine)
    guard(Mine)
    with pytest.raises(ValueError, match=r"^Mine needs gain as a finite number, got gain='x'; leave it out for 1.0"):
        Mine(4, 4, 3, gain='x')
    assert not hasattr(nn.Conv2d.__init__, '__wrapped__'), 'only classes of the same package are guarded'
    assert Mine(4, 4, 3, gain=2).gain == 2


def test_python_says_what_is_missing_or_unknown():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'num_features'"):
        COMPONENTS['GlobalNorm']()
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_feature'"):
        COMPONENTS['GlobalNorm'](num_feature=3)


def test_annotations_that_cannot_be_read_leave_a_constructor_as_it_is():
    namespace = {}
    exec('def build(x: "NoSuchName", y: int = 1): return x, y', namespace)
    assert checked(namespace['build'])(3, 'y') == (3, 'y')


BAD = dict(type='mmext.DCLSConv2d', kernel_count=[9])


@pytest.mark.parametrize(
    'build',
    [
        lambda: MODELS.build(dict(BAD, in_channels=4, out_channels=4, kernel_size=3)),
        lambda: ConvModule(4, 4, 3, conv_cfg=BAD),
        lambda: COMPONENTS['MetaLightBlock'](8, conv_cfg=BAD, spatial=dict(type='Conv2d')),
        lambda: COMPONENTS['swap_layers'](nn.Sequential(nn.Conv2d(4, 4, 3)), rules=[dict(kernel_size=3, to=BAD)]),
    ],
)
def test_a_layer_inside_of_a_model_answers_in_one_sentence(build):
    law = r'DCLSConv2d needs kernel_count as an integer <= 4096, got kernel_count=\[9\]'
    with pytest.raises(ValueError, match=law):
        build()


def test_guarded_components_copy_pickle_and_show_their_signature():
    layer = COMPONENTS['DEConv2d'](4, 4, 3, theta=0.5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.theta == 0.5
        assert torch.equal(twin.weight, layer.weight)
    assert list(inspect.signature(COMPONENTS['DEConv2d']).parameters) == ['args', 'theta', 'kwargs']
