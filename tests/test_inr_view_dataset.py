"""Views of a scene: drawn rays, held-out pictures, the layouts of photographs, and what is refused."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image

from mmext.errors import UsageError
from mmext.inr import SCENES, ViewDataset, block_distance, camera_rays, orbit, simple_lens, terrain_height, unit_ball
from mmext.inr.tasks.view_layouts import _into_unit_ball

SMALL = dict(size=8, views=3, rays=20, held_out=2)


def homogeneous(poses):
    return torch.cat((poses, torch.tensor([0.0, 0, 0, 1]).expand(len(poses), 1, 4)), dim=1)


# --- embedded scenes -----------------------------------------------------------------------------------------------------


def test_drawn_items_differ_and_carry_their_own_measurement():
    data = DATASETS.build(dict(type='mmext.ViewDataset', **SMALL))
    first, second = data[0], data[1]
    assert not torch.equal(first['inputs'], second['inputs'])
    for item in (first, second):
        measured = item['data_samples'].measurement
        assert item['inputs'].shape == (20, 6)
        assert measured.shape == (20, 4)
        color, depth = SCENES['blocks'].trace(item['inputs'])
        # A pixel is the mean over its area; where all of it is solid it is near the color in its middle.
        whole = (measured[:, 3] == 1) & depth.isfinite()
        assert whole.any()
        assert (measured[whole, :3] - color[whole]).abs().mean() < 0.15
        empty = measured[:, 3] == 0
        assert (measured[empty, :3] == 1).all()
    again = ViewDataset(**SMALL)[1]
    assert torch.equal(again['inputs'], second['inputs'])
    assert not torch.equal(ViewDataset(**SMALL, seed=1)[0]['inputs'], first['inputs'])


def test_a_sample_for_statistics_is_drawn_from_the_same_rays():
    data = ViewDataset(**SMALL)
    one, two = data.statistics_sample(), data.statistics_sample()
    assert one.shape == (2048, 6)
    assert torch.equal(one, two)
    assert (unit_ball(one)[1] > 0).all()
    assert not torch.equal(one[:20], data[0]['inputs'])


@pytest.mark.parametrize('one_view', [False, True])
def test_rays_come_from_all_views_or_one(one_view):
    data = ViewDataset(**SMALL, one_view=one_view, view_index=True)
    item = data[0]
    index = item['inputs'][:, 6].long()
    assert len(index.unique()) == (1 if one_view else 3)
    torch.testing.assert_close(item['inputs'][:, :3], data.poses[index, :, 3])
    assert (unit_ball(item['inputs'])[1] > 0).all()


def test_tests_have_whole_pictures_from_other_cameras():
    train, test = ViewDataset(**SMALL), ViewDataset(**SMALL, split='test')
    assert len(test) == 2
    distance = (test.poses[:, None, :, 3] - train.poses[None, :, :, 3]).norm(dim=-1)
    assert distance.min() > 0.05
    item = test[1]
    sample = item['data_samples']
    assert item['inputs'].shape == (8, 8, 6)
    assert sample.target.shape == sample.baseline.shape == (8, 8, 3)
    assert sample.mask.shape == sample.true_depth.shape == (8, 8)
    torch.testing.assert_close(sample.baseline, train.picture(int(distance[1].argmin())))
    assert sample.metainfo == dict(signal='blocks', size=(8, 8), background=1.0, view=1)
    with pytest.raises(IndexError):
        test[2]
    assert train.overview().shape == (3, 3, 8, 8)


def test_noise_belongs_to_the_training_pictures():
    quiet, noisy = (ViewDataset(**SMALL, noise=noise)[0]['data_samples'].measurement for noise in (0.0, 0.1))
    assert (quiet - noisy)[:, :3].std() == pytest.approx(0.1, rel=0.4)
    assert torch.equal(quiet[:, 3], noisy[:, 3])
    assert torch.equal(ViewDataset(**SMALL, noise=0.1).picture(0), ViewDataset(**SMALL).picture(0))


def test_moved_cameras_are_given_to_training_only():
    data = ViewDataset(**SMALL, pose_noise=0.1)
    axes = data.given_poses[..., :3]
    torch.testing.assert_close(axes.transpose(1, 2) @ axes, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    assert (data.given_poses - data.poses).abs().max() > 0.01
    test = ViewDataset(**SMALL, pose_noise=0.1, split='test')
    assert torch.equal(test.given_poses, test.poses)


def test_the_silhouette_of_the_ball_is_the_analytic_one():
    rays = camera_rays(orbit(torch.tensor(0.0), 24, 3.0), (64, 64), simple_lens((64, 64), math.radians(30))).reshape(
        -1, 6
    )
    offset = rays[:, :3] - torch.tensor([-0.15, -0.12, 0.0])
    along = -(offset * rays[:, 3:]).sum(-1)
    square = along.square() - offset.square().sum(-1) + 0.16
    entry = along - square.clamp_min(0).sqrt()
    _, depth = SCENES['blocks'].trace(rays)
    # Where the ball is nearest, it is seen; where it is missed by far, it is not.
    points = rays[:, :3] + depth.clamp(max=9)[:, None] * rays[:, 3:]
    on_ball = depth.isfinite() & (((points - torch.tensor([-0.15, -0.12, 0.0])).norm(dim=-1) - 0.4).abs() < 5e-3)
    assert on_ball.sum() > 300
    torch.testing.assert_close(depth[on_ball], entry[on_ball], rtol=0, atol=0.05)
    assert (square[on_ball] > -0.01).all()
    assert (depth[square > 0.01] <= entry[square > 0.01] + 0.01).all()


def test_blocks_lie_in_the_unit_ball_and_their_distance_is_one():
    torch.manual_seed(0)
    points = torch.randn(4000, 3)
    points /= points.norm(dim=-1, keepdim=True)
    assert (block_distance(points) > 0).all()
    points = (torch.rand(2000, 3) * 1.6 - 0.8).requires_grad_()
    (slope,) = torch.autograd.grad(block_distance(points).sum(), points)
    assert (slope.norm(dim=-1) - 1).abs().median() < 1e-5
    assert 0.02 < SCENES['blocks'].inside(points.detach()).float().mean() < 0.3


def test_terrain_is_solid_below_its_height_and_its_first_row_is_north():
    torch.manual_seed(0)
    points = torch.rand(3000, 3) * torch.tensor([1.1, 1.1, 0.3]) - torch.tensor([0.55, 0.55, 0.15])
    solid = SCENES['terrain'].inside(points)
    assert torch.equal(solid, points[:, 2] < terrain_height(points[:, :2]))
    import matplotlib

    with np.load(matplotlib.__path__[0] + '/mpl-data/sample_data/jacksboro_fault_dem.npz') as file:
        meters = file['elevation'].astype(float)
    north = terrain_height(torch.tensor([[-0.6 + 1.2 * (j + 0.5) / 403, 0.6 - 1.2 * 0.5 / 344] for j in range(403)]))
    assert np.corrcoef(north.numpy(), meters[0])[0, 1] > 0.999
    rays = camera_rays(orbit(torch.tensor(5.0), 24, 3.0), (12, 12), simple_lens((12, 12), math.radians(30))).reshape(
        -1, 6
    )
    _, depth = SCENES['terrain'].trace(rays)
    hit = depth.isfinite()
    assert 0.1 < hit.float().mean() < 0.9
    step = 3e-3
    before, behind = (rays[hit, :3] + (depth[hit] + s)[:, None] * rays[hit, 3:] for s in (-step, step))
    assert (~SCENES['terrain'].inside(before)).all()
    assert SCENES['terrain'].inside(behind).float().mean() > 0.95


# --- photographs ---------------------------------------------------------------------------------------------------------


def write_nerf(folder, count=3, alpha=True, split='train', poses=None, size=(12, 16)):
    """Write pictures with cameras in NeRF's layout, and return the cameras."""
    poses = orbit(torch.arange(count).float(), count, 3.0) if poses is None else poses
    frames = []
    for k, pose in enumerate(poses):
        values = np.random.default_rng(k).integers(0, 255, (*size, 4 if alpha else 3), dtype=np.uint8)
        (folder / split).mkdir(exist_ok=True, parents=True)
        Image.fromarray(values).save(folder / split / f'r_{k}.png')
        frames.append(dict(file_path=f'./{split}/r_{k}', transform_matrix=homogeneous(pose[None])[0].tolist()))
    content = dict(camera_angle_x=0.6, frames=frames)
    (folder / f'transforms_{split}.json').write_text(json.dumps(content))
    return poses


def test_nerfs_layout_gives_back_its_rays(tmp_path):
    poses = write_nerf(tmp_path)
    data = ViewDataset(root=tmp_path, rays=30, view_index=True)
    torch.testing.assert_close(data.poses, poses)
    assert data.size == (12, 16)
    focal = 16 / 2 / math.tan(0.3)
    expected = torch.stack([camera_rays(pose, (12, 16), (focal, focal, 8.0, 6.0)) for pose in poses]).reshape(3, -1, 6)
    item = data[0]
    for ray in item['inputs']:
        assert (expected[int(ray[6])] - ray[:6]).abs().sum(-1).min() < 1e-5
    pixels = np.asarray(Image.open(tmp_path / 'train/r_1.png')).astype(np.float32) / 255
    shown = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    torch.testing.assert_close(data.picture(1), torch.from_numpy(shown))
    half = ViewDataset(root=tmp_path, size=6, scale=0.5)
    assert half.size == (6, 8)
    torch.testing.assert_close(half.poses[..., 3], poses[..., 3] / 2)
    torch.testing.assert_close(half.lens, (focal / 2, focal / 2, 4.0, 3.0))
    mean = torch.from_numpy(shown).view(6, 2, 8, 2, 3).mean((1, 3))
    torch.testing.assert_close(half.picture(1), mean, atol=1e-5, rtol=0)


def test_photographs_without_alpha_have_no_mask(tmp_path):
    write_nerf(tmp_path, alpha=False)
    write_nerf(tmp_path, alpha=False, split='test', poses=orbit(torch.tensor([0.5]), 3, 3.0))
    assert ViewDataset(root=tmp_path, rays=5)[0]['data_samples'].measurement.shape == (5, 3)
    sample = ViewDataset(root=tmp_path, split='test')[0]['data_samples']
    assert set(sample.keys()) == {'target', 'baseline'}
    assert len(ViewDataset(root=tmp_path, indices=[2, 0]).poses) == 2


def write_photographs(folder, count, size=(12, 16)):
    (folder / 'images').mkdir(parents=True)
    for k in range(count):
        values = np.random.default_rng(k).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / 'images' / f'{k:03}.png')


def test_llff_and_colmap_agree(tmp_path):
    """The same cameras in three files of two programs."""
    poses = orbit(torch.arange(9).double(), 9, 2.5)
    focal = 20.0
    llff, text, binary = (tmp_path / name for name in ('llff', 'text', 'binary'))
    for folder in (llff, text, binary):
        write_photographs(folder, 9)
    axes = torch.stack((-poses[..., 1], poses[..., 0], poses[..., 2], poses[..., 3]), dim=-1)
    hwf = torch.tensor([12.0, 16.0, focal]).double().expand(9, 3)[..., None]
    table = torch.cat((torch.cat((axes, hwf), dim=-1).reshape(9, 15), torch.tensor([[1.5, 3.5]]).expand(9, 2)), dim=1)
    np.save(llff / 'poses_bounds.npy', table.numpy())
    rows, packed = [], struct.pack('<Q', 9)
    for k, pose in enumerate(poses):
        turn = torch.stack((pose[:, 0], -pose[:, 1], -pose[:, 2]))
        shift = -turn @ pose[:, 3]
        w = (1 + turn.trace()).clamp_min(1e-9).sqrt() / 2
        q = [w, *((turn[a, b] - turn[b, a]) / (4 * w) for a, b in ((2, 1), (0, 2), (1, 0)))]
        values = [float(v) for v in (*q, *shift)]
        rows.append(f'{k} {" ".join(map(repr, values))} 1 {k:03}.png\n\n')
        packed += (
            struct.pack('<i7di', k, *values, 1) + f'{k:03}.png'.encode() + b'\0' + struct.pack('<Q', 1) + bytes(24)
        )
    (text / 'sparse/0').mkdir(parents=True)
    (text / 'sparse/0/images.txt').write_text('# a comment\n' + ''.join(rows))
    (text / 'sparse/0/cameras.txt').write_text(f'# a comment\n1 SIMPLE_PINHOLE 16 12 {focal} 8 6\n')
    (binary / 'sparse/0').mkdir(parents=True)
    (binary / 'sparse/0/images.bin').write_bytes(packed)
    camera = struct.pack('<QiiQQ4d', 1, 1, 1, 16, 12, focal, focal, 8, 6)
    (binary / 'sparse/0/cameras.bin').write_bytes(camera)
    one, two, three = (ViewDataset(root=folder, rays=5) for folder in (llff, text, binary))
    assert len(one.poses) == 7
    assert len(ViewDataset(root=llff, split='test').poses) == 2
    for other in (two, three):
        torch.testing.assert_close(other.poses, one.poses, atol=1e-4, rtol=0)
        torch.testing.assert_close(other.lens, one.lens)
    # All cameras look at the middle of the unit ball, and up is up.
    towards = one.poses[:, :, 3] + one.poses[:, :, 3].norm(dim=-1, keepdim=True) * -one.poses[:, :, 2]
    assert towards.norm(dim=-1).max() < 1e-3
    torch.testing.assert_close(torch.linalg.det(one.poses[..., :3]), torch.ones(7))
    assert (one.poses[:, 2, 1] > 0).all()
    (binary / 'sparse/0/cameras.bin').write_bytes(struct.pack('<QiiQQ8d', 1, 1, 4, 16, 12, *[1.0] * 8))
    with pytest.raises(UsageError, match='bends rays; run colmap image_undistorter'):
        ViewDataset(root=binary)
    (binary / 'sparse/0/images.bin').write_bytes(packed[:50])
    with pytest.raises(UsageError, match='no model of COLMAP that can be read'):
        ViewDataset(root=binary)


def test_cameras_that_look_ahead_have_the_scene_between_their_bounds():
    poses = torch.eye(3, 4).double().repeat(5, 1, 1)
    poses[:, 0, 3] = torch.linspace(-0.5, 0.5, 5)
    placed = _into_unit_ball(poses, (2.0, 6.0), 0.5)
    # The middle of the bounds is the origin; what was ahead now lies level, because the cameras' up is the z axis.
    centers = placed[:, :, 3]
    torch.testing.assert_close(centers.mean(0).norm(), torch.tensor(2.0).double())
    torch.testing.assert_close(centers.mean(0)[2], torch.tensor(0.0).double())
    torch.testing.assert_close((centers[-1] - centers[0]).norm(), torch.tensor(0.5).double())


def break_json(folder, **changes):
    file = folder / 'transforms_train.json'
    content = json.loads(file.read_text())
    for key, value in changes.items():
        if key == 'matrix':
            content['frames'][1]['transform_matrix'] = value(
                np.array(content['frames'][1]['transform_matrix'])
            ).tolist()
        else:
            content[key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('break_it', 'message'),
    [
        (lambda f: (f / 'train/r_1.png').unlink(), '1 of 3 photographs .* are missing, the first is .*r_1.png'),
        (
            lambda f: Image.new('RGBA', (7, 7)).save(f / 'train/r_1.png'),
            r'r_1\.png has 7 x 7 pixels, but r_0\.png has 12',
        ),
        (lambda f: (f / 'train/r_1.png').write_text('x'), 'is no image that Pillow can read'),
        (lambda f: break_json(f, matrix=lambda m: m[:, :3]), r'has shape \(4, 3\); it must be \(4, 4\)'),
        (lambda f: break_json(f, matrix=lambda m: m @ np.diag([1, 1, -1, 1])), 'is left-handed'),
        (lambda f: break_json(f, matrix=lambda m: m @ np.diag([2, 2, 2, 1])), 'not orthogonal and of length one'),
        (lambda f: break_json(f, matrix=lambda m: m * np.nan), 'numbers that are none'),
        (lambda f: break_json(f, camera_angle_x=60), 'the angle is in radians'),
        (lambda f: break_json(f, frames=3), 'is no list of cameras'),
        (lambda f: (f / 'transforms_train.json').write_text('{'), 'is no list of cameras'),
        (lambda f: (f / 'transforms_train.json').unlink(), 'finds no cameras in root=.* neither transforms_train.json'),
        (lambda f: break_json(f, frames=[]), 'has no view'),
    ],
)
def test_what_is_no_scene_is_refused_in_one_sentence(tmp_path, break_it, message):
    write_nerf(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UsageError, match=message):
        ViewDataset(root=tmp_path)


def test_cameras_that_do_not_see_the_scene_are_refused(tmp_path):
    poses = orbit(torch.arange(3).float(), 3, 3.0)
    poses[1, :, 3] += torch.tensor([30.0, 0, 0])
    write_nerf(tmp_path, poses=poses)
    with pytest.raises(UsageError, match=r'view 1 .* that does not see the unit ball'):
        ViewDataset(root=tmp_path)
    assert len(ViewDataset(root=tmp_path, indices=[0, 2]).poses) == 2
    with pytest.raises(UsageError, match=r'3 views for .train., got the indices \[7\]'):
        ViewDataset(root=tmp_path, indices=[7])
    with pytest.raises(ValueError, match=r'got indices=\[9\]'):
        ViewDataset(**SMALL, indices=[9])
