"""The Radon transform: equal to scikit-image's, its transpose and derivatives, and filtered back-projection."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import radon, resize

from mmext.inr import RadonOperator
from mmext.registry import MODELS

PHANTOM = torch.from_numpy(resize(shepp_logan_phantom(), (128, 128), anti_aliasing=True))[..., None]
ANGLES = (0, 12.5, 45, 90, 133.3, 179.5, -30, 270)


def reference(image, angles):
    """Return scikit-image's sinogram in our layout."""
    channels = [radon(c.double().numpy(), np.array(angles, float), circle=True).T for c in image.unbind(-1)]
    return torch.from_numpy(np.stack(channels, -1))


def relative_error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# --- the transform -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_equals_scikit_image(dtype, tolerance):
    operator = RadonOperator(37, normalize=False)
    sinogram = operator(PHANTOM.to(dtype))
    assert sinogram.shape == (37, 128, 1)
    assert sinogram.dtype == dtype
    assert relative_error(sinogram.double(), reference(PHANTOM, np.linspace(0, 180, 37, endpoint=False))) < tolerance


@pytest.mark.filterwarnings('ignore:Radon transform')
@pytest.mark.parametrize('side', [2, 3, 15, 16])
def test_equals_scikit_image_at_any_angle_with_corners_and_channels(side):
    image = torch.rand(side, side, 3, dtype=torch.float64)
    sinogram = RadonOperator(angles=ANGLES, normalize=False)(image)
    torch.testing.assert_close(sinogram, reference(image, ANGLES), rtol=1e-10, atol=1e-10)


def test_the_view_from_above_sums_columns():
    image = torch.rand(9, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(RadonOperator(1, normalize=False)(image)[0], image.sum(0))


def test_the_opposite_view_is_the_first_one_mirrored():
    image = torch.rand(9, 9, 1, dtype=torch.float64)
    first, opposite = RadonOperator(angles=(0, 180))(image)
    torch.testing.assert_close(opposite, first.flip(0))
    assert 180 not in RadonOperator(20).angles


def test_every_view_of_the_phantom_sums_to_all_of_it():
    sums = RadonOperator(60, normalize=False)(PHANTOM).sum((1, 2))
    torch.testing.assert_close(sums, PHANTOM.sum().expand(60), rtol=4e-4, atol=0)


def test_a_corner_counts_in_the_views_that_see_it():
    image = torch.zeros(16, 16, 1)
    image[0, 0] = 1
    straight, slanted = RadonOperator(angles=(0, 45), normalize=False)(image)
    assert straight.sum() == 1
    assert slanted.sum() == 0


def test_normalized_means_divided_by_the_side():
    image = torch.rand(16, 16, 1, dtype=torch.float64)
    torch.testing.assert_close(RadonOperator(5)(image) * 16, RadonOperator(5, normalize=False)(image))


def test_linear_in_the_image():
    operator = RadonOperator(7)
    a, b = torch.rand(2, 12, 12, 2, dtype=torch.float64)
    torch.testing.assert_close(operator(2 * a - b), 2 * operator(a) - operator(b))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    operator = RadonOperator(4)
    image = torch.rand(16, 16, 1).to(dtype).requires_grad_()
    sinogram = operator(image)
    assert sinogram.dtype == torch.float32
    assert torch.equal(sinogram, operator(image.float()))
    sinogram.sum().backward()
    assert image.grad.dtype == dtype


# --- derivatives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
def test_the_backward_pass_is_the_transpose(channels):
    operator = RadonOperator(angles=ANGLES)
    x = torch.randn(15, 15, channels, dtype=torch.float64, requires_grad=True)
    y = torch.randn(len(ANGLES), 15, channels, dtype=torch.float64)
    sinogram = operator(x)
    (transposed,) = torch.autograd.grad(sinogram, x, y)
    torch.testing.assert_close((sinogram * y).sum(), (x * transposed).sum())
    # Entry by entry: the image of every pixel.
    matrix = torch.autograd.functional.jacobian(operator, x.detach())
    torch.testing.assert_close(torch.einsum('vdc,vdcijk->ijk', y, matrix), transposed)


@pytest.mark.parametrize('channels', [1, 2])
def test_gradcheck(channels):
    image = torch.randn(4, 4, channels, dtype=torch.float64, requires_grad=True)
    operator = RadonOperator(3)
    assert torch.autograd.gradcheck(operator, image, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(operator, image, check_fwd_over_rev=True)


@pytest.mark.parametrize('name', ['radon', 'radon_transposed'])
def test_registered_as_an_operator(name):
    operator = getattr(torch.ops.mmext, name).default
    sample = torch.randn(6, 6, 2, requires_grad=True)
    torch.library.opcheck(operator, (sample, [0.0, 20.0, 50.0, 90.0, 110.0, 130.0]))


def test_compiles_in_one_graph():
    torch.compiler.reset()
    for operator in (RadonOperator(5), RadonOperator(angles=(0, 30.5))):
        compiled = torch.compile(operator, fullgraph=True, backend='aot_eager')
        for side in (12, 9):
            image = torch.rand(side, side, 2, requires_grad=True)
            gradients = []
            for function in (compiled, operator):
                loss = function(image).square().mean()
                gradients.append((loss, *torch.autograd.grad(loss, image)))
            torch.testing.assert_close(*gradients)


# --- tables --------------------------------------------------------------------------------------------------------------


def test_tables_are_neither_saved_nor_copied_nor_in_the_way():
    operator = RadonOperator(6)
    image = torch.rand(10, 10, 1)
    sinogram = operator(image)
    assert not operator.state_dict()
    assert len(pickle.dumps(operator)) < 5_000
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator)), operator.double()):
        assert torch.equal(other(image), sinogram)
    assert operator(image.double()).dtype == torch.float64


def test_tables_are_made_once():
    tables = sys.modules['mmext.ops.radon']._matrices
    operator = RadonOperator(angles=(1, 2, 4))
    operator(torch.rand(11, 11, 1))
    before = tables.cache_info().misses
    copy.deepcopy(operator)(torch.rand(11, 11, 3, requires_grad=True)).sum().backward()
    assert tables.cache_info().misses == before
    operator(torch.rand(11, 11, 1, dtype=torch.float64))
    assert tables.cache_info().misses == before + 1


def test_training_follows_inference_mode():
    operator = RadonOperator(angles=(3, 5, 8))
    with torch.inference_mode():
        operator(torch.rand(8, 8, 1))
    image = torch.rand(8, 8, 1, requires_grad=True)
    operator(image).sum().backward()
    assert image.grad.abs().sum() > 0


# --- measuring and filtered back-projection ------------------------------------------------------------------------------


def test_noise_is_reproducible():
    clean = RadonOperator(9).measure(PHANTOM)
    noisy = RadonOperator(9, noise=0.05, seed=1).measure(PHANTOM)
    assert torch.equal(RadonOperator(9, noise=0.05, seed=1).measure(PHANTOM), noisy)
    assert not torch.equal(RadonOperator(9, noise=0.05, seed=2).measure(PHANTOM), noisy)
    assert (noisy - clean).std().item() == pytest.approx(0.05 * clean.max().item(), rel=0.05)


@pytest.mark.parametrize(
    ('views', 'psnr', 'ssim'), [(20, 19.95, 0.591), (60, 29.33, 0.885), (100, 29.82, 0.943), (180, 29.95, 0.965)]
)
def test_filtered_back_projection_of_the_phantom(views, psnr, ssim):
    operator = MODELS.build(dict(type='mmext.RadonOperator', views=views))
    guess = operator.baseline(operator.measure(PHANTOM), (128, 128))
    assert guess.shape == PHANTOM.shape
    a, b = PHANTOM[..., 0].numpy(), guess[..., 0].numpy()
    assert peak_signal_noise_ratio(a, b, data_range=1) == pytest.approx(psnr, abs=0.006)
    assert structural_similarity(a, b, data_range=1) == pytest.approx(ssim, abs=0.0006)


def test_the_baseline_is_that_of_the_image_whatever_the_form():
    image = PHANTOM * torch.tensor([1.0, 0.5, 0.0])
    guesses = [
        op.baseline(op.measure(image), (128, 128)) for op in (RadonOperator(20), RadonOperator(20, normalize=False))
    ]
    torch.testing.assert_close(*guesses)
    torch.testing.assert_close(guesses[0][..., 1], guesses[0][..., 0] / 2)
    assert guesses[0][..., 2].abs().max() == 0
    operator = RadonOperator(angles=[180 * k / 20 for k in range(20)])
    single = operator.baseline(operator.measure(image.float()), (128, 128))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), guesses[0], rtol=0, atol=1e-5)


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('arguments', [dict(views=0), dict(angles=())])
def test_no_view_is_refused(arguments):
    with pytest.raises(ValueError, match='RadonOperator needs one view at least, got views='):
        RadonOperator(**arguments)


def test_only_a_square_can_be_turned():
    message = r'RadonOperator turns .* got 12 x 16; set size=\(12, 12\)'
    with pytest.raises(ValueError, match=message):
        RadonOperator(4)(torch.rand(12, 16, 1))
    with pytest.raises(ValueError, match=message):
        RadonOperator(4).baseline(torch.rand(4, 12, 1), (12, 16))


@pytest.mark.parametrize('shape', [(5, 16, 1), (4, 15, 1)])
def test_a_foreign_measurement_is_refused(shape):
    with pytest.raises(ValueError, match=r'RadonOperator measures \(4, 16, C\) of an image of 16 x 16, got'):
        RadonOperator(4).baseline(torch.rand(shape), (16, 16))


def test_a_missing_scikit_image_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.transform', None)
    with pytest.raises(ImportError, match=r'needs scikit-image .* pip install scikit-image'):
        RadonOperator(4).baseline(torch.rand(4, 16, 1), (16, 16))
