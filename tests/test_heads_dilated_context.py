"""The context module: the identity at first, how far it sees, and stock heads with it."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmext.analysis.samples import batch_for, take_step
from mmext.heads.dilated_context import DILATIONS, DilatedContext
from mmext.hosts import build_model


@pytest.mark.parametrize(('form', 'noise'), [('basic', 0.01), ('large', 0.0)])
def test_it_starts_as_the_identity_on_what_is_not_negative(form, noise):
    x = torch.rand(2, 3, 9, 11).double()
    torch.testing.assert_close(DilatedContext(3, form, noise).double()(x), x)


def test_noise_tells_the_copies_of_the_large_form_apart():
    context = DilatedContext(2, 'large')
    weight = context.layers[3].weight[:, :, 1, 1]  # 16 channels from 8: two groups, shares of 1/8
    assert torch.equal((weight == 2 / 16).sum(1), torch.full((16,), 4))
    assert 0 < weight[:8, 4:].abs().max() < 0.1 * 2 / 16
    x = torch.rand(1, 2, 8, 8)
    assert (context(x) - x).abs().mean() < 0.3 * x.mean()


def test_it_sees_67_pixels():
    context = DilatedContext(1).double()
    with torch.no_grad():
        for layer in context.layers:
            layer.weight.fill_(0.1)
    seen = [3, 5, 9, 17, 33, 65, 67]
    assert [1 + 2 * sum(DILATIONS[: k + 1]) for k in range(7)] == seen
    x = torch.ones(1, 1, 81, 81).double().requires_grad_()
    context(x)[0, 0, 40, 40].backward()
    rows = x.grad[0, 0].any(1).nonzero().flatten()
    assert (rows[0], rows[-1]) == (40 - 33, 40 + 33)


def segmentor(kind, **args):
    init_default_scope('mmseg')
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)),
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        decode_head=dict(
            type=kind, in_index=1, in_channels=16, channels=8, num_classes=11, norm_cfg=dict(type='BN'), **args
        ),
        test_cfg=dict(mode='whole'),
    )
    model = build_model(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize('where', ['scores', 'features'])
def test_a_stock_head_starts_as_without_it_and_trains(where):
    torch.manual_seed(0)
    plain = segmentor('FCNHead', dropout_ratio=0).eval()
    model = segmentor('mmext.DilatedContextHead', head='FCNHead', where=where, dropout_ratio=0).eval()
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all('conv_seg.context' in key for key in missing.missing_keys)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = plain(x)
        torch.testing.assert_close(model(x), want.relu() if where == 'scores' else want)
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    with torch.no_grad():
        model.decode_head.conv_seg.bias.fill_(0.5)  # away from where all scores are cut
    before = {k: v.clone() for k, v in model.decode_head.named_parameters()}
    take_step(model.train(), wrapper, batch_for('mmseg', size=32), 32)
    assert not [k for k, v in model.decode_head.named_parameters() if torch.equal(v, before[k])]


def test_any_head_with_conv_seg_takes_it_and_another_is_refused():
    init_default_scope('mmseg')
    common = dict(type='mmext.DilatedContextHead', in_channels=8, channels=8, num_classes=3)
    head = MODELS.build(dict(common, head='PSPHead', form='large'))
    assert head([torch.rand(2, 8, 12, 12)]).shape == (2, 3, 12, 12)
    with pytest.raises(ValueError, match=r'conv_seg, a 1x1 convolution.*conv_seg of FPN is None'):
        MODELS.build(
            dict(type='mmext.DilatedContextHead', head='mmdet.FPN', in_channels=[8], out_channels=8, num_outs=1)
        )
