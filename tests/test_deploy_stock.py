"""What is deployed is stock again: without this pack a written config builds its runner, loads and computes the same."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tool, trained_state
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

import mmext  # noqa: F401  teaches the config loader where mmseg:: bases live
from mmext.checkpoints import read_checkpoint
from mmext.convs.depthwise import DepthwiseConv2d
from mmext.deploy import deploy, leftovers, route, without_training_parts
from mmext.errors import UsageError
from mmext.export import outputs_of
from mmext.folding import fold
from mmext.hosts import build_model

deploy_tool = tool('deploy')
main = deploy_tool.main

REFCONV = dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def classifier():
    cfg = get_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    cfg.model.backbone = dict(
        type='mmext.swap_layers', model='ResNet_CIFAR', rules=[REFCONV], depth=18, base_channels=8, stem_channels=8
    )
    cfg.model.head.in_channels = 64
    cfg.custom_hooks = [dict(type='mmext.CheckpointGuardHook'), dict(type='EMAHook')]
    cfg.optim_wrapper.optimizer = dict(type='mmext.SAGD', lr=0.1)
    return cfg


def detector():
    cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone = dict(
        type='mmext.swap_layers',
        model='ResNet',
        depth=18,
        base_channels=8,
        rules=[dict(kernel_size=3, to=dict(type='mmext.DCLSConv2d', version='v1'))],
    )
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8, conv_cfg=dict(type='mmext.InceptionDWConv2d'))
    cfg.model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1)
    cfg.custom_hooks = [dict(type='mmext.ProjectionHook'), dict(type='mmext.CheckpointGuardHook')]
    cfg.optim_wrapper.constructor = 'mmext.LayerOptionsConstructor'
    cfg.custom_imports = dict(imports=['mmext'], allow_failed_imports=False)
    return cfg


def segmentor():
    cfg = get_config('mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py')
    bn = dict(type='BN')
    cfg.model.backbone = dict(
        type='mmext.swap_layers', model='ResNetV1c', depth=18, base_channels=8, norm_cfg=bn, rules=[REFCONV]
    )
    cfg.model.pretrained = None
    for head in cfg.model.decode_head:
        head.update(in_channels=[16, 32], in_index=(1, 2), channels=8, norm_cfg=bn)
    cfg.model.decode_head[0].update(input_transform='resize_concat', num_convs=1, kernel_size=1)
    cfg.model.decode_head[1].update(ocr_channels=8)
    cfg.custom_hooks = [dict(type='mmext.OrthogonalConvHook')]
    return cfg


MODELS = dict(classifier=classifier, detector=detector, segmentor=segmentor)

WITHOUT = """
import sys
sys.modules['mmext'] = None
import torch
from mmengine.config import Config
from mmengine.runner import Runner
for folder in sys.argv[1:]:
    cfg = Config.fromfile(f'{folder}/out.py')
    cfg.work_dir = f'{folder}/work'
    # The host names a run by the second it starts in, and runs of one name share their scope.
    cfg.experiment_name = folder
    runner = Runner.from_cfg(cfg)
    saved = torch.load(f'{folder}/out.pth', weights_only=True)
    runner.model.load_state_dict(saved['state_dict'])
    model = runner.model.eval() or runner.model
    expected = torch.load(f'{folder}/expected.pt', weights_only=True)
    with torch.no_grad():
        found = runner.model(expected['inputs'], mode='tensor')
    def flat(out):
        return [out] if isinstance(out, torch.Tensor) else [t for o in out for t in flat(o)]
    for a, b in zip(expected['outputs'], flat(found), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())), folder
assert sys.modules['mmext'] is None and not [n for n in sys.modules if n.startswith('mmext.')]
print('all the same')
"""


def written(folder, cfg, state, *arguments):
    folder.mkdir(exist_ok=True)
    cfg.dump(folder / 'train.py')
    torch.save(dict(state_dict=state, meta={}), folder / 'train.pth')
    main(
        [
            str(folder / 'train.py'),
            str(folder / 'train.pth'),
            str(folder / 'out.pth'),
            '--shape',
            '64',
            '64',
            *arguments,
        ]
    )
    return Config.fromfile(folder / 'out.py')


def test_a_runner_tests_what_was_deployed_without_this_pack(tmp_path, capfd):
    for name, make in MODELS.items():
        cfg = make()
        init_default_scope(cfg.default_scope)
        state = trained_state(cfg.model)
        new_cfg = written(tmp_path / name, cfg, state)
        assert 'mmext' not in new_cfg.pretty_text
        assert 'it needs mmext no longer' in capfd.readouterr().out
        trained = build_model(cfg.model)
        trained.load_state_dict(state)
        trained.eval()
        torch.save(dict(inputs=IMAGES, outputs=outputs_of(trained, IMAGES)), tmp_path / name / 'expected.pt')
    assert Config.fromfile(tmp_path / 'classifier' / 'out.py').custom_hooks == [dict(type='EMAHook')]
    assert 'optim_wrapper' not in Config.fromfile(tmp_path / 'classifier' / 'out.py'), 'half of a training is none'
    assert 'optim_wrapper' in Config.fromfile(tmp_path / 'segmentor' / 'out.py'), 'a stock one stays'
    result = subprocess.run(
        [sys.executable, '-c', WITHOUT, *(str(tmp_path / name) for name in MODELS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert 'all the same' in result.stdout, result.stderr[-2000:]


def test_fused_lists_of_heads_stay_lists_and_the_file_says_why(tmp_path):
    cfg = segmentor()
    init_default_scope('mmseg')
    new_cfg = written(tmp_path / 'out', cfg, trained_state(cfg.model), '--fuse-bn')
    assert [head.type for head in new_cfg.model.decode_head] == ['mmext.folded', 'mmext.folded']
    text = (tmp_path / 'out' / 'out.py').read_text()
    needs = read_checkpoint(tmp_path / 'out' / 'out.pth')['meta']['mmext']['needed_for']
    assert len(needs) == 3
    assert all(f'#   {need}\n' in text for need in needs)
    assert re.match(
        r'model\.decode_head\[0\]: mmext\.folded, because \d+ of its norms are fused, and no argument of FCNHead',
        needs[1],
    )


def test_a_hook_that_serves_tests_stays():
    hooks = [dict(type='mmext.SignalHook'), dict(type='mmext.SignalPictureHook'), dict(type='CheckpointHook')]
    cfg = Config(
        dict(custom_hooks=hooks, default_hooks=dict(a=dict(type='mmext.SignalHook'), b=dict(type='IterTimerHook')))
    )
    stripped = without_training_parts(cfg)
    assert [hook.type for hook in stripped.custom_hooks] == ['mmext.SignalPictureHook', 'CheckpointHook']
    assert list(stripped.default_hooks) == ['b']
    assert len(cfg.custom_hooks) == 3, 'what was read is not changed'


@pytest.mark.parametrize('stock', [False, True])
def test_large_depthwise_kernels_are_routed_unless_stock_is_asked_for(stock):
    init_default_scope('mmpretrain')
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    rules = [dict(depthwise=True, first=2, to=dict(type='mmext.DilatedReparamConv2d', kernel_size=17, padding=8))]
    backbone = dict(type='mmext.swap_layers', model='ConvNeXt', arch=arch, rules=rules)
    cfg = dict(type='ImageClassifier', backbone=backbone, head=dict(type='LinearClsHead', num_classes=3, in_channels=8))
    _, folded, new_cfg, error = deploy(cfg, trained_state(cfg), IMAGES, stock=stock)
    assert error < 1e-5
    routed = [m for m in folded.modules() if isinstance(m, DepthwiseConv2d)]
    assert len(routed) == (0 if stock else 2)
    if not stock:
        (need,) = leftovers(new_cfg)
        assert 'mmext.DepthwiseConv2d computes depthwise kernels of size 17' in need
        assert 'no plain form' not in need


def test_routes_stand_around_lists_wraps_and_bare_components():
    init_default_scope('mmpretrain')
    arch = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    rules = [dict(depthwise=True, kernel_size=7, to=dict(type='mmext.DilatedReparamConv2d', kernel_size=15, padding=7))]
    bare = dict(type='mmext.swap_layers', model='ConvNeXt', arch=arch, rules=rules)
    model, folded, new_cfg, error = deploy(bare, trained_state(bare), IMAGES)
    assert error < 1e-5
    assert sum(isinstance(m, DepthwiseConv2d) for m in folded.modules()) == 4
    twin = route(fold(copy.deepcopy(model)))
    assert {n: type(m) for n, m in twin.named_modules()} == {n: type(m) for n, m in folded.named_modules()}
    for key, tensor in folded.state_dict().items():
        assert torch.equal(twin.state_dict()[key], tensor)
    again = ROOT_MODELS.build(new_cfg)
    again.load_state_dict(folded.state_dict())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    cfg = classifier()
    init_default_scope('mmpretrain')
    cfg.dump(folder / 'train.py')
    torch.save(dict(state_dict=trained_state(cfg.model), meta={}), folder / 'train.pth')
    return folder


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def refused(folder, trained, out, *arguments):
    """Return the sentence of a refusal, after which the files are as before."""
    before, inputs = tree(folder), tree(trained)
    with pytest.raises(UsageError) as caught:
        main([str(trained / 'train.py'), str(trained / 'train.pth'), str(out), '--shape', '32', '32', *arguments])
    assert tree(folder) == before
    assert tree(trained) == inputs
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_its_own_inputs_are_never_overwritten(trained, tmp_path):
    link = tmp_path / 'link.pth'
    link.symlink_to(trained / 'train.pth')
    for out in (trained / 'train.pth', trained / '..' / trained.name / 'train.pth', link):
        assert 'is what this tool reads' in refused(tmp_path, trained, out, '--force')
    (tmp_path / 'weights.pth').write_bytes((trained / 'train.pth').read_bytes())
    argv = [str(trained / 'train.py'), str(tmp_path / 'weights.pth'), str(trained / 'train.pth'), '--force']
    with pytest.raises(UsageError, match=r'train\.py is what this tool reads'):
        main(argv)


@pytest.mark.parametrize('flag', ['--onnx', '--torchscript', '--export'])
def test_no_existing_file_is_overwritten_without_force(flag, trained, tmp_path):
    suffix = {'--onnx': '.onnx', '--torchscript': '.pt', '--export': '.pt2'}[flag]
    (tmp_path / f'o{suffix}').write_text('mine')
    assert 'exists and is not overwritten' in refused(tmp_path, trained, tmp_path / 'o.pth', flag)


def test_what_cannot_be_written_is_told_before_the_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy_tool, 'read_checkpoint', lambda *_: pytest.fail('it started to work'))
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder.pth').mkdir()
    assert 'cannot be written' in refused(tmp_path, trained, tmp_path / 'file' / 'o.pth')
    assert 'is a folder' in refused(tmp_path, trained, tmp_path / 'folder.pth', '--force')


@pytest.mark.parametrize('broken', ['torch.save', 'pathlib.Path.write_text', 'os.replace'])
def test_a_full_disk_leaves_nothing(broken, trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(broken, full)
    words = refused(tmp_path, trained, tmp_path / 'new' / 'o.pth')
    assert 'could not be written (OSError: [Errno 28] No space left on device); nothing is left of them' in words
    assert not list(tmp_path.iterdir())


def test_sizes_that_the_model_does_not_take_are_one_sentence(tmp_path):
    cfg = segmentor()
    init_default_scope('mmseg')
    with pytest.raises(
        RuntimeError, match=r"CascadeEncoderDecoder does not run on \(2, 3, 1, 0\) with mode='tensor' \(.*\), so"
    ):
        deploy(cfg.model.to_dict(), trained_state(cfg.model), torch.zeros(2, 3, 1, 0))
    with pytest.raises(SystemExit):
        main(['a.py', 'a.pth', 'o.pth', '--shape', '0', '4'])


def test_a_model_that_returns_nan_says_so_and_blames_nothing_else():
    cfg = classifier().model.to_dict()
    init_default_scope('mmpretrain')
    state = trained_state(cfg)
    state['backbone.layer4.1.bn2.weight'][0] = float('nan')
    with pytest.raises(RuntimeError, match=r'^(the trained model itself returns NaN .*|.*nan.*|.*finite.*)$') as caught:
        deploy(cfg, state, (32, 32), fuse_bn=True)
    assert 'batch norm' not in str(caught.value)


def test_a_difference_is_blamed_on_fusing_only_where_that_was_tried(monkeypatch):
    import mmext.folding

    cfg = classifier().model.to_dict()
    init_default_scope('mmpretrain')
    state = trained_state(cfg)
    real = mmext.folding.find_fusions

    def wrong(model, inputs):
        fusions, left = real(model, inputs)
        return [(fusions[0][0], fusions[1][1]), *fusions[2:]], left

    monkeypatch.setattr(mmext.folding, 'find_fusions', wrong)
    with pytest.raises(RuntimeError, match=r'differs .*; nothing was written\. Without fusing norms it is equal'):
        deploy(cfg, state, (32, 32), fuse_bn=True)
    monkeypatch.setattr('mmext.folding.max_relative_error', lambda *_: 1.0)
    with pytest.raises(RuntimeError, match=r'nothing was written$'):
        deploy(cfg, state, (32, 32), fuse_bn=True)


def test_all_plain_layers_of_a_kind_that_stays_leave_the_config():
    cfg = classifier().model.to_dict()
    init_default_scope('mmpretrain')
    cfg['backbone']['rules'] = [dict(kernel_size=3, to=dict(type='mmext.InceptionDWConv2d'))]
    _, _, new_cfg, error = deploy(cfg, trained_state(cfg), (32, 32))
    assert error < 1e-5
    assert leftovers(new_cfg) == []


def test_a_new_style_config_is_written_so_that_it_reads_back(tmp_path):
    (tmp_path / 'new.py').write_text(
        'from mmengine.config import read_base\n'
        'from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead\n'
        'from mmext.backbones.falconnet import FalconNet\n'
        'from mmext.hooks.checkpoint_guard import CheckpointGuardHook\n'
        'default_scope = None\n'
        'custom_hooks = [dict(type=CheckpointGuardHook)]\n'
        'model = dict(type=ImageClassifier, neck=dict(type=GlobalAveragePooling),\n'
        '    backbone=dict(type=FalconNet, arch=dict(depths=(1, 1, 1), channels=(16, 32, 64)), out_indices=(2,)),\n'
        '    head=dict(type=LinearClsHead, num_classes=3, in_channels=64))\n'
    )
    cfg = Config.fromfile(tmp_path / 'new.py')
    torch.save(dict(state_dict=build_model(cfg.model).state_dict()), tmp_path / 'new.pth')
    out = tmp_path / 'out.pth'
    main([str(tmp_path / 'new.py'), str(tmp_path / 'new.pth'), str(out), '--shape', '32', '32'])
    again = Config.fromfile(out.with_suffix('.py'))
    assert not again.get('custom_hooks')
    model = build_model(again.model)
    model.load_state_dict(read_checkpoint(out)['state_dict'])
    assert Path(out).exists()
