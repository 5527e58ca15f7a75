"""The auxiliary classifier: its loss, its weight, and that it leaves the predictions alone."""

import pytest
import torch
from mmengine.registry import init_default_scope

from mmext.deploy import deploy
from mmext.folding import fold
from mmext.heads.auxiliary_cls_head import AuxiliaryClsHead
from mmext.hosts import build_model

pytest.importorskip('mmpretrain')


def build(**kwargs):
    return AuxiliaryClsHead(**AuxiliaryClsHead.example, **kwargs)


def samples(batch=5):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(i % 3) for i in range(batch)]


@pytest.mark.parametrize(('weight', 'from_index'), [(0.4, 0), (0.0, 0), (2.0, -2)])
def test_the_loss_of_the_inner_map_is_added_with_its_weight(weight, from_index):
    head = build(weight=weight, from_index=from_index)
    feats, data = (torch.randn(5, 4), torch.randn(5, 8)), samples()
    losses = head.loss(feats, data)
    assert set(losses) == {'loss', 'loss_auxiliary'}
    torch.testing.assert_close(losses['loss'], head.head.loss(feats[1:], data)['loss'])
    torch.testing.assert_close(losses['loss_auxiliary'], weight * head.auxiliary.loss(feats[:1], data)['loss'])


def test_predictions_are_those_of_the_last_map():
    head = build()
    feats = (torch.randn(5, 4), torch.randn(5, 8))
    changed = (torch.randn(5, 4), feats[1])
    assert torch.equal(head(feats), head(changed))
    assert torch.equal(head(feats), head.head(feats[1:]))
    scores = [torch.stack([s.pred_score for s in head.predict(f)]) for f in (feats, changed[1:])]
    assert torch.equal(*scores)
    assert torch.equal(fold(head)(feats), head(feats))
    assert [name for name, _ in fold(head).named_parameters()] == ['fc.weight', 'fc.bias']


def test_a_classifier_deploys_without_it():
    linear = dict(type='mmpretrain.LinearClsHead', num_classes=3)
    head = dict(type='mmext.AuxiliaryClsHead', head=dict(linear, in_channels=16), auxiliary=dict(linear, in_channels=8))
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(1, 2)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head,
    )
    init_default_scope('mmpretrain')
    _, folded, written, error = deploy(cfg, build_model(cfg).state_dict(), (32, 32))
    assert written['head'] == head['head']
    assert not hasattr(folded.head, 'auxiliary')
    assert error <= 1e-5


@pytest.mark.parametrize(('number', 'from_index'), [(1, 0), (2, 1), (2, 5), (2, -3), (2, -1)])
def test_a_map_that_is_not_there_is_named(number, from_index):
    feats = tuple(torch.randn(5, 8) for _ in range(number))
    with pytest.raises(ValueError, match=f'reads map {from_index} beside the last one, and {number} came'):
        build(from_index=from_index).loss(feats, samples())
