"""Losses of orthogonality against the dense matrix of the layer, the released formulas in loops, and a real run."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmext  # noqa: F401  teaches the config loader where mmseg:: bases live
from mmext.convs.refconv import RefConv2d
from mmext.convs.spd_conv import SPDConv2d
from mmext.hooks.orthogonal import OrthogonalConvHook, gor, l_orth, ocnn, self_convolution

ROOT = Path(__file__).parents[1]


def circular_matrix(kernel, stride, size, groups=1, dilation=1):
    """The layer as a matrix, with circular padding, (Co n n, Ci N N)."""
    _, inputs, rows, cols = kernel.shape
    inputs *= groups
    images = torch.eye(inputs * size * size, dtype=kernel.dtype).view(-1, inputs, size, size)
    wrapped = F.pad(images, (0, dilation * (cols - 1), 0, dilation * (rows - 1)), mode='circular')
    return F.conv2d(wrapped, kernel, None, stride, 0, dilation, groups).flatten(1).T


# (Co, Ci/groups, kernel, stride, groups): rows, columns, both kinds with a stride, uneven and even kernels, groups.
CASES = [
    (3, 4, (3, 3), (1, 1), 1),
    (6, 2, (3, 3), (1, 1), 1),
    (4, 4, (5, 5), (1, 1), 1),
    (3, 4, (3, 3), (2, 2), 1),
    (9, 2, (3, 3), (2, 2), 1),
    (3, 2, (2, 4), (1, 1), 1),
    (5, 1, (3, 5), (1, 2), 1),
    (5, 3, (1, 1), (1, 1), 1),
    (3, 5, (1, 1), (1, 1), 1),
    (4, 3, (3, 3), (1, 1), 2),
    (4, 1, (3, 3), (2, 2), 4),
]


@pytest.mark.parametrize('case', CASES)
def test_l_orth_is_the_distance_of_the_layers_matrix_from_orthogonality(case):
    filters, channels, size, stride, groups = case
    kernel = torch.randn(filters, channels, *size, dtype=torch.float64)
    matrix = circular_matrix(kernel, stride, 10, groups)
    by_group = matrix.view(groups, -1, matrix.shape[1]).unflatten(2, (groups, -1))
    total = 0
    for g in range(groups):
        block = by_group[g, :, g]
        gram = block @ block.T if block.shape[0] <= block.shape[1] else block.T @ block
        total += (gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum()
    pixels = 10 // stride[0] * (10 // stride[1])
    torch.testing.assert_close(l_orth(kernel, stride, groups) * pixels, total, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize('size', [3, 4])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_self_convolution_in_loops(size, stride):
    kernel = torch.randn(3, 2, size, size, dtype=torch.float64)
    found = self_convolution(kernel, (stride, stride))[0]
    reach = (size - 1) // stride
    assert found.shape == (3, 3, 2 * reach + 1, 2 * reach + 1)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            dy, dx = i * stride, j * stride
            moved = torch.zeros_like(kernel)
            # moved[u, v] = kernel[u + dy, v + dx] where that exists
            rows, cols = (slice(max(0, -d), size - max(0, d)) for d in (dy, dx))
            sources = (slice(max(0, d), size + min(0, d)) for d in (dy, dx))
            moved[:, :, rows, cols] = kernel[(..., *sources)]
            expected = torch.einsum('acuv,bcuv->ab', moved, kernel)
            torch.testing.assert_close(found[:, :, i + reach, j + reach], expected, rtol=1e-10, atol=1e-10)


def test_orthogonal_kernels_have_no_loss():
    shifts = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    for c in range(4):
        shifts[c, c, c % 3, c // 3] = 1
    for stride in ((1, 1), (2, 2)):
        assert l_orth(shifts, stride) == 0
        assert ocnn(shifts, stride) == 0
    assert gor(shifts) == 0
    # A patch embedding with an orthogonal matrix keeps all of the image: as many filters as numbers.
    patches = nn.init.orthogonal_(torch.empty(12, 12, dtype=torch.float64)).view(12, 3, 2, 2)
    assert l_orth(patches, (2, 2)).abs() < 1e-20
    # An orthogonal map to more channels: the columns are orthonormal, the rows cannot be.
    wide = nn.init.orthogonal_(torch.empty(12, 4, dtype=torch.float64)).view(12, 4, 1, 1)
    assert l_orth(wide) < 1e-20
    padded = F.pad(wide, (1, 1, 1, 1))
    assert l_orth(padded).abs() < 1e-12  # 8 - 8, rounded


def test_ocnn_is_the_root_of_the_same_distance():
    kernel = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(ocnn(kernel), l_orth(kernel).sqrt())
    torch.testing.assert_close(ocnn(kernel, (2, 2)), l_orth(kernel, (2, 2)).sqrt())
    wide = torch.randn(6, 2, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(ocnn(wide), (wide[..., 0, 0].T @ wide[..., 0, 0] - torch.eye(2)).norm())
    two = torch.cat([kernel, kernel.flip(0)])
    torch.testing.assert_close(ocnn(two, groups=2), ocnn(kernel) + ocnn(kernel.flip(0)))


def test_the_released_padding_would_miss_the_center_and_ours_does_not():
    kernel = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    assert self_convolution(kernel, (2, 2)).shape[-2:] == (3, 3)
    norms = self_convolution(kernel, (2, 2))[0, ..., 1, 1].diagonal()
    torch.testing.assert_close(norms, kernel.flatten(1).square().sum(1))
    assert F.conv2d(kernel, kernel, stride=2, padding=1).shape[-2:] == (2, 2)


def test_the_gradient_at_orthogonality_is_finite():
    kernel = torch.eye(3)[..., None, None].clone().requires_grad_()
    (ocnn(kernel) + l_orth(kernel) + gor(kernel)).backward()
    assert torch.equal(kernel.grad, torch.zeros_like(kernel))


def test_gradcheck():
    kernel = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for function in (ocnn, l_orth, gor):
        assert torch.autograd.gradcheck(function, kernel)
    assert torch.autograd.gradcheck(lambda k: l_orth(k, (2, 2), 2), kernel)


@pytest.mark.parametrize('sets', ['inter', 'intra'])
@pytest.mark.parametrize(
    ('filters', 'num_groups', 'groups'),
    [(64, 32, 16), (64, 4, 4), (8, 32, 2), (18, 32, 3), (3, 32, 1), (7, 32, 1), (1, 1, 1)],
)
def test_gor_in_loops(filters, num_groups, groups, sets):
    kernel = torch.randn(filters, 2, 3, 3, dtype=torch.float64)
    rows = kernel.flatten(1)
    size = filters // groups
    if sets == 'inter':
        chosen = [range(n * size, (n + 1) * size) for n in range(groups)]
    else:
        chosen = [range(j, filters, size) for j in range(size)]
    expected = 0
    for indices in chosen:
        v = rows[list(indices)]
        gram = v.T @ v if v.shape[0] >= v.shape[1] else v @ v.T
        expected += (gram - torch.eye(len(gram))).square().sum()
    torch.testing.assert_close(gor(kernel, num_groups, sets=sets), expected)


# --- the hook ------------------------------------------------------------------------------------------------------------


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.body = nn.Sequential(RefConv2d(4, 4, 3, padding=1, map_init='default'), nn.Conv2d(4, 8, 1, bias=False))
        self.fc = nn.Linear(8, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        y = self.fc(self.body(self.stem(inputs)).mean((2, 3)))
        return dict(loss_cls=y.square().mean()) if mode == 'loss' else y


def test_the_default_takes_every_convolution_with_its_stride_and_generated_kernel():
    model = Net()
    loss = OrthogonalConvHook('l_orth').loss(model)
    kernel = model.body[0].generate_kernel()
    expected = l_orth(model.stem.weight, (2, 2)) + l_orth(kernel) + l_orth(model.body[1].weight)
    assert loss.keys() == {'loss_orth'}
    torch.testing.assert_close(loss['loss_orth'], expected)
    loss['loss_orth'].backward()
    assert model.body[0].map_weight.grad.abs().sum() > 0


def test_layers_are_chosen_by_name_and_only_those_that_learn():
    model = Net()
    assert list(OrthogonalConvHook(match=r'^body').layers(model)) == ['body.0', 'body.1']
    assert list(OrthogonalConvHook(skip='stem|1').layers(model)) == ['body.0']
    assert list(OrthogonalConvHook(linear=True).layers(model)) == ['stem', 'body.0', 'body.1', 'fc']
    model.stem.requires_grad_(False)
    model.stem.bias.requires_grad_(True)
    assert 'stem' not in OrthogonalConvHook().layers(model)
    with pytest.raises(ValueError, match=r"no layer that learns for match='stem', .*\(1 match but are frozen\)"):
        OrthogonalConvHook(match='stem').loss(model)
    with pytest.raises(ValueError, match=r"\(0 match but are frozen\); of its 3 layers the nearest names are \['stem'"):
        OrthogonalConvHook(match='sten').loss(model)


def test_a_linear_layer_counts_as_a_pointwise_one():
    model = Net()
    loss = OrthogonalConvHook('gor', match='fc', linear=True).loss(model)['loss_orth']
    torch.testing.assert_close(loss, gor(model.fc.weight[..., None, None]))


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('stride', [1, 2])
def test_dilation_is_taken_into_account(stride, dilation):
    conv = nn.Conv2d(3, 2, 3, stride, dilation=dilation).double()
    matrix = circular_matrix(conv.weight.detach(), stride, 12, dilation=dilation)
    expected = (matrix @ matrix.T - torch.eye(len(matrix))).square().sum() / (12 // stride) ** 2
    torch.testing.assert_close(OrthogonalConvHook('l_orth').loss(nn.Sequential(conv))['loss_orth'], expected)


def test_a_layer_with_another_plain_geometry_is_taken_as_it_folds():
    layer = SPDConv2d(2, 3, 3, 2, 1).double()
    matrix = circular_matrix(layer.fold().weight, 2, 12)
    expected = (matrix @ matrix.T - torch.eye(len(matrix))).square().sum() / 36
    torch.testing.assert_close(OrthogonalConvHook('l_orth').loss(nn.Sequential(layer))['loss_orth'], expected)


class Recorder(Hook):
    """The term in what every iteration returned for the log."""

    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(outputs['loss_orth'].item())


def train(tmp_path, hook, epochs):
    torch.manual_seed(0)
    model, recorder = Net(), Recorder()
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            dataset=[torch.full((3, 8, 8), float(i)) for i in range(4)],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=2,
            collate_fn=lambda items: dict(inputs=torch.stack(items)),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[hook, recorder],
        default_hooks=dict(checkpoint=None, timer=None, logger=None, param_scheduler=None, sampler_seed=None),
        experiment_name=f'{tmp_path.name}_{id(recorder)}',
        log_level=logging.ERROR,
    )
    torch.manual_seed(0)
    model.load_state_dict(Net().state_dict())
    runner.train()
    return recorder.values


@pytest.mark.parametrize(('method', 'weight'), [('ocnn', 0.1), ('l_orth', 1.0), ('gor', 0.01)])
def test_in_a_run_it_is_logged_and_falls(tmp_path, method, weight):
    torch.manual_seed(0)
    expected = weight * OrthogonalConvHook(method).loss(Net())['loss_orth'].item()
    values = train(tmp_path, dict(type='mmext.OrthogonalConvHook', method=method), epochs=4)
    assert values[0] == pytest.approx(expected, rel=1e-5)
    assert values[-1] < values[0]


@pytest.mark.parametrize(
    ('name', 'layers'),
    [
        ('orthogonal/cls/resnet18-ocnn_8xb32_in1k', 8 + 3),
        ('orthogonal/cls/resnet18-l-orth_8xb32_in1k', 16 + 3),
        ('orthogonal/det/retinanet_r50-gor_fpn_1x_coco', 53 - 11),  # the stem and the first stage are frozen
        ('orthogonal/seg/fcn_r50-d8-gor_4xb4-80k_ade20k-512x512', 55),
        ('demo/compare/orthogonal', 12 + 2),
    ],
)
def test_the_shipped_configs_find_their_layers(name, layers):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    (hook,) = (HOOKS.build(h) for h in cfg.custom_hooks if h['type'].startswith('mmext.Orth'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.train()
    assert len(hook.layers(model)) == layers


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^OrthogonalConvHook needs a method of \['ocnn', 'l_orth', 'gor'\] .*'srip'"):
        HOOKS.build(dict(type='mmext.OrthogonalConvHook', method='srip'))
    with pytest.raises(ValueError, match=r"^OrthogonalConvHook needs .*sets='both'"):
        OrthogonalConvHook(sets='both')
    with pytest.raises(
        ValueError, match=r'^OrthogonalConvHook needs num_groups and min_filters of at least 1, got num_groups=0'
    ):
        OrthogonalConvHook(num_groups=0)


def test_a_misspelt_name_is_told_before_the_first_iteration():
    from types import SimpleNamespace

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
    hook = OrthogonalConvHook(match='lyer1', start_epoch=20)
    with pytest.raises(ValueError, match=r"found no layer that learns for match='lyer1'"):
        hook.before_train(SimpleNamespace(model=model, train_loop=None))
