"""Three intents of loading: to test, to go on, to start. What cannot be right is one sentence, in each of them."""

import copy
import logging

import pytest
import torch
from mmengine.optim import OneCycleLR, OptimWrapper
from torch import nn

from mmext.convs import RefConv2d
from mmext.errors import CheckpointError
from mmext.fit import check_resumable, check_start, check_whole, load_all
from mmext.hooks.checkpoint_guard import CheckpointGuardHook

LOG = logging.getLogger('fit')


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(4, num_classes)


class Net(nn.Module):
    def __init__(self, conv=nn.Conv2d, classes=10, bias=True):
        super().__init__()
        self.stem = conv(3, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.head = Head(classes)


def changed(key, value):
    state = Net().state_dict()
    if value is None:
        del state[key]
    else:
        state[key] = value(state[key]) if callable(value) else value
    return state


WRONG_VALUES = {
    'NaN': (lambda t: t.clone().fill_(float('nan')), r'stem\.weight holds 108 values of 108 that are NaN or infinite'),
    'one infinity': (
        lambda t: t.clone().index_fill(0, torch.tensor(0), float('inf')),
        'holds 27 values of 108 that are NaN',
    ),
    'int64': (lambda t: t.long(), r'stem\.weight holds integers \(torch\.int64\) where the model has real numbers'),
    'complex': (lambda t: t.to(torch.complex64), r'stem\.weight holds complex numbers'),
    'bool': (lambda t: t > 0, r'stem\.weight holds integers \(torch\.bool\)'),
    'no data': (lambda t: t.to('meta'), r'stem\.weight is a tensor without data'),
    'quantized': (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        r'stem\.weight is a quantized tensor \(torch\.qint8\)',
    ),
    'eight bits': (lambda t: t.to(torch.float8_e4m3fn), r'stem\.weight is a tensor of torch\.float8_e4m3fn'),
}


@pytest.mark.parametrize(('value', 'match'), WRONG_VALUES.values(), ids=WRONG_VALUES)
@pytest.mark.parametrize(
    'check', [check_start, check_whole, lambda s, m, *_: load_all(m, s)], ids=['start', 'whole', 'all']
)
def test_wrong_numbers_are_refused_whatever_they_are_for(check, value, match):
    with pytest.raises((CheckpointError, RuntimeError), match=match) as refusal:
        check(changed('stem.weight', value), Net(), 'file', LOG)
    assert '\n' not in str(refusal.value)


def test_a_variance_is_not_negative():
    with pytest.raises(CheckpointError, match=r'norm\.running_var holds negative variances'):
        check_start(changed('norm.running_var', lambda t: -t), Net(), 'file', LOG)


def test_infinity_where_the_model_has_it_is_right():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('mask', torch.full((2,), float('-inf')))

    check_whole(Masked().state_dict(), Masked(), 'file', LOG)


WRONG_WHOLES = {
    'a norm is missing': (changed('norm.running_var', None), r'1 \(norm\.running_var\) missing'),
    'another head': (Net(classes=3).state_dict(), r'2 \(head\.fc\.weight, head\.fc\.bias\) of another shape|missing'),
    'half of the keys': ({k: v for k, v in Net().state_dict().items() if 'stem' in k}, r'6 \(.*\) missing'),
    'double precision': (changed('stem.weight', lambda t: t.double()), 'cannot hold exactly'),
}


@pytest.mark.parametrize(('state', 'match'), WRONG_WHOLES.values(), ids=WRONG_WHOLES)
def test_what_is_tested_is_in_the_file(state, match):
    with pytest.raises(CheckpointError, match=match):
        check_whole(state, Net(), 'file', LOG)


def test_a_bias_that_the_models_layer_lacks_is_no_detail():
    with pytest.raises(CheckpointError, match=r'1 \(stem\.bias\) unexpected'):
        check_whole(Net().state_dict(), Net(bias=False), 'file', LOG)


def test_a_model_that_fits_whole_is_tested_with_nothing_else():
    class Whole(Net):
        fits_whole = True

    with pytest.raises(CheckpointError, match=r'fits Whole in part only: .*1 \(other\.scale\) unexpected'):
        check_whole(Net().state_dict() | {'other.scale': torch.ones(1)}, Whole(), 'file', LOG)


def test_half_precision_and_what_the_model_does_not_use_are_tested(caplog):
    state = changed('stem.weight', lambda t: t.half()) | {'auxiliary.weight': torch.ones(1)}
    state = {k: v for k, v in state.items() if 'num_batches' not in k}
    with caplog.at_level(logging.INFO, 'fit'):
        check_whole(state, Net(), 'file', LOG)
    assert caplog.messages[-1] == (
        'file: 8 tensors loaded, 0 missing, 1 (auxiliary.weight) unexpected, 0 of another shape'
    )


def test_a_plain_checkpoint_does_not_say_the_map_of_refconv():
    with pytest.raises(CheckpointError, match='missing'):
        check_whole(Net().state_dict(), Net(RefConv2d), 'file', LOG)


def test_start_tells_apart_what_was_expected_to_be_new(caplog):
    with caplog.at_level(logging.INFO, 'fit'):
        check_start(Net(classes=3).state_dict(), Net(RefConv2d), 'file', LOG)
    new = [k for k in Net(RefConv2d).state_dict() if k not in Net().state_dict()]
    assert new == ['stem.map_weight']
    assert caplog.messages[-1].endswith(
        '0 missing, 0 unexpected, 0 of another shape; 3 (stem.map_weight, head.fc.weight, head.fc.bias) new, as expected'
    )
    assert caplog.records[-1].levelno == logging.INFO
    state = changed('norm.weight', torch.ones(5))
    check_start(state, Net(), 'file', LOG)
    assert caplog.messages[-1].endswith('1 (norm.weight) of another shape')
    assert caplog.records[-1].levelno == logging.WARNING


def test_names_that_are_numbers_are_refused():
    hook = CheckpointGuardHook()
    runner = Runner(Net())
    runner._resume = False
    with pytest.raises(CheckpointError, match='names a tensor by 0, a int'):
        hook.after_load_checkpoint(runner, {'state_dict': {0: torch.ones(1)}})


class Runner:
    """As much of a runner as resuming looks at."""

    logger = LOG
    _resume = True

    def __init__(self, model, optimizer=torch.optim.AdamW, schedules=1):
        self.model = model
        self.optim_wrapper = OptimWrapper(optimizer(model.parameters(), lr=0.1))
        self.param_schedulers = [OneCycleLR(self.optim_wrapper, eta_max=0.1, total_steps=9) for _ in range(schedules)]


def stepped(model, optimizer=torch.optim.AdamW):
    """Return a checkpoint of a model after one step."""
    runner = Runner(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    runner.optim_wrapper.optimizer.step()
    return {
        'meta': {'epoch': 1, 'iter': 2},
        'message_hub': {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}},
        'state_dict': model.state_dict(),
        'optimizer': runner.optim_wrapper.state_dict(),
        'param_schedulers': [s.state_dict() for s in runner.param_schedulers],
    }


def test_the_same_run_goes_on():
    check_resumable(stepped(Net()), Runner(Net()))


DAMAGE = {
    'no optimizer': ('optimizer', None, 'optimizer of the checkpoint is None, not a dictionary'),
    'empty meta': ('meta', {}, r"meta\['epoch'\] of the checkpoint is None, not a count"),
    'no meta': ('meta', None, 'meta of the checkpoint is None'),
    'a text as epoch': ('meta', {'epoch': 'x', 'iter': 1}, "is 'x', not a count"),
    'a negative epoch': ('meta', {'epoch': -1, 'iter': 1}, 'is -1, not a count'),
    'a number as hub': ('message_hub', 5, 'message_hub of the checkpoint is 5'),
    'an empty hub': ('message_hub', {}, r"message_hub\['log_scalars'\] of the checkpoint is None"),
    'another optimizer': (
        'optimizer',
        stepped(Net(), torch.optim.SGD)['optimizer'],
        'without amsgrad, betas, eps',
    ),
    'no groups': ('optimizer', {'state': {}}, r"optimizer\['param_groups'\] of the checkpoint is None"),
    'no state': ('optimizer', {'param_groups': [], 'state': 3}, r"optimizer\['state'\] of the checkpoint is 3"),
    'no schedules': ('param_schedulers', [], 'holds 0 parameter schedules, the config 1'),
    'a schedule of another kind': ('param_schedulers', [{'last_step': 3}], 'schedule 0 of the checkpoint lacks'),
    'a number as schedule': ('param_schedulers', [3], r'param_schedulers\[0\] of the checkpoint is 3'),
    'a list as extra': ('mmext', [], 'mmext of the checkpoint is a list'),
    'half of the keys': (
        'state_dict',
        changed('norm.bias', None),
        'cannot resume: the checkpoint fits Net in part only',
    ),
    'another head': ('state_dict', Net(classes=3).state_dict(), 'cannot resume: the checkpoint fits Net in part only'),
    'NaN': ('state_dict', changed('norm.bias', lambda t: t * float('nan')), r'norm\.bias holds 4 values'),
    'a NaN average': (
        'ema_state_dict',
        {'module.a': torch.tensor(float('nan'))},
        'ema_state_dict: module.a holds 1 values',
    ),
}


@pytest.mark.parametrize(('key', 'value', 'match'), DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_resumed_is_one_sentence(key, value, match):
    with pytest.raises(CheckpointError, match=match) as refusal:
        check_resumable({**stepped(Net()), key: value}, Runner(Net()))
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('key', ['optimizer', 'param_schedulers', 'meta'])
def test_what_lacks_is_named(key):
    checkpoint = stepped(Net())
    del checkpoint[key]
    with pytest.raises(CheckpointError, match=f'without {key} .*load_from'):
        check_resumable(checkpoint, Runner(Net()))


def test_the_optimizers_parameters_agree_by_name():
    checkpoint = stepped(Net())
    own = [[n for n, _ in Net().named_parameters()]]
    checkpoint['mmext'] = {'parameters': {'': own}, 'optimizers': {'': 'AdamW'}}
    check_resumable(checkpoint, Runner(Net()))
    other = copy.deepcopy(own)
    other[0][:2] = reversed(other[0][:2])
    checkpoint['mmext']['parameters'][''] = other
    with pytest.raises(CheckpointError, match=r'\(stem\.bias where stem\.weight is now\)'):
        check_resumable(checkpoint, Runner(Net()))
    checkpoint['mmext'] = {'optimizers': {'': 'SGD'}}
    with pytest.raises(CheckpointError, match='is that of SGD, and the config has AdamW'):
        check_resumable(checkpoint, Runner(Net()))


def test_older_files_agree_by_shape():
    checkpoint = stepped(Net())
    checkpoint['optimizer']['state'][0]['exp_avg'] = torch.ones(3)
    with pytest.raises(
        CheckpointError, match=r'exp_avg of stem\.weight .* the shape \(3,\), its parameter \(4, 3, 3, 3\)'
    ):
        check_resumable(checkpoint, Runner(Net()))
    checkpoint = stepped(Net())
    checkpoint['optimizer']['param_groups'][0]['params'].pop()
    with pytest.raises(CheckpointError, match=r'groups of \[5\] and \[6\]'):
        check_resumable(checkpoint, Runner(Net()))


def test_a_changed_model_is_not_resumed():
    with pytest.raises(CheckpointError, match=r'cannot resume: the checkpoint fits Net in part only'):
        check_resumable(stepped(Net()), Runner(Net(RefConv2d)))
