"""Distillation: the terms, what the teacher is kept out of, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

from mmext.contracts import example_of
from mmext.folding import fold
from mmext.heads.distillation import distilled_classifier
from mmext.hosts import build_model


def classifier(**args):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    return build_model(dict(type='mmext.DistilledClassifier', **{**example_of(distilled_classifier), **args})).train()


def samples(labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


def batch():
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32), samples([2, 0])


@pytest.mark.parametrize(('mode', 'share', 'heat'), [('hard', 0.5, 1.0), ('hard', 0.2, 3.0), ('soft', 0.7, 2.0)])
def test_the_terms_are_those_of_the_equation(mode, share, heat):
    model, (images, labels) = classifier(mode=mode, share=share, temperature=heat), batch()
    losses = model.loss(images, labels)
    model.eval()  # the same statistics are not needed: the teacher alone is asked again
    taught = model.teacher.scores(images)
    model.train()
    x = model.extract_feat(images)[-1]
    first, second = model.head.head(x), model.head.head_dist(x)
    torch.testing.assert_close(losses['loss_cls'], (1 - share) * F.cross_entropy(first, torch.tensor([2, 0])))
    if mode == 'hard':
        term = F.cross_entropy(second, taught.argmax(1))
    else:
        p, q = ((t / heat).softmax(1) for t in (taught, second))
        term = heat**2 * (p * (p.log() - q.log())).sum() / second.numel()
    torch.testing.assert_close(losses['loss_distill'], share * term)


def test_share_0_learns_as_the_plain_classifier():
    model, (images, labels) = classifier(share=0.0), batch()
    model.loss(images, labels)['loss_distill'].backward(retain_graph=True)
    assert not model.head.head_dist.linear.weight.grad.any()
    x = model.extract_feat(images)[-1]
    want = F.cross_entropy(model.head.head(x), torch.tensor([2, 0]))
    assert torch.equal(model.loss(images, labels)['loss_cls'], want)


def test_the_teacher_is_no_part_of_the_model():
    model, (images, labels) = classifier(), batch()
    torch.manual_seed(5)
    before, state = set(model.state_dict()), torch.get_rng_state()
    model.loss(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(model.state_dict()) == before
    assert not any('teacher' in name for name, _ in model.named_modules())
    assert model.teacher.net is not None
    assert not model.teacher.net.training
    assert copy.deepcopy(model).teacher.net is None


def test_prediction_averages_and_needs_no_teacher():
    model, (images, _) = classifier(), batch()
    model.eval()
    x = model.extract_feat(images)[-1]
    torch.testing.assert_close(model(images, mode='tensor'), (model.head.head(x) + model.head.head_dist(x)) / 2)
    assert model.teacher.net is None
    alone = fold(model)
    assert type(alone).__name__ == 'ImageClassifier'
    torch.testing.assert_close(alone(images, mode='tensor'), model(images, mode='tensor'))


def test_a_vision_transformer_with_two_tokens_learns_too():
    backbone = dict(type='DistilledVisionTransformer', arch='deit-tiny', img_size=32, patch_size=16)
    head = dict(type='DeiTClsHead', num_classes=3, in_channels=192, loss=dict(type='CrossEntropyLoss'))
    losses = classifier(backbone=backbone, neck=None, head=head).loss(*batch())
    assert set(losses) == {'loss_cls', 'loss_distill'}
    assert all(loss.isfinite() for loss in losses.values())


def test_refuses_what_does_not_fit():
    head = dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=16)
    with pytest.raises(ValueError, match='second classifier'):
        classifier(head=head)
    teacher = copy.deepcopy(example_of(distilled_classifier)['teacher'])
    teacher['head']['num_classes'] = 4
    with pytest.raises(ValueError, match='same classes'):
        classifier(teacher=teacher).loss(*batch())


@pytest.mark.parametrize(('arch', 'channels', 'count'), [('T', 384, 11795600), ('S', 448, 16596200)])
def test_lsnet_has_the_authors_parameters(arch, channels, count):
    """As their logs of training with distillation say."""
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        backbone = MODELS.build(dict(type='mmext.LSNet', arch=arch, out_indices=(3,)))
        head = MODELS.build(dict(type='LeViTClsHead', num_classes=1000, in_channels=channels, distillation=True))
    assert sum(p.numel() for part in (backbone, head) for p in part.parameters()) == count
