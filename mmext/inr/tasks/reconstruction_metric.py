"""How near a reconstructed image is to the true one, and how many bits it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmext.registry import METRICS

__all__ = ['ReconstructionMetric', 'psnr', 'reconstruction_quality', 'ssim']

#: The mean squared error below which two images count as the same: half a unit in the last place of float32 below 1.
_SMALLEST_ERROR = 2.0**-48


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """PSNR, SSIM and bits per pixel of a reconstruction, beside those of the classical one (ours).

    Reported are ``PSNR`` and ``SSIM`` of the prediction, limited to [0, 1], the same of the operator's own reconstruction as
    ``baseline_PSNR`` and ``baseline_SSIM`` where the samples have one, and ``bpp``; each the mean over the samples. See
    :func:`psnr` and :func:`ssim`; samples as :class:`mmext.SignalModel` predicts them.

    Of rendered views also ``depth_error``, the median absolute error of the depth where the true mask is whole, and
    ``mask_IoU``, the intersection over union of opacity and mask above one half.

    Args:
        collect_device: As in mmengine.
        prefix: Stands before the names, ``signal/PSNR`` by default.
        collect_dir: As in mmengine.

    Raises:
        ValueError: If a sample has no target, or one of another shape than its prediction.

    Example:
        >>> val_evaluator = dict(type='mmext.ReconstructionMetric')
    """

    default_prefix = 'signal'

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare every sample with its target."""
        for sample in data_samples:
            if sample.get('target') is None:
                raise ValueError(
                    'ReconstructionMetric compares with a target and got a sample that has none; where the truth is unknown, '
                    'set val_evaluator=[] and test_evaluator=[]'
                )
            self.results.append(reconstruction_quality(sample))

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average over the samples that have a quantity."""
        found = {name: [r[name] for r in results if name in r] for result in results for name in result}
        return {name: sum(values) / len(values) for name, values in found.items()}


def reconstruction_quality(sample: Any) -> dict[str, float]:
    """Return what :class:`ReconstructionMetric` reports, for one sample; without a target only the bits per pixel.

    Args:
        sample: A mapping or ``BaseDataElement`` with ``prediction`` (H, W, C), and where there are such, ``target`` and
            ``baseline`` of the same shape, ``stored_bits``, and ``mask``, ``opacity``, ``depth`` and ``true_depth`` (H, W).
    """
    result = {}
    prediction, target = sample.get('prediction'), sample.get('target')
    for prefix, image in (('', prediction), ('baseline_', sample.get('baseline'))):
        if image is not None and target is not None:
            image = image.clamp(0, 1)
            result[f'{prefix}PSNR'] = psnr(image, target)
            result[f'{prefix}SSIM'] = ssim(image, target)
    mask, depth = sample.get('mask'), sample.get('true_depth')
    if mask is not None and (opacity := sample.get('opacity')) is not None:
        seen, solid = opacity > 0.5, mask > 0.5
        result['mask_IoU'] = float((seen & solid).sum() / (seen | solid).sum().clamp_min(1))
        whole = mask > 0.99
        if depth is not None and whole.any():
            result['depth_error'] = float((sample.get('depth') - depth).abs()[whole].median())
    if (bits := sample.get('stored_bits')) is not None:
        result['bpp'] = bits / prediction[..., 0].numel()
    return result


def psnr(a: Tensor, b: Tensor) -> float:
    r"""Return the peak signal-to-noise ratio of two images in [0, 1], in decibels.

    .. math:: 10 \log_{10} \frac 1 {\mathrm{mean} (a - b)^2}

    It is computed in float64. The mean squared error counts as :math:`2^{-48}` at least, the error of rounding to float32:
    identical images have 144.5 dB instead of infinitely many, so that logs and means over several signals stay numbers.

    Raises:
        ValueError: If the shapes differ.
    """
    a, b = _comparable('psnr', a, b)
    return -10 * math.log10(max((a - b).square().mean().item(), _SMALLEST_ERROR))


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity of two images in [0, 1], (H, W) or (H, W, C), 1 for identical ones.

    Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, IEEE Transactions on Image
    Processing 13(4), 2004, as scikit-image computes it by default: uniform windows of 7 x 7 pixels, in which the covariances
    are estimated without bias, and the mean over channels. In an image of fewer rows or columns the window is the largest odd
    one that fits.

    Raises:
        ValueError: If the shapes differ, or a side is shorter than 3 pixels, the smallest window.
        ImportError: If scikit-image is missing.
    """
    a, b = _comparable('ssim', a, b)
    shortest = min(a.shape[:2])
    if shortest < 3:
        raise ValueError(f'ssim needs images of at least 3 x 3 pixels, got {tuple(a.shape)}; evaluate on a finer grid')
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(f'SSIM needs scikit-image ({error}); pip install scikit-image') from error
    window = min(7, shortest - (shortest + 1) % 2)
    channels = None if a.ndim == 2 else -1
    return float(structural_similarity(a.numpy(), b.numpy(), data_range=1.0, channel_axis=channels, win_size=window))


def _comparable(function: str, a: Tensor, b: Tensor) -> list[Tensor]:
    if a.shape != b.shape:
        raise ValueError(
            f'{function} compares images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; a gray image is '
            '(H, W, 1) where the other one is'
        )
    return [image.detach().to('cpu', torch.float64) for image in (a, b)]
