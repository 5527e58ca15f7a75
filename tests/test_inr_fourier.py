"""The masked Fourier transform: the definition, the three masks, unitarity, and the zero-filled reconstruction."""

import cmath
import copy
import math

import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import resize

from mmext.inr import MaskedFourierOperator
from mmext.registry import MODELS

PHANTOM = torch.from_numpy(resize(shepp_logan_phantom(), (256, 256), anti_aliasing=True))[..., None]
MASKS = ['gaussian', 'cartesian', 'radial']
SIZES = [(16, 16), (15, 15), (12, 20), (21, 10)]


def small(mask, **arguments):
    """Return an operator whose mask suits a tiny image."""
    return MaskedFourierOperator(mask, **{'fraction': 0.6, 'acceleration': 2, 'spokes': 4, **arguments})


# --- the definition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.complex128])
def test_equals_the_sum_over_all_pixels(mask, dtype):
    operator, (height, width) = small(mask), (5, 8)
    image = torch.randn(height, width, 2, dtype=dtype)
    expected = []
    for u in range(height):
        for v in range(width):
            if operator.mask((height, width))[u, v]:
                waves = [
                    image[i, j] * cmath.exp(-2j * math.pi * (u * i / height + v * j / width))
                    for i in range(height)
                    for j in range(width)
                ]
                expected.append(sum(waves) / math.sqrt(height * width))
    measured = operator(image)
    assert 0 < len(measured) < height * width
    torch.testing.assert_close(measured, torch.stack(expected))


@pytest.mark.parametrize('size', SIZES)
def test_with_every_frequency_it_is_unitary(size):
    operator = MaskedFourierOperator('cartesian', acceleration=1, complex_image=True)
    assert operator.mask(size).all()
    a, b = torch.randn(2, *size, 3, dtype=torch.complex128)
    # Parseval: the loss is the squared distance of the images, zero for the true one only.
    torch.testing.assert_close((operator(a) - operator(b)).abs().square().mean(), (a - b).abs().square().mean())
    torch.testing.assert_close(operator.baseline(operator(a), size), a)


def test_what_is_not_measured_does_not_count():
    operator = MaskedFourierOperator('radial', spokes=5)
    image = torch.randn(16, 16, 1, dtype=torch.complex128)
    hidden = torch.where(operator.mask((16, 16))[..., None], 0, torch.fft.fft2(image, dim=(0, 1)))
    invisible = torch.fft.ifft2(hidden, dim=(0, 1))
    assert invisible.abs().max() > 0.1
    torch.testing.assert_close(operator(image + invisible), operator(image))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_transformed_in_single(dtype):
    image = torch.rand(16, 16, 1).to(dtype)
    measured = small('gaussian')(image)
    assert measured.dtype == torch.complex64
    assert torch.equal(measured, small('gaussian')(image.float()))


# --- derivatives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.complex128])
def test_zero_filling_is_the_adjoint(mask, dtype):
    operator = small(mask, complex_image=dtype.is_complex)
    x = torch.randn(9, 12, 2, dtype=dtype, requires_grad=True)
    measured = operator(x)
    y = torch.randn_like(measured)
    (adjoint,) = torch.autograd.grad(measured, x, y)
    torch.testing.assert_close((measured.conj() * y).sum().real, (x.conj() * adjoint).sum().real)
    torch.testing.assert_close(operator.baseline(y, (9, 12)), adjoint)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.complex128])
def test_gradcheck(mask, dtype):
    image = torch.randn(4, 5, 2, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(small(mask), image)


@pytest.mark.parametrize('mask', MASKS)
def test_compiles_in_one_graph(mask):
    torch.compiler.reset()
    for operator in (small(mask, seed=11), small(mask, seed=12), small(mask, fraction=0.3, acceleration=4, spokes=2)):
        compiled = torch.compile(operator, fullgraph=True, backend='aot_eager')
        for size in [(9, 14), (8, 12)]:
            image = torch.rand(*size, 2, requires_grad=True)
            gradients = []
            for function in (compiled, operator):
                loss = function(image).abs().square().mean()
                gradients.append((loss, *torch.autograd.grad(loss, image)))
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.complex128])
def test_registered_as_operators(mask, dtype):
    operator = small(mask)
    image = torch.randn(4, 5, 2, dtype=dtype, requires_grad=True)
    arguments = (mask, [value for _, value in operator.options], operator.seed)
    torch.library.opcheck(torch.ops.mmext.masked_fourier.default, (image, *arguments))
    measured = operator(image).detach().requires_grad_()
    torch.library.opcheck(torch.ops.mmext.masked_fourier_adjoint.default, (measured, 4, 5, *arguments))


@pytest.mark.parametrize('dtype', [torch.float64, torch.complex128])
def test_transforms_are_those_of_the_sum(dtype):
    operator, images = small('radial'), torch.randn(3, 4, 5, 2, dtype=dtype)
    places = operator.mask((4, 5)).flatten().nonzero()[:, 0]

    def stock(image):
        return torch.fft.fft2(image, dim=(0, 1), norm='ortho').flatten(0, 1)[places]

    def loss(function):
        return lambda image: function(image).abs().square().sin().sum()

    for transform in (
        lambda f: torch.func.jvp(f, (images[0],), (images[1],)),
        lambda f: torch.func.vmap(f)(images),
        lambda f: torch.func.vmap(f, 2, 1)(images.movedim(0, 2)),
        lambda f: torch.func.vmap(torch.func.grad(loss(f)))(images),
        lambda f: torch.func.vmap(lambda a: torch.func.vmap(lambda b: f(a) * b)(places[:2]))(images),
        lambda f: torch.func.jvp(torch.func.grad(loss(f)), (images[0],), (images[1],)),
    ):
        torch.testing.assert_close(transform(operator), transform(stock))


def test_multiply_adds_are_those_of_a_fast_transform():
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.rand(4, 8, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        small('cartesian')(image).abs().sum().backward()
    assert counter.get_total_flops() == 2 * 5 * 32 * 5 * 3


# --- the masks -----------------------------------------------------------------------------------------------------------


def test_gaussian_mask_has_the_stated_share_and_spread():
    mask = MaskedFourierOperator().mask((256, 256))
    assert mask.double().mean().item() == pytest.approx(0.118, abs=0.003)
    # Rounding down moves the middle by half a frequency.
    masks = [MaskedFourierOperator(fraction=1, seed=seed).mask((256, 256)) for seed in range(10)]
    offsets = torch.cat([torch.fft.fftshift(m).nonzero() for m in masks]) - 128.0
    assert offsets.mean(0).tolist() == pytest.approx([-0.5, -0.5], abs=0.3)
    wide = torch.fft.fftshift(MaskedFourierOperator(fraction=0.01).mask((64, 400))).nonzero() - torch.tensor([32, 200])
    # Variances 2 n, a little more where repetitions thin out the middle.
    assert wide.double().var(0).tolist() == pytest.approx([2 * 64, 2 * 400], rel=0.4)
    assert 4 < (wide[:, 1].double().var() / wide[:, 0].double().var()).item() < 8


@pytest.mark.parametrize('size', [(256, 256), (60, 100), (101, 75)])
@pytest.mark.parametrize('acceleration', [2, 4, 8])
def test_cartesian_mask_is_made_of_whole_columns(size, acceleration):
    mask = MaskedFourierOperator('cartesian', acceleration=acceleration).mask(size)
    columns = torch.fft.fftshift(mask[0])
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert columns.sum() == round(size[1] / acceleration)
    center = round(size[1] * 0.32 / acceleration)
    start = size[1] // 2 - center // 2
    assert columns[start : start + center].all()
    assert columns.sum() > center
    assert mask[0, 0]


def test_cartesian_mask_can_be_the_center_alone():
    mask = MaskedFourierOperator('cartesian', acceleration=5, center_fraction=0.2).mask((10, 25))
    frequencies = torch.fft.fftfreq(25, 1 / 25)[mask[3]]
    assert sorted(frequencies.tolist()) == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('spokes', [1, 3, 8])
def test_radial_mask_is_symmetric_about_the_frequency_zero(size, spokes):
    mask = MaskedFourierOperator('radial', spokes=spokes).mask(size)
    assert torch.equal(mask, mask.flip(0, 1).roll((1, 1), (0, 1)))
    # Lying spoke and, where their number is even, standing spoke: through all frequencies of their axis.
    assert mask[0].all()
    assert mask[:, 0].all() or spokes % 2


def test_radial_mask_has_the_stated_share():
    mask = MaskedFourierOperator('radial').mask((256, 256))
    assert mask.double().mean().item() == pytest.approx(0.1402, abs=1e-4)
    two = MaskedFourierOperator('radial', spokes=2).mask((8, 12))
    assert two[0].all()
    assert two[:, 0].all()
    assert two.sum() == 8 + 12 - 1


@pytest.mark.parametrize(
    ('mask', 'size'),
    [*((m, s) for m in MASKS for s in SIZES), *((m, s) for m in MASKS[1:] for s in [(1, 1), (1, 7), (3, 2)])],
)
def test_any_size_can_be_measured(mask, size):
    operator = small(mask)
    measured = operator.measure(torch.rand(*size, 2))
    assert measured.shape == (operator.mask(size).sum(), 2)
    assert operator.baseline(measured, size).shape == (*size, 2)


@pytest.mark.parametrize('mask', MASKS)
def test_mask_and_noise_belong_to_the_seed(mask):
    image = torch.rand(32, 32, 1)
    before = torch.random.get_rng_state()
    one, again, other = (small(mask, seed=seed, noise=0.1) for seed in (5, 5, 6))
    assert torch.equal(one.mask((32, 32)), again.mask((32, 32)))
    assert torch.equal(one.measure(image), again.measure(image))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.mask((32, 32)), other.mask((32, 32))) == (mask == 'radial')
    assert not torch.equal(one.measure(image), one(image))


def test_masks_are_neither_saved_nor_in_the_way():
    operator = small('gaussian')
    image = torch.rand(16, 16, 1)
    measured = operator(image)
    assert not operator.state_dict()
    assert torch.equal(copy.deepcopy(operator)(image), measured)
    assert operator.double()(image.double()).dtype == torch.complex128
    # A caller may draw into the mask that it is given.
    operator.mask((16, 16)).fill_(False)
    assert torch.equal(operator(image), measured)


def test_training_follows_inference_mode():
    operator = small('gaussian', seed=123)
    with torch.inference_mode():
        operator(torch.rand(8, 8, 1))
    image = torch.rand(8, 8, 1, requires_grad=True)
    operator(image).abs().sum().backward()
    assert image.grad.abs().sum() > 0


# --- the zero-filled image -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('cfg', 'psnr', 'ssim', 'chance'),
    [
        (dict(mask='gaussian'), 25.5, 0.60, 2),
        (dict(mask='cartesian'), 19.4, 0.37, 2),
        (dict(mask='cartesian', acceleration=8), 17.4, 0.36, 2),
        (dict(mask='radial'), 20.51, 0.288, 0.02),
    ],
    ids=['gaussian', 'cartesian4', 'cartesian8', 'radial'],
)
def test_zero_filled_phantom(cfg, psnr, ssim, chance):
    operator = MODELS.build(dict(type='mmext.MaskedFourierOperator', **cfg))
    guess = operator.baseline(operator.measure(PHANTOM), (256, 256))
    assert guess.dtype == torch.float64
    a, b = PHANTOM[..., 0].numpy(), guess[..., 0].numpy()
    assert peak_signal_noise_ratio(a, b, data_range=1) == pytest.approx(psnr, abs=0.3 * chance)
    assert structural_similarity(a, b, data_range=1) == pytest.approx(ssim, abs=0.03 * chance)


def test_the_baseline_of_a_complex_image_is_complex():
    image = torch.randn(12, 10, 1, dtype=torch.complex64)
    real, whole = (MaskedFourierOperator('cartesian', acceleration=1, complex_image=c) for c in (False, True))
    torch.testing.assert_close(whole.baseline(whole(image), (12, 10)), image)
    torch.testing.assert_close(real.baseline(real(image), (12, 10)), image.real)


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(mask='spiral'), "knows the masks 'gaussian', 'cartesian' and 'radial', got mask='spiral'"),
        (dict(fraction=0), r'needs a fraction of draws in \(0, 1\], got fraction=0'),
        (dict(fraction=1.5), r'needs a fraction of draws in \(0, 1\], got fraction=1.5'),
        (dict(mask='cartesian', acceleration=0.5), 'needs an acceleration of at least 1, got acceleration=0.5'),
        (dict(mask='cartesian', center_fraction=0.3), 'measures 0.25 of the columns .* got center_fraction=0.3'),
        (dict(mask='cartesian', center_fraction=-0.1), 'measures .* between 0 and that, got center_fraction=-0.1'),
        (dict(mask='radial', spokes=0), 'needs one spoke at least, got spokes=0'),
        (dict(noise=-1), 'needs a standard deviation noise >= 0'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f'MaskedFourierOperator {message}'):
        MaskedFourierOperator(**arguments)


def test_a_mask_that_measures_nothing_is_refused():
    empty = next(
        op for op in (MaskedFourierOperator(fraction=0.01, seed=s) for s in range(1000)) if not op.mask((2, 2)).any()
    )
    with pytest.raises(
        ValueError, match=r'MaskedFourierOperator measures no frequency of an image of 2 x 2 .* raise the fr'
    ):
        empty(torch.rand(2, 2, 1))


def test_a_foreign_measurement_is_refused():
    with pytest.raises(
        ValueError, match=r'MaskedFourierOperator measures .* frequencies of an image of 16 x 16, got 5;'
    ):
        small('radial').baseline(torch.rand(5, 1, dtype=torch.complex64), (16, 16))
