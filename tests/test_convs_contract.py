"""Wherever ``nn.Conv2d`` works, each conv layer of the pack does: devices, types, layouts, parallel and functional forms."""

import copy

import pytest
import torch
import torch.multiprocessing
from conv_layers import FAMILY, LAYERS, image, make, shake, shaken
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

from mmext.convs.depthwise import DepthwiseConv2d
from mmext.export import export_onnx
from mmext.folding import fold
from mmext.registry import MODELS


def tensors(layer):
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


@pytest.mark.parametrize('name', LAYERS)
def test_device_and_type_reach_every_tensor(name):
    layer = make(name, device='meta', dtype=torch.float64)
    assert all(t.is_meta for t in tensors(layer).values())
    assert all(t.dtype == torch.float64 for t in tensors(layer).values() if t.is_floating_point())
    with torch.device('meta'):
        assert all(t.is_meta for t in tensors(make(name)).values())


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_on_the_meta_device_becomes_whole_by_a_checkpoint(name):
    source, x = shaken(name).eval(), image()
    layer = make(name, device='meta').eval()
    layer.load_state_dict(source.state_dict(), assign=True)
    assert not any(t.is_meta for t in tensors(layer).values())
    with torch.no_grad():
        assert torch.equal(layer(x), source(x))


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_on_the_meta_device_becomes_whole_by_its_initialization(name):
    layer = make(name, device='meta').to_empty(device='cpu')
    with torch.no_grad():
        for tensor in tensors(layer).values():
            tensor.fill_(float('nan') if tensor.is_floating_point() else 1)
    layer.init_weights()
    assert all(t.isfinite().all() for t in tensors(layer).values())
    source, x = shaken(name).eval(), image()
    layer.load_state_dict(source.state_dict())
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), source(x))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', LAYERS)
def test_types(name, dtype):
    layer, x = shaken(name), image(batch=2)
    with torch.no_grad():
        expected = copy.deepcopy(layer).eval()(x)
        tolerance = 1e-4 if dtype == torch.float64 else 0.08 * float(expected.abs().max())
        out = copy.deepcopy(layer).to(dtype).eval()(x.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)
    built = make(name, dtype=dtype)
    built(x.to(dtype)).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in built.parameters())


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', LAYERS)
def test_channels_last(name, training):
    layer, x = shaken(name).train(training), image(batch=2)
    expected = copy.deepcopy(layer)(x)
    layer = layer.to(memory_format=torch.channels_last)
    out = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    out.square().mean().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize('name', ['PHConv2d', 'ShiftwiseConv2d'])
def test_tensors_that_were_saved_with_one_more_axis_still_load(name):
    layer, other = shaken(name), make(name)
    key, sets = ('filters', layer.n) if name == 'PHConv2d' else ('paths', layer.n_path)
    state = layer.state_dict()
    state[key] = state[key].unflatten(0, (sets, -1))
    assert state[key].ndim == 5
    other.load_state_dict(state)
    assert torch.equal(getattr(other, key), getattr(layer, key))
    state[key] = state[key][:, :-1]
    with pytest.raises(RuntimeError, match=f'size mismatch for {key}'):
        other.load_state_dict(state)


def without_statistics(layer):
    """Freeze the batch norms: no network's can count batches inside of a transform."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return layer


@pytest.mark.parametrize('name', LAYERS)
def test_functional_form(name):
    layer, other, x = without_statistics(shaken(name)), without_statistics(shaken(name)), image(batch=2)
    state = {k: v.detach() for k, v in tensors(other).items()}
    with torch.no_grad():
        expected = copy.deepcopy(other)(x)
        out = functional_call(layer, {k: v.clone() for k, v in state.items()}, (x,))
    torch.testing.assert_close(out, expected)
    parameters = {k: state[k] for k, _ in other.named_parameters()}
    buffers = {k: v.clone() for k, v in state.items() if k not in parameters}
    gradients = grad(lambda p: functional_call(layer, (p, buffers), (x,)).square().mean())(parameters)
    other(x).square().mean().backward()
    for key, parameter in other.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', [*FAMILY, 'DepthwiseConv2d'])
def test_gradients_of_every_sample(name):
    """As differential privacy needs them: eval mode, because a batch norm mixes the samples."""
    layer, x = shaken(name).eval(), image(batch=3)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}

    def loss(p, sample):
        return functional_call(layer, p, (sample.unsqueeze(0),)).square().mean()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample.unsqueeze(0)).square().mean().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(each[key][i], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['DilatedReparamConv2d', 'RepSO2d', 'ShiftwiseConv2d'])
def test_one_pixel_of_one_image_has_no_statistics(name):
    kwargs = dict(padding=make(name).kernel_size[0] // 2)
    x = torch.randn(1, 8, 1, 1)
    with pytest.raises(
        ValueError, match=rf'{name} has batch norms inside.*\(1, \d, 1, 1\).*norm_cfg=None or a larger batch'
    ):
        make(name, **kwargs)(x)
    layer = make(name, **kwargs, norm_cfg=None)
    for parameter in layer.parameters():
        parameter.data.normal_()
    trained = layer(x)
    torch.testing.assert_close(layer.eval()(x), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.fold()(x), trained, rtol=1e-4, atol=1e-5)
    x = image()
    torch.testing.assert_close(layer.train()(x), layer.fold()(x), rtol=1e-4, atol=1e-4)


def test_the_routed_layer_is_stored_and_exported_as_the_plain_one(tmp_path):
    for kwargs in (dict(kernel_size=31, padding=15), dict(kernel_size=7, padding=3, stride=2, bias=False)):
        layer, plain = DepthwiseConv2d(8, 8, groups=8, **kwargs), nn.Conv2d(8, 8, groups=8, **kwargs)
        plain.load_state_dict(layer.state_dict())
        layer.load_state_dict(plain.state_dict())
        assert list(layer.state_dict()) == list(plain.state_dict())
        x = torch.randn(2, 8, 33, 30)
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-5)
        exported = torch.export.export(layer.eval(), (x,))
        torch.testing.assert_close(exported.module()(x), plain(x), rtol=1e-4, atol=1e-5)
        pytest.importorskip('onnxruntime')
        assert export_onnx(layer, x, tmp_path / 'layer.onnx') < 1e-4


class TwoUses(nn.Module):
    """Has a layer in two places, under another norm in each, beside one that shares its parameters and one behind a norm."""

    def __init__(self, name):
        super().__init__()
        first = shaken(name)
        second = copy.deepcopy(first)
        for key, parameter in first.named_parameters():
            place, _, attribute = key.rpartition('.')
            second.get_submodule(place)._parameters[attribute] = parameter
        self.places = nn.ModuleList([first, nn.Sequential(first, nn.BatchNorm2d(8)), second])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.third = shaken(name)

    def forward(self, x):
        once, twice, tied = (place(x) for place in self.places)
        return self.norms[0](once) + twice.relu() + self.norms[1](tied) + self.third(self.norms[2](x))


@pytest.mark.parametrize('name', [n for n in LAYERS if not getattr(MODELS.get(n), 'cannot_fold', None)])
def test_a_layer_folds_wherever_else_it_or_its_parameters_stand(name):
    net, x = shake(TwoUses(name), by=0.2).eval(), image(batch=2)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(fold(copy.deepcopy(net), True, inputs=x)(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize('kind', ['static', 'mmext.FDConv2d', 'involution'])
def test_a_layer_that_names_its_function_folds_as_a_whole_or_not_at_all(kind):
    more = dict(group_channels=8) if kind == 'involution' else {}
    layer = MODELS.get('EvolutionConv2d')(8, 8, 3, padding=1, function=dict(type=kind, **more))
    net, x = shake(nn.Sequential(layer, nn.ReLU()), by=0.2).eval(), image(batch=2)
    folded = fold(copy.deepcopy(net))
    assert type(folded[0]) is (nn.Conv2d if kind == 'static' else type(layer))
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)


def _train(layer, x, steps=2):
    """Train a little, and return the answers in eval mode: after every step, and after a change that no optimizer made."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    answers = []
    for _ in range(steps):
        optimizer.zero_grad()
        layer.train()
        layer(x).square().mean().backward()
        optimizer.step()
        layer.eval()
        with torch.no_grad():
            answers.append(layer(x))
    with torch.no_grad():
        for parameter in layer.parameters():
            getattr(parameter, '_local_tensor', parameter).mul_(1.1)
        # FSDP1 itself does not gather the outermost module's parameters again before a backward pass.
        answers += [] if isinstance(layer, FullyShardedDataParallel) else [layer(x)]
    return answers


def _compare(rank, store, names, queue):
    """Train every layer in each parallel form, the same images on all ranks, and tell what differs from one process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    device = torch.device('cpu')
    forms = {
        'DDP static graph': lambda layer: DistributedDataParallel(layer, static_graph=True),
        'FSDP1': lambda layer: FullyShardedDataParallel(layer, device_id=device),
        'FSDP1 original': lambda layer: FullyShardedDataParallel(layer, device_id=device, use_orig_params=True),
    }
    if hasattr(torch.distributed.fsdp, 'fully_shard'):  # that of torch 2.5 is a draft, and wants a GPU
        forms['FSDP2'] = _fully_shard
    failures = []
    for name in names:
        torch.manual_seed(0)
        layer, x = shake(make(name)), image(batch=2)
        expected = _train(copy.deepcopy(layer), x)
        for form, wrap in forms.items():
            try:
                for ours, theirs in zip(_train(wrap(copy.deepcopy(layer)), x), expected, strict=False):
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
            except Exception as error:
                failures.append(f'{form} {name}: {type(error).__name__} {error}')
    torch.distributed.destroy_process_group()
    if rank == 0:
        queue.put(failures)


def _fully_shard(layer):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(nn.Sequential(layer), mesh=init_device_mesh('cpu', (2,)), reshard_after_forward=True)


def test_parallel_training_is_that_of_one_process(tmp_path):
    context = torch.multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_compare, (tmp_path / 'store', LAYERS, queue), nprocs=2)
    assert queue.get() == []
