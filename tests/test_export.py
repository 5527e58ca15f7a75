"""Every declared axis of an exported file is proved, and what cannot be exported leaves no file."""

import sys

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmext.export import FORMATS, example_inputs, export, export_onnx, max_relative_error, outputs_of

pytest.importorskip('onnxruntime')
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Flow(nn.Module):
    """A convolution, and what a test does with its output."""

    def __init__(self, flow):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.flow = flow
        self.eval()

    def forward(self, x):
        return self.flow(self.conv(x))


def traced_number(x):
    """A number of Python's, which a trace keeps: the same for every batch."""
    return x * float(x.shape[0])


def traced_sizes(x):
    return x * float(x.shape[2]) + torch.arange(x.shape[0]).view(-1, 1, 1, 1)


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr('mmext.export.print_log', lambda line, *_: found.append(line))
    return found


def declared(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider']).get_inputs()[0].shape


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('dynamic', [False, True])
def test_axes_that_hold_are_dynamic(kind, dynamic, tmp_path, lines):
    model, path = Flow(torch.relu), tmp_path / f'model{FORMATS[kind].suffix}'
    assert export(model, IMAGES, path, kind, dynamic) < 1e-5
    assert not lines
    run = FORMATS[kind].read(path)
    sizes = [(1, 32, 32), (2, 32, 32), (7, 32, 32)] + ([(3, 40, 24)] if dynamic else [])
    with torch.no_grad():
        for n, height, width in sizes:
            x = torch.randn(n, 3, height, width)
            assert max_relative_error(outputs_of(model, x), list(run(x))) < 1e-5
    if kind == 'onnx':
        assert declared(path) == ['batch', 3, *(['height', 'width'] if dynamic else [32, 32])]


def test_a_batch_that_is_traced_into_the_file_is_fixed_and_said(tmp_path, lines):
    path = tmp_path / 'model.onnx'
    assert export_onnx(Flow(traced_number), IMAGES, path) < 1e-5
    assert declared(path) == [2, 3, 32, 32]
    (line,) = lines
    assert line.startswith('model.onnx is for batch 2 and height 32 and width 32 only (on (1, 3, 32, 32) it differs by')


def test_sizes_fall_back_to_the_batch_alone(tmp_path, lines):
    path = tmp_path / 'model.onnx'
    assert export_onnx(Flow(traced_sizes), IMAGES, path, dynamic=True) < 1e-5
    assert declared(path) == ['batch', 3, 32, 32]
    assert 'is for height 32 and width 32 only' in lines[0]


def test_swin_is_right_for_every_batch_that_its_file_declares(tmp_path, lines):
    init_default_scope('mmpretrain')
    arch = dict(embed_dims=12, depths=[2, 2], num_heads=[2, 2])
    cfg = dict(type='SwinTransformer', arch=arch, img_size=28, window_size=7, out_indices=(1,), stage_cfgs=dict())
    model = ROOT_MODELS.build(dict(cfg, pad_small_map=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.eval()
    path, inputs = tmp_path / 'swin.onnx', torch.randn(2, 3, 28, 28)
    assert export_onnx(model, inputs, path) < 1e-4
    run = FORMATS['onnx'].read(path)
    (batch, *_) = declared(path)
    for n in (1, 2, 5) if batch == 'batch' else (batch,):
        x = torch.randn(n, 3, 28, 28)
        assert max_relative_error(outputs_of(model, x), run(x)) < 1e-4
    assert (batch == 'batch') != bool(lines)


class Draws(Flow):
    def forward(self, x):
        return self.conv(x) * torch.rand(())


class Complex(Flow):
    def forward(self, x):
        return torch.fft.fft2(self.conv(x))


def unknown_operator(*_, **__):
    raise AssertionError


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (Draws(None), 'Draws draws random numbers in every forward, so that no file can be compared with it'),
        (Complex(None), 'ONNX has no complex numbers, and Complex computes with them'),
        (Flow(lambda x: torch.linalg.svdvals(x)), 'svd'),
        (Flow(lambda x: __import__('mmdet.core')), "No module named 'mmdet.core'"),
    ],
    ids=['random', 'complex', 'no such operator', 'stale code'],
)
def test_what_fails_is_one_sentence_and_leaves_no_file(model, words, tmp_path):
    def failing(inputs, real=model.forward):
        return real(inputs)

    if 'mmdet.core' in words:
        model.flow = lambda x: __import__('mmdet.core') if torch.jit.is_tracing() else x
    with pytest.raises(RuntimeError) as caught:
        export_onnx(model.eval(), IMAGES, tmp_path / 'model.onnx')
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'where', ['torch.onnx.export', 'onnxruntime.InferenceSession', 'onnxruntime.InferenceSession.run']
)
def test_a_bare_assertion_anywhere_is_told_by_its_place(where, tmp_path, monkeypatch):
    monkeypatch.setattr(where, unknown_operator)
    (tmp_path / 'model.onnx').write_text('mine')
    with pytest.raises(RuntimeError, match=r'AssertionError in test_export\.py, line \d+: raise AssertionError'):
        export_onnx(Flow(torch.relu), IMAGES, tmp_path / 'model.onnx')
    assert [p.name for p in tmp_path.iterdir()] == ['model.onnx']
    assert (tmp_path / 'model.onnx').read_text() == 'mine', 'an older file survives a failure'


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(RuntimeError, match=r'needs onnx and onnxruntime .* pip install onnx onnxruntime'):
        export_onnx(Flow(torch.relu), IMAGES, tmp_path / 'model.onnx')


def test_random_forwards_are_compared_under_the_same_seed_and_leave_the_random_state_alone():
    model = Draws(None)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = outputs_of(model, IMAGES), outputs_of(model, IMAGES)
    assert max_relative_error(first, second) == 0
    assert max_relative_error(first, outputs_of(model, IMAGES, seed=1)) > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_infinities_are_equal_and_nan_is_not():
    inf, nan = float('inf'), float('nan')
    a = torch.tensor([1.0, inf, -inf])
    assert max_relative_error([a], [a.clone()]) == 0
    assert max_relative_error([a], [a * torch.tensor([1.5, 1, 1])]) == 0.5
    assert max_relative_error([a], [a * torch.tensor([1.0, -1, 1])]) == inf
    assert max_relative_error([torch.tensor([nan])], [torch.tensor([nan])]) == inf


def test_a_bare_component_gets_the_channels_that_it_takes():
    assert example_inputs(nn.Sequential(nn.Conv2d(5, 4, 1)), 6, 7).shape == (2, 5, 6, 7)
    assert example_inputs(nn.Sequential(nn.ReLU()), 6, 7).shape == (2, 3, 6, 7)
