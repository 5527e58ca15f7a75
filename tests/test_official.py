"""A checkpoint as its authors published it, named in a config."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from official_layers import all_cases, shaken
from official_layers.inceptionnext import ARCH, InceptionNeXtOfficial

from mmext.backbones.base import Backbone
from mmext.backbones.inceptionnext import InceptionNeXt
from mmext.errors import CheckpointError

#: A ViT of PfNet has the names of any ViT, so nothing can recognize its file.
NETWORKS = [
    pytest.param(case, id=f'{name}, {label}')
    for name, label, case in all_cases()
    if (name, label) != ('pfnet', 'ViT') and isinstance(case.ours(), Backbone)
]


def pretrained(path):
    return dict(type='Pretrained', checkpoint=str(path))


@pytest.fixture
def published(tmp_path):
    official = shaken(InceptionNeXtOfficial())
    classifier = {'head.fc1.weight': torch.randn(3, 3)}
    torch.save({'model': {**official.state_dict(), **classifier}, 'epoch': 3}, tmp_path / 'official.pth')
    return official, tmp_path / 'official.pth'


@pytest.mark.parametrize('case', NETWORKS)
def test_it_is_converted_where_it_is_loaded(case, tmp_path):
    official = shaken(case.official())
    torch.save(official.state_dict(), tmp_path / 'official.pth')
    net = case.ours()
    net.init_cfg = pretrained(tmp_path / 'official.pth')
    net.init_weights()
    x = torch.randn(case.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), official(x), rtol=1e-4, atol=1e-4)
    assert net.init_cfg == pretrained(tmp_path / 'official.pth')


def test_first_scales_alone_take_what_they_need(published):
    official, path = published
    net = InceptionNeXt(ARCH, out_indices=(0,), init_cfg=pretrained(path), out_norm=dict(type='BN'))
    net.init_weights()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x)[0] * (1 + 1e-5) ** 0.5, official.stages[0](official.stem(x)))


def test_other_entries_of_init_cfg_come_before(published):
    official, path = published
    net = InceptionNeXt(
        ARCH, out_indices=(0, 1), init_cfg=[dict(type='Constant', layer='Conv2d', val=7.0), pretrained(path)]
    )
    net.init_weights()
    assert torch.equal(net.stem[0].weight, official.stem[0].weight)


@pytest.mark.parametrize(
    'change', [dict(depths=(1, 2)), dict(depths=(3, 2)), dict(channels=(16, 24)), dict(ratios=(3, 4))]
)
def test_another_variant_is_refused(published, change):
    net = InceptionNeXt({**ARCH, **change}, out_indices=(0, 1), init_cfg=pretrained(published[1]))
    with pytest.raises(CheckpointError, match='file of the authors of inceptionnext, but not of this variant'):
        net.init_weights()


def test_another_network_is_refused_with_the_command(published):
    net = MODELS.build(dict(type='mmext.RDNet', **MODELS.get('mmext.RDNet').example, init_cfg=pretrained(published[1])))
    command = (
        r'RDNet does not know .*: python tools/model_converters/convert\.py inceptionnext .*official\.pth official_conv'
    )
    with pytest.raises(CheckpointError, match=command):
        net.init_weights()


def test_our_own_file_is_loaded_as_it_is(tmp_path):
    net = InceptionNeXt(**InceptionNeXt.example)
    torch.save(dict(state_dict=net.state_dict()), tmp_path / 'ours.pth')
    other = InceptionNeXt(**InceptionNeXt.example, init_cfg=pretrained(tmp_path / 'ours.pth'))
    other.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_run_converts_it_and_refuses_it_for_a_stock_network(published, tmp_path):
    from mmext.hooks.checkpoint_guard import CheckpointGuardHook

    class Runner:
        from mmengine.logging import MMLogger
        from mmengine.runner import BaseLoop

        _resume, logger = False, MMLogger.get_current_instance()
        _train_loop = BaseLoop.__new__(type('Loop', (BaseLoop,), {'run': lambda self: None}))

    runner = Runner()
    runner.model = InceptionNeXt(ARCH, out_indices=(0, 1), init_cfg=pretrained(published[1]))
    CheckpointGuardHook().before_run(runner)
    runner.model = MODELS.build(ConfigDict(type='mmdet.ResNet', depth=18, init_cfg=pretrained(published[1])))
    with pytest.raises(CheckpointError, match=r'ResNet does not know .*convert\.py inceptionnext'):
        CheckpointGuardHook().before_run(runner)
