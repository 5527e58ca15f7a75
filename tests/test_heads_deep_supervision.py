"""Companions: what they add to the losses of stock heads and detectors, and how their weights fade."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmext.analysis.samples import batch_for, take_step
from mmext.contracts import example_of
from mmext.deploy import deploy
from mmext.folding import fold
from mmext.heads.deep_supervision import ClsCompanion, DenseCompanion, OneVsRestHingeLoss, deep_supervision_detector
from mmext.hooks.companion_weight import CompanionWeightHook
from mmext.hosts import build_model

STEP = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-5))
COMPANIONS = [dict(in_index=0, in_channels=8), dict(in_index=1, in_channels=16, weight=0.5)]


def samples(labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


def head(companions=COMPANIONS, **args):
    init_default_scope('mmpretrain')
    cfg = dict(type='mmext.DeepSupervisionClsHead', head='LinearClsHead', in_channels=24, num_classes=3)
    torch.manual_seed(0)
    return MODELS.build(dict(cfg, companions=companions, **args))


def maps():
    torch.manual_seed(1)
    return [torch.randn(2, c, s, s, requires_grad=True) for c, s in ((8, 6), (16, 3))] + [torch.randn(2, 24)]


def test_the_terms_are_those_of_the_equation():
    built, feats = head(), maps()
    assert type(built).__name__ == 'LinearClsHead'
    losses = built.loss(feats, samples([2, 0]))
    y = torch.tensor([2, 0])
    torch.testing.assert_close(losses['loss'], torch.nn.functional.cross_entropy(built.fc(feats[2]), y))
    for i, weight in enumerate((0.3, 0.5)):
        scores = built.companions[i].head.fc(feats[i].mean((2, 3)))
        torch.testing.assert_close(losses[f'loss_companion{i}'], weight * torch.nn.functional.cross_entropy(scores, y))


def test_weight_0_is_the_plain_head_and_below_gamma_nothing_is_added():
    plain = MODELS.build(dict(type='mmpretrain.LinearClsHead', in_channels=24, num_classes=3))
    for extra in (dict(weight=0.0), dict(gamma=100.0)):
        built, feats = head([{**companion, **extra} for companion in COMPANIONS]), maps()
        assert not built.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        losses, want = built.loss(feats, samples([1, 1])), plain.loss(feats, samples([1, 1]))
        assert losses['loss_companion0'] == losses['loss_companion1'] == 0
        assert losses['loss'] == want['loss']
        total = sum(losses.values())
        grads = torch.autograd.grad(total, [built.fc.weight, *feats[:2]], allow_unused=True)
        assert torch.equal(grads[0], torch.autograd.grad(want['loss'], plain.fc.weight)[0])
        assert not grads[1].any()


def test_prediction_and_the_exported_graph_know_no_companion():
    built, feats = head(), maps()
    with torch.no_grad():
        for companion in built.companions:
            companion.head.fc.weight.fill_(torch.nan)
        assert built(feats).isfinite().all()
        assert built.predict(feats, samples([0, 1]))[0].pred_score.isfinite().all()


def test_the_paper_s_loss_is_the_squared_hinge_of_margins():
    scores, labels = torch.randn(4, 5).double(), torch.tensor([0, 4, 2, 2])
    want = sum(
        max(0.0, 1 - float(s[y] - s[k])) ** 2 for s, y in zip(scores, labels, strict=True) for k in range(5) if k != y
    )
    torch.testing.assert_close(
        OneVsRestHingeLoss(2.0)(scores, labels), torch.tensor(want / 2).double(), rtol=1e-6, atol=0
    )
    other = dict(type='mmpretrain.LinearClsHead', loss=dict(type='mmext.OneVsRestHingeLoss'))
    companion = ClsCompanion(0, 8, 3, head=other)
    assert companion.loss(maps(), samples([0, 1])) > 0


def test_places_belong_to_the_smallest_box_around_them():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    truth = InstanceData(bboxes=torch.tensor([[4.0, 4, 12, 12], [0.0, 0, 16, 16]]), labels=torch.tensor([2, 0]))
    companion = DenseCompanion(0, 4, 3)
    found = companion.targets((4, 8), (16, 32), DetDataSample(gt_instances=truth))
    assert found[1:3, 1:3].tolist() == [[2, 2], [2, 2]]
    assert found[0, :4].tolist() == [0] * 4
    assert (found[:, 4:] == 3).all()


def detector(kind):
    init_default_scope('mmdet')
    cfg = dict(
        type=kind,
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=10,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4), allowed_border=-1, pos_weight=-1
        ),
    )
    if kind != 'RetinaNet':
        cfg.update(model='RetinaNet', companions=[dict(in_index=1, in_channels=16, num_classes=10, channels=8)])
    return build_model(cfg)


def test_a_stock_detector_is_supervised_and_otherwise_untouched():
    plain, model = detector('RetinaNet'), detector('mmext.DeepSupervisionDetector')
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(key.startswith('companions.') for key in missing.missing_keys)
    batch = model.data_preprocessor(batch_for('mmdet'), True)
    got, want = (m.train()(**batch, mode='loss') for m in (model, plain))
    assert got.pop('loss_companion0') > 0
    assert {k: [float(x) for x in v] for k, v in got.items()} == {k: [float(x) for x in v] for k, v in want.items()}
    assert not model.backbone._forward_hooks
    take_step(model, STEP, batch_for('mmdet'))
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('companions')})
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(x)[0], plain.eval()(x)[0], strict=True))


class Loop:
    max_epochs = 4


class IterBasedTrainLoop:
    max_iters = 8


class Run:
    def __init__(self, model, loop, epoch=0, iteration=0):
        self.model, self.train_loop, self.epoch, self.iter = model, loop, epoch, iteration
        self.max_epochs, self.max_iters = 4, 8


def test_weights_fade_with_the_epochs():
    built = torch.nn.ModuleDict(dict(head=head()))
    hook = CompanionWeightHook()
    hook.before_train(Run(built, Loop()))
    for epoch, factor in enumerate((1, 0.75, 0.5, 0.25)):
        hook.before_train_iter(Run(built, Loop(), epoch, 100), 0)
        assert [c.companion_scale for c in built['head'].companions] == [factor] * 2
    hook.after_train(Run(built, Loop()))
    assert built['head'].companions[0].companion_scale == 1
    assert [CompanionWeightHook().factor(t, 10) for t in (0, 10)] == [1, 0]
    assert [CompanionWeightHook('paper').factor(t, 10) for t in (0, 5, 10)] == [1, 0.05, 0]


def test_auxiliary_heads_of_mmseg_fade_with_the_iterations():
    init_default_scope('mmseg')
    auxiliary = dict(type='FCNHead', in_channels=8, channels=8, num_classes=2, num_convs=1, concat_input=False)
    losses = [dict(type='CrossEntropyLoss', loss_weight=0.4), dict(type='DiceLoss', loss_weight=1.0)]
    model = torch.nn.Module()
    model.auxiliary_head = torch.nn.ModuleList(
        MODELS.build(dict(auxiliary, in_index=i, loss_decode=losses[: i + 1])) for i in range(2)
    )
    hook = CompanionWeightHook()
    hook.before_train(Run(model, IterBasedTrainLoop()))
    for _ in range(2):  # the factor does not pile up
        hook.before_train_iter(Run(model, IterBasedTrainLoop(), iteration=6), 0)
    weights = [
        loss.loss_weight
        for one in model.auxiliary_head
        for loss in one.loss_decode.modules()
        if hasattr(loss, 'loss_weight')
    ]
    assert weights == pytest.approx([0.1, 0.1, 0.25])
    hook.after_train(Run(model, IterBasedTrainLoop(), iteration=8))
    assert model.auxiliary_head[0].loss_decode[0].loss_weight == pytest.approx(0.4)


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match=r'at in_index=7, got maps of shapes .*; let backbone=dict\(out_indices=\.\.\.\)'
    ):
        head([dict(in_index=7, in_channels=8)]).loss(maps(), samples([0, 1]))
    with pytest.raises(ValueError, match='in_channels=9 channels at in_index=0'):
        head([dict(in_index=0, in_channels=9)]).loss(maps(), samples([0, 1]))
    with pytest.raises(ValueError, match=r'neither companions nor an auxiliary_head'):
        CompanionWeightHook().before_train(Run(torch.nn.Linear(1, 1), Loop()))
    init_default_scope('mmdet')
    with pytest.raises(
        ValueError, match=r'a detector of mmdet with backbone and loss\(\), such as RetinaNet, got ResNet'
    ):
        MODELS.build(dict(type='mmext.DeepSupervisionDetector', model='ResNet', depth=18, companions=COMPANIONS))


def test_folding_leaves_the_head_and_the_detector_alone():
    linear = dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=16)
    companions = [dict(in_index=0, in_channels=8)]
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=4, out_indices=(1, 2)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmext.DeepSupervisionClsHead', head=linear, companions=companions),
    )
    init_default_scope('mmpretrain')
    trained, folded, written, error = deploy(cfg, build_model(cfg).state_dict(), (32, 32))
    assert written['head'] == linear
    assert hasattr(trained.head, 'companions')
    assert not hasattr(folded.head, 'companions')
    assert type(folded.head).__mro__[1:] == type(build_model(dict(cfg, head=linear)).head).__mro__[1:]
    assert error <= 1e-5

    detector = deep_supervision_detector(**example_of(deep_supervision_detector))
    plain = fold(detector)
    assert hasattr(detector, 'companions')
    assert not hasattr(plain, 'companions')
    assert '_SupervisedDetector' not in [c.__name__ for c in type(plain).__mro__]
