"""A kernel that was generated once serves again only where it is still the right one."""

import copy
import io
import threading

import pytest
import torch
from conv_layers import FAMILY, LAYERS, image, shake, shaken
from mmengine.model import ExponentialMovingAverage, StochasticWeightAverage
from mmengine.utils import digit_version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mmext.optim import SAGD


def answer(layer, x):
    with torch.no_grad():
        return layer(x)


def truth(layer, x):
    """Return what a layer of the same state computes that has cached nothing."""
    return answer(copy.deepcopy(layer).eval(), x)


@pytest.fixture(params=LAYERS)
def warm(request):
    """A layer in eval mode that has answered once, the image and the answer."""
    layer, x = shaken(request.param).eval(), image()
    return layer, x, answer(layer, x)


@torch.no_grad()
def scale_by_data(layer):
    for parameter in layer.parameters():
        parameter.data = parameter.data * 1.5


@torch.no_grad()
def scale_in_place(layer):
    for parameter in layer.parameters():
        parameter.mul_(1.5)


@torch.no_grad()
def set_tensors(layer):
    for parameter in layer.parameters():
        parameter.set_(parameter * 1.5)


@torch.no_grad()
def swap_tensors(layer):
    for parameter in layer.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter * 1.5, parameter.requires_grad))


def load(layer):
    layer.load_state_dict(shaken(type(layer).__name__).state_dict())


def load_assigned(layer):
    layer.load_state_dict(shaken(type(layer).__name__).state_dict(), assign=True)


def tie(layer):
    """Make the layer use the parameters of another one."""
    for name, parameter in shaken(type(layer).__name__).named_parameters():
        parent, _, own = name.rpartition('.')
        setattr(layer.get_submodule(parent), own, parameter)


def fused_step(make_optimizer):
    def step(layer):
        x = image()
        loss = layer(x).square().sum()
        loss.backward()
        optimizer = make_optimizer(layer.parameters())
        answer(layer, x)
        optimizer.step(**(dict(loss=loss) if isinstance(optimizer, SAGD) else {}))

    return step


def average(cls):
    def update(layer):
        """Not the layer itself changes, but its average in place of it."""
        averaged = cls(layer)
        averaged.eval()
        averaged.update_parameters(layer)
        answer(averaged, image())
        averaged.update_parameters(shake(copy.deepcopy(layer)))
        return averaged.module

    return update


CHANGES = {
    'data': scale_by_data,
    'in-place': scale_in_place,
    'set_': set_tensors,
    'swap_tensors': swap_tensors,
    'load': load,
    'assign': load_assigned,
    'tie': tie,
    'fused-adamw': fused_step(lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)),
    'fused-sgd': fused_step(lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    'fused-adagrad': fused_step(lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True)),
    'fused-sagd': fused_step(lambda p: SAGD(p, lr=0.1, momentum=0.9, fused=True)),
    'ema': average(lambda layer: ExponentialMovingAverage(layer, momentum=0.5)),
    'ema-buffers': average(lambda layer: ExponentialMovingAverage(layer, momentum=0.5, update_buffers=True)),
    'swa': average(StochasticWeightAverage),
}


@pytest.mark.parametrize('change', CHANGES)
def test_it_sees_a_change(warm, change):
    layer, x, before = warm
    changed = CHANGES[change](layer) or layer
    assert not torch.allclose(answer(changed, x), before)
    assert torch.equal(answer(changed, x), truth(changed, x))


def test_it_sees_the_step_of_a_compiled_optimizer():
    torch.compiler.reset()
    layer, x = shaken('TuckerConv2d').eval(), image()
    layer(x).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters(), lr=torch.tensor(0.1), fused=True)
    answer(layer, x)
    torch.compile(optimizer.step, backend='eager')()
    assert torch.equal(answer(layer, x), truth(layer, x))


def replica(layer):
    """Return what ``DataParallel`` makes of a layer on another device: its parameters are attributes."""
    copies = {m: m._replicate_for_data_parallel() for m in layer.modules()}
    for original, copied in copies.items():
        copied._modules = {n: None if m is None else copies[m] for n, m in original._modules.items()}
        copied._buffers = {n: None if b is None else b.clone() for n, b in original._buffers.items()}
        for name, parameter in original._parameters.items():
            setattr(copied, name, None if parameter is None else parameter * 1.5)
    return copies[layer]


def test_a_replica_computes_with_its_own_parameters_and_passes_gradients(warm):
    layer, x, before = warm
    ours = replica(layer)
    scale_in_place(layer)
    expected = answer(layer, x)
    torch.testing.assert_close(answer(ours, x), expected)
    assert not torch.allclose(expected, before)
    layer.zero_grad()
    other = replica(layer)
    other(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_shallow_copy_with_other_parameters_computes_with_them(warm):
    layer, x, before = warm
    for shallow in (copy.copy(layer), object.__new__(type(layer))):
        shallow.__dict__.update(layer.__dict__)
        # Deep copies of the tables alone, as a tool makes them that exchanges parameters.
        shallow._parameters, shallow._buffers, shallow._modules = (
            copy.deepcopy(t) for t in (layer._parameters, layer._buffers, layer._modules)
        )
        scale_in_place(shallow)
        assert torch.equal(answer(shallow, x), truth(shallow, x))
        assert not torch.allclose(answer(shallow, x), before)
        assert torch.equal(answer(layer, x), before)


def test_functional_call_uses_what_it_is_given_and_leaves_nothing(warm):
    layer, x, before = warm
    other = {n: p * 1.5 for n, p in layer.named_parameters()}
    with torch.no_grad():
        out = functional_call(layer, other, (x,))
    assert torch.equal(answer(layer, x), before)
    scale_in_place(layer)
    torch.testing.assert_close(out, answer(layer, x))


def test_fake_tensors_leave_nothing_behind(warm):
    layer, x, before = warm
    for start in (layer, copy.deepcopy(layer)):  # warm and cold
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            assert isinstance(start(mode.from_tensor(x)), FakeTensor)
        assert torch.equal(answer(start, x), before)
        assert type(answer(start, x)) is torch.Tensor


# torch 2.5 has no rule for the inverse FFT of real signals with symbols, which FDConv2d needs.
TRACES = ['real', 'fake', *['symbolic'] * (digit_version(torch.__version__) >= digit_version('2.6'))]


@pytest.mark.parametrize('mode', TRACES)
def test_make_fx_traces_the_generation_of_the_kernel(warm, mode):
    layer, x, before = warm
    # Some of torch's own operators (svd, lstsq) are not traced with symbols; none of them generates a kernel.
    graph = make_fx(
        lambda p, x: functional_call(layer, p, (x,)), tracing_mode=mode, _allow_non_fake_inputs=mode != 'real'
    )({n: p.detach() for n, p in layer.named_parameters()}, x)
    torch.testing.assert_close(graph({n: p.detach() for n, p in layer.named_parameters()}, x), before)
    assert torch.equal(answer(layer, x), before)
    scale_in_place(layer)
    torch.testing.assert_close(
        graph({n: p.detach() for n, p in layer.named_parameters()}, x), answer(layer, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', LAYERS)
def test_an_ensemble_runs_under_vmap(name, training):
    members = [shaken(name).train(training) for _ in range(3)]
    for member in members:
        # One batch norm cannot keep the statistics of several images in place, in any network.
        for module in member.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    x = image()
    expected = torch.stack([answer(member, x) for member in members])
    parameters, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0])
    base.load_state_dict(members[0].state_dict())
    answer(base, x)

    def call(p, b):
        return functional_call(base, (p, b), (x,))

    with torch.no_grad():
        torch.testing.assert_close(vmap(call)(parameters, buffers), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(base, x), answer(members[0], x))


def test_forward_mode_derivatives_with_respect_to_the_parameters(warm):
    layer, x, _ = warm
    layer.double()
    x = x.double()
    parameters = {n: p.detach() for n, p in layer.named_parameters()}
    tangents = {n: torch.randn_like(p) for n, p in parameters.items()}
    answer(layer, x)

    def call(p):
        return functional_call(layer, p, (x,))

    out, tangent = jvp(call, (parameters,), (tangents,))
    torch.testing.assert_close(answer(layer, x), out)
    # The same by the transposed map, in reverse mode.
    weights = torch.randn_like(out)
    live = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    gradients = torch.autograd.grad((call(live) * weights).sum(), list(live.values()))
    backward = sum((g * tangents[n]).sum() for n, g in zip(live, gradients, strict=True))
    torch.testing.assert_close((tangent * weights).sum(), backward)
    with torch.no_grad(), forward_ad.dual_level():
        dual = call({n: forward_ad.make_dual(p, tangents[n]) for n, p in parameters.items()})
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
    torch.testing.assert_close(answer(layer, x), out)


def test_nothing_cached_is_saved_or_copied(warm):
    layer, x, before = warm

    def saved(module):
        stream = io.BytesIO()
        torch.save(module, stream)
        return stream

    cold = copy.deepcopy(layer)
    assert len(saved(layer).getvalue()) == len(saved(cold).getvalue())
    stream = saved(layer)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(answer(loaded, x), before)
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(answer(layer, x), before), 'the layer itself has not lost anything'


@pytest.mark.parametrize('name', FAMILY)
def test_a_second_call_generates_nothing(name):
    layer = shaken(name).eval()
    with torch.no_grad():
        kernel = layer.kernel_and_bias()[0]
        assert layer.kernel_and_bias()[0] is kernel
        copied = copy.deepcopy(layer)
        assert copied.kernel_and_bias()[0] is not kernel


def test_several_threads_share_a_layer_whose_mode_a_third_one_toggles():
    layer, x = shaken('RefConv2d').eval(), image()
    expected = answer(layer, x)
    stop, errors = threading.Event(), []

    def use():
        try:
            for _ in range(300):
                torch.testing.assert_close(answer(layer, x), expected)
        except Exception as error:
            errors.append(error)

    def toggle():
        while not stop.is_set():
            layer.eval()

    workers = [threading.Thread(target=use) for _ in range(2)]
    toggling = threading.Thread(target=toggle)
    for thread in (toggling, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    toggling.join()
    assert not errors
