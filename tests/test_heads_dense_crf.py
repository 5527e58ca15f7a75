"""The dense CRF: its equation by two loops, its filters, and stock segmentors refined by it."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import tool
from mmengine.registry import MODELS, init_default_scope

from mmext.analysis.borders import border_distance, compare_borders, draw_borders
from mmext.analysis.samples import batch_for, take_step
from mmext.errors import UsageError
from mmext.heads._gaussian_filters import DirectGaussian, PermutohedralGaussian, SpatialGaussian
from mmext.heads.dense_crf import DenseCRF
from mmext.hosts import build_model

SIZE = (7, 9)


def picture(dtype=torch.float64):
    """A dark half beside a bright one, with noise, and logits that put the border elsewhere."""
    image = torch.full((3, *SIZE), 40.0, dtype=dtype)
    image[:, :, 4:] = 200
    image += 8 * torch.randn_like(image)
    logits = torch.randn(3, *SIZE, dtype=dtype)
    logits[0, :, :6] += 2
    logits[1, :, 6:] += 2
    return logits, image


def by_two_loops(logits, image, weights, sigmas, iterations, normalization):
    """Mean field as the equation says it, one pair of pixels after the other."""
    places = [(y, x) for y in range(SIZE[0]) for x in range(SIZE[1])]
    alpha, beta, gamma = sigmas

    def kernels(a, b):
        place = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        color = sum((float(image[c, a[0], a[1]]) - float(image[c, b[0], b[1]])) ** 2 for c in range(len(image)))
        yield math.exp(-place / (2 * alpha**2) - color / (2 * beta**2))
        yield math.exp(-place / (2 * gamma**2))

    unary = {p: logits[:, p[0], p[1]] for p in places}
    sums = {p: [sum(k) for k in zip(*(kernels(p, q) for q in places), strict=True)] for p in places}
    values = dict(unary)
    for _ in range(iterations):
        beliefs = {p: v.softmax(0) for p, v in values.items()}
        values = {}
        for p in places:
            total = unary[p].clone()
            for q in places:
                for m, k in enumerate(kernels(p, q)):
                    if normalization == 'symmetric':
                        k /= math.sqrt(sums[p][m] * sums[q][m])
                    elif normalization == 'pixel':
                        k /= sums[p][m]
                    total += weights[m] * k * beliefs[q]
            values[p] = total
    return torch.stack([v.log_softmax(0) for v in values.values()], 1).view_as(logits)


@pytest.mark.parametrize('normalization', ['symmetric', 'pixel', None])
def test_mean_field_is_the_equation_by_two_loops(normalization):
    logits, image = picture()
    crf = DenseCRF(2, 1.3, 4.0, 30.0, 0.7, 1.5, filtering='exact', normalization=normalization)
    want = by_two_loops(logits, image, (1.3, 0.7), (4.0, 30.0, 1.5), 2, normalization)
    torch.testing.assert_close(crf(logits, image), want, rtol=1e-10, atol=1e-10)


def test_the_sum_over_pairs_is_the_same_in_blocks(monkeypatch):
    features, values = torch.randn(50, 5).double(), torch.randn(3, 50).double()
    want = values @ torch.exp(-torch.cdist(features, features).square() / 2)
    torch.testing.assert_close(DirectGaussian(features)(values), want)
    monkeypatch.setattr('mmext.heads._gaussian_filters._KEPT', 0)
    monkeypatch.setattr('mmext.heads._gaussian_filters._BLOCK', 7 * 50 * 8)
    torch.testing.assert_close(DirectGaussian(features)(values), want)


def test_rows_then_columns_is_the_sum_over_pairs():
    values = torch.randn(2, 6 * 11).double()
    places = torch.cartesian_prod(torch.arange(6.0), torch.arange(11.0)).double() / 1.7
    torch.testing.assert_close(SpatialGaussian((6, 11), 1.7, values)(values), DirectGaussian(places)(values))


@pytest.mark.parametrize('d', [1, 2, 5])
def test_the_lattice_is_near_the_sum_symmetric_and_linear(d):
    features, values = torch.rand(800, d).double() * 3, torch.rand(2, 800).double()
    lattice, direct = PermutohedralGaussian(features), DirectGaussian(features)
    got, want = (f(values) / f(torch.ones(1, 800).double()) for f in (lattice, direct))
    assert (got - want).abs().mean() < 0.25 * want.std()
    assert 0.6 < float(lattice(values).sum() / direct(values).sum()) < 1.1
    matrix = lattice(torch.eye(800).double())
    torch.testing.assert_close(lattice(values), values @ matrix)
    assert (matrix.diagonal() > 0).all()
    # Corners enclose their point: barycentric weights are shares of 1.
    assert lattice.weights.min() > -1e-9
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(800).double())


def test_the_lattice_gives_what_the_authors_library_gives():
    """The numbers are those of their C++ code, for the kernel of place and color alone."""
    y, x = torch.meshgrid(torch.arange(6), torch.arange(5), indexing='ij')
    image = torch.stack([(37 * y + 59 * x + 83 * c) % 256 for c in range(3)]).double()
    logits = torch.stack([torch.sin(1.3 * y + 2.1 * x + k) for k in range(3)]).double()
    got = DenseCRF(3, 4.0, 20.0, 60.0, smoothness_weight=0)(logits, image).exp()
    want = [[0.27467, 0.76804, 0.03405], [0.24294, 0.09779, 0.03780], [0.48239, 0.13417, 0.92815]]
    torch.testing.assert_close(got[:, 0, :3], torch.tensor(want).double(), rtol=0, atol=2e-5)
    torch.testing.assert_close(got[:, 5, 4], torch.tensor([0.35610, 0.14652, 0.49739]).double(), rtol=0, atol=2e-5)


def test_without_weights_nothing_is_refined():
    logits, image = picture()
    crf = DenseCRF(appearance_weight=0, smoothness_weight=0)
    torch.testing.assert_close(crf(logits, image), logits.log_softmax(0))


@pytest.mark.parametrize('filtering', ['exact', 'lattice'])
def test_labels_move_to_the_border_of_the_image(filtering):
    logits, image = picture()
    logits[:2] = logits[:2] / 4
    truth = torch.zeros(SIZE, dtype=torch.long)
    truth[:, 4:] = 1
    crf = DenseCRF(10, 8.0, 20.0, 40.0, 0.5, 1.0, filtering=filtering)
    before, after = ((out[:2].argmax(0) == truth).double().mean() for out in (logits, crf(logits, image)))
    assert before < 0.85
    assert after > 0.95


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_refined_in_single(dtype):
    logits, image = picture(torch.float32)
    got = DenseCRF(filtering='exact')(logits.to(dtype), image)
    torch.testing.assert_close(got, DenseCRF(filtering='exact')(logits.to(dtype).float(), image))


def segmentor(num_classes=4, test_cfg=None, model='mmext.DenseCRFSegmentor', **head):
    init_default_scope('mmseg')
    cfg = dict(
        type=model,
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            size=(32, 32),
            test_cfg=dict(size_divisor=32),
        ),
        backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
        decode_head=dict(type='FCNHead', in_channels=32, channels=4, num_classes=num_classes, **head),
        test_cfg=test_cfg or dict(mode='whole'),
    )
    if model != 'EncoderDecoder':
        cfg.update(model='EncoderDecoder', crf=dict(iterations=2, filtering='exact'))
    return build_model(cfg).eval()


def predict(model, size=(40, 24)):
    from mmseg.structures import SegDataSample

    torch.manual_seed(1)
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size)
    data = dict(inputs=[torch.randint(256, (3, *size)).byte()], data_samples=[SegDataSample(metainfo=meta)])
    with torch.no_grad():
        return model.test_step(data)[0].seg_logits.data, data['inputs'][0]


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), dict(mode='slide', crop_size=(32, 32), stride=(16, 16))])
def test_a_stock_segmentor_is_refined_where_the_image_is(test_cfg):
    plain, refined = segmentor(test_cfg=test_cfg, model='EncoderDecoder'), segmentor(test_cfg=test_cfg)
    refined.load_state_dict(plain.state_dict())  # the same keys
    assert type(refined).__name__ == 'EncoderDecoder'
    logits, image = predict(plain)
    got, _ = predict(refined)
    torch.testing.assert_close(got, refined.crf(logits, image[[2, 1, 0]]), rtol=1e-4, atol=1e-4)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(refined(x), plain(x)), 'the plain forward is untouched'
    torch.testing.assert_close(predict(copy.deepcopy(refined))[0], got)


def test_one_score_is_refined_as_the_log_odds():
    plain = segmentor(2, model='EncoderDecoder', out_channels=1, threshold=0.5)
    refined = segmentor(2, out_channels=1, threshold=0.5)
    refined.load_state_dict(plain.state_dict())
    got, image = predict(refined)
    odds, _ = predict(plain)
    two = refined.crf(torch.cat([torch.zeros_like(odds), odds.logit()]), image[[2, 1, 0]])
    torch.testing.assert_close(got[0], (two[1] - two[0]).sigmoid(), rtol=1e-4, atol=1e-4)


def test_training_is_that_of_the_plain_model():
    logs = []
    for kind in ('EncoderDecoder', 'mmext.DenseCRFSegmentor'):
        torch.manual_seed(0)
        model = segmentor(11, model=kind).train()
        wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
        log = take_step(model, wrapper, batch_for('mmseg', size=32), 32)
        logs.append((log['loss'], [p.detach() for p in model.parameters()]))
    torch.testing.assert_close(logs[0], logs[1], rtol=0, atol=0)


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r'logits \(K, H, W\) of the size of the image, got \(3, 4, 4\)'):
        DenseCRF()(torch.rand(3, 4, 4), torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r'2\^62 at most can be numbered: take larger standard deviations'):
        DenseCRF(color_sigma=1e-4)(torch.rand(3, 9, 9), 255 * torch.rand(3, 9, 9))
    init_default_scope('mmseg')
    with pytest.raises(ValueError, match=r'a segmentor with decode_head and inference.*got ResNet'):
        MODELS.build(dict(type='mmext.DenseCRFSegmentor', model='ResNet', depth=18))
    with pytest.raises(TypeError, match='iteration'):
        MODELS.build(dict(type='mmext.DenseCRFSegmentor', model='ResNet', depth=18, crf=dict(iteration=2)))


def test_the_gain_at_borders_is_counted_and_drawn():
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 3:] = 1
    assert border_distance(labels)[0].tolist() == [3, 2, 1, 1, 2, 3, 4, 5]
    assert np.isinf(border_distance(labels * 0)).all()

    model = segmentor(11)
    batches = [batch_for('mmseg', number=2, size=32)] * 2
    found = compare_borders(model, batches, number=3, widths=(1, None), show=2)
    assert found.pixels[1] == 3 * 32 * 32
    assert 0 < found.pixels[0] < found.pixels[1]
    plain = copy.deepcopy(model)
    plain.crf = DenseCRF(appearance_weight=0, smoothness_weight=0)
    for way, one in (('plain', plain), ('refined', model)):
        samples = [sample for batch in batches for sample in one.test_step(batch)][:3]
        assert found.right[way][1] == sum(int((s.pred_sem_seg.data == s.gt_sem_seg.data).sum()) for s in samples)
        assert found.tables[way].trace() == found.right[way][1]
    assert isinstance(model.crf, DenseCRF)
    assert found.lines()[1].startswith('right within 1 px')
    assert len(draw_borders(found, [(0, 0, 0)] * 11).axes) == 8


def test_the_tool_refuses_a_model_without_a_crf(tmp_path):
    (tmp_path / 'net.py').write_text('model = dict(type="mmext.FalconNet")')
    torch.save(MODELS.build(dict(type='mmext.FalconNet')).state_dict(), tmp_path / 'net.pth')
    arguments = [str(tmp_path / 'net.py'), str(tmp_path / 'net.pth'), '--out', str(tmp_path / 'x.png')]
    with pytest.raises(UsageError, match=r"has no dense CRF; set model=dict\(type='mmext.DenseCRFSegmentor'"):
        tool('visualization/borders').main(arguments)
