"""Every operator in stock networks, by a rule and in the slot of deformable convolutions, and what it holds."""

import pytest
import torch
from conv_layers import OPERATORS, image, own_arguments, shaken
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmext.analysis.samples import batch_for, fewest_classes
from mmext.registry import MODELS

#: Those that take a map of any size, as the stages of a network have them.
ANYWHERE = [n for n in OPERATORS if 'other sizes' not in MODELS.get(n).refuses]
STRIDED = [n for n in ANYWHERE if MODELS.get(n).border != 'shift' and 'strides' not in MODELS.get(n).refuses]


@pytest.mark.parametrize('name', ANYWHERE)
def test_a_classifier_trains_with_it_under_mixed_precision(name):
    init_default_scope('mmpretrain')
    rule = dict(match='conv2', to=dict(type=f'mmext.{name}', **own_arguments(name)))
    backbone = dict(type='mmext.swap_layers', model='ResNet', depth=18, stem_channels=8, base_channels=8, rules=[rule])
    head = dict(type='LinearClsHead', num_classes=10, in_channels=64)
    neck = dict(type='GlobalAveragePooling')
    model = ROOT_MODELS.build(
        dict(type='ImageClassifier', backbone=dict(backbone, zero_init_residual=False), neck=neck, head=head)
    )
    model.init_weights()
    layers = [m for m in model.modules() if type(m) is MODELS.get(name)]
    assert len(layers) == 8
    batch = model.data_preprocessor(batch_for('mmpretrain', size=64), True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**batch, mode='loss')
    losses['loss'].backward()
    assert losses['loss'].isfinite()
    for layer in layers:
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize('name', STRIDED)
def test_the_slot_of_deformable_convolutions_takes_it(name):
    init_default_scope('mmdet')
    dcn = dict(type=f'mmext.{name}', fallback_on_stride=False, **own_arguments(name))
    net = ROOT_MODELS.build(
        dict(
            type='ResNet',
            depth=50,
            base_channels=8,
            stem_channels=8,
            dcn=dcn,
            stage_with_dcn=(False, True, False, False),
            norm_eval=False,
        )
    )
    net.init_weights()
    assert sum(type(m) is MODELS.get(name) for m in net.modules()) == 4
    outs = net(torch.randn(2, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [32, 64, 128, 256]
    sum(out.square().mean() for out in outs).backward()


#: What makes small models of the hosts' own configs, with an operator in nearly every block of a ResNet-34.
#: The norm behind it must not start at zero, or nothing learns in the first step.
SMALL = (
    'depth=34, stem_channels=8, base_channels=8, rules=rules, init_cfg=None, frozen_stages=-1, zero_init_residual=False'
)
STOCK = {
    'ImageClassifier': f"""
_base_ = 'mmpretrain::resnet/resnet34_8xb32_in1k.py'
model = dict(
    backbone=dict(type='mmext.swap_layers', model='ResNet', {SMALL}),
    head=dict(in_channels=64),
)
""",
    'RetinaNet': f"""
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(type='mmext.swap_layers', model='ResNet', {SMALL}),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
""",
    'FasterRCNN': f"""
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(type='mmext.swap_layers', model='ResNet', {SMALL}),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=16)),
)
""",
    'EncoderDecoder': f"""
_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(type='mmext.swap_layers', model='ResNetV1c', {SMALL}),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
    auxiliary_head=dict(in_channels=32, channels=8),
)
""",
}
BLOCKS = [f'layer{stage}.{i}.conv2' for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
#: The one of a single size stands where images of 64 x 64 have maps of 16 x 16.
ORDER = sorted(OPERATORS, key=lambda name: 'other sizes' not in MODELS.get(name).refuses)
SIZES = {'TokenMixing2d': dict(size=(16, 16))}


def stock_model(host, folder):
    """Return a stock model with every operator in it, a training batch, and the operators by their names."""
    own = {n: dict(type=f'mmext.{n}', **{**own_arguments(n), **SIZES.get(n, {})}) for n in ORDER}
    rules = [dict(match=f'^{block}$', to=own[name]) for block, name in zip(BLOCKS, ORDER, strict=False)]
    (folder / 'config.py').write_text(f'rules = {rules}\n{STOCK[host]}')
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = revert_sync_batchnorm(ROOT_MODELS.build(cfg.model))
    assert type(model).__name__ == host
    model.init_weights()
    model.train()
    layers = {name: next(m for m in model.modules() if type(m) is MODELS.get(name)) for name in OPERATORS}
    return model, batch_for(cfg.default_scope, classes=fewest_classes(cfg.model.to_dict())), layers


def step_reaches(layers, take):
    """Take a step; every parameter of every operator must get a finite gradient, and every operator one that is not zero."""
    seen, learning = {}, set()

    def note(name, key, grad):
        seen[key] = bool(grad.isfinite().all())
        if grad.any():
            learning.add(name)

    parameters = [(n, f'{n}.{k}', p) for n, layer in layers.items() for k, p in layer.named_parameters()]
    hooks = [p.register_post_accumulate_grad_hook(lambda p, n=n, k=k: note(n, k, p.grad)) for n, k, p in parameters]
    assert torch.as_tensor(take()['loss']).isfinite()
    assert seen == {key: True for _, key, _ in parameters}
    assert learning == set(layers)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize('host', STOCK)
def test_a_stock_model_takes_a_step_with_each_operator_in_mixed_precision_and_in_parallel(host, tmp_path, one_process):
    model, batch, layers = stock_model(host, tmp_path)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    parallel = MMDistributedDataParallel(model)  # raises in the second step if a gradient is missing
    half = torch.autocast('cpu', dtype=torch.bfloat16)
    if host == 'FasterRCNN':  # on a CPU, mmcv's NMS knows no bfloat16, so its maps are as precise as without
        inner = half(model.backbone.forward)
        model.backbone.forward = lambda x: tuple(y.float() for y in inner(x))
        half = torch.autocast('cpu', enabled=False)
    for _ in range(2):
        with half:
            step_reaches(layers, lambda: parallel.train_step(batch, wrapper))


@pytest.mark.slow
def test_a_stock_classifier_takes_a_step_with_each_operator_when_it_is_compiled(tmp_path):
    model, batch, layers = stock_model('ImageClassifier', tmp_path)
    torch.compiler.reset()
    graphs = []
    model.backbone.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    step_reaches(layers, lambda: model.train_step(batch, wrapper))
    assert graphs


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.untyped_storage().nbytes() // t.element_size() for t in tensors(out))])
        return out


def tensors(values):
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize('name', OPERATORS)
def test_no_tensor_of_patches_is_made(name):
    layer, x = shaken(name, kernel_size=7, padding=3), image(batch=2).requires_grad_()
    with Largest() as mode:
        layer(x).square().mean().backward()
    patches = 49 * x.numel()
    assert mode.numbers < patches, f'{mode.numbers} numbers in one tensor, the patches are {patches}'
