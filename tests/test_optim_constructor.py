import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmext.convs.dcls import DCLSConv2d
from mmext.convs.smpconv import SMPConv2d
from mmext.optim import LayerOptionsConstructor

SGD = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(DCLSConv2d(4, 4, 5, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = SMPConv2d(4, 2, 3)


def options(model, optimizer=SGD, **cfg):
    """Build the optimizer by config and return (lr, weight_decay) of every parameter by name, in the optimizer's order."""
    wrapper = build_optim_wrapper(
        model, dict(constructor='mmext.LayerOptionsConstructor', optimizer=dict(optimizer), **cfg)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group['lr'], group['weight_decay'])
    return found


def approx(lr, decay):
    return (pytest.approx(lr), pytest.approx(decay))


def test_layers_get_what_they_ask_for_and_everything_else_the_config():
    model = Net()
    found = options(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    own = {
        'backbone.0.P': approx(0.5, 0),
        'backbone.0.SIG': approx(0.5, 0),
        'head.weight_coord': approx(0.1, 0),
        'head.radius': approx(0.01, 0),
    }
    assert found == {name: own.get(name, (0.1, 0.01)) for name in found}
    # The log shows the rate of the first, and SA-GD computes with it.
    assert set(list(found)[-4:]) == set(own)


def test_a_custom_key_of_modules_is_multiplied():
    found = options(Net(), paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=0.5)}))
    assert found['backbone.0.P'] == approx(0.05, 0)
    assert found['backbone.2.weight'] == approx(0.01, 0.005)
    assert found['head.radius'] == approx(0.01, 0)


@pytest.mark.parametrize('key', ['.P', 'backbone.0.P', '0.P'])
def test_a_custom_key_of_the_parameter_decides(key):
    found = options(Net(), paramwise_cfg=dict(custom_keys={key: dict(lr_mult=2.0)}))
    assert found['backbone.0.P'] == approx(0.2, 0)  # it says nothing of the decay
    found = options(Net(), paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.5), 'backbone': dict(lr_mult=9.0)}))
    # mmengine applies the longest key only.
    longest = max((key, 'backbone'), key=len)
    expected = approx(0.5, 0.005) if longest == key else approx(0.1 * 9 * 5, 0)
    assert found['backbone.0.P'] == expected


def test_general_rules_are_multiplied():
    found = options(Net(), paramwise_cfg=dict(norm_decay_mult=0.0, dwconv_decay_mult=0.5, bias_lr_mult=2.0))
    assert found['backbone.0.P'] == approx(0.5, 0)
    assert found['backbone.0.point_weight'] == approx(0.1, 0.005)
    assert found['backbone.1.weight'] == approx(0.1, 0)
    assert found['head.bias'] == approx(0.2, 0.01)


def test_shared_positions_are_taken_once():
    model = nn.Sequential(DCLSConv2d(2, 2, 3), DCLSConv2d(2, 2, 3))
    model[1].P = model[0].P
    assert options(model)['0.P'] == approx(0.5, 0)


def test_frozen_parameters_stay_out():
    model = Net()
    model.backbone[0].P.requires_grad_(False)
    assert 'backbone.0.P' not in options(model, paramwise_cfg=dict(norm_decay_mult=0.0))


def test_multiplies_the_defaults_of_the_optimizer_too():
    found = options(Net(), dict(type='AdamW'))
    assert found['backbone.0.P'] == approx(0.005, 0)
    assert found['backbone.2.weight'] == approx(0.001, 0.01)


def test_on_top_of_the_layer_wise_decay_of_a_detector():
    from mmdet.engine import optimizers  # noqa: F401  (registers it)

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = ROOT_MODELS.build(
                dict(
                    type='mmext.swap_layers',
                    model='mmpretrain.ConvNeXt',
                    arch=dict(depths=[1, 1, 3, 1], channels=[8, 8, 8, 8]),
                    rules=[
                        dict(
                            depthwise=True, to=dict(type='mmext.DCLSConv2d', kernel_size=9, padding=4, kernel_count=50)
                        )
                    ],
                )
            )

    model = Detector()
    cfg = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05))
    cfg['paramwise_cfg'] = dict(decay_rate=0.5, decay_type='layer_wise', num_layers=6)
    layers = 'mmdet.LearningRateDecayOptimizerConstructor'
    base = build_optim_wrapper(model, dict(cfg, constructor=layers)).optimizer.param_groups
    ours = build_optim_wrapper(model, dict(cfg, constructor='mmext.LayerOptionsConstructor', base_constructor=layers))
    expected = {name: group for group in base for name in group['param_names']}
    names = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in ours.optimizer.param_groups:
        assert group['param_names'] == [names[id(p)] for p in group['params']]
        for name in group['param_names']:
            factor = 5 if name.endswith(('.P', '.SIG')) else 1
            assert group['lr'] == pytest.approx(factor * expected[name]['lr'])
            assert group['weight_decay'] == (0 if factor == 5 else expected[name]['weight_decay'])
            seen.add(name)
    assert seen == set(expected)
    assert len({group['lr'] for group in base}) > 2


def test_behind_sagd_and_a_wrapped_model():
    found = options(Net(), dict(SGD, type='mmext.SAGD'), type='mmext.SAGDOptimWrapper')
    assert found['backbone.0.P'] == approx(0.5, 0)
    wrapped = nn.DataParallel(Net())
    wrapper = build_optim_wrapper(wrapped, dict(constructor='mmext.LayerOptionsConstructor', optimizer=SGD))
    assert sorted({group['lr'] for group in wrapper.optimizer.param_groups}) == [
        pytest.approx(0.01),
        pytest.approx(0.1),
        pytest.approx(0.5),
    ]


def test_a_model_without_options_gets_what_mmengine_gives():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    paramwise = dict(norm_decay_mult=0.0, custom_keys={'0.weight': dict(lr_mult=3.0)})
    plain = build_optim_wrapper(model, dict(optimizer=SGD, paramwise_cfg=paramwise))
    ours = build_optim_wrapper(
        model, dict(constructor='mmext.LayerOptionsConstructor', optimizer=SGD, paramwise_cfg=paramwise)
    )
    for a, b in zip(ours.optimizer.param_groups, plain.optimizer.param_groups, strict=True):
        assert a == b


@pytest.mark.parametrize(('wrong', 'name'), [({'Q': dict(lr_mult=2.0)}, 'Q'), ({'weight': dict(lr_mul=2.0)}, 'lr_mul')])
def test_options_for_nothing_are_refused(wrong, name):
    class Layer(nn.Linear):
        def optim_options(self):
            return wrong

    with pytest.raises(ValueError, match=rf"Layer \(0\) has optim_options\(\) for \['{name}'\]"):
        options(nn.Sequential(Layer(2, 2)))


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(bias_lr_mul=2.0), 'reads custom_keys, .*, got bias_lr_mul; correct the name'),
        (dict(norm_decay_mult='no'), r"norm_decay_mult as a finite number or None, got norm_decay_mult='no'"),
        (dict(bypass_duplicate=1), 'bypass_duplicate True or False, got bypass_duplicate=1; leave it out for False'),
        (dict(custom_keys={'0': 0.1}), r'custom_keys as a dict \(each value a dict\)'),
    ],
)
def test_what_mmengine_would_not_read_is_refused(cfg, message):
    with pytest.raises(ValueError, match=f'LayerOptionsConstructor .*{message}'):
        options(Net(), paramwise_cfg=cfg)


def test_another_base_constructor_reads_its_own_keys():
    base = 'LayerDecayOfThisTest'

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(name=base)
    class LayerDecay(DefaultOptimWrapperConstructor):
        def __init__(self, optim_wrapper_cfg, paramwise_cfg):
            self.rate = paramwise_cfg.pop('layer_decay_rate')
            super().__init__(optim_wrapper_cfg, paramwise_cfg)

    found = LayerOptionsConstructor(dict(optimizer=SGD, base_constructor=base), dict(layer_decay_rate=0.5))
    assert found.base.rate == 0.5


def test_state_continues_after_loading():
    model = Net()
    torch.manual_seed(1)

    def wrapper():
        return build_optim_wrapper(model, dict(constructor='mmext.LayerOptionsConstructor', optimizer=SGD))

    first, second = wrapper(), wrapper()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    first.step()
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        assert torch.equal(
            first.optimizer.state[a['params'][0]]['momentum_buffer'],
            second.optimizer.state[b['params'][0]]['momentum_buffer'],
        )
        assert (a['lr'], a['weight_decay']) == (b['lr'], b['weight_decay'])
