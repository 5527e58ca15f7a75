"""Every operator in stock networks, by a rule and in the slot of deformable convolutions, and what it holds."""

import pytest
import torch
from conv_layers import OPERATORS, image, own_arguments, shaken
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmext.analysis.samples import batch_for
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
