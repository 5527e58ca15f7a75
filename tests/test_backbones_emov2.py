import pytest
import torch

from mmext.analysis.backbones import cost
from mmext.backbones.emov2 import EMOv2, _WindowAttention

#: Parameters in millions with a norm and a linear head of 1,000 classes, GMACs at 224 x 224, as the authors' code has them.
ARCHS = {
    '1M': (1.461, 0.280),
    '2M': (2.384, 0.481),
    '5M': (5.126, 1.025),
    '20M': (20.195, 3.997),
    '50M': (49.816, None),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_operations_are_the_authors(arch):
    row = cost(arch, dict(type='mmext.EMOv2', arch=arch))
    head = row.channels[-1] * 1002 + 1000
    assert round((row.parameters + head) / 1e6, 3) == ARCHS[arch][0]
    # One window covers the last map: both attentions are the same there, and are computed once.
    last = {key: value[-1] for key, value in EMOv2.arch_zoo[arch].items()}
    once = (last['depths'] - 1) * 49**2 * last['channels'] * (1 + last['ratios']) / 1e9
    if ARCHS[arch][1]:
        assert row.operations[0] + once == pytest.approx(ARCHS[arch][1], rel=0.003)


def attention(window):
    return _WindowAttention(8, 16, 4, window, dict(type='GELU'))


def test_one_window_over_the_map_is_global_attention_twice():
    layer = attention(7)
    whole = attention(None)
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(layer(x), whole(x))


def test_far_windows_see_the_pixels_between_which_the_near_ones_stand():
    layer = attention(2).eval()
    sides, x = (2, 2), torch.randn(1, 8, 4, 4, requires_grad=True)
    query, key = layer.query_key(x).chunk(2, 1)
    value = layer.act(layer.value(x))
    seen = {}
    for far in (False, True):
        y = layer._attend(query, key, value, sides, far)
        (grad,) = torch.autograd.grad(y[0, :, 0, 0].sum(), x, retain_graph=True)
        seen[far] = grad.abs().sum((0, 1)).nonzero().tolist()
    assert seen[False] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert seen[True] == [[0, 0], [0, 2], [2, 0], [2, 2]]


def test_weights_fit_any_window():
    net = EMOv2(**EMOv2.example, window_size=7)
    assert not EMOv2(**EMOv2.example, window_size=10).load_state_dict(net.state_dict()).missing_keys


def test_outputs_at_the_start_are_as_small_as_the_authors():
    torch.manual_seed(0)
    small, plain = EMOv2('1M').train(), EMOv2('1M', scales_first=False).train()
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert all(1e-7 < y.std() < 1e-5 for y in small(x))
        assert all(y.std() > 1e-3 for y in plain(x))


@pytest.mark.parametrize('size', [(65, 34), (97, 130)])
def test_odd_sizes_are_rounded_up(size):
    outs = EMOv2(**EMOv2.example).eval()(torch.randn(1, 3, *size))
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-side // s) for side in size) for s in (4, 8, 16)]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(head_channels=(8, 3)), 'heads that divide the channels'),
        (dict(ratios=(2, 1.1)), 'heads that divide the channels'),
        (dict(ratios=(2,)), 'one entry per stage'),
        (dict(attention=(0, 1)), 'attention'),
    ],
)
def test_bad_archs(change, message):
    arch = dict(depths=(1, 1), channels=(8, 16), ratios=(2, 2), head_channels=(8, 8), attention=(False, True))
    with pytest.raises(ValueError, match=message):
        EMOv2({**arch, **change}, out_indices=(0, 1))
