import pytest
import torch
from helpers import shake_norms, trained_state
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

import mmext  # noqa: F401  teaches the config loader where mmseg:: bases live
from mmext.convs.generated import GeneratedConv2d
from mmext.convs.inception_dwconv import InceptionDWConv2d
from mmext.convs.partial_conv import PartialConv2d
from mmext.convs.refconv import RefConv2d
from mmext.convs.xnor import XNORConv2d
from mmext.deploy import deploy
from mmext.export import TensorMode, export_onnx, max_relative_error, outputs_of
from mmext.folding import fold

REFCONV = dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))
LENI_RULE = dict(layer='ReLU', to=dict(type='mmext.LENI'))


def detector(rules=(REFCONV,), **backbone):
    """A small stock RetinaNet with rules applied to its backbone."""
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model.to_dict()
    cfg['backbone'] = dict(
        type='mmext.swap_layers', model='ResNet', rules=list(rules), depth=18, base_channels=8, **backbone
    )
    cfg['neck'] = dict(cfg['neck'], in_channels=[8, 16, 32, 64], out_channels=16)
    cfg['bbox_head'] = dict(cfg['bbox_head'], in_channels=16, feat_channels=16, stacked_convs=1)
    init_default_scope('mmdet')
    return cfg


INPUTS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_refconv_detector_becomes_a_fully_stock_one():
    cfg = detector()
    _, folded, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)
    assert new_cfg['backbone']['type'] == 'ResNet'
    stock = ROOT_MODELS.build(new_cfg)
    stock.load_state_dict(folded.state_dict())
    stock.eval()
    assert max_relative_error(outputs_of(folded, INPUTS), outputs_of(stock, INPUTS)) == 0


@pytest.mark.parametrize('fuse_bn', [False, True])
def test_leni_and_fused_norms_are_wrapped_by_component(fuse_bn):
    cfg = detector([REFCONV, LENI_RULE])
    state = trained_state(cfg)
    _, folded, new_cfg, error = deploy(cfg, state, INPUTS, fuse_bn=fuse_bn)
    assert error < 1e-5
    assert new_cfg['backbone']['type'] == 'mmext.folded'
    assert new_cfg['neck'] == cfg['neck'], 'a component that did not change keeps its config'
    assert not any(isinstance(m, GeneratedConv2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) != fuse_bn


def test_conv_cfg_and_dcn_slots_fold_back_to_their_default():
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, conv_cfg=dict(type='mmext.RefConv2d')),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
    )
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)

    init_default_scope('mmdet')
    cfg = detector()
    cfg['backbone'] = dict(
        type='ResNet',
        depth=50,
        base_channels=8,
        dcn=dict(type='mmext.RefConv2d'),
        stage_with_dcn=(False, True, True, True),
    )
    cfg['neck']['in_channels'] = [32, 64, 128, 256]
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)


def test_surgery_on_the_whole_model_folds_too():
    cfg = detector()
    cfg['backbone'] = dict(type='ResNet', depth=18, base_channels=8)
    cfg.update(type='mmext.swap_layers', model='RetinaNet', rules=[dict(match='backbone|cls_convs', **REFCONV)])
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)
    cfg['rules'] = [dict(match='backbone.*relu', **LENI_RULE)]
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert new_cfg['type'] == 'mmext.folded'


def test_models_that_need_data_samples_fold():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone = dict(type='mmext.swap_layers', model='ResNet', rules=[REFCONV], depth=18, base_channels=8)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.roi_head.bbox_roi_extractor.out_channels = 8
    cfg.roi_head.bbox_head.update(in_channels=8, fc_out_channels=8)
    trained, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)
    shapes = [tuple(t.shape) for t in outputs_of(trained, INPUTS)]
    assert len(shapes) == 2 * 5 + 2, 'scores and boxes of five levels, then of the second stage'
    assert shapes[-2:] == [(2 * 4, 81), (2 * 4, 4 * 80)]
    # Batch norms fuse up to rounding, which may not decide which proposals are compared.
    for seed in range(4):
        torch.manual_seed(seed)
        assert deploy(cfg, trained_state(cfg), INPUTS, fuse_bn=True)[3] < 1e-4


def test_refuses_a_model_that_returns_nothing_to_compare(monkeypatch):
    cfg = detector()
    state = trained_state(cfg)
    monkeypatch.setattr('mmext.deploy.outputs_of', lambda *_: [])
    with pytest.raises(RuntimeError, match='nothing can be compared'):
        deploy(cfg, state, INPUTS)


def test_segmentor_folds():
    init_default_scope('mmseg')
    cfg = get_config('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py').model.to_dict()
    cfg.update(pretrained=None, auxiliary_head=None)
    cfg['backbone'].update(type='mmext.swap_layers', model='ResNetV1c', rules=[REFCONV], norm_cfg=dict(type='BN'))
    cfg['decode_head'].update(norm_cfg=dict(type='BN'), channels=16)
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS)
    assert error < 1e-5
    assert 'mmext' not in str(new_cfg)


def test_hosts_own_reparameterization_is_used():
    cfg = dict(type='mmpretrain.RepVGG', arch='A0', out_indices=(0,))
    model = ROOT_MODELS.build(cfg)
    model.eval()
    expected = model(INPUTS)[0]
    folded = fold(model)
    assert not any('branch_3x3' in n for n, _ in folded.named_modules())
    torch.testing.assert_close(folded(INPUTS)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_shared_layer_is_folded_once_and_stays_shared():
    conv = RefConv2d(3, 3, 3, padding=1, map_init='default')
    model = nn.Sequential(conv, nn.Sequential(conv), conv).eval()
    expected = model(INPUTS)
    folded = fold(model)
    assert folded[0] is folded[1][0]
    assert folded[0] is folded[2]
    assert type(folded[0]) is nn.Conv2d
    torch.testing.assert_close(folded(INPUTS), expected, rtol=1e-5, atol=1e-5)
    assert fold(folded)[0] is folded[0], 'folding twice changes nothing'
    assert type(fold(RefConv2d(3, 3, 3))) is nn.Conv2d, 'a layer by itself is replaced'


def test_what_no_kernel_computes_is_refused_by_name_and_the_model_stays_whole():
    """A binarized input and a mask decide what such layers compute; nothing is folded around them."""
    model = nn.Sequential(
        RefConv2d(3, 4, 3, padding=1),
        nn.Sequential(XNORConv2d(4, 4, 3, padding=1), nn.ReLU()),
        PartialConv2d(4, 4, 3, padding=1, mode='mask'),
        PartialConv2d(4, 4, 3, padding=1),
    ).eval()
    before, kinds = model.state_dict(), [type(m) for m in model.modules()]
    with pytest.raises(
        RuntimeError,
        match=r"^2 layers have no plain form, the first is 1\.0 \(XNORConv2d: .*all are \['1\.0', '2'\]; run the model",
    ):
        fold(model)
    assert [type(m) for m in model.modules()] == kinds
    assert model.state_dict().keys() == before.keys()
    with pytest.raises(
        RuntimeError, match=r'^1 layers have no plain form, the first is the layer \(PartialConv2d: .*mask'
    ):
        fold(model[2])


def test_layers_that_are_cheaper_unfolded_stay():
    """Their plain form computes the same and costs more, or is none; what stands around them folds."""
    model = nn.Sequential(
        RefConv2d(3, 8, 3, padding=1),
        InceptionDWConv2d(8, 8, 11, padding=5, groups=8),
        PartialConv2d(8, 8, 3, padding=1),
    ).eval()
    expected = model(INPUTS)
    folded = fold(model)
    assert [type(m).__name__ for m in folded] == ['Conv2d', 'InceptionDWConv2d', 'PartialConv2d']
    torch.testing.assert_close(folded(INPUTS), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_behind_a_layer_that_stays_unfolded_stays_too():
    """Not fused into the layer, whose kernel is made of parts, and by no means into the convolution before it."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        InceptionDWConv2d(8, 8, 11, padding=5, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8),
    ).eval()
    shake_norms(model)
    expected = model(INPUTS)
    fused = fold(model, fuse_bn=True)
    assert [type(m).__name__ for m in fused] == ['Conv2d', 'InceptionDWConv2d', 'BatchNorm2d', 'Conv2d', 'Identity']
    torch.testing.assert_close(fused(INPUTS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('fuse_bn', [False, True])
def test_a_detector_with_partial_padding_keeps_it_in_the_config(fuse_bn):
    cfg = detector([dict(kernel_size=3, to=dict(type='mmext.PartialConv2d'))])
    _, folded, new_cfg, error = deploy(cfg, trained_state(cfg), INPUTS, fuse_bn=fuse_bn)
    assert error < 1e-5
    assert any(isinstance(m, PartialConv2d) for m in folded.modules())
    assert new_cfg['neck'] == cfg['neck']
    if not fuse_bn:
        assert new_cfg['backbone'] == cfg['backbone']
    cfg['backbone']['rules'][0]['to']['mode'] = 'mask'
    with pytest.raises(
        RuntimeError, match=r'layers have no plain form, the first is backbone\.layer1\.0\.conv1 \(PartialConv2d'
    ):
        deploy(cfg, trained_state(cfg), INPUTS)


def test_folding_through_fuse_conv_bn_needs_folded_layers_first():
    """mmcv's fuser would take the basis of an unfolded RefConv for its kernel; it must fail instead of being wrong."""
    from mmcv.cnn import fuse_conv_bn

    with pytest.raises(RuntimeError, match='fold the model first'):
        fuse_conv_bn(nn.Sequential(RefConv2d(3, 3, 3), nn.BatchNorm2d(3)).eval())


def test_refuses_what_does_not_compute_the_same(monkeypatch):
    cfg = detector()
    state = trained_state(cfg)
    monkeypatch.setattr(
        RefConv2d,
        'fold',
        lambda self: nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, bias=False
        ),
    )
    with pytest.raises(RuntimeError, match=r'differs from the trained one by .* nothing was written'):
        deploy(cfg, state, INPUTS)


def test_refuses_a_checkpoint_of_another_model():
    cfg = detector()
    state = trained_state(cfg)
    state.pop('backbone.layer1.0.conv1.map_weight')
    with pytest.raises(RuntimeError, match=r'1 keys are missing .*map_weight.*pass the config'):
        deploy(cfg, state, INPUTS)


def test_max_relative_error():
    a = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0]])]
    assert max_relative_error(a, [torch.tensor([1.0, 2.0]), torch.tensor([[5.0]])]) == 0.25
    assert max_relative_error(a, a[:1]) == float('inf')
    assert max_relative_error(a, [torch.tensor([1.0, float('nan')]), a[1]]) == float('inf')


def test_the_tool_end_to_end(tmp_path, capsys):
    """The written config and checkpoint load without folding anything; nothing existing is overwritten."""
    from mmext.errors import CheckpointError, UsageError
    from tools.deploy import main

    cfg = detector()
    state = trained_state(cfg)
    Config(dict(model=cfg, default_scope='mmdet')).dump(tmp_path / 'train.py')
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(CLASSES=('a',)), seed=1)), tmp_path / 'train.pth')
    out = tmp_path / 'out' / 'model.pth'
    argv = [str(tmp_path / 'train.py'), str(tmp_path / 'train.pth'), str(out), '--shape', '64', '64']
    main(argv)
    printed = capsys.readouterr().out
    assert 'largest relative difference' in printed
    assert 'one CPU thread' in printed

    saved = torch.load(out, weights_only=True)
    assert saved['meta']['mmext']['max_relative_error'] < 1e-5
    assert saved['meta']['dataset_meta'] == dict(CLASSES=('a',))
    new_cfg = Config.fromfile(out.with_suffix('.py'))
    model = ROOT_MODELS.build(new_cfg.model)
    model.load_state_dict(saved['state_dict'])

    with pytest.raises(UsageError, match='exists and is not overwritten'):
        main(argv)
    main([*argv, '--force'])
    with pytest.raises(UsageError, match=r'ends in \.pth'):
        main([*argv[:2], str(tmp_path / 'model')])
    (tmp_path / 'broken.pth').write_bytes(out.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match='truncated or corrupt'):
        main([argv[0], str(tmp_path / 'broken.pth'), *argv[2:], '--force'])


SMALL = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def small_models():
    """One model of each host with a layer of this pack in it, as configs."""
    yield 'mmdet', detector([REFCONV, LENI_RULE])
    yield (
        'mmpretrain',
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                stem_channels=8,
                conv_cfg=dict(type='mmext.RepSO2d', branches=('kxk',)),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
        ),
    )
    yield (
        'mmseg',
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='mmext.swap_layers', model='ResNetV1c', depth=18, base_channels=8, rules=[REFCONV]),
            decode_head=dict(
                type='FCNHead', in_channels=64, in_index=3, channels=8, num_classes=5, norm_cfg=dict(type='BN')
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        ),
    )


@pytest.mark.parametrize('host', ['mmdet', 'mmpretrain', 'mmseg'])
def test_folded_model_goes_to_onnx_export_and_compile(host, tmp_path):
    pytest.importorskip('onnxruntime')
    cfg = dict(small_models())[host]
    init_default_scope(host)
    _, folded, _, _ = deploy(cfg, trained_state(cfg), SMALL)
    assert export_onnx(folded, SMALL, tmp_path / 'model.onnx') < 1e-4

    function, expected = TensorMode(folded, SMALL).eval(), outputs_of(folded, SMALL)
    with torch.no_grad():
        program = torch.export.export(function, (SMALL,), strict=False)
        assert max_relative_error(expected, list(program.module()(SMALL))) < 1e-5
        compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
        assert max_relative_error(expected, list(compiled(SMALL))) < 1e-5
