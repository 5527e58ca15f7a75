"""Shapes: meshes and what is inside of them, the data set, the operator, the metric, and whole runs."""

import math
import runpy
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tool
from mmengine.registry import METRICS, MODELS

from mmext.errors import UsageError
from mmext.inr import (
    Mesh,
    ShapeDataset,
    coordinate_grid,
    extract_mesh,
    load_shape,
    overlap,
    read_mesh,
    surface_distances,
    terrain_height,
    write_mesh,
)
from mmext.norms import constant_stats

ROOT = Path(__file__).parents[1]


def cube(side=1.0):
    """Return a cube in the middle, two triangles a side."""
    vertices = side / 2 * np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Mesh(vertices, [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def ball(resolution=32, radius=0.6):
    return extract_mesh(lambda points: radius - points.norm(dim=-1), resolution)


# --- meshes --------------------------------------------------------------------------------------------------------------


def test_what_is_inside_of_a_cube_and_of_a_ball():
    solid = cube(1.2)
    assert solid.volume() == pytest.approx(1.2**3)
    points = torch.rand(3000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert (solid.contains(points.numpy()) == (points.abs().amax(-1) < 0.6).numpy()).all()
    grid = coordinate_grid(20, 20, 20)
    assert (solid.voxels(20) == (grid.abs().amax(-1) < 0.6).numpy()).all()
    assert (solid.voxels(20) == solid.contains(grid.numpy())).all()
    round_ = ball()
    assert round_.volume() == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)
    clear = (points.norm(dim=-1) - 0.6).abs() > 0.01
    assert (round_.contains(points.numpy()) == (points.norm(dim=-1) < 0.6).numpy())[clear].all()


@pytest.mark.parametrize('face', range(0, 12, 2))
def test_a_mesh_with_a_hole_is_refused_wherever_it_is(face, tmp_path):
    solid = cube()
    solid.check_closed('cube')
    holed = Mesh(solid.vertices, np.delete(solid.faces, face, 0))
    with pytest.raises(
        ValueError, match=r'^cube is not watertight: \d+ of 12288 columns cross it an odd number of times; close'
    ):
        holed.check_closed('cube')
    write_mesh(tmp_path / 'holed.ply', holed)
    with pytest.raises(ValueError, match=r'holed.ply is not watertight'):
        ShapeDataset(shape=str(tmp_path / 'holed.ply'))


def test_points_on_a_surface_are_even_over_its_area():
    points, normals = cube(2.0).sample(6000)
    assert np.allclose(np.abs(points).max(1), 1)
    assert np.allclose((points * normals).sum(1), 1)
    sides = np.unique(normals.round(), axis=0, return_counts=True)[1]
    assert len(sides) == 6
    assert (np.abs(sides - 1000) < 120).all()


def test_distances_of_surfaces():
    found = surface_distances(ball(32, 0.5), ball(32, 0.6), 2000, 20000, threshold=0.11)
    assert found['chamfer'] == pytest.approx(0.1, abs=0.005)
    assert found['chamfer_squared_sum'] == pytest.approx(0.02, abs=0.002)
    assert found['normal_consistency'] > 0.98
    assert found['f_score'] > 0.95
    same = surface_distances(ball(32, 0.5), ball(32, 0.5), 2000, 20000)
    assert 0 < same['chamfer'] < 0.01
    assert all(math.isnan(v) for v in surface_distances(Mesh([], []), ball(16), 10, 10).values())


@pytest.mark.parametrize('inside', ['below', 'above'])
def test_faces_look_outward_and_nothing_gives_no_mesh(inside):
    mesh = ball(24) if inside == 'above' else extract_mesh(lambda p: -(p.norm(dim=-1) - 0.6), 24)
    assert mesh.volume() > 0
    normals = mesh.vertex_normals()
    assert ((normals * mesh.vertices).sum(1) / np.linalg.norm(mesh.vertices, axis=1)).min() > 0.95
    assert not len(extract_mesh(lambda p: p[:, :1] * 0 + 1, 8).faces)
    wide = extract_mesh(lambda p: 0.6 - p.norm(dim=-1, keepdim=True), 24, bounds=(-2, 2))
    assert np.linalg.norm(wide.vertices, axis=1) == pytest.approx(0.6, abs=0.01)
    assert extract_mesh(lambda p: 1 - p.norm(dim=-1), 24, level=0.5).vertices.max() == pytest.approx(0.5, abs=0.02)


# --- files ---------------------------------------------------------------------------------------------------------------


def ascii_ply(mesh):
    head = f'ply\nformat ascii 1.0\ncomment made by hand\nelement vertex {len(mesh.vertices)}\n'
    head += (
        'property float x\nproperty float y\nproperty float z\nelement face 6\nproperty list uchar int vertex_index\n'
    )
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    rows = [' '.join(map(str, v)) for v in mesh.vertices] + [f'4 {" ".join(map(str, q))}' for q in quads]
    return (head + 'end_header\n' + '\n'.join(rows) + '\n').encode()


def binary_stl(mesh):
    rows = b''.join(struct.pack('<12fH', 0, 0, 0, *corners.reshape(-1), 0) for corners in mesh.corners)
    return bytes(80) + struct.pack('<I', len(mesh.faces)) + rows


def ascii_stl(mesh):
    facets = ''.join(
        'facet normal 0 0 0\nouter loop\n'
        + ''.join(f'vertex {x} {y} {z}\n' for x, y, z in corners)
        + 'endloop\nendfacet\n'
        for corners in mesh.corners
    )
    return f'solid cube\n{facets}endsolid cube\n'.encode()


def obj(mesh):
    rows = [f'v {x} {y} {z}' for x, y, z in mesh.vertices] + ['vn 0 0 1', 'usemtl stone']
    return '\n'.join(rows + [f'f {a + 1}/7/1 {b - len(mesh.vertices)}//1 {c + 1}' for a, b, c in mesh.faces]).encode()


@pytest.mark.parametrize(
    ('name', 'write'), [('a.ply', ascii_ply), ('a.stl', binary_stl), ('b.stl', ascii_stl), ('a.obj', obj)]
)
def test_files_of_other_programs(name, write, tmp_path):
    (tmp_path / name).write_bytes(write(cube()))
    mesh = read_mesh(tmp_path / name)
    mesh.check_closed(name)
    assert len(mesh.faces) == 12
    assert mesh.volume() == pytest.approx(1)
    # A file that ends early, and one of noise, is refused in one sentence.
    for content in (write(cube())[:-40], bytes(range(256)) * 3):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r'(is no mesh that can be read|not watertight|has no face)'):
            read_mesh(tmp_path / name).check_closed(name)


@pytest.mark.parametrize('name', ['a.ply', 'a.obj'])
def test_what_is_written_is_read(name, tmp_path):
    mesh = ball(16)
    write_mesh(tmp_path / name, mesh, (mesh.vertices + 1) / 2)
    again = read_mesh(tmp_path / name)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-6)
    assert (again.faces == mesh.faces).all()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    with pytest.raises(ValueError, match=r'written as \.ply or \.obj, got .*\.glb'):
        write_mesh(tmp_path / 'a.glb', mesh)


# --- shapes --------------------------------------------------------------------------------------------------------------


def test_ground_is_what_lies_below_its_height():
    shape, generator = load_shape('terrain'), torch.Generator().manual_seed(0)
    points = torch.rand(5000, 3, generator=generator) * 2 - 1
    inside = shape.contains(points)
    assert 0.05 < inside.float().mean() < 0.4
    # Moved up by a relief's height nothing is inside of, and what is below a point inside is inside down to the floor.
    higher = points[inside] + torch.tensor((0, 0, 1.0))
    assert not shape.contains(higher).any()
    assert torch.equal(shape.voxels(12), shape.contains(coordinate_grid(12, 12, 12)))
    assert shape.voxels(24).any((1, 2))[1:-1].all(), 'it spans the box from west to east'
    assert float(terrain_height(torch.zeros(2))) == pytest.approx(float(terrain_height(torch.zeros(1, 2))))


def test_a_volume_of_the_user(tmp_path):
    grid = coordinate_grid(20, 20, 10)
    np.save(tmp_path / 'v.npy', (grid * torch.tensor((1, 1, 0.5))).norm(dim=-1) < 0.45)
    shape = load_shape(str(tmp_path / 'v.npy'))
    inside = shape.voxels(24).float()
    places = coordinate_grid(24, 24, 24)[inside > 0]
    assert places.mean(0).abs().max() < 0.05
    radius = places.amax(0)
    assert radius[0] == pytest.approx(float(radius[2]), abs=0.1)
    assert shape.surface.volume() == pytest.approx(float(inside.mean()) * (48 / 23) ** 3, rel=0.15)
    for wrong in (np.zeros((4, 4, 4)), np.ones((4, 4)), np.full((4, 4, 4), np.nan)):
        np.save(tmp_path / 'w.npy', wrong)
        with pytest.raises(ValueError, match='is no volume with an inside'):
            load_shape.__wrapped__(str(tmp_path / 'w.npy'))
    with pytest.raises(ValueError, match=r"ShapeDataset knows no shape='block'; .*the nearest is blocks"):
        load_shape('block')
    with pytest.raises(ValueError, match='there is no mesh'):
        load_shape(str(tmp_path / 'none.ply'))


# --- the data set --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def mesh_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('mesh') / 'ball.ply'
    write_mesh(path, ball(24))
    return str(path)


@pytest.mark.parametrize('kind', ['occupancy', 'sdf'])
def test_drawn_points_carry_their_own_values(kind, mesh_file):
    args = dict(shape=mesh_file, kind=kind, size=16, points=400, seed=3)
    data, again = ShapeDataset(**args), ShapeDataset(**args)
    first, second = data[0], data[1]
    assert not torch.equal(first['inputs'], second['inputs'])
    assert torch.equal(first['inputs'], data[-len(data)]['inputs'])
    assert torch.equal(second['inputs'], again[1]['inputs']), 'a draw hangs on its number alone'
    assert torch.equal(data.statistics_sample(), again.statistics_sample())
    with pytest.raises(IndexError, match='ShapeDataset has 131072 items'):
        data[len(data)]
    assert not torch.equal(ShapeDataset(**{**args, 'seed': 4})[0]['inputs'], first['inputs'])
    radius = 1 / 1.05
    for item in (first, second):
        points, values = item['inputs'], item['data_samples'].measurement[:, 0]
        distance = points.norm(dim=-1) - radius
        if kind == 'sdf':
            torch.testing.assert_close(values, distance, rtol=0, atol=0.03)
        else:
            clear = distance.abs() > 0.02
            assert torch.equal(values[clear], (distance[clear] < 0).float())
        near = distance[:200].abs()
        assert near.max() < 0.25, 'the first half is near the surface'
    assert (first['inputs'][200:].norm(dim=-1) - radius).abs().max() > 0.5


def test_oriented_points_know_the_surface_and_nothing_else(mesh_file):
    args = dict(shape=mesh_file, kind='oriented', size=12, points=400, near=0.25)
    item, test = ShapeDataset(**args)[5], ShapeDataset(split='test', **args)[0]['data_samples']
    points, known = item['inputs'], item['data_samples'].measurement
    on = known[:, 0] == 1
    assert on[:100].all()
    assert not known[100:].any()
    torch.testing.assert_close(points[on].norm(dim=-1), torch.full((100,), 1 / 1.05), rtol=0, atol=0.02)
    outward = (points[on] * known[on, 1:]).sum(-1) / points[on].norm(dim=-1)
    assert outward.min() > 0.95
    assert test.kind == 'sdf'
    assert torch.equal(ShapeDataset(**args)[5]['inputs'], points)


def test_the_grid_of_a_test(mesh_file):
    item = ShapeDataset(shape=mesh_file, size=12, split='test')[0]
    sample = item['data_samples']
    assert item['inputs'].shape == (12, 12, 12, 3)
    assert sample.target.shape == (12, 12, 12, 1)
    assert sample.size == (12, 12, 12)
    assert 'measurement' not in sample
    views = ShapeDataset(shape=mesh_file, size=12).overview()
    assert views.shape == (3, 3, 12, 12)
    assert 0 <= views.min() < views.max() <= 1


# --- the operator and the metric -----------------------------------------------------------------------------------------


def test_a_grid_is_evaluated_in_chunks_with_equal_results():
    coords = coordinate_grid(5, 6, 7)
    sizes = []

    def field(points):
        sizes.append(len(points))
        return points.sum(-1, keepdim=True)

    for loss, expected in (('bce', coords.sum(-1, keepdim=True).sigmoid()), ('mse', coords.sum(-1, keepdim=True))):
        operator = MODELS.build(dict(type='mmext.PointOperator', loss=loss, chunk=50))
        torch.testing.assert_close(operator.reconstruct(field, coords)['prediction'], expected)
    assert max(sizes) == 50
    with pytest.raises(ValueError, match='which have no cross entropy'):
        MODELS.build(dict(type='mmext.PointOperator', kind='sdf', loss='bce'))


@pytest.mark.parametrize('norm', [None, 'BN', 'LN', 'mmext.CrossNorm'])
def test_gradients_of_oriented_points_are_those_of_each_point(norm):
    torch.manual_seed(0)
    network = dict(
        type='mmext.CoordMLP', in_features=3, out_features=1, width=8, depth=2, norm_cfg=norm and dict(type=norm)
    )
    operator = dict(type='mmext.OrientedPointOperator')
    model = MODELS.build(dict(type='mmext.SignalModel', operator=operator, network=network)).double()
    points = 2 * torch.rand(64, 3, dtype=torch.float64) - 1
    found = model.operator.predict(model.image, points)[0]
    values = model.image(points)
    torch.testing.assert_close(found[:, :1], values)

    def slope():
        moving = points.clone().requires_grad_()
        return torch.autograd.grad(model.image(moving).sum(), moving)[0]

    with constant_stats(model):
        torch.testing.assert_close(found[:, 1:], slope())
    assert torch.allclose(found[:, 1:], slope()) == (norm in (None, 'LN')), (
        'only statistics of a batch tie points together'
    )
    model.operator.loss(found, torch.rand(64, 4, dtype=torch.float64))['loss_normal'].backward()
    assert all(p.grad is not None for p in model.network.linears.parameters())


def test_a_true_distance_has_no_loss_but_off_the_surface(mesh_file):
    data = ShapeDataset(shape=mesh_file, kind='oriented', size=12, points=400)[0]
    operator = MODELS.build(dict(type='mmext.OrientedPointOperator'))
    measured = data['data_samples'].measurement
    on = measured[:, 0] == 1
    exact = torch.cat((data['inputs'].norm(dim=-1, keepdim=True) - 1 / 1.05, measured[:, 1:]), dim=1)
    exact[~on, 1] = 1
    losses = operator.loss(exact, measured)
    assert losses['loss_on'] < 3e3 * 0.02
    assert losses['loss_normal'] < 1e-3
    assert losses['loss_eikonal'] < 1e-3
    by_hand = torch.exp(-100 * exact[~on, 0].abs()).sum() / len(on) * 100
    torch.testing.assert_close(losses['loss_off'], by_hand)
    with pytest.raises(ValueError, match=r"train on mmext.ShapeDataset\(kind='oriented'\)"):
        operator.loss(exact, measured[:, :1])
    with pytest.raises(ValueError, match='needs a field of one value, got 2'):
        operator.predict(lambda x: x[:, :2], data['inputs'])


def test_metrics_of_a_shape(mesh_file):
    metric = METRICS.build(dict(type='mmext.ShapeMetric', queries=500, targets=5000))
    sample = ShapeDataset(shape=mesh_file, size=24, split='test')[0]['data_samples']
    sample.prediction = sample.target
    metric.process(None, [sample.to_dict()])
    found = metric.evaluate(1)
    assert found['shape/IoU'] == 1
    assert found['shape/chamfer_floor'] < found['shape/chamfer'] < 0.06
    assert found['shape/normal_consistency'] < found['shape/normal_consistency_ceiling']
    sample.prediction = sample.target * 0
    metric.process(None, [sample.to_dict()])
    found = metric.evaluate(1)
    assert found['shape/IoU'] == 0
    assert math.isnan(found['shape/chamfer'])


# --- whole runs ----------------------------------------------------------------------------------------------------------

TINY = """
_base_ = '{root}/configs/inr/_base_/shape-64_500.py'
shape = dict(type='mmext.ShapeDataset', shape='{shape}', size=12, points=300, _delete_=True{more})
train_dataloader = dict(dataset=dict(split='train', **shape))
val_dataloader = dict(dataset=dict(split='test', **shape))
test_dataloader = dict(dataset=dict(split='test', **shape))
val_evaluator = dict(queries=100, targets=500)
test_evaluator = dict(queries=100, targets=500)
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='mmext.SignalHook')]
log_level = 'WARNING'
model = dict(operator=dict(type='mmext.PointOperator'{operator}), network=dict(width=8, depth=2, norm_cfg=dict(type='{norm}')))
"""


def state(path):
    return torch.load(path, weights_only=False)['state_dict']


def test_a_run_from_the_config_to_the_mesh(mesh_file, tmp_path):
    main = {name: runpy.run_path(str(ROOT / f'tools/{name}.py'))['main'] for name in ('train', 'test', 'deploy')}
    path = tmp_path / 'tiny.py'
    path.write_text(TINY.format(root=ROOT, shape=mesh_file, more='', operator='', norm='BN'))
    work = tmp_path / 'run'
    main['train']([str(path), '--work-dir', str(work)])
    # A run that is resumed in the middle draws the same points.
    (tmp_path / 'two').mkdir()
    shutil.copy(work / 'iter_2.pth', tmp_path / 'two')
    (tmp_path / 'two/last_checkpoint').write_text(str(tmp_path / 'two/iter_2.pth'))
    main['train']([str(path), '--work-dir', str(tmp_path / 'two'), '--resume'])
    expected, found = state(work / 'iter_4.pth'), state(tmp_path / 'two/iter_4.pth')
    # Each checkpoint has one pass more, for its statistics.
    assert [
        k for k, v in expected.items() if not torch.equal(v, found[k]) and not k.endswith('num_batches_tracked')
    ] == []

    checkpoint = str(work / 'iter_4.pth')
    main['deploy']([str(work / 'tiny.py'), checkpoint, str(tmp_path / 'plain.pth'), '--fuse-bn'])
    assert not any('norm' in key for key in state(tmp_path / 'plain.pth'))
    main['test']([str(tmp_path / 'plain.py'), str(tmp_path / 'plain.pth'), '--work-dir', str(tmp_path / 'test')])

    export = tool('analysis_tools/export_mesh')
    level = ['--level', '0']
    export.main([str(work / 'tiny.py'), checkpoint, str(tmp_path / 'out.ply'), '--resolution', '12', *level])
    assert read_mesh(tmp_path / 'out.ply').vertices.shape[1] == 3
    with pytest.raises(UsageError, match='needs two points per axis'):
        export.main([str(work / 'tiny.py'), checkpoint, str(tmp_path / 'out.ply'), '--resolution', '1'])
    report = tool('analysis_tools/compression_inr')
    report.main([str(work / 'tiny.py'), checkpoint, '--formats', 'float16'])


def test_statistics_of_training_are_better_than_those_of_the_grid():
    """Half of the points are near the surface in training, and hardly any of the grid."""
    torch.manual_seed(0)
    data = ShapeDataset(shape='blocks', size=24, points=2048)
    test = ShapeDataset(shape='blocks', size=24, split='test')[0]
    network = dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=32, depth=3, norm_cfg=dict(type='BN'))
    network['encoding'] = dict(type='mmext.PositionalEncoding', num_octaves=3)
    model = MODELS.build(dict(type='mmext.SignalModel', network=network, operator=dict(type='mmext.PointOperator')))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        item = data[step]
        optimizer.zero_grad()
        model([item['inputs']], [item['data_samples']], mode='loss')['loss'].backward()
        optimizer.step()
    found = []
    for coords in (data.statistics_sample(), test['inputs']):
        model.freeze_stats(coords)
        (result,) = model([test['inputs']], [test['data_samples']], mode='predict')
        found.append(overlap(result))
    assert found[0] > 0.9
    assert found[0] > found[1] + 0.05
