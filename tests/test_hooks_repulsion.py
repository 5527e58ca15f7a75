import math
from itertools import combinations

import pytest
import torch
from torch import nn

from mmext.convs.dcls import DCLSConv2d
from mmext.hooks.repulsion import RepulsionHook, repulsion


def by_definition(layer: DCLSConv2d) -> float:
    _, outputs, inputs, m = layer.P.shape
    total = 0.0
    for o in range(outputs):
        for i in range(inputs):
            points = layer.P[:, o, i].T.tolist()
            total += sum(max(0.0, 1 - math.dist(a, b)) for a, b in combinations(points, 2))
    return 2 / (m * (m - 1) * outputs * inputs) * total


def test_equals_the_definition_in_loops():
    layers = [
        DCLSConv2d(4, 6, 5, groups=2, kernel_count=5),
        DCLSConv2d(3, 3, 7, groups=3, kernel_count=4, version='v0'),
    ]
    for layer in layers:
        assert repulsion(layer.P).item() == pytest.approx(by_definition(layer), rel=1e-5)
    terms = RepulsionHook().loss(nn.Sequential(*layers, nn.Conv2d(3, 3, 1), DCLSConv2d(3, 3, 1)))
    mean = sum(by_definition(layer) for layer in layers) / 2
    assert {key: term.item() for key, term in terms.items()} == {'loss_repulsion': pytest.approx(mean**2, rel=1e-5)}


def test_shared_positions_count_once():
    first, second, other = (DCLSConv2d(2, 2, 5) for _ in range(3))
    with torch.no_grad():
        other.P.copy_(2 * torch.arange(9.0))  # far apart
    apart = RepulsionHook().loss(nn.Sequential(first, other))
    second.P = first.P
    shared = RepulsionHook().loss(nn.Sequential(first, second, other))
    assert torch.equal(shared['loss_repulsion'], apart['loss_repulsion'])


def test_pushes_near_points_apart_and_leaves_far_ones():
    layer = DCLSConv2d(1, 1, 9, kernel_count=3)
    with torch.no_grad():
        layer.P[:, 0, 0] = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.5, 3.0]])
    RepulsionHook().loss(layer)['loss_repulsion'].backward()
    grad = layer.P.grad[:, 0, 0]
    assert grad[0].tolist() == [0, 0, 0]
    assert grad[1, 0] > 0 > grad[1, 1]
    assert grad[1, 2] == 0


def test_waits_as_long_as_the_released_code():
    hook = RepulsionHook(weight=0.5)
    assert (hook.start_epoch, hook.start_iter, hook.weight) == (21, 0, 0.5)


@pytest.mark.parametrize('layer', [nn.Conv2d(2, 2, 3), DCLSConv2d(2, 2, 3, kernel_count=1), DCLSConv2d(2, 2, 1)])
def test_nothing_to_keep_apart_is_an_error(layer):
    class Run:
        model = nn.Sequential(layer)

    with pytest.raises(
        ValueError, match=r'RepulsionHook found no mmext.DCLSConv2d with two points or more in Sequential'
    ):
        RepulsionHook().before_train(Run())
