import pytest
import torch
from mmengine.model import BaseModule, initialize
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmext.inits.conv_aware_init import ConvolutionAwareInit, convolution_aware_, fourier_basis


@pytest.mark.parametrize(('channels', 'size'), [(13, 6), (6, 6), (5, 6), (1, 28)])
def test_spectra_are_orthonormal_within_each_block(channels, size):
    basis = fourier_basis(3, channels, size)
    assert basis.shape == (3, channels, size)
    for spectra in basis:
        for block in spectra.split(size):
            torch.testing.assert_close(block @ block.T, torch.eye(len(block)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(basis[0, 0].abs(), basis[1, 0].abs())


def test_full_blocks_of_different_filters_and_runs_are_drawn_apart():
    basis = fourier_basis(1, 12, 6)[0]
    assert not torch.allclose(basis[:6].abs(), basis[6:].abs())


@pytest.mark.parametrize(
    'shape', [(16, 8, 3, 3), (4, 7, 5, 5), (8, 1, 7, 7), (6, 4, 1, 1), (5, 3, 1, 4), (5, 3, 4, 1), (2, 3, 2, 2)]
)
def test_variance_is_he_s(shape):
    weight = convolution_aware_(nn.Parameter(torch.zeros(shape)))
    variance = weight.double().var(correction=0)
    torch.testing.assert_close(variance.item(), 2 / (shape[1] * shape[2] * shape[3]), rtol=1e-4, atol=0)


def test_without_noise_the_kernels_are_the_transformed_spectra():
    torch.manual_seed(1)
    weight = convolution_aware_(torch.empty(4, 9, 3, 3), 1e-9)
    torch.manual_seed(1)
    torch.empty(4, 9, 3, 3).normal_()
    spectra = fourier_basis(4, 9, 6).view(4, 9, 3, 2)
    kernels = torch.fft.irfft2(spectra.to(torch.complex64), s=(3, 3))
    ratio = weight / kernels
    torch.testing.assert_close(ratio, ratio[0, 0, 0, 0].expand_as(ratio), rtol=1e-3, atol=0)
    # Entries that the real transform keeps in both directions come back: those off the first column.
    back = torch.fft.rfft2(weight / ratio[0, 0, 0, 0])
    torch.testing.assert_close(back[..., 1].real, spectra[..., 1], rtol=1e-3, atol=1e-4)


def test_half_precision_weights_are_drawn_in_full():
    weight = convolution_aware_(torch.empty(16, 8, 3, 3, dtype=torch.bfloat16))
    assert weight.dtype == torch.bfloat16
    assert weight.float().var(correction=0).item() == pytest.approx(2 / 72, rel=0.02)


class Layers(BaseModule):
    def __init__(self, init_cfg):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(4, 8, 3)
        self.other = nn.Conv2d(4, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)
        self.line = nn.Conv1d(4, 4, 3)


def is_drawn(conv):
    variance = conv.weight.detach().double().var(correction=0).item()
    return variance == pytest.approx(2 / conv.weight[0].numel(), rel=1e-4)


def test_named_layers_are_drawn_and_no_others():
    module = Layers(dict(type='mmext.ConvolutionAwareInit', layer=['Conv2d', 'Linear'], bias=0.5))
    before = module.line.weight.clone()
    module.init_weights()
    assert is_drawn(module.conv)
    assert is_drawn(module.other)
    assert (module.conv.bias == 0.5).all()
    torch.testing.assert_close(module.fc.weight @ module.fc.weight.T, torch.eye(4), rtol=1e-5, atol=1e-5)
    assert torch.equal(module.line.weight, before)


def test_an_override_reaches_one_child():
    cfg = dict(
        type='Constant',
        val=1,
        layer='Conv2d',
        override=dict(type='mmext.ConvolutionAwareInit', name='other', eps_std=0.1),
    )
    module = Layers(None)
    initialize(module, cfg)
    assert (module.conv.weight == 1).all()
    assert is_drawn(module.other)


def test_other_kernels_are_refused():
    with pytest.raises(
        TypeError,
        match=r"^ConvolutionAwareInit draws .*got Conv1d with \(4, 4, 3\); leave it out of layer=\['Conv1d'\]",
    ):
        initialize(Layers(None), dict(type='mmext.ConvolutionAwareInit', layer='Conv1d'))
    with pytest.raises(ValueError, match=r'^ConvolutionAwareInit needs a positive eps_std, got eps_std=0'):
        ConvolutionAwareInit(eps_std=0)


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(ValueError, match=r"finds no layer=\['Conv2D'\] in Layers; its nearest classes are Conv2d"):
        initialize(Layers(None), dict(type='mmext.ConvolutionAwareInit', layer='Conv2D'))
    module = Layers(None)
    initialize(module, dict(type='mmext.ConvolutionAwareInit', layer=('Conv2d', 'Conv3d')))
    assert is_drawn(module.conv)


def test_layers_of_the_pack_keep_their_own_initialization():
    """mmengine's rule: a name is that of a class or of its direct bases."""
    model = nn.Sequential(ROOT_MODELS.build(dict(type='mmext.RefConv2d', in_channels=4, out_channels=4, kernel_size=3)))
    before = model[0].weight.clone()
    initialize(model, dict(type='mmext.ConvolutionAwareInit', layer='Conv2d'))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet', 'mmseg'])
def test_a_stock_backbone_of_every_host_takes_it(host):
    init_default_scope(host)
    cfg = [
        dict(type='mmext.ConvolutionAwareInit', layer='Conv2d'),
        dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
    ]
    model = ROOT_MODELS.build(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, init_cfg=cfg))
    model.init_weights()
    convs = [m for m in model.modules() if type(m) is nn.Conv2d]
    assert len(convs) == 20
    assert all(is_drawn(m) for m in convs)
    assert (model.bn1.weight == 1).all()
