"""RelationNet++: key points, their targets, the attention to them, and the bridge around heads of mmdet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmext  # noqa: F401 - teaches the config loader its scopes
from mmext.analysis.samples import batch_for, take_step
from mmext.assigners.bvr import PointKptAssigner, gaussian_radius
from mmext.blocks.bvr import Geometry, Relation
from mmext.boxes import Detections, disagreement, predictions_of
from mmext.deploy import deploy
from mmext.heads.bvr import KeypointHead, bvr_head

STOCK = {
    'RetinaHead': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOSHead': 'fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    'ATSSHead': 'atss/atss_r50_fpn_1x_coco.py',
}
WIDTH = 8
SMALL = dict(num_classes=10, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1)
BRIDGE = dict(num_heads=2, base_size=(20, 20))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def detector(head, tmp_path, **bridge):
    """A stock detector with an R18 of few channels, its head changed by a diff."""
    (tmp_path / 'config.py').write_text(f"_base_ = 'mmdet::{STOCK[head]}'\n")
    cfg = Config.fromfile(tmp_path / 'config.py')
    model = cfg.model
    model.backbone.update(
        depth=18, base_channels=8, norm_cfg=dict(type='BN'), style='pytorch', frozen_stages=-1, init_cfg=None
    )
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=WIDTH)
    norm = dict(norm_cfg=dict(type='GN', num_groups=2)) if head != 'RetinaHead' else {}
    model.bbox_head.update(type='mmext.BVRHead', head=head, **SMALL, **BRIDGE, **norm, **bridge)
    if head == 'ATSSHead':
        model.bbox_head.share_geometry = 'all'
    return MODELS.build(model), cfg


def small_head(**bridge):
    return bvr_head('mmdet.RetinaHead', **SMALL, **BRIDGE, **bridge)


def maps(*sizes, batch=2):
    return [torch.randn(batch, WIDTH, *size) for size in sizes]


LEVELS = ((9, 12), (5, 6), (3, 3), (2, 2), (1, 1))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_the_authors():
    sizes = dict(num_classes=80, in_channels=256)
    head = bvr_head('mmdet.RetinaHead', **sizes)
    assert count(head.keypoint_head) == 7_647_990
    assert count(head.cls_relation) == 265_224
    assert count(head.reg_relation) == 528_392
    assert count(KeypointHead(**sizes, norm_cfg=dict(type='GN', num_groups=32))) == 7_651_062
    assert count(KeypointHead(**sizes, logits_convs=0)) == 4_107_510
    shared = bvr_head('mmdet.RetinaHead', **sizes, share_geometry='all')
    assert shared.reg_relation.geometry is shared.cls_relation.geometry
    assert count(shared.reg_relation.attentions) == 526_336


def test_the_function_of_ways_is_the_sampled_picture():
    geometry = Geometry(8, 3, (10, 7), log_scale=False).double()
    x, y = torch.randn(2, 5, 4).double() * 8, torch.randn(2, 5, 6).double() * 8
    codes = (geometry.code_x[None].expand(7, -1, -1), geometry.code_y[:, None].expand(-1, 11, -1))
    picture = geometry.transform(torch.cat(codes, -1)).permute(2, 0, 1)[None].expand(2, -1, -1, -1)
    ways = torch.stack(torch.broadcast_tensors(x[:, :, None], y[..., None]), -1).flatten(2, 3).transpose(1, 2)
    expected = F.grid_sample(picture, ways / ways.new_tensor([5.0, 3.5]), padding_mode='border', align_corners=False)
    torch.testing.assert_close(geometry(x, y), expected)


def test_the_same_way_has_the_same_weight_at_any_pixel_and_level():
    geometry = Geometry(8, 2, (20, 20), log_scale=True)
    nn.init.normal_(geometry.transform.weight)
    x, y = torch.full((1, 1, 3), 2.5), torch.full((1, 1, 4), -1.25)
    found = geometry(x, y)
    assert torch.equal(found, found[:, :, :1].expand_as(found))


def relation(**kwargs):
    options = dict(geometry=Geometry(WIDTH, 2, (20, 20), True), appearance=True, cat_positions=False)
    return Relation(WIDTH, 2, 2, **{**options, **kwargs})


def keys(number=6, levels=2):
    feature, place = torch.randn(2, number, WIDTH), torch.rand(2, number, 2) * 60
    return [[feature] * levels] * 2, [[place] * levels] * 2


def test_without_the_output_projection_a_map_is_only_rectified():
    module = relation()
    for attention in module.attentions:
        nn.init.zeros_(attention.out_proj.weight)
    xs = maps((5, 7), (3, 4))
    for out, x in zip(module(xs, *keys(), (8, 16), (8.0, 8.0)), xs, strict=True):
        assert torch.equal(out, x.relu())


def test_pixels_attend_as_torch_does_without_geometry():
    module = relation(geometry=None)
    (x,), (features, places) = maps((5, 7)), keys(levels=1)
    query, expected = x.flatten(2).transpose(1, 2), x.flatten(2).transpose(1, 2)
    for attention, (feature,) in zip(module.attentions, features, strict=True):
        reference = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        reference.load_state_dict(attention.state_dict())
        expected = expected + reference(query, feature, feature)[0]
    (found,) = module([x], features, places, (8,), (8.0,))
    torch.testing.assert_close(found, expected.relu().transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize('options', [dict(appearance=False), dict(cat_positions=True)])
def test_variants_of_the_attention_train_all_parameters(options):
    module = relation(**options)
    sum(y.square().sum() for y in module(maps((5, 7), (3, 4)), *keys(), (8, 16), (8.0, 8.0))).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_key_points_are_peaks_and_fewer_where_a_level_is_small():
    head = KeypointHead(3, WIDTH, WIDTH, strides=(8, 16))
    scores, offsets = torch.full((1, 3, 4, 5), -9.0), torch.zeros(1, 2, 4, 5)
    scores[0, 1, 1, 2], scores[0, 1, 1, 3], scores[0, 2, 3, 0] = 3.0, 2.0, 1.0
    offsets[0, :, 3, 0] = torch.tensor([0.5, -0.25])
    first, second = head.key_points([scores, torch.randn(1, 3, 1, 2)], [offsets, torch.zeros(1, 2, 1, 2)], 20)
    assert first.pixels.shape == (1, 20)
    assert first.pixels[0, :2].tolist() == [7, 15]  # the neighbor of the best is no peak
    assert first.places[0, :2].tolist() == [[20.0, 12.0], [8.0, 26.0]]
    assert second.scores.shape == (1, 2)
    assert all(place in ([8.0, 8.0], [24.0, 8.0]) for place in second.places[0].tolist())


def test_all_levels_attend_to_the_best_of_all():
    head = small_head(cross_level_topk=7)
    xs = maps(*LEVELS)
    scores, offsets = head.keypoint_head(xs)
    found = head.keypoint_head.key_points(scores['center'], offsets['center'], 20)
    features, places = head._keys(xs, found)
    assert all(f is features[0] and p is places[0] for f, p in zip(features, places, strict=True))
    best = torch.cat([level.scores for level in found], 1).topk(7).indices
    torch.testing.assert_close(
        places[0], torch.cat([v.places for v in found], 1).gather(1, best[..., None].expand(-1, -1, 2))
    )
    own = small_head(cross_level_topk=0)._keys(xs, found)[0]
    assert [f.shape[1] for f in own] == [20, 20, 9, 4, 1]


def test_an_interpolated_feature_at_a_pixel_is_that_of_the_pixel():
    xs = maps(*((s, 2 * s) for s in (16, 8, 4, 2, 1)))
    head = small_head(selection='interpolation', cross_level_topk=0)
    found = head.keypoint_head.key_points(*(m['center'] for m in head.keypoint_head(xs)), 3)
    grid = head.keypoint_head.points(xs)
    still = [level._replace(places=points[level.pixels, :2]) for level, points in zip(found, grid, strict=True)]
    by_place = head._keys(xs, still)[0]
    by_pixel = small_head(cross_level_topk=0)._keys(xs, still)[0]
    for a, b in zip(by_place, by_pixel, strict=True):
        torch.testing.assert_close(a, b)


# --- targets -------------------------------------------------------------------------------------------------------------


def assigned(boxes, labels):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    points = KeypointHead(3, WIDTH, WIDTH, strides=(8, 16)).points([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)])
    targets = PointKptAssigner().assign(points, boxes[:, :2], boxes, torch.tensor(labels, dtype=torch.long), 3)
    return torch.cat(points), targets


def test_every_object_has_one_positive_point_on_every_level():
    points, targets = assigned([[10.0, 12.0, 50.0, 60.0], [40.0, 37.0, 60.0, 60.0]], [2, 0])
    assert targets.positive.sum() == 4
    assert targets.positive[:64].sum() == 2
    where = targets.positive.nonzero()[:, 0]
    assert (targets.scores[where].amax(1) == 1).all()
    assert sorted(targets.scores[where].argmax(1).tolist()) == [0, 0, 2, 2]
    reached = points[where, :2] + targets.offsets[where] * points[where, 2:]
    assert sorted(reached.tolist()) == [[10.0, 12.0]] * 2 + [[40.0, 37.0]] * 2
    assert (targets.offsets[~targets.positive] == 0).all()
    assert ((targets.scores > 0).sum(1) <= 1).all()


def test_a_score_falls_as_a_gaussian():
    points, targets = assigned([[12.0, 12.0, 52.0, 44.0]], [1])
    sigma = (2 * gaussian_radius(torch.tensor(32.0), torch.tensor(40.0), 0.7) + 1) / 6
    apart = (points[:64, :2] - torch.tensor([12.0, 12.0])).square().sum(1)
    torch.testing.assert_close(targets.scores[:64, 1], (-apart / (2 * sigma**2)).exp())


def test_the_radius_is_that_of_mmdet():
    from mmdet.models.utils import gaussian_radius as reference

    for height, width in ((10.0, 30.0), (64.0, 64.0), (3.0, 200.0)):
        found = gaussian_radius(torch.tensor(height), torch.tensor(width), 0.7)
        assert found.item() == pytest.approx(
            float(reference((torch.tensor(height), torch.tensor(width)), 0.7)), rel=1e-4
        )


def test_a_flat_box_and_no_box():
    _, targets = assigned([[10.0, 12.0, 10.0, 12.0]], [2])
    assert all(t.isfinite().all() for t in targets)
    _, targets = assigned([], [])
    assert not targets.positive.any()
    assert not targets.scores.any()


# --- heads of mmdet ------------------------------------------------------------------------------------------------------


def test_the_bridge_does_not_change_what_the_host_is():
    from mmdet.models.dense_heads import RetinaHead

    head, plain = small_head(), MODELS.build(dict(type='RetinaHead', **SMALL))
    assert isinstance(head, RetinaHead)
    assert set(plain.state_dict()) < set(head.state_dict())
    head.load_state_dict(plain.state_dict(), strict=False)
    for part in (head.cls_relation, head.reg_relation):
        for attention in part.attentions:
            nn.init.zeros_(attention.out_proj.weight)
    xs = [x.relu() for x in maps(*LEVELS)]
    for found, expected in zip(head(xs), plain(xs), strict=True):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', STOCK)
def test_stock_detectors_learn_and_predict_with_it(name, tmp_path):
    model, cfg = detector(name, tmp_path)
    model.init_weights()
    model.train()
    before = {n: p.detach().clone() for n, p in model.bbox_head.named_parameters()}
    log = take_step(model, cfg.optim_wrapper, batch_for('mmdet', size=75), 75)
    assert {'loss_point_cls', 'loss_point_offset', 'loss_cls', 'loss_bbox'} <= set(log)
    assert torch.isfinite(torch.as_tensor(log['loss']))
    assert not torch.equal(
        before['cls_relation.attentions.0.out_proj.weight'], model.bbox_head.cls_relation.attentions[0].out_proj.weight
    )
    twin = copy.deepcopy(model).eval()
    results = [m.eval().test_step(batch_for('mmdet', size=75)) for m in (model, twin)]
    assert all(torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes) for a, b in zip(*results, strict=True))


def test_a_start_that_the_host_draws_leaves_the_bridge_its_own(tmp_path):
    model, _ = detector('RetinaHead', tmp_path)
    nn.init.ones_(model.bbox_head.keypoint_head.keypoint_cls_heads['center'][-1].bias)
    model.init_weights()
    bias = model.bbox_head.keypoint_head.keypoint_cls_heads['center'][-1].bias
    assert bias.sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)
    assert model.bbox_head.retina_cls.bias.sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)


def test_images_without_objects_and_half_precision(tmp_path):
    model, _ = detector('RetinaHead', tmp_path)
    model.train()
    batch = batch_for('mmdet')
    for sample in batch['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    for data in (batch, batch_for('mmdet')):
        with torch.autocast('cpu', torch.bfloat16):
            total, log = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
        assert torch.isfinite(total), log
        total.backward()
        assert all(p.grad.isfinite().all() for p in model.bbox_head.parameters())


def test_losses_and_predictions_at_once():
    head = bvr_head(
        'mmdet.RetinaHead',
        **SMALL,
        **BRIDGE,
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=Config(dict(score_thr=0.0, nms_pre=10, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)),
    )
    samples = batch_for('mmdet', size=72)['data_samples']
    for sample in samples:
        sample.gt_instances = InstanceData(bboxes=sample.gt_instances.bboxes.tensor, labels=sample.gt_instances.labels)
        sample.set_metainfo(dict(batch_input_shape=(72, 96)))
    losses, found = head.loss_and_predict(tuple(maps(*LEVELS)), samples)
    assert {'loss_cls', 'loss_point_cls'} <= set(losses)
    assert len(found) == 2


def test_it_deploys_and_its_boxes_are_a_function(tmp_path):
    model, cfg = detector('RetinaHead', tmp_path)
    _, folded, _, error = deploy(cfg.model, model.state_dict(), (64, 64), fuse_bn=True)
    assert error < 1e-4
    folded.bbox_head.test_cfg['score_thr'] = 0.0
    images = torch.randn(2, 3, 64, 64)
    assert disagreement(predictions_of(folded, images), Detections(folded)(images), 1e-4, (64, 64)) < 0.02


@pytest.mark.parametrize(
    ('build', 'match'),
    [
        (lambda: bvr_head('mmdet.RetinaHead', **SMALL, num_heads=3), 'num_heads=3'),
        (lambda: bvr_head('mmdet.YOLOXHead', num_classes=3, in_channels=8), 'passes a level through cls_convs'),
        (lambda: bvr_head('mmdet.StandardRoIHead'), 'needs a dense head of mmdet'),
        (lambda: bvr_head('mmdet.RepPointsHead', **SMALL), 'RepPointsHead cannot take a pair'),
        (lambda: small_head(keypoint_head=dict(kinds=('center',))), 'attends to bottom_right_corner'),
        (lambda: small_head()(maps(*LEVELS[:2])), 'strides for 5 levels, got 2 maps'),
        (lambda: bvr_head('mmdet.RetinaHead', **SMALL, base_size=(1, 4)), 'base_size'),
    ],
)
def test_bad_input_gets_one_sentence(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_a_missing_host_is_named(monkeypatch):
    monkeypatch.setattr('mmext.hosts.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'BVRHead builds mmdet\.RetinaHead, but the package mmdet is not installed'):
        bvr_head('mmdet.RetinaHead', **SMALL)
