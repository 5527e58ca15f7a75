import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmext.backbones.timm_backbone import TimmBackbone
from mmext.errors import CheckpointError

timm = pytest.importorskip('timm')
SWIN = dict(img_size=64, depths=(1, 1, 1, 1), embed_dim=24)
SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


@pytest.mark.parametrize(
    ('name', 'kwargs', 'channels', 'strides'),
    [
        ('resnet10t', {}, (64, 128, 256, 512), (4, 8, 16, 32)),
        ('convnext_atto', SMALL, (8, 16, 24, 32), (4, 8, 16, 32)),
        ('mobilenetv3_small_050', {}, (8, 16, 24, 288), (4, 8, 16, 32)),
        ('swin_tiny_patch4_window7_224', SWIN, (24, 48, 96, 192), (4, 8, 16, 32)),
        ('vit_tiny_patch16_224', dict(img_size=64, depth=4, embed_dim=24), (24,) * 4, (16,) * 4),
    ],
)
def test_maps_are_told_beforehand_and_computed_by_timm(name, kwargs, channels, strides):
    net = TimmBackbone(name, **kwargs).eval()
    assert net.out_channels == channels
    assert net.out_strides == strides
    x = torch.randn(2, 3, 64, 64)
    outs = net(x)
    assert [tuple(y.shape) for y in outs] == [(2, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    for out, theirs in zip(outs, net.network(x), strict=True):
        assert torch.equal(out, theirs if theirs.shape == out.shape else theirs.movedim(-1, 1))


def test_freezing_follows_the_scales():
    net = TimmBackbone('resnet10t', frozen_stages=2)
    frozen = {n.split('.')[1] for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1'}
    vit = TimmBackbone('vit_tiny_patch16_224', img_size=64, depth=4, embed_dim=24, frozen_stages=1)
    free = [n for n, p in vit.named_parameters() if p.requires_grad]
    assert not [n for n in free if 'pos_embed' in n or 'cls_token' in n or 'patch_embed' in n or 'blocks.0' in n]
    assert any('blocks.1' in n for n in free)


def test_norm_eval():
    net = TimmBackbone('resnet10t', norm_eval=True).train()
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ('name', 'kwargs'), [('convnext_atto', SMALL), ('vit_tiny_patch16_224', dict(depth=4, embed_dim=24))]
)
def test_a_local_file_of_timm_loads(tmp_path, name, kwargs):
    theirs = timm.create_model(name, **kwargs)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    net = TimmBackbone(name, checkpoint=str(tmp_path / 'timm.pth'), **kwargs)
    ours = {n.removeprefix('network.').removeprefix('model.'): v for n, v in net.state_dict().items()}
    for key, value in theirs.state_dict().items():
        first, _, rest = key.partition('.')
        joined = f'{first}_{rest}'
        found = ours.get(key, ours.get(joined))
        assert found is not None or key.startswith(('head', 'norm', 'fc_norm')), key
        assert found is None or torch.equal(found, value)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'timm.pth')
    with pytest.raises(CheckpointError, match=r'lacks \d+ of the \d+ tensors of convnext_atto'):
        TimmBackbone('convnext_atto', checkpoint=str(tmp_path / 'timm.pth'))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(name='resnet1O1'), 'timm.list_models'),
        (dict(name='resnet10t', colour=3), 'colour'),
        (dict(name='convnext_atto', out_indices=(4,)), 'within its 4 stages'),
        (dict(name='hrnet_w18_small', frozen_stages=1), 'leave it at -1'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        TimmBackbone(**kwargs)


def test_in_a_stock_detector_with_surgery():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    rules = [dict(kernel_size=3, stride=1, groups=1, to=dict(type='mmext.RefConv2d'))]
    cfg.backbone = dict(
        type='mmext.swap_layers', model='mmext.TimmBackbone', name='resnet10t', rules=rules, out_indices=(1, 2, 3, 4)
    )
    cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=8)
    cfg.bbox_head.update(in_channels=8, feat_channels=8)
    model = MODELS.build(cfg).eval()
    assert len(model(torch.randn(1, 3, 64, 64), mode='tensor')[0]) == 5
    assert any(type(m).__name__ == 'RefConv2d' for m in model.backbone.modules())
