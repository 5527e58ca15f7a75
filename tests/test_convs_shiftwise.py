import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import shake_norms
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.folding import fold


def make(channels: int = 8, size: int = 7, **kwargs) -> ShiftwiseConv2d:
    layer = ShiftwiseConv2d(
        channels, channels, size, **{'padding': size // 2, 'groups': channels, 'bias': False, **kwargs}
    )
    return shake_norms(layer).double()


def released_tables(layer: ShiftwiseConv2d, seed: int = 123) -> tuple:
    """Draw the tables as the released code does, in its order, from the global generators."""
    count, n = len(layer.paths) // layer.n_path, layer.n_small
    np.random.seed(seed)
    ghost = np.sort(np.random.choice(layer.in_channels, layer.in_channels - count, replace=False))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        horizontal = [[torch.randperm(n) for _ in range(count)] for _ in range(layer.n_rep)]
        vertical = [[torch.randperm(n) for _ in range(count)] for _ in range(layer.n_rep)]
        center = [torch.randint(0, n, [count]) for _ in range(layer.n_rep)]
    return torch.from_numpy(ghost), horizontal, vertical, center


def shifted(image, down, right, height, width):
    """Return ``out[y, x] = image[y + down, x + right]``, zero where that lies outside."""
    out = torch.zeros(len(image), height, width, dtype=image.dtype)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < image.shape[1] and 0 <= x + right < image.shape[2]:
                out[:, y, x] = image[:, y + down, x + right]
    return out


def by_shifting_and_adding(layer: ShiftwiseConv2d, x):
    """The released operator: convolve with every small kernel, then shift and add what comes out, then the norms."""
    (big, _), k, (height, width) = layer.kernel_size, layer.small_kernel, x.shape[2:]
    count, n = len(layer.paths) // layer.n_path, layer.n_small
    ghost, horizontal, vertical, center = released_tables(layer)
    rep = torch.tensor([c for c in range(layer.in_channels) if c not in ghost])
    rows = cols = k - 1  # the padding of the small convolutions, by which their results lie further in
    every = sum(
        F.conv2d(x[:, rep], path.reshape(count * n, 1, k, k), padding=k - 1, groups=count)
        for path in layer.paths.chunk(layer.n_path)
    )
    sums = torch.zeros(3, len(x), count, height, width, dtype=x.dtype)
    for r in range(layer.n_rep):
        for c in range(count):
            for i in range(n):
                along, across = i * k - big // 2, -(k // 2)
                kernel = every[:, c * n + horizontal[r][c][i]]
                sums[0, :, c] += shifted(kernel, across + rows, along + cols, height, width)
                kernel = every[:, c * n + vertical[r][c][i]]
                sums[1, :, c] += shifted(kernel, along + rows, across + cols, height, width)
            sums[2, :, c] += shifted(every[:, c * n + center[r][c]], -(k // 2) + rows, -(k // 2) + cols, height, width)
    out = x.clone()
    out[:, rep] += sum(norm(s) for norm, s in zip(layer.norms, sums, strict=True))
    return out


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'kwargs', [dict(), dict(size=5, small_kernel=3, n_rep=1, n_path=1), dict(size=9, small_kernel=5)]
)
def test_equals_shifting_and_adding(kwargs, training):
    layer = make(**kwargs).train(training)
    x = torch.randn(2, 8, 9, 6).double()
    expected = by_shifting_and_adding(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    if not training:
        torch.testing.assert_close(layer.fold()(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('size', 'radius'), [(51, 25), (49, 26), (47, 24), (13, 8), (7, 5)])
def test_radius_of_the_generated_kernel(size, radius):
    layer = ShiftwiseConv2d(4, 4, size, groups=4, padding=size // 2)
    assert layer.radius == radius
    plain = layer.eval().fold()
    assert plain.kernel_size == (2 * radius + 1, 2 * radius + 1)
    assert plain.padding == (radius, radius)


def test_global_generators_are_not_touched_by_the_tables():
    layer = make()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    layer._draw_tables(123)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_tables_are_saved_and_follow_the_seed():
    layer, same, other = make(), make(), make(seed=7)
    for name in ('channels', 'slots_h', 'slots_v', 'slots_s'):
        assert name in layer.state_dict()
        assert torch.equal(getattr(layer, name), getattr(same, name))
    assert not torch.equal(layer.slots_h, other.slots_h)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, 9, 9).double()
    assert torch.equal(layer.eval()(x), other.eval()(x))


def test_tables_count_every_small_kernel_and_every_place_once_per_order():
    layer = make(n_rep=3)
    for table in (layer.slots_h, layer.slots_v):
        assert (table.sum(1) == 3).all()
        assert (table.sum(2) == 3).all()
    assert (layer.slots_s.sum(1) == 3).all()


@pytest.mark.parametrize('training', [True, False])
def test_ghost_channels_pass_unchanged(training):
    layer = make(channels=12, ghost_ratio=0.5).train(training)
    ghost = [c for c in range(12) if c not in layer.channels]
    assert len(ghost) == 6
    x = torch.randn(2, 12, 9, 9).double()
    y = layer(x)
    assert torch.equal(y[:, ghost], x[:, ghost])
    assert not torch.isclose(y[:, layer.channels], x[:, layer.channels]).any()


@pytest.mark.parametrize('training', [True, False])
def test_without_kernels_it_is_the_identity(training):
    layer = ShiftwiseConv2d(8, 8, 7, padding=3, groups=8, bias=False).train(training)
    nn.init.zeros_(layer.paths)
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(('channels', 'ratio', 'count'), [(80, 0.23, 60), (7, 0.0, 6), (640, 0.23, 492), (8, 0.5, 4)])
def test_number_of_convolved_channels_is_even(channels, ratio, count):
    layer = ShiftwiseConv2d(channels, channels, 5, groups=channels, ghost_ratio=ratio)
    assert layer.channels.numel() == count == layer.norms[0].num_features


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(padding=1),
        dict(padding=(4, 0), stride=(2, 1)),
        dict(padding=6, dilation=2),
        dict(padding='same', dilation=2),
        dict(padding='valid'),
        dict(padding=3, padding_mode='circular'),
    ],
)
def test_training_computes_with_the_kernel_that_folds_at_any_geometry(kwargs):
    """With the norms in eval mode, which is the only difference between the two."""
    layer = make(**{'bias': True, **kwargs})
    x = torch.randn(2, 8, 19, 17).double()
    expected = layer.eval().fold()(x)
    layer.train()
    layer.norms.eval()
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    big = nn.Conv2d(8, 8, 7, **kwargs).double()
    assert layer(x).shape == big(x).shape


@pytest.mark.parametrize('size', [1, 3])
def test_kernels_no_larger_than_the_small_ones_stay_plain(size):
    layer = ShiftwiseConv2d(4, 8, size)
    assert layer.plain
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
    assert type(layer.fold()) is nn.Conv2d
    assert layer.fold().padding == (0, 0)


@pytest.mark.parametrize(
    ('args', 'kwargs', 'message'),
    [
        ((8, 8, 7), dict(), r'ShiftwiseConv2d needs groups = in_channels = out_channels, got groups=1'),
        (
            (8, 8, (7, 5)),
            dict(groups=8),
            r'square kernel_size and a small_kernel that are odd, got kernel_size=\(7, 5\)',
        ),
        ((8, 8, 6), dict(groups=8), 'square kernel_size and a small_kernel that are odd'),
        ((8, 8, 7), dict(groups=8, small_kernel=2), 'small_kernel=2'),
        ((8, 8, 7), dict(groups=8, ghost_ratio=1.0), 'ShiftwiseConv2d needs 0 <= ghost_ratio < 1'),
        ((8, 8, 7), dict(groups=8, n_rep=0), 'n_rep=0'),
        ((1, 1, 7), dict(groups=1), 'none is left of in_channels=1 with ghost_ratio=0.23'),
        ((8, 8, 7), dict(groups=8, norm_cfg=dict(type='GN', num_groups=2)), 'ShiftwiseConv2d folds batch norms'),
    ],
)
def test_bad_arguments(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShiftwiseConv2d(*args, **kwargs)


def test_gradcheck_through_the_small_kernels():
    layer = make(channels=2, ghost_ratio=0, size=5).eval()
    x = torch.randn(1, 2, 6, 6).double()

    def run(paths):
        return torch.func.functional_call(layer, {'paths': paths}, x)

    assert torch.autograd.gradcheck(run, layer.paths.detach().requires_grad_(), fast_mode=True)


def test_initial_small_kernels_have_the_variance_of_kaiming():
    layer = ShiftwiseConv2d(256, 256, 13, groups=256)
    assert layer.paths.var().item() == pytest.approx(2 / 9, rel=0.05)
    x = layer.paths.detach().clone()
    layer.init_weights()
    assert not torch.equal(layer.paths, x)


def test_in_a_stock_convnext():
    model = ROOT_MODELS.build(
        dict(
            type='mmext.swap_layers',
            model='mmpretrain.ConvNeXt',
            arch=dict(depths=[1, 2], channels=[8, 16]),
            out_indices=(0, 1),
            gap_before_final_norm=False,
            rules=[dict(depthwise=True, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=13, padding=6))],
        )
    )
    assert sum(isinstance(m, ShiftwiseConv2d) for m in model.modules()) == 3
    x = torch.randn(2, 3, 32, 32)
    sum(y.square().mean() for y in model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    before = model(x)
    folded = fold(model)
    assert not any(isinstance(m, ShiftwiseConv2d) for m in folded.modules())
    for a, b in zip(folded(x), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
