"""SoftHGNN and its sparse form: the equation, what is kept for the backward pass, and the loss of its choices."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmcv.cnn import build_plugin_layer
from mmengine.registry import MODELS, init_default_scope
from test_hooks_auxiliary_loss import Toy, run
from torch import nn

from mmext.blocks.soft_hgnn import LoadBalance, SoftHGNN, SoftHGNNSeS
from mmext.export import export
from mmext.hooks.load_balance import LoadBalanceHook


def kept(layer, x):
    """Return the sizes of what a forward keeps for the backward pass, each storage once."""
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = (storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return [size for size, _ in found.values()]


@pytest.mark.parametrize('norm_dim', ['pixels', 'edges'])
def test_is_the_equation_with_its_heads_one_by_one(norm_dim):
    layer = shake(SoftHGNN(12, 5, 3, norm_dim=norm_dim, gate=True).double().eval(), 0.5)
    x = torch.randn(2, 12, 4, 6).double()
    tokens = x.flatten(2).transpose(1, 2)
    context = layer.context(torch.cat((tokens.mean(1), tokens.max(1)[0]), 1)).view(2, 5, 12)
    prototypes, z = layer.prototypes + context, layer.project(tokens)
    heads = [z[..., i : i + 4] @ prototypes[..., i : i + 4].transpose(1, 2) / math.sqrt(4) for i in (0, 4, 8)]
    share = torch.stack(heads).mean(0).softmax(1 if norm_dim == 'pixels' else 2)
    edges = F.gelu(layer.edge(share.transpose(1, 2) @ tokens))
    expected = tokens + layer.gate * F.gelu(layer.node(share @ edges))
    torch.testing.assert_close(layer(x), expected.transpose(1, 2).view_as(x))
    torch.testing.assert_close(layer(tokens), expected)


def test_each_edge_spreads_one_and_pixels_have_no_order():
    layer, x = shake(SoftHGNN(8, 4).double().eval(), 0.5), torch.randn(2, 20, 8).double()
    share = layer.share(x.transpose(1, 2))
    torch.testing.assert_close(share.sum(2), torch.ones_like(share[..., 0]))
    order = torch.randperm(20)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


@pytest.mark.parametrize(
    ('width', 'edges', 'count'), [(256, 16, 2_302_720), (256, 8, 1_250_048), (64, 8, 79_040), (128, 8, 313_728)]
)
def test_parameters_are_the_authors(width, edges, count):
    assert sum(p.numel() for p in SoftHGNN(width, edges).parameters()) == count


@pytest.mark.parametrize('layer', [SoftHGNN(8, 4), SoftHGNNSeS(8, 6, 2, 1)], ids=['dense', 'sparse'])
def test_what_is_kept_grows_with_the_pixels_and_no_faster(layer):
    layer.train()
    small, large = (kept(layer, torch.randn(1, 8, side, side, requires_grad=True)) for side in (16, 64))
    assert max(large) == 8 * 64**2  # no matrix of pixels by pixels, and none of heads by pixels by edges
    assert sum(large) < 16 * sum(small)


def test_without_the_last_layer_it_is_the_identity_and_eval_draws_nothing():
    layer, x = SoftHGNN(8, 4, dropout=0.5), torch.randn(1, 8, 5, 5)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.node.weight)
    nn.init.zeros_(layer.node.bias)
    assert torch.equal(layer(x), x)


def test_with_all_edges_chosen_the_sparse_form_is_the_dense_one():
    sparse = shake(SoftHGNNSeS(8, 6, 6, 2, num_heads=4).double().eval(), 0.5)
    dense = SoftHGNN(8, 8).double().eval()
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 8, 5, 7).double()
    torch.testing.assert_close(sparse(x), dense(x))


def test_each_image_uses_the_fixed_edges_and_its_own_best():
    layer = shake(SoftHGNNSeS(8, 6, 2, 3, num_heads=4).double().eval(), 0.5)
    x = torch.randn(4, 8, 30).double()
    share, whole = layer.share(x), SoftHGNN.share(layer, x)
    assert share.shape[1] == 5
    for image, rows, scores in zip(share, whole, layer.logits(x).sum(2)[:, 3:], strict=True):
        best = 3 + scores.argsort(descending=True)[:2]
        torch.testing.assert_close(image, rows[torch.tensor([0, 1, 2, *best])])


def test_the_loss_has_the_released_value_and_a_slope_against_what_is_chosen_too_often():
    scores = torch.tensor([[3.0, 1.0, 0.0, -1.0]] * 4).requires_grad_()
    chosen = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]])
    loss = LoadBalance()(scores, chosen)
    assert loss.item() == pytest.approx(((chosen.mean(0) - 0.5) ** 2).mean().item())
    loss.backward()
    assert (scores.grad[:, 0] > 0).all()
    assert (scores.grad[:, 2:] < 0).all()
    even = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    assert LoadBalance()(torch.randn(2, 4), even) == 0


def test_training_on_the_loss_alone_spreads_the_choice():
    torch.manual_seed(1)
    layer = SoftHGNNSeS(8, 8, 2, 0, dropout=0.0)
    x = torch.randn(16, 8, 6, 6)
    seen = []
    layer.balance.register_forward_hook(lambda _, args, out: seen.append((out, args[1].mean(0))))
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        layer(x)
        seen[-1][0].backward()
        optimizer.step()
    assert seen[-1][0] < 0.3 * seen[0][0]


@pytest.mark.parametrize('layer', [SoftHGNN(16, 4), SoftHGNNSeS(16, 8, 2, 1)], ids=['dense', 'sparse'])
def test_exports_and_computes_in_half_precision(layer, tmp_path):
    net, x = nn.Sequential(nn.Conv2d(3, 16, 1), shake(layer, 0.1)).eval(), torch.randn(2, 3, 9, 7)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        half = net(x)
    torch.testing.assert_close(half.float(), net(x), rtol=0.1, atol=0.1)
    pytest.importorskip('onnxruntime')
    assert export(net, x, tmp_path / 'net.onnx') < 1e-4


@pytest.mark.parametrize(
    ('make', 'match'),
    [
        (lambda: SoftHGNN(6, 4), 'in_channels=6, num_heads=4; choose heads'),
        (lambda: SoftHGNNSeS(8, 4, 5), 'top_k=5, num_dynamic=4; lower top_k'),
        (lambda: SoftHGNN(8)(torch.randn(8, 8)), r'a map .* or tokens .*, got \(8, 8\)'),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_is_a_plug_in_of_the_hosts():
    name, layer = build_plugin_layer(dict(type='mmext.SoftHGNN', num_hyperedges=4), in_channels=8)
    assert (name, layer.prototypes.shape) == ('soft_hgnn', (4, 8))
    init_default_scope('mmdet')
    plugins = [dict(cfg=dict(type='mmext.SoftHGNN'), stages=(False, False, False, True), position='after_conv3')]
    net = MODELS.build(dict(type='ResNet', depth=50, base_channels=8, stem_channels=8, plugins=plugins))
    net.init_weights()
    assert sum(isinstance(m, SoftHGNN) for m in net.modules()) == 3
    assert net(torch.randn(1, 3, 40, 33))[-1].shape[1] == 256


class Balanced(Toy):
    """A model whose own loss is zero, so that only the hook's trains it."""

    def __init__(self):
        super().__init__()
        self.mixer = SoftHGNNSeS(4, 6, 2, 0, num_heads=2, dropout=0.0)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).unsqueeze(3)
        y = self.mixer(self.mixer(x))  # a layer that two maps share
        return dict(loss_fit=0 * self.layer(inputs).sum() + 0 * y.sum()) if mode == 'loss' else [y]


def test_the_hook_adds_what_the_layers_said_and_trains_them(tmp_path):
    model = Balanced()
    before, said = model.mixer.prototypes.detach().clone(), []
    model.mixer.balance.register_forward_hook(lambda *args: said.append(float(args[2].detach())))
    logs, _ = run(tmp_path, LoadBalanceHook(weight=0.5, start_iter=1), model)
    assert ['loss_balance' in log for log in logs] == [False, True, True, True]
    assert [log['loss_balance'] for log in logs[1:]] == pytest.approx([0.5 * sum(said[i : i + 2]) for i in (2, 4, 6)])
    assert not torch.equal(model.mixer.prototypes, before)
    assert len(model.mixer.balance._forward_hooks) == 1  # its own has gone


def test_the_hook_refuses_a_model_without_choices(tmp_path):
    with pytest.raises(ValueError, match=r'found no mmext.SoftHGNNSeS in Toy; remove it from custom_hooks'):
        run(tmp_path, LoadBalanceHook())
