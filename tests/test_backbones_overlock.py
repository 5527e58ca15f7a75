import pytest
import torch
from official_layers import shaken
from official_layers.overlock import ARCH
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmext.backbones.overlock import BRANCHES, OverLoCK

#: Parameters in millions of the deployed classifier and of that in training, with the classifier on the overview, and GMACs at
#: 224 x 224 when deployed, of the authors' code; channels of the maps for detectors.
ARCHS = {
    'XT': (16.45, 17.31, 2.67, (56, 112, 340, 420)),
    'T': (33.47, 34.99, 5.59, (64, 128, 384, 640)),
    'S': (56.16, 58.31, 9.79, (64, 128, 448, 640)),
    'B': (94.94, 98.01, 16.95, (80, 160, 528, 720)),
}
CLASSIFIER = dict(dense=False, head_channels=1024, out_indices=(3,))


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_operations_and_widths_are_the_authors(arch):
    deployed, trained, macs, widths = ARCHS[arch]
    with torch.device('meta'):
        assert OverLoCK(arch).out_channels == widths
        net = OverLoCK(arch, return_overview=True, **CLASSIFIER)
        params = [sum(p.numel() for p in net.parameters()) + (1025 + net.out_channels[0] + 1) * 1000]
        net = OverLoCK(arch, **CLASSIFIER).eval()
        net.switch_to_deploy()
        params.append(sum(p.numel() for p in net.parameters()) + 1025 * 1000)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    assert round(params[1] / 1e6, 2) == deployed
    assert round(params[0] / 1e6, 2) == trained
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize('size', [(64, 96), (97, 75), (33, 210), (1, 1)])
def test_sizes_are_rounded_up_and_small_maps_are_enlarged_for_their_kernels(size):
    outs = OverLoCK(ARCH).eval()(torch.randn(1, 3, *size))
    for out, stride in zip(outs, (4, 8, 16, 32), strict=True):
        assert out.shape[2:] == tuple(-(-side // stride) for side in size)


def test_it_folds_as_it_was():
    net = shaken(OverLoCK(ARCH))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        before = net(x)
        net.switch_to_deploy()
        for a, b in zip(net(x), before, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert not any(type(m).__name__ == 'DilatedReparamConv2d' for m in net.modules())


def test_the_overview_comes_first_where_it_is_asked_for():
    plain, both = OverLoCK(ARCH).eval(), OverLoCK(ARCH, return_overview=True).eval()
    missing, unexpected = both.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith('overview_norm.') for name in missing)
    x = torch.randn(1, 3, 65, 97)
    overview, *maps = both(x)
    assert overview.shape == (1, both.out_channels[0], 3, 4)
    assert both.out_channels[1:] == plain.out_channels
    assert both.out_strides == (32, 4, 8, 16, 32)
    for a, b in zip(maps, plain(x), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match='drop return_overview'):
        OverLoCK(ARCH, out_indices=(0, 1), return_overview=True)


def test_the_overview_reaches_every_pixel_of_the_focus():
    net = shaken(OverLoCK(ARCH, out_indices=(2,)))
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    net(x)[0][0, 0, 0, 0].backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.all()


def test_the_released_detectors_go_on_from_the_normalized_map():
    dense, plain = shaken(OverLoCK(ARCH)), OverLoCK(ARCH, dense=False).eval()
    plain.load_state_dict(dense.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    maps, others = dense(x), plain(x)
    torch.testing.assert_close(maps[0], dense.norms['0'](others[0]))
    torch.testing.assert_close(maps[1], dense.stages[1].norm(others[1]))
    assert (maps[2] - dense.norms['2'](others[2])).abs().max() > 1e-3


def test_start_is_the_authors():
    net = OverLoCK(ARCH)
    for _ in range(2):
        for name, parameter in net.named_parameters():
            if 'small_bias' in name or 'large_bias' in name:
                assert not parameter.any()
            elif parameter.ndim == 4:
                assert parameter.abs().max() <= 2
                assert parameter.std() < 0.03, name
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        for module in net.modules():
            if hasattr(module, 'reset_parameters') and not list(module.children()):
                module.reset_parameters()
        net.init_weights()


def test_branches_cover_no_more_than_their_kernel():
    for size, kinds in BRANCHES.items():
        for kind in kinds:
            taps, _, spacing = kind.partition('@')
            assert int(spacing or 1) * (int(taps.partition('x')[0]) - 1) + 1 <= size


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: OverLoCK('L'), r"knows the archs \['B', 'S', 'T', 'XT'\]"),
        (lambda: OverLoCK(dict(ARCH, kernels=(7, 7, 7, 3))), r'kernels of \[5, 7, 9, 11, 13, 15, 17\]'),
        (lambda: OverLoCK(dict(ARCH, heads=(3, 4))), r'multiples of 4 \* heads'),
        (lambda: OverLoCK(dict(ARCH, depths=(1, 1, 1))), 'needs depths as a sequence of 4'),
        (lambda: OverLoCK(ARCH, head_channels=8, out_indices=(0,)), 'drop head_channels'),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
