"""Interflow: the fused prediction against its equation, its fold, and stock classifiers that train with it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope

from mmext.heads.interflow import InterflowHead, PyramidLinearHead

WIDTHS = (3, 5, 6)
CONFIG = Path(__file__).parents[1] / 'configs/interflow/cls/vgg16bn_interflow_8xb16_cifar10.py'


def stages(batch=2, dtype=torch.float64):
    sizes = ((9, 7), (5, 4), (2, 3))
    return tuple(torch.randn(batch, c, *s, dtype=dtype) for c, s in zip(WIDTHS, sizes, strict=True))


def build(**kwargs):
    """A head for ``stages`` and 4 classes, in float64."""
    return InterflowHead(WIDTHS, 4, **kwargs).double()


def samples(batch=2):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(i % 4) for i in range(batch)]


@pytest.mark.parametrize('pool_size', [1, 2])
@pytest.mark.parametrize('bias', [False, True])
def test_soft_attention_is_the_weighted_sum_and_the_1_by_n_convolution(pool_size, bias):
    head = build(pool_size=pool_size, bias=bias, init='default')
    if bias:
        torch.nn.init.constant_(head.bias, 0.7)
    feats = stages()
    pooled = [F.adaptive_avg_pool2d(f, pool_size).flatten(1) for f in feats]
    logits = [fc(x) for fc, x in zip(head.fcs, pooled, strict=True)]
    c = 0.7 if bias else 0
    torch.testing.assert_close(head(feats), sum(w * y for w, y in zip(head.weight, logits, strict=True)) + c)
    conv = F.conv2d(torch.stack(logits, -1).unsqueeze(1), head.weight.view(1, 1, 1, 3), head.bias)
    torch.testing.assert_close(head(feats), conv.flatten(1))
    attention = set(head.parameters()) - set(head.fcs.parameters())
    assert sum(p.numel() for p in attention) == 3 + bias


def test_hard_attention_on_the_last_stage_is_the_plain_network():
    feats = stages()
    for head in (
        build(attention='hard', hard_weights=(0, 0, 1)),
        build(attention='hard', init='last'),
        build(init='last'),
    ):
        assert torch.equal(head(feats), head.fcs[-1](feats[-1].mean((2, 3), keepdim=True).flatten(1)))


def test_hard_weights_are_saved_and_not_trained():
    head = build(attention='hard', hard_weights=(0.2, 0.3, 0.5))
    assert 'weight' not in dict(head.named_parameters())
    other = build(attention='hard')
    torch.testing.assert_close(other.weight, torch.full((3,), 1 / 3, dtype=torch.float64))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)


def test_mean_init_is_the_average_of_the_branches():
    head, feats = build(), stages()
    torch.testing.assert_close(head(feats), torch.stack(head.branch_logits(feats)).mean(0))


def test_softmax_weights_are_positive_and_sum_to_one():
    head = build(normalize='softmax', init='default')
    assert (head.branch_weights > 0).all()
    torch.testing.assert_close(head.branch_weights.sum().item(), 1.0)
    torch.testing.assert_close(build(normalize='softmax').branch_weights, build().branch_weights)


def test_gradients_reach_every_stage_and_equal_the_inner_products():
    head = build(init='default')
    feats = tuple(f.requires_grad_() for f in stages())
    fused = head(feats)
    fused.retain_grad()
    head.cls_head.loss((fused,), samples())['loss'].backward()
    assert all(f.grad.any() for f in feats)
    assert all(p.grad.any() for p in head.parameters())
    want = torch.stack([(fused.grad * y).sum() for y in head.branch_logits(feats)])
    torch.testing.assert_close(head.weight.grad, want)


def test_permuting_the_branches_changes_nothing():
    head, feats, order = build(init='default'), stages(), [2, 0, 1]
    other = InterflowHead([WIDTHS[i] for i in order], 4).double()
    with torch.no_grad():
        other.weight.copy_(head.weight[order])
    for new, old in zip(other.fcs, order, strict=True):
        new.load_state_dict(head.fcs[old].state_dict())
    torch.testing.assert_close(other([feats[i] for i in order]), head(feats))


@pytest.mark.parametrize('pool_size', [1, 2])
@pytest.mark.parametrize(
    'kwargs', [{}, {'bias': True}, {'normalize': 'softmax'}, {'attention': 'hard', 'hard_weights': (1, 0, 2)}]
)
def test_the_folded_head_computes_and_predicts_the_same(pool_size, kwargs):
    head = build(pool_size=pool_size, **kwargs).eval()
    with torch.no_grad():
        for p in head.parameters():
            p.normal_()
    folded, feats = head.fold(), stages()
    assert isinstance(folded, PyramidLinearHead)
    assert sum(p.numel() for p in folded.parameters()) == 4 * sum(WIDTHS) * pool_size**2 + 4
    torch.testing.assert_close(folded(feats), head(feats))
    torch.testing.assert_close(folded.fc(head.pre_logits(feats)), head(feats))
    for got, want in zip(folded.predict(feats, samples()), head.predict(feats), strict=True):
        assert got.pred_label == want.pred_label
        assert got.gt_label is not None
    torch.testing.assert_close(folded.loss(feats, samples())['loss'], head.loss(feats, samples())['loss'])


def test_pooled_vectors_pass_through():
    head, feats = build(), stages()
    torch.testing.assert_close(head([f.mean((2, 3)) for f in feats]), head(feats))


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (31, 17)])
def test_any_map_size_works(size):
    assert build(pool_size=3)([torch.randn(1, c, *size).double() for c in WIDTHS]).shape == (1, 4)


def test_the_loss_is_on_the_fused_prediction_unless_branches_are_asked_for():
    head, feats = build(init='default'), stages()
    fused = F.cross_entropy(head(feats), torch.tensor([0, 1]))
    losses = head.loss(feats, samples())
    torch.testing.assert_close(losses['loss'], fused)
    assert [k for k in losses if 'loss' in k] == ['loss']
    head.aux_loss_weight = 0.3
    losses = head.loss(feats, samples())
    torch.testing.assert_close(losses['loss'], fused)
    for i, y in enumerate(head.branch_logits(feats)):
        torch.testing.assert_close(losses[f'loss_branch{i}'], 0.3 * F.cross_entropy(y, torch.tensor([0, 1])))


def test_training_accuracy_and_batch_augmentation_are_the_hosts():
    from mmpretrain.structures import DataSample

    feats = stages()
    assert 'accuracy_top-1' in build(cal_acc=True).loss(feats, samples())
    soft = [DataSample().set_gt_score(torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64)) for _ in range(2)]
    loss = {'type': 'mmpretrain.LabelSmoothLoss', 'label_smooth_val': 0.1, 'num_classes': 4}
    assert torch.isfinite(build(loss=loss).loss(feats, soft)['loss'])


def test_the_default_loss_is_mmpretrains_in_any_scope():
    init_default_scope('mmdet')
    assert type(build().cls_head.loss_module).__module__.startswith('mmpretrain.')


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_a_stock_classifier_trains_and_logs_the_weights(scope):
    cfg = Config({'model': get_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py').model})
    head = {'type': 'mmext.InterflowHead', 'in_channels': (64, 128, 256, 512), 'aux_loss_weight': 0.1}
    cfg.merge_from_dict({'model': {'backbone': {'out_indices': (0, 1, 2, 3)}, 'head': head}})
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    init_default_scope(scope)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    logged = model.train_step({'inputs': list(torch.rand(4, 3, 32, 32)), 'data_samples': samples(4)}, wrapper)
    # The logged weights are those of this step's forward, and are no part of the loss.
    assert [logged[f'interflow_w{i}'].item() for i in range(4)] == [0.25] * 4
    parts = [logged[f'loss_branch{i}'].item() for i in range(4)]
    assert not any(w.requires_grad for k, w in logged.items() if k.startswith('interflow'))
    assert logged['loss'].item() > sum(parts) > 0
    assert (model.head.weight != 0.25).all()
    assert model.extract_feat(torch.rand(2, 3, 32, 32), stage='pre_logits').shape == (2, 960)

    model.eval()
    inputs = {'inputs': torch.rand(3, 3, 32, 32)}
    want = [r.pred_score for r in model.predict(**inputs)]
    model.head = model.head.fold()
    for got, score in zip(model.predict(**inputs), want, strict=True):
        torch.testing.assert_close(got.pred_score, score)


@pytest.mark.parametrize(('num_classes', 'count'), [(10, 14_737_260), (100, 14_864_340)])
def test_the_shipped_config_builds_the_vgg(num_classes, count):
    cfg = Config.fromfile(CONFIG)
    cfg.model.head.num_classes = num_classes
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'attention': 'firm'}, "attention 'soft' or 'hard' .*, got attention='firm'"),
        ({'normalize': 'l1'}, "normalize None or 'softmax', got .*normalize='l1'"),
        ({'attention': 'hard', 'bias': True}, 'hard attention learns nothing'),
        ({'attention': 'hard', 'normalize': 'softmax'}, 'hard attention learns nothing'),
        ({'attention': 'hard', 'hard_weights': (1, 2)}, r'one number per stage, got .*\(1, 2\) for 3 stages'),
        ({'hard_weights': (1, 2, 3)}, "hard_weights need attention='hard'"),
        ({'normalize': 'softmax', 'init': 'last'}, 'out of reach of a softmax'),
        ({'init': 'first'}, "init 'mean', 'last' or 'default', got init='first'"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_wrong_maps_are_refused():
    feats = stages()
    for wrong in (feats[1:], (*feats, feats[0]), feats[::-1]):
        with pytest.raises(
            ValueError, match=r"in_channels=\(3, 5, 6\) channels, got shapes .*the backbone's out_indices"
        ):
            build()(wrong)
    with pytest.raises(ValueError, match='one map per stage'):
        build(pool_size=2)([f.mean((2, 3)) for f in feats])


def test_a_missing_host_is_named(monkeypatch):
    monkeypatch.setattr('mmext.hosts.find_spec', lambda name: None if name == 'mmpretrain' else find_spec(name))
    with pytest.raises(
        ImportError, match=r'InterflowHead builds mmpretrain\.ClsHead, but the package mmpretrain is not'
    ):
        build()
