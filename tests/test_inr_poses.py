"""Cameras that are learned: motions, their alignment, and fields for few views."""

import pytest
import torch
from mmengine.registry import MODELS

from mmext.inr import (
    MultiInputMLP,
    PosedVolumeRenderer,
    ViewDataset,
    VolumeRenderer,
    align,
    pose_errors,
    rigid_motion,
)

DOUBLE = torch.float64


def test_a_motion_is_the_exponential_of_its_twist():
    torch.manual_seed(0)
    for size in (0.0, 1e-5, 0.3, 0.999, 1.001, 3.0):
        twist = torch.randn(6, dtype=DOUBLE)
        twist = size * twist / twist[:3].norm()
        x, y, z, *shift = twist.tolist()
        matrix = torch.tensor(
            [[0, -z, y, shift[0]], [z, 0, -x, shift[1]], [-y, x, 0, shift[2]], [0, 0, 0, 0]], dtype=DOUBLE
        )
        motion = rigid_motion(twist)
        torch.testing.assert_close(motion, torch.linalg.matrix_exp(matrix)[:3], rtol=0, atol=1e-10)
        torch.testing.assert_close(motion[:, :3].T @ motion[:, :3], torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-10)
    twist = torch.zeros(6, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(rigid_motion, (twist,))


@pytest.mark.parametrize('flat', [False, True])
def test_a_similarity_is_found(flat):
    torch.manual_seed(0)
    points = torch.randn(12, 3, dtype=DOUBLE)
    points[:, 2] *= 0 if flat else 1  # what is flat could be mirrored just as well
    motion = rigid_motion(torch.randn(6, dtype=DOUBLE))
    moved = 1.7 * points @ motion[:, :3].T + motion[:, 3]
    scale, rotation, shift = align(points, moved)
    torch.testing.assert_close(scale, torch.tensor(1.7, dtype=DOUBLE))
    torch.testing.assert_close(rotation, motion[:, :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(shift, motion[:, 3], rtol=0, atol=1e-5)
    mirrored = align(points, moved * torch.tensor([1.0, 1, -1]))[1]
    torch.testing.assert_close(torch.linalg.det(mirrored), torch.tensor(1.0, dtype=DOUBLE))


def test_errors_of_poses_do_not_see_the_world_they_are_in():
    data = ViewDataset(views=6, size=8, rays=4)
    world = rigid_motion(torch.tensor([0.3, -0.2, 0.5, 1.0, 2.0, 3.0]))
    moved = torch.cat(
        (world[:, :3] @ data.poses[..., :3], 2 * world[:, :3] @ data.poses[..., 3:] + world[:, 3:]), dim=-1
    )
    rotation, distance = pose_errors(moved, data.poses)
    assert rotation < 0.1
    assert distance < 1e-4
    noisy = ViewDataset(views=6, size=8, rays=4, pose_noise=0.1)
    assert pose_errors(noisy.given_poses, noisy.poses)[0] > 2


FIELD = dict(type='mmext.CoordMLP', in_features=3, out_features=4, width=8, depth=2)


def test_cameras_that_do_not_move_render_the_same():
    torch.manual_seed(0)
    field = MODELS.build(FIELD)
    rays = ViewDataset(views=3, size=8, rays=20, view_index=True)[0]['inputs']
    posed = PosedVolumeRenderer(views=3, samples=5).eval()
    expected = VolumeRenderer(samples=5).eval().predict(field, rays[:, :6])[0]
    found = posed.predict(field, rays)[0]
    assert torch.equal(found, expected)
    found[:, :3].sum().backward()
    assert posed.twist.grad.isfinite().all()
    assert (posed.twist.grad != 0).any(1).all()
    assert torch.equal(posed.predict(field, rays[:, :6])[0], expected)
    with pytest.raises(ValueError, match='has 2 views, got a ray of view 2'):
        PosedVolumeRenderer(views=2, samples=5).predict(field, rays)


def test_rays_move_with_their_camera():
    data = ViewDataset(views=3, size=8, rays=30, pose_noise=0.1, view_index=True)
    posed = PosedVolumeRenderer(views=3)
    last = torch.tensor([0.0, 0, 0, 1]).expand(3, 1, 4)
    true, given = (torch.cat((p, last), dim=1).double() for p in (data.poses, data.given_poses))
    # The motion that undoes the noise is a matrix, whose logarithm has the twist.
    motion = torch.linalg.solve(given.transpose(1, 2), true.transpose(1, 2)).transpose(1, 2) - torch.eye(4)
    logarithm = sum((-1) ** (k + 1) * torch.linalg.matrix_power(motion, k) / k for k in range(1, 30))
    turn = [logarithm[:, 2, 1], logarithm[:, 0, 2], logarithm[:, 1, 0], *logarithm[:, :3, 3].unbind(-1)]
    with torch.no_grad():
        posed.twist.copy_(torch.stack(turn, dim=-1))
    item = data[0]
    found = posed.world_rays(item['inputs']).detach()
    index = item['inputs'][:, 6].long()
    torch.testing.assert_close(found[:, :3], data.poses[index, :, 3], atol=1e-3, rtol=0)


def test_cameras_are_held_at_first():
    rays = ViewDataset(views=3, size=8, rays=20, view_index=True)[0]['inputs']
    posed, field = PosedVolumeRenderer(views=3, samples=4, hold=1), MODELS.build(FIELD)
    posed.predict(field, rays)[0].sum().backward()
    assert (posed.twist.grad == 0).all()
    posed.predict(field, rays)[0].sum().backward()
    assert (posed.twist.grad != 0).any()


# --- fields for few views ------------------------------------------------------------------------------------------------


def test_an_input_at_the_first_layer_alone_is_the_plain_perceptron():
    torch.manual_seed(0)
    ours = MultiInputMLP(inputs='first', width=12, depth=3)
    torch.manual_seed(0)
    encoding = dict(type='mmext.PositionalEncoding', num_octaves=6)
    plain = MODELS.build(
        dict(type='mmext.CoordMLP', in_features=3, out_features=4, width=12, depth=3, encoding=encoding)
    )
    points = torch.rand(9, 3)
    assert torch.equal(ours(points), plain(points))
    every = MultiInputMLP(width=12, depth=3)
    state = every.state_dict()
    for name, value in plain.state_dict().items():
        if value.ndim == 2:
            state[f'density.{name}'].zero_()[:, : value.shape[1]] = value
        else:
            state[f'density.{name}'].copy_(value)
    torch.testing.assert_close(every(points), plain(points))


def test_density_does_not_depend_on_the_direction():
    torch.manual_seed(0)
    field = MultiInputMLP(in_features=6, branches='split', width=8, depth=2)
    rays = torch.rand(7, 6, requires_grad=True)
    values = field(rays)
    (slope,) = torch.autograd.grad(values[:, 3].sum(), rays, retain_graph=True)
    assert (slope[:, 3:] == 0).all()
    assert (slope[:, :3] != 0).any()
    (slope,) = torch.autograd.grad(values[:, :3].sum(), rays)
    assert (slope[:, 3:] != 0).any()


SIZES = [
    (dict(type='mmext.RadianceMLP'), 595_844),
    (dict(type='mmext.RadianceMLP', norm_cfg=dict(type='BN')), 600_196),
    (
        dict(
            type='mmext.RadianceMLP',
            width=182,
            depth=3,
            skips=(),
            encoding=None,
            view_encoding=None,
            view_width=182,
            view_depth=3,
        ),
        201_842,
    ),
    (
        dict(
            type='mmext.RadianceMLP',
            depth=6,
            skips=(4,),
            encoding=dict(type='mmext.LearnedFeatures'),
            view_encoding=dict(type='mmext.LearnedFeatures'),
            act_cfg=dict(type='mmext.GaussianActivation'),
        ),
        594_436,
    ),
    (dict(type='mmext.MultiInputMLP', inputs='first'), 15_300),
    (dict(type='mmext.MultiInputMLP'), 22_944),
    (dict(type='mmext.MultiInputMLP', branches='split', octaves=3), 40_846),
]


@pytest.mark.parametrize(('cfg', 'parameters'), SIZES)
def test_fields_have_the_sizes_of_the_papers(cfg, parameters):
    assert sum(p.numel() for p in MODELS.build(cfg).parameters()) == parameters


def test_radiance_depends_on_directions_in_color_only():
    torch.manual_seed(0)
    field = MODELS.build(dict(type='mmext.RadianceMLP', width=12, depth=3, skips=(2,), view_width=8))
    rays = torch.rand(7, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(field(rays)[:, 3].sum(), rays)
    assert (slope[:, 3:] == 0).all()
    (slope,) = torch.autograd.grad(field(rays)[:, :3].sum(), rays)
    assert (slope[:, 3:] != 0).any()


def test_a_skip_is_folded_with_a_norm_behind_the_activation():
    torch.manual_seed(0)
    network = MODELS.build(
        dict(FIELD, skips=(1, 2), norm_cfg=dict(type='BN'), norm_position='post', act_cfg=dict(type='Sigmoid'))
    )
    points = torch.rand(40, 3)
    network.freeze_stats(points)
    expected = network(points)
    network.fuse_norms()
    torch.testing.assert_close(network(points), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='layers from 1 to depth=2 to skip to'):
        MODELS.build(dict(FIELD, skips=(3,)))


def test_says_what_it_needs():
    with pytest.raises(ValueError, match='positions and directions, 6 coordinates, got in_features=3'):
        MODELS.build(dict(type='mmext.RadianceMLP', in_features=3))
    with pytest.raises(ValueError, match='takes 3 coordinates, or 6 with'):
        MultiInputMLP(in_features=6)
    other = dict(FIELD, out_features=7)
    with pytest.raises(ValueError, match='FieldPair needs two networks alike'):
        MODELS.build(dict(type='mmext.FieldPair', coarse=FIELD, fine=other))
