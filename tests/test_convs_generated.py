"""The contract of every generated-kernel convolution; a new one is tested by being registered."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.analysis import get_model_complexity_info
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from registered import ARGUMENTS, members
from torch import nn

from mmext.contracts import example_of
from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.export import export_onnx
from mmext.folding import fold
from mmext.registry import MODELS

FAMILY = sorted(n for n in members('convs') if isinstance(c := MODELS.get(n), type) and issubclass(c, GeneratedConv2d))

CONV = example_of(ExtConv2d)
GEOMETRIES = {
    'same': dict(padding=1),
    'stride': dict(padding=1, stride=2),
    'uneven': dict(padding=(0, 2), stride=(2, 1)),
    'dilated': dict(padding=2, dilation=2),
    'reflect': dict(padding=1, padding_mode='reflect'),
    'named-padding': dict(padding='same'),
    'no-bias': dict(padding=1, bias=False),
}
#: What a geometry changes, in the words of ``refuses``.
CHANGED = {'dilated': 'dilation', 'named-padding': 'named padding'}
GROUPS = {'dense': 1, 'grouped': 2, 'depthwise': 8}


def build(name: str, **kwargs) -> GeneratedConv2d:
    """Build a member with every parameter and statistic away from its initial value, depthwise if it can be."""
    if 'groups' not in kwargs and 'groups' not in ARGUMENTS[name]:
        served = (build_or_refused(name, groups, **kwargs) for groups in reversed(GROUPS.values()))
        return next(layer for layer in served if layer is not None)
    layer = MODELS.get(name)(**{**ARGUMENTS[name], **kwargs})
    assert not layer.plain, 'the example must give the system something to generate'
    return shake(layer, by=0.2)


def build_or_refused(name: str, groups: int, **kwargs) -> GeneratedConv2d | None:
    """Return None where the system leaves the layer plain, or refuses the geometry with an error that names the law."""
    try:
        if MODELS.get(name)(**{**ARGUMENTS[name], 'groups': groups, **kwargs}).plain:
            return None
        return build(name, groups=groups, **kwargs)
    except ValueError as refusal:
        if name not in str(refusal):
            raise
        return None


def test_the_family_is_found():
    assert 'RefConv2d' in FAMILY


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_fold_equals_the_layer_wherever_it_says_that_it_serves(name, geometry):
    cls, served = MODELS.get(name), []
    for kind, groups in GROUPS.items():
        layer = build_or_refused(name, groups, **GEOMETRIES[geometry])
        if layer is None:
            continue
        served.append(kind)
        layer.eval()
        plain = layer.fold()
        assert type(plain) is nn.Conv2d
        assert set(plain.state_dict()) <= {'weight', 'bias'}
        for size in ((19, 17), (18, 18)):
            x = torch.randn(2, 8, *size)
            torch.testing.assert_close(plain(x), layer(x), rtol=1e-5, atol=1e-5)
    assert served == ([] if CHANGED.get(geometry) in cls.refuses else list(cls.serves))


@pytest.mark.parametrize('name', FAMILY)
def test_fold_in_bfloat16(name):
    layer = build(name, padding=1).eval().bfloat16()
    x = torch.randn(2, 8, 18, 18, dtype=torch.bfloat16)
    torch.testing.assert_close(layer.fold()(x), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('name', FAMILY)
def test_every_parameter_gets_a_gradient(name):
    layer = build(name, padding=1)
    layer(torch.randn(2, 8, 18, 18)).square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize('name', FAMILY)
def test_state_dict_round_trip_and_deepcopy(name):
    layer = build(name, padding=1).eval()
    x = torch.randn(1, 8, 18, 18)
    layer(x)  # fills the cache, which must not travel
    other = build(name, padding=1).eval()
    other(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    clone = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.mul_(2)
    assert not torch.allclose(clone(x), layer(x))


@pytest.mark.parametrize('name', [n for n in FAMILY if 'weight' in build(n).state_dict()])
def test_a_plain_conv_refuses_an_unfolded_checkpoint(name):
    """Even with strict=False, where nn.Conv2d would otherwise take a basis for a kernel."""
    layer = build(name, padding=1)
    plain = layer.fold()
    with pytest.raises(RuntimeError, match='size mismatch for weight'):
        plain.load_state_dict(layer.state_dict(), strict=False)


@pytest.mark.parametrize('name', FAMILY)
def test_cache_follows_every_change(name):
    layer = build(name, padding=1).eval()
    x = torch.randn(1, 8, 18, 18)

    def fresh():
        layer._cache = None
        return layer(x)

    with torch.no_grad():
        first = layer(x)
        # A layer that is cheaper in several steps than with its kernel (and stays so when deployed) need not generate it.
        assert layer._cache is not None or not layer.fold_in_deploy
        kernel = layer.kernel_and_bias()[0]
        assert layer.kernel_and_bias()[0] is kernel, 'a second call must not generate again'
        for parameter in layer.parameters():
            parameter.add_(0.5)
        changed = layer(x)
        assert not torch.allclose(first, changed)
        assert torch.equal(changed, fresh())
        layer.load_state_dict(build(name, padding=1).state_dict())
        assert torch.equal(layer(x), fresh())
        # What an EMA hook does: it writes through .data, which no version counter sees, then calls eval().
        for parameter in layer.parameters():
            parameter.data.mul_(0.5)
        layer.eval()
        assert torch.equal(layer(x), fresh())
        assert layer.double()(x.double()).dtype == torch.float64
    layer.float().requires_grad_(False)
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()  # what was cached under inference_mode serves outside of it
    assert x.grad is not None


def test_cache_is_not_taken_for_that_of_a_new_parameter_at_the_old_address():
    layer = MODELS.get('RefConv2d')(4, 4, 3).eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        for _ in range(50):
            layer(x)
            del layer.map_weight
            layer.map_weight = nn.Parameter(torch.randn(16, 1, 3, 3))
            assert torch.equal(layer(x), layer.fold()(x))


def test_a_host_cannot_compute_with_the_basis_in_place_of_the_kernel():
    module = ConvModule(
        4, 4, 3, conv_cfg=dict(type='mmext.RefConv2d'), norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True
    )
    x = torch.randn(1, 4, 5, 5)
    module.train()(x)
    with pytest.raises(RuntimeError, match=r'RefConv2d generates its kernel .* efficient_conv_bn_eval'):
        module.eval()(x)
    module.conv = module.conv.fold()
    module(x)


@pytest.mark.parametrize('name', FAMILY)
def test_an_unknown_argument_is_named_with_the_known_ones(name):
    with pytest.raises(TypeError, match=rf'{name} has no argument no_such; it takes those of nn.Conv2d'):
        MODELS.get(name)(**ARGUMENTS[name], no_such=1)


@pytest.mark.parametrize('name', FAMILY)
def test_gradients_reach_the_parameters_in_eval_mode_too(name):
    layer = build(name, padding=1).eval()
    with torch.no_grad():
        layer(torch.randn(1, 8, 18, 18))
    layer(torch.randn(1, 8, 18, 18)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize('name', FAMILY)
def test_kernel_is_generated_in_full_precision_under_autocast(name):
    layer = build(name, padding=1).eval()
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        assert layer.kernel_and_bias()[0].dtype == torch.float32
        assert layer(torch.randn(1, 8, 18, 18)).dtype == torch.bfloat16


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('training', [True, False])
def test_compiles_as_one_graph(name, training):
    torch.compiler.reset()  # all members share one forward, which torch compiles only so many times
    layer = build(name, padding=1).train(training)
    x = torch.randn(2, 8, 18, 18)
    expected = copy.deepcopy(layer)(x)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', FAMILY)
def test_traces_and_runs_on_the_meta_device(name):
    layer = build(name, padding=1).eval()
    x = torch.randn(2, 8, 18, 18)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(x), layer(x))
        shape = layer(x).shape
        assert layer.to('meta')(x.to('meta')).shape == shape


@pytest.mark.parametrize('name', FAMILY)
def test_goes_to_onnx_as_it_is_deployed(name, tmp_path):
    pytest.importorskip('onnxruntime')
    deployed = fold(build(name).eval())
    assert export_onnx(deployed, torch.randn(2, 8, 18, 18), tmp_path / 'layer.onnx') < 1e-4


@pytest.mark.parametrize('name', FAMILY)
def test_its_operations_are_counted_by_the_hosts_counter(name):
    layer = build(name).eval()
    count = get_model_complexity_info(layer, input_shape=(8, 18, 18), show_table=False, show_arch=False)['flops']
    plain = layer.fold()
    least = get_model_complexity_info(plain, input_shape=(8, 18, 18), show_table=False, show_arch=False)['flops']
    assert count >= (least if layer.fold_in_deploy else 1)


@pytest.mark.parametrize('name', FAMILY)
def test_trains_under_ddp(name, one_process):
    layer = build(name, padding=1)
    parallel = nn.parallel.DistributedDataParallel(
        copy.deepcopy(layer)
    )  # raises in the second step if a gradient is missing
    for _ in range(2):
        x = torch.randn(2, 8, 18, 18)
        layer.zero_grad()
        parallel.zero_grad()
        layer(x).square().mean().backward()
        parallel(x).square().mean().backward()
    for (key, ours), theirs in zip(layer.named_parameters(), parallel.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize('name', FAMILY)
def test_conv_module_takes_it(name):
    like = build(name)
    own = {k: v for k, v in ARGUMENTS[name].items() if k not in (*CONV, 'groups', 'stride')}
    conv_cfg, args = dict(type=f'mmext.{name}', **own), (8, 8, ARGUMENTS[name]['kernel_size'])
    padding = ARGUMENTS[name]['kernel_size'] // 2
    module = ConvModule(
        *args, stride=like.stride, padding=padding, groups=like.groups, conv_cfg=conv_cfg, norm_cfg=dict(type='BN')
    )
    assert type(module.conv) is MODELS.get(name)
    out = module(torch.randn(2, 8, 18, 18))
    assert out.shape[:2] == (2, 8)
    assert (18 // out.shape[2]) == like.stride[0]
    built = build_conv_layer(conv_cfg, *args, stride=like.stride, groups=like.groups)
    assert built.kernel_and_bias()[1] is not None


@pytest.mark.parametrize('name', FAMILY)
def test_repr_shows_the_arguments_of_conv2d(name):
    assert '8, 8, kernel_size=(' in repr(build(name))


@pytest.mark.parametrize('name', [n for n in FAMILY if build(n).loads_kernel])
def test_a_plain_checkpoint_is_the_start(name):
    """Layers that can start from a given kernel do, with a checkpoint that knows nothing of them."""
    layer = build(name)
    fresh = MODELS.get(name)(**{**ARGUMENTS[name], 'groups': layer.groups}).eval()
    kernel = torch.randn(8, 8 // layer.groups, *layer.kernel_size)
    host = nn.Sequential(fresh)
    host.load_state_dict({'0.weight': kernel, '0.bias': torch.arange(8.0)})
    if fresh.loads_kernel_exactly:
        torch.testing.assert_close(fresh.fold().weight, kernel, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.fold().bias, torch.arange(8.0))
    before = fresh.fold().weight
    host.load_state_dict(host.state_dict())
    assert torch.equal(fresh.fold().weight, before)


NOT_TAKEN = {n for n in FAMILY if not build(n).loads_kernel and not build(n).keeps_weight}
STRETCHES = sorted({n for n in FAMILY if MODELS.get(n).stretches} - NOT_TAKEN)
# Its smaller self is the same, which is not the plain kernel.
BLURS = {'GaussianConv2d'}


def enlarged(name: str) -> tuple[GeneratedConv2d, nn.Conv2d]:
    """Return a fresh layer of a larger kernel, and a plain one of the size that it replaces."""
    arguments = {**ARGUMENTS[name], 'groups': build(name).groups, 'bias': False, 'stride': 1}
    size = arguments['kernel_size'] + (0 if name in ('DEConv2d', 'DilatedReparamConv2d') else 2)
    old = dict(kernel_size=size - 2, padding=size // 2 - 1)
    layer = MODELS.get(name)(**{**arguments, 'kernel_size': size, 'padding': size // 2})
    return layer, nn.Conv2d(8, 8, **old, groups=arguments['groups'], bias=False)


@pytest.mark.parametrize('name', sorted({*STRETCHES} - {'SPDConv2d'}))
def test_an_enlarged_layer_starts_from_the_smaller_kernel(name):
    layer, plain = enlarged(name)
    before = layer.fold().weight
    nn.Sequential(layer).load_state_dict(nn.Sequential(plain).state_dict(), strict=False)
    layer.eval()
    assert not torch.equal(layer.fold().weight, before)
    if name in BLURS:
        small = MODELS.get(name)(8, 8, plain.kernel_size, padding=plain.padding, groups=plain.groups, bias=False)
        small.load_state_dict(plain.state_dict(), strict=False)
        plain = small.eval()
    x = torch.randn(2, 8, 18, 18)
    ours, theirs = layer(x), plain(x)
    if MODELS.get(name).loads_kernel_exactly:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.1


def test_signs_have_no_zero_for_a_larger_kernel():
    layer, plain = enlarged('BinaryWeightConv2d')
    before = layer.weight.clone()
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r'0\.BinaryWeightConv2d cannot start from a kernel of \(3, 3\), because zeros'
        ):
            nn.Sequential(layer).load_state_dict(nn.Sequential(plain).state_dict(), strict=strict)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize('name', sorted(NOT_TAKEN))
def test_a_plain_checkpoint_passes_by_a_layer_that_cannot_start_from_it(name):
    """Nothing of it has a name that the layer knows: neither its kernel nor its bias."""
    for layer, plain in (enlarged(name), (build(name), build(name).fold())):
        missed = layer.load_state_dict(plain.state_dict(), strict=False)
        assert {'weight'} <= {*missed.unexpected_keys} <= {'weight', 'bias'}


@pytest.mark.parametrize('name', FAMILY)
def test_trains_under_autocast_and_keeps_finite_gradients(name):
    layer = build(name)
    with torch.autocast('cpu', torch.bfloat16):
        layer(torch.randn(2, 8, 18, 18)).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('name', FAMILY)
def test_a_pointwise_layer_is_possible(name):
    """A whole network can be given one conv_cfg, its 1x1 layers included: the system serves them or leaves them plain."""
    layer = MODELS.get(name)(8, 16, 1, bias=False)
    assert layer(torch.randn(1, 8, 5, 5)).shape == (1, 16, 5, 5)
    if layer.plain:
        assert type(layer.fold()) is nn.Conv2d
        assert dict(layer.named_parameters()).keys() == {'weight'}


HOSTS = {
    'resnet-conv_cfg': lambda kind: dict(type='mmdet.ResNet', depth=50, conv_cfg=kind),
    'resnet-dcn': lambda kind: dict(
        type='mmdet.ResNet', depth=50, dcn=dict(kind), stage_with_dcn=(False, True, True, True)
    ),
    'mmpretrain-resnet': lambda kind: dict(type='mmpretrain.ResNet', depth=18, conv_cfg=kind),
    'fpn': lambda kind: dict(type='mmdet.FPN', in_channels=[8, 8, 8], out_channels=8, num_outs=3, conv_cfg=kind),
    'cspnext': lambda kind: dict(
        type='mmdet.CSPNeXt', deepen_factor=0.33, widen_factor=0.125, use_depthwise=True, conv_cfg=kind
    ),
}


@pytest.mark.parametrize('host', HOSTS)
def test_special_initialization_survives_the_host(host, monkeypatch):
    """Every layer of a marked class keeps its mark, although each host runs its own initializers over it."""

    class Marked(GeneratedConv2d):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.init_weights()

        def init_weights(self):
            nn.init.constant_(self.weight, 0.125)

        def generate_kernel(self):
            return self.weight

    monkeypatch.setitem(MODELS.module_dict, 'Marked', Marked)
    model = ROOT_MODELS.build(HOSTS[host](dict(type='mmext.Marked')))
    model.init_weights()
    marked = [m for m in model.modules() if isinstance(m, Marked)]
    assert len(marked) >= 4
    assert all((m.weight == 0.125).all() for m in marked)


# Where a layer of each kind stands in a stock detector: dense 3 x 3 ones in ResNet, depthwise ones in CSPNeXt.
DENSE = dict(type='ResNet', depth=18, base_channels=8, norm_eval=False), [8, 16, 32, 64]
SEPARABLE = (
    dict(type='CSPNeXt', deepen_factor=0.33, widen_factor=0.125, use_depthwise=True, out_indices=(1, 2, 3, 4)),
    [16, 32, 64, 128],
)


def detector_after_a_step(name):
    """Return a stock detector with such layers, which has learned for a step, these layers, and what finds its boxes."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    own = {k: v for k, v in ARGUMENTS[name].items() if k not in CONV}
    to = dict(type=f'mmext.{name}', **own)
    to.pop('stride', None)
    to.pop('groups', None)
    kernel = ARGUMENTS[name]['kernel_size']
    only_depthwise = 'groups' in ARGUMENTS[name]
    large = only_depthwise or kernel > 3
    if large:
        to.update(kernel_size=kernel, padding=kernel // 2)
    backbone, channels = SEPARABLE if large else DENSE
    rule = dict(depthwise=True, stride=1, to=to) if large else dict(kernel_size=3, to=to)
    init_default_scope('mmdet')
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    cfg.backbone = dict(backbone, type='mmext.swap_layers', model=backbone['type'], rules=[rule])
    cfg.neck = dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5)
    cfg.bbox_head.update(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
    cfg.test_cfg.score_thr = 0.0
    model = ROOT_MODELS.build(cfg)
    model.init_weights()
    layers = [m for m in model.modules() if isinstance(m, MODELS.get(name))]
    assert any(not getattr(m, 'plain', False) for m in layers)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one step is all the statistics get
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([1]))
    images = torch.rand(2, 3, 64, 64)
    losses = model(images, [sample, copy.deepcopy(sample)], mode='loss')
    loss = sum(sum(v) if isinstance(v, list) else v for v in losses.values())
    loss.backward()
    for layer in layers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)
    optimizer.step()

    def boxes(model):
        with torch.no_grad():
            return [
                p.pred_instances.bboxes for p in model(images, [copy.deepcopy(sample) for _ in images], mode='predict')
            ]

    return model.eval(), layers, boxes, images


SWAPPED = [*FAMILY, 'PartialConv2d', 'XNORConv2d']
STUCK = [n for n in SWAPPED if getattr(MODELS.get(n)(**ARGUMENTS[n]), 'cannot_fold', None)]


@pytest.mark.parametrize('name', [n for n in SWAPPED if n not in STUCK])
def test_a_stock_detector_trains_one_step_folds_and_finds_the_same_boxes(name):
    model, _, boxes, images = detector_after_a_step(name)
    before = boxes(model)
    assert all(len(b) for b in before)
    with torch.no_grad():
        maps = [y for kind in model(images, mode='tensor') for y in kind]
        fold(model)
        for y, folded in zip(maps, (y for kind in model(images, mode='tensor') for y in kind), strict=True):
            assert (folded - y).abs().max() <= 1e-3 * y.abs().max()
    assert not [m for m in model.modules() if isinstance(m, GeneratedConv2d) and m.fold_in_deploy]
    for a, b in zip(before, boxes(model), strict=True):
        # A fresh head scores all boxes nearly alike: rounding may decide about the order, and about one at the limit.
        assert a.shape == b.shape
        found = torch.cdist(b.double(), a.double(), p=torch.inf).amin(1)
        assert (found <= 1e-2).double().mean() >= 0.95


@pytest.mark.parametrize('name', STUCK)
def test_a_stock_detector_trains_one_step_and_says_which_layers_have_no_plain_form(name):
    model, layers, boxes, _ = detector_after_a_step(name)
    assert all(len(b) for b in boxes(model))
    with pytest.raises(RuntimeError, match=f'{len(layers)} layers have no plain form.*{name}'):
        fold(model)
