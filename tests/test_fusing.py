"""Which norms fuse is seen in a forward: by who reads what, and not by the order in which layers are registered."""

import copy

import pytest
import torch
from helpers import shake
from mmcv.cnn import ConvAWS2d
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import mmext  # noqa: F401  teaches the config loader where mmseg:: bases live
from mmext.export import max_relative_error, outputs_of
from mmext.folding import fold, folded
from mmext.fusing import find_fusions

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SMALL = IMAGES[..., :9, :9]


def shaken(model):
    shake(model).eval()  # returns nothing for backbones of the hosts
    return model


def norms(model):
    return [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class Flow(nn.Module):
    """Layers ``a``, ``b`` and norms ``n``, ``m`` in a forward that a test gives."""

    def __init__(self, flow, **parts):
        super().__init__()
        self.a, self.n, self.b, self.m = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.flow = flow

    def forward(self, x):
        return self.flow(self, x)


def tied(layer):
    layer.b.weight = layer.a.weight
    return layer


def called_directly(layer, x):
    return layer.n(layer.a(x)) + torch.nn.functional.conv2d(x, layer.a.weight)


#: The flow, and the norms that fuse there.
FLOWS = {
    'in order': (Flow(lambda s, x: s.m(s.b(s.n(s.a(x)).relu()))), 'nm'),
    'registered in another order': (Flow(lambda s, x: s.n(s.b(s.m(s.a(x)).relu()))), 'nm'),
    'shared under two norms': (Flow(lambda s, x: s.n(s.a(x)) + s.m(s.a(x))), ''),
    'read beside its norm': (Flow(lambda s, x: (y := s.a(x)) + s.n(y) + s.m(s.b(x))), 'm'),
    'read through a view': (Flow(lambda s, x: s.n(y := s.a(x)).flatten(2) + y.flatten(2)), ''),
    'changed in place in between': (Flow(lambda s, x: s.n(s.a(x).relu_())), ''),
    'returned beside its norm': (Flow(lambda s, x: (y := s.a(x), s.n(y))), ''),
    'a pair that is called twice': (Flow(lambda s, x: s.n(s.a(s.n(s.a(x)).relu()))), 'n'),
    'a norm behind two layers': (Flow(lambda s, x: s.n(s.a(x)) + s.n(s.b(x))), ''),
    'a norm of the input': (Flow(lambda s, x: s.n(x) + s.m(s.a(x))), 'm'),
    'a layer that is never called': (Flow(lambda s, x: s.n(s.a(x))), 'n'),
    'its weight is read elsewhere': (Flow(called_directly), ''),
    'tied weights': (tied(Flow(lambda s, x: s.n(s.a(x)) + s.m(s.b(x)))), ''),
    'an identity in between': (Flow(lambda s, x: s.n(s.drop(s.a(x))), drop=nn.Dropout()), 'n'),
    'weights are standardized': (Flow(lambda s, x: s.n(s.a(x)), a=ConvAWS2d(3, 3, 1)), ''),
    'weights are normalized': (Flow(lambda s, x: s.n(s.a(x)), a=weight_norm(nn.Conv2d(3, 3, 1))), ''),
    'a norm of each image': (Flow(lambda s, x: s.n(s.a(x)), n=nn.InstanceNorm2d(3, affine=True)), ''),
    'statistics of the batch': (Flow(lambda s, x: s.n(s.a(x)), n=nn.BatchNorm2d(3, track_running_stats=False)), ''),
    'linear layers': (Flow(lambda s, x: s.n(s.a(x.mean((2, 3)))), a=nn.Linear(3, 3), n=nn.BatchNorm1d(3)), 'n'),
    'transposed': (Flow(lambda s, x: s.n(s.a(x)), a=nn.ConvTranspose2d(3, 3, 2)), ''),
}


@pytest.mark.parametrize('name', FLOWS)
def test_a_norm_fuses_where_it_alone_reads_its_layer(name):
    model, expected = FLOWS[name]
    model = shaken(copy.deepcopy(model))
    before = outputs_of(model, SMALL)
    names = {n for n, m in model.named_children() if hasattr(m, 'running_mean')}
    fusions, left = find_fusions(model, SMALL)
    assert {norm for _, norm in fusions} == set(expected)
    assert {norm for _, norm in fusions} | set(left) >= names - {'n' if 'batch' in name or 'image' in name else ''}
    modes = [m.training for m in model.train().modules()]
    fused = fold(model, fuse_bn=True, inputs=SMALL)
    assert [m.training for m in fused.modules()] == modes, 'the mode is put back'
    fused.eval()
    assert max_relative_error(before, outputs_of(fused, SMALL)) < 1e-5
    assert {n for n in 'nm' if isinstance(getattr(fused, n), nn.Identity)} == set(expected)


@pytest.mark.parametrize('mode', ['half', 'bfloat16', 'double'])
def test_other_types_fuse_as_well(mode):
    model = getattr(shaken(Flow(lambda s, x: s.m(s.b(s.n(s.a(x)).relu())))), mode)()
    inputs = getattr(SMALL, mode)()
    assert not norms(fold(model, fuse_bn=True, inputs=inputs))


def test_without_inputs_images_are_made_and_a_model_that_refuses_them_says_so():
    assert not norms(fold(shaken(nn.Sequential(nn.Conv2d(5, 3, 3), nn.BatchNorm2d(3))), fuse_bn=True))
    with pytest.raises(
        RuntimeError, match=r'which norms fuse is seen in a forward, and that of Flow failed \(.*inputs='
    ):
        fold(shaken(Flow(lambda s, x: s.n(s.a(x[0])))), fuse_bn=True)
    lines = fold(shaken(Flow(lambda s, x: s.n(s.a(x)))))
    assert norms(lines) == ['n', 'm'], 'fusing is asked for'


def test_fusions_are_data_from_which_a_fresh_model_takes_the_same_form():
    cfg = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    model = shaken(ROOT_MODELS.build(cfg))
    fusions, left = find_fusions(model, IMAGES)
    assert len(fusions) == len(norms(model)) == 20
    assert not left
    before = outputs_of(model, IMAGES)
    state = fold(model, fuse_bn=True).state_dict()
    fresh = folded(cfg, fuse_bn=[list(names) for names in fusions[:-1]])
    assert len(norms(fresh)) == 1, 'only what is named fuses'
    fresh = folded(cfg, fuse_bn=[list(names) for names in fusions])
    fresh.load_state_dict(state, strict=True)
    assert max_relative_error(before, outputs_of(fresh, IMAGES)) < 1e-5


@pytest.fixture
def rtmdet():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').model.to_dict()
    for part in (cfg['backbone'], cfg['neck'], cfg['bbox_head']):
        part.update(norm_cfg=dict(type='BN'), **({} if part is cfg['backbone'] else dict(in_channels=16)))
    cfg['backbone'].pop('init_cfg', None)
    cfg['backbone'].update(widen_factor=0.125)
    cfg['neck'].update(in_channels=[32, 64, 128], out_channels=16)
    cfg['bbox_head'].update(feat_channels=16)
    return cfg


def test_a_detector_with_shared_convolutions_fuses_what_can_be(rtmdet, monkeypatch):
    lines = []
    monkeypatch.setattr('mmext.folding.print_log', lambda line, *_: lines.append(line))
    model = shaken(ROOT_MODELS.build(rtmdet))
    before = outputs_of(model, IMAGES)
    fused = fold(model, fuse_bn=True, inputs=IMAGES)
    assert max_relative_error(before, outputs_of(fused, IMAGES)) < 1e-5
    assert len(norms(fused)) == 12
    assert all('bbox_head' in name for name in norms(fused)), 'each level has norms of its own behind shared layers'
    assert len(lines) == 4
    assert lines[1].endswith(
        'bbox_head.cls_convs.2.1.bn (it does not read the output of bbox_head.cls_convs.0.1.conv alone)'
    )
