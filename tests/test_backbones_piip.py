"""PIIP: branches that start alone, exchanges and their order, sums, and branches of other networks."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmengine.registry import init_default_scope
from torch import nn

from mmext.backbones.ffnet import FFNet
from mmext.backbones.piip import PIIP
from mmext.blocks.piip import DeformableAttention, Exchange, centers
from mmext.blocks.stepwise import ViTBranch
from mmext.export import export
from mmext.hosts import build_from_host

WIDE = dict(depth=4, embed_dims=16, num_heads=4, pretrain_size=32)
SMALL = dict(depth=2, embed_dims=8, num_heads=2, pretrain_size=32)
SETTINGS = dict(num_heads=4, norm_cfg=dict(type='GN', num_groups=4), interaction_drop_path=0.0)


def net(branches=(WIDE, SMALL), sizes=(32, 64), interactions=2, **more):
    return PIIP(dict(branches=branches, sizes=sizes, interactions=interactions), **{**SETTINGS, **more}).eval()


def tokens_of(model, x):
    """Return what the sum is made of, and its sizes."""
    seen = []
    handle = model.merges[str(model.number - 1)].register_forward_pre_hook(lambda _, args: seen.append(args))
    model(x)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_branches_start_alone():
    model, x = net(branches=(WIDE, SMALL, SMALL), sizes=(32, 32, 64)), torch.randn(2, 3, 64, 96)
    tokens, sizes = tokens_of(model, x)
    half = F.interpolate(x, scale_factor=0.5, mode='bilinear')
    for branch, image, found, size in zip(model.branches, (half, half, x), tokens, sizes, strict=True):
        alone, grid = branch.begin(image)
        for block in branch.blocks:
            alone = block(alone, grid)
        assert torch.equal(found, alone)
        assert size == grid
    assert sizes == [(2, 3), (2, 3), (4, 6)]


@torch.no_grad()
def test_the_sum_is_plain_at_first():
    model, x = net(), torch.randn(1, 3, 64, 64)
    merge = model.merges['1']
    tokens, sizes = tokens_of(model, x)
    first, second = (part(t.mT.unflatten(2, s)) for part, t, s in zip(merge.branches, tokens, sizes, strict=True))
    expected = F.interpolate(first, (4, 4), mode='bilinear') + second
    torch.testing.assert_close(merge(tokens, sizes), expected)
    torch.testing.assert_close(model(x)[2], expected)


@pytest.mark.parametrize('size', [(64, 64), (75, 67), (16, 33)])
def test_four_scales_of_any_size(size):
    model = net(branches=(WIDE, dict(SMALL, window_size=3)))
    outs = model(torch.randn(1, 3, *size))
    assert [tuple(y.shape) for y in outs] == [(1, 16, *(-(-side // s) for side in size)) for s in (4, 8, 16, 32)]
    assert model.out_strides == (4, 8, 16, 32)
    (last,) = net(out_indices=(-1,))(torch.randn(1, 3, *size))
    assert last.shape == outs[-1].shape


def exchange(kind='deform', project=True):
    how = dict(kind=kind, num_heads=2, num_points=3, value_ratio=0.5, ffn_ratio=0.5, drop_path=0.0, with_cp=False)
    return shake(Exchange(8, 4, project, **how).double(), 0.3).eval()


@torch.no_grad()
@pytest.mark.parametrize('kind', ['deform', 'dense'])
@pytest.mark.parametrize('project', [True, False])
def test_both_take_from_what_the_other_was(kind, project):
    unit, a, b = exchange(kind, project), torch.randn(2, 6, 8).double(), torch.randn(2, 12, 4).double()
    new_a, new_b = unit(a, (2, 3), b, (3, 4))
    torch.testing.assert_close(new_b, unit.into_second(b, unit.to_second(a), (3, 4), (2, 3)))
    torch.testing.assert_close(new_a, unit.into_first(a, unit.to_first(b), (2, 3), (3, 4)))
    assert not torch.allclose(new_a, a)
    unit.draw()
    assert torch.equal(unit(a, (2, 3), b, (3, 4))[0], a)


@torch.no_grad()
def test_the_pair_of_the_largest_images_comes_first():
    model, x = shake(net(branches=(WIDE, SMALL, SMALL), sizes=(32, 48, 64)), 0.2), torch.randn(1, 3, 64, 64)
    order = []
    for i, unit in enumerate(model.exchanges[0]):
        unit.register_forward_hook(lambda _, args, out, i=i: order.append((i, args[2], out[0])))
    model(x)
    assert [i for i, *_ in order] == [1, 0]
    assert torch.equal(order[1][1], order[0][2])  # the middle branch, as the first pair has left it


def test_grids_of_one_size_have_the_same_centers():
    assert torch.equal(
        centers((2, 3)), torch.tensor([[1, 1], [3, 1], [5, 1], [1, 3], [3, 3], [5, 3]]) / torch.tensor([6, 4])
    )


@torch.no_grad()
def test_deformable_attention_samples_where_it_points():
    layer = DeformableAttention(4, 4, 2, 1, 1.0).double()
    for linear in (layer.value_proj, layer.output_proj):
        nn.init.eye_(linear.weight)
    nn.init.zeros_(layer.sampling_offsets.bias)
    x = torch.randn(1, 12, 4).double()
    torch.testing.assert_close(layer(x, (3, 4), x, (3, 4)), x)  # each token sees its own place
    layer.draw()
    assert layer.sampling_offsets.bias.view(2, 1, 2).tolist() == [[[1, 0]], [[-1, pytest.approx(0, abs=1e-6)]]]
    for linear in (layer.value_proj, layer.output_proj):
        nn.init.eye_(linear.weight)
    seen = layer(x, (3, 4), x, (3, 4)).view(3, 4, 4)
    torch.testing.assert_close(seen[:, :3, :2], x.view(3, 4, 4)[:, 1:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[:, 1:, 2:], x.view(3, 4, 4)[:, :3, 2:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_windows_attend_within_themselves_and_pad_with_zeros():
    plain, windowed = (ViTBranch(**dict(WIDE, window_size=w)).eval() for w in (0, 2))
    windowed.load_state_dict(plain.state_dict())
    attend, inside = plain.blocks[0].attn, windowed.blocks[0].attn
    x = torch.randn(2, 15, 16)
    padded = F.pad(x.view(2, 3, 5, 16), (0, 0, 0, 1, 0, 1))
    expected = torch.empty(2, 4, 6, 16)
    for i in (0, 2):
        for j in (0, 2, 4):
            window = padded[:, i : i + 2, j : j + 2].flatten(1, 2)
            expected[:, i : i + 2, j : j + 2] = attend(window, (2, 2)).view(2, 2, 2, 16)
    torch.testing.assert_close(inside(x, (3, 5)), expected[:, :3, :5].flatten(1, 2))


def test_positions_of_other_grids_and_with_a_class_token_are_taken():
    branch, state = ViTBranch(**SMALL), ViTBranch(**SMALL).state_dict()
    code = torch.randn(1, 4, 8)
    branch.load_state_dict({**state, 'pos_embed': torch.cat((torch.zeros(1, 1, 8), code), 1)})
    assert torch.equal(branch.pos_embed, code)
    branch.load_state_dict({**state, 'pos_embed': torch.ones(1, 16, 8)})
    torch.testing.assert_close(branch.pos_embed, torch.ones(1, 4, 8))


RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)
CONVNEXT = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16]))
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=4, num_heads=4, feedforward_channels=16),
    img_size=32,
)
OURS = dict(
    type='mmext.FFNet',
    arch=dict(depths=(1, 2, 1), channels=(8, 16, 32), token_kernels=(3, 7, 7), channel_kernels=(7, 3, 3)),
    out_indices=(0, 1, 2),
)


@pytest.mark.parametrize(
    ('branches', 'strides', 'widths'),
    [
        ((VIT, RESNET), (4, 8, 16, 32), (16, 16, 16, 16)),
        ((RESNET, VIT), (4, 8, 16, 32), (64, 64, 64, 64)),
        ((WIDE, dict(SMALL, depth=4), CONVNEXT), (4, 8, 16, 32), (16, 16, 16, 16)),
        ((CONVNEXT, RESNET), (4, 8, 16, 32), (8, 8, 16, 16)),
    ],
)
def test_branches_of_the_hosts(branches, strides, widths):
    init_default_scope('mmengine')
    model = net(branches, [64] * len(branches), 4)
    outs = model(torch.randn(1, 3, 64, 96))
    assert (model.out_strides, model.out_channels) == (strides, widths)
    assert [tuple(y.shape) for y in outs] == [(1, c, 64 // s, 96 // s) for c, s in zip(widths, strides, strict=True)]
    sum(y.square().mean() for y in outs).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        torch.testing.assert_close(
            copy.deepcopy(model)(torch.ones(1, 3, 64, 64))[1], model(torch.ones(1, 3, 64, 64))[1]
        )


@torch.no_grad()
def test_a_network_in_steps_is_the_network():
    init_default_scope('mmengine')
    model, x = net((RESNET, RESNET), (64, 64), 4), torch.randn(1, 3, 64, 96)
    tokens, sizes = tokens_of(model, x)
    for branch, found, size in zip(model.branches, tokens, sizes, strict=True):
        torch.testing.assert_close(found.mT.unflatten(2, size), branch.net(x)[-1])


def test_pretrained_weights_of_a_branch_are_loaded(tmp_path):
    init_default_scope('mmengine')
    stock, own = build_from_host(dict(RESNET), 'this test'), ViTBranch(**SMALL)
    torch.save(stock.state_dict(), tmp_path / 'resnet.pth')
    torch.save({'model': shake(own).state_dict()}, tmp_path / 'vit.pth')
    files = [dict(type='Pretrained', checkpoint=str(tmp_path / name)) for name in ('vit.pth', 'resnet.pth')]
    model = net((dict(SMALL, init_cfg=files[0]), dict(RESNET, init_cfg=files[1])), (32, 64), 2, out_indices=(0, 1))
    model.init_weights()
    assert torch.equal(model.branches[0].blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv.weight)
    assert torch.equal(model.branches[1].net.layer1[0].conv1.weight, stock.layer1[0].conv1.weight)


def test_groups_are_dealt_as_said():
    model = net((dict(WIDE, depth=7, groups=(1, 2, 4)), dict(SMALL, depth=3)), interactions=3)
    assert [len(r) for r in model.branches[0].ranges] == [1, 2, 4]
    depths = [model.get_layer_depth(f'branches.0.blocks.{i}.norm1.weight') for i in range(7)]
    assert [d for d, _ in depths] == [1, 2, 3, 4, 5, 6, 7]
    assert [model.get_layer_depth(f'branches.1.blocks.{i}.norm1.weight')[0] for i in range(3)] == [1, 3, 7]
    assert model.get_layer_depth('backbone.exchanges.0.0.to_first.weight', 'backbone.') == (8, 9)
    assert model.get_layer_depth('branches.1.pos_embed') == (0, 9)


def test_scales_of_vision_transformers_may_come_from_several_exchanges():
    model = net(branches=(WIDE, dict(SMALL, depth=4)), interactions=4, out_groups=(0, 1, 2))
    assert list(model.merges) == ['0', '1', '2', '3']
    outs = model(torch.randn(1, 3, 64, 64))
    assert [y.shape[2] for y in outs] == [16, 8, 4, 2]
    # What stands behind the last scale that is asked for is not built.
    assert (
        len(net((WIDE, dict(SMALL, depth=4)), interactions=4, out_groups=(0, 1, 2), out_indices=(0, 1)).exchanges) == 2
    )


def test_branches_and_exchanges_have_the_published_number_of_parameters():
    arch = PIIP.arch_zoo['TSB']
    how = dict(kind='deform', num_heads=16, num_points=4, value_ratio=0.5, ffn_ratio=0.25, drop_path=0.0, with_cp=False)
    with torch.device('meta'):
        # The published count is of codes of positions at the size of the images.
        branches = [
            ViTBranch(**cfg, pretrain_size=side) for cfg, side in zip(arch['branches'], arch['sizes'], strict=True)
        ]
        units = [Exchange(a.step_widths[0], b.step_widths[0], True, **how) for a, b in pairwise(branches)]
    count = [sum(p.numel() for part in parts for p in part.parameters()) for parts in (branches, units)]
    assert (count[0] + 12 * count[1]) / 1e6 == pytest.approx(146.1, abs=0.05)


def test_exports_and_computes_in_half_precision(tmp_path):
    model, x = shake(net(), 0.05), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert all(y.isfinite().all() for y in model(x))
    pytest.importorskip('onnxruntime')
    assert export(model, x, tmp_path / 'net.onnx', tolerance=1e-3) < 1e-3


@pytest.mark.parametrize(
    ('make', 'match'),
    [
        (lambda: net(sizes=(64, 32)), r'one of sizes for each of its 2 branches, rising .* got sizes=\(64, 32\)'),
        (lambda: net(sizes=(64,)), 'one of sizes for each of its 2 branches'),
        (lambda: net((WIDE,), (32,)), 'branches as .* with two to four entries'),
        (
            lambda: net(interactions=3),
            r'groups of branch 2 as 3 sizes, each 1 or more, of 2 blocks .* lower interactions',
        ),
        (
            lambda: net((dict(WIDE, groups=(5, 1)), SMALL)),
            r'groups of branch 1 as 2 sizes, .* of 4 blocks in all, got \(5, 1\)',
        ),
        (lambda: net((dict(WIDE, depht=4), SMALL)), r"for a branch without type, got \['depht'\] as well"),
        (
            lambda: net(num_heads=3),
            'num_heads that divide the channels of each branch and of its values, got num_heads=3',
        ),
        (lambda: net(out_groups=(0,)), 'three of them where the last branch has one stride, got out_groups='),
        (lambda: net((dict(type='mmdet.SwinTransformer'), SMALL)), 'cannot see the blocks of SwinTransformer'),
        (lambda: net((WIDE, dict(SMALL, patch_size=6))), 'patch_size of the last branch must be a multiple, got 6'),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@torch.no_grad()
def test_a_backbone_of_the_pack_is_a_branch():
    model, x = net((OURS, OURS), (64, 64), 3, out_indices=(0, 1, 2)), torch.randn(1, 3, 64, 64)
    tokens, sizes = tokens_of(model, x)
    stock = model.branches[1].net
    assert isinstance(stock, FFNet)
    torch.testing.assert_close(tokens[1].mT.unflatten(2, sizes[1]), stock(x)[-1])
    assert [len(r) for r in model.branches[1].ranges] == [1, 3, 2]  # every scale ends with a group
    with pytest.raises(ValueError, match='XMLP is no series of a stem and blocks, so it cannot be run in steps'):
        net(
            (
                dict(type='mmext.XMLP', arch=dict(depths=(1, 1), channels=(8, 16)), img_size=64, out_indices=(0, 1)),
                SMALL,
            )
        )
