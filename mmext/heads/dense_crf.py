"""The dense CRF of DeepLab: at test time, logits of any segmentation head follow the borders of the image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmext.arguments import NonNegative, Positive, Repeats, checked
from mmext.contracts import shown_by
from mmext.errors import UsageError
from mmext.heads._gaussian_filters import DirectGaussian, PermutohedralGaussian, SpatialGaussian
from mmext.registry import MODELS
from mmext.wrapping import build_wrapped, specialized, wraps_model

__all__ = ['DenseCRF', 'dense_crf_segmentor']


@MODELS.register_module()
class DenseCRF(nn.Module):
    r"""Mean field in a CRF that ties every pixel of an image to every other one.

    Chen et al., *Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs*, ICLR 2015,
    arXiv 1412.7062, after Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*.

    ::

        logits ── softmax ── Q ──┬── Gaussian of place (rows, then columns) ── * w2 ──┐
           │                 ↑   └── Gaussian of place and color ─────────── * w1 ────┤
           └──────────────── softmax <──────────────────── + <────────────────────────┘    ``iterations`` times

    With places :math:`p` in pixels and colors :math:`I` from 0 to 255,

    .. math::
        k(i, j) = w_1 \exp\Bigl(-\frac{\lVert p_i - p_j \rVert^2}{2 \sigma_\alpha^2}
            - \frac{\lVert I_i - I_j \rVert^2}{2 \sigma_\beta^2}\Bigr)
            + w_2 \exp\Bigl(-\frac{\lVert p_i - p_j \rVert^2}{2 \sigma_\gamma^2}\Bigr), \qquad
        Q_i \leftarrow \mathrm{softmax}\Bigl(x_i + \sum_j k(i, j)\, Q_j\Bigr)

    Labels that differ cost the same (Potts). As in the authors' code, each of the two kernels is normalized by its sums, and
    a pixel counts among its neighbors. The Gaussian of the place is exact. :math:`w_2` and :math:`\sigma_\gamma` are the
    paper's; the others are our choice from its ranges, which it searches for each network.

    Args:
        iterations: Number of updates.
        appearance_weight: :math:`w_1`.
        appearance_sigma: :math:`\sigma_\alpha`, in pixels.
        color_sigma: :math:`\sigma_\beta`, in gray levels.
        smoothness_weight: :math:`w_2`.
        smoothness_sigma: :math:`\sigma_\gamma`, in pixels.
        filtering: How the sum over place and color is taken. ``'lattice'``: on the permutohedral lattice, as the authors do,
            near the sum and linear in the pixels. ``'exact'``: over all pairs.
        normalization: ``'symmetric'`` divides by the square roots of both pixels' sums, ``'pixel'`` by the sum of the pixel
            that receives, ``None`` by nothing, as the equation says.

    Shape:
        Logits (K, H, W) and an image (C, H, W) to the logarithms of Q, (K, H, W).

    Raises:
        ValueError: In ``forward``, if logits and image differ in size.

    Example:
        >>> crf = DenseCRF(iterations=2, filtering='exact')
        >>> crf(torch.randn(3, 8, 9), 255 * torch.rand(3, 8, 9)).shape
        torch.Size([3, 8, 9])
    """

    def __init__(
        self,
        iterations: Repeats = 10,
        appearance_weight: NonNegative = 5.0,
        appearance_sigma: Positive = 50.0,
        color_sigma: Positive = 5.0,
        smoothness_weight: NonNegative = 3.0,
        smoothness_sigma: Positive = 3.0,
        filtering: Literal['lattice', 'exact'] = 'lattice',
        normalization: Literal['symmetric', 'pixel'] | None = 'symmetric',
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.appearance = (appearance_weight, appearance_sigma, color_sigma)
        self.smoothness = (smoothness_weight, smoothness_sigma)
        self.filtering = filtering
        self.normalization = normalization

    @torch.no_grad()
    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the refined logits; their softmax is Q."""
        if logits.ndim != 3 or logits.shape[1:] != image.shape[1:]:
            raise ValueError(
                f'DenseCRF needs logits (K, H, W) of the size of the image, got {tuple(logits.shape)} and an image '
                f'{tuple(image.shape)}; resize the logits first'
            )
        unary = (logits if logits.dtype == torch.float64 else logits.float()).flatten(1)
        with torch.autocast(logits.device.type, enabled=False):
            messages = self._messages(image.to(unary))
            refined = unary
            for _ in range(self.iterations):
                beliefs = refined.softmax(0)
                refined = sum((message(beliefs) for message in messages), unary)
        return refined.log_softmax(0).view_as(logits)

    def _messages(self, image: Tensor) -> list[functools.partial[Tensor]]:
        """Return what each kernel with a weight says to all pixels, as functions of the beliefs."""
        size = (image.shape[1], image.shape[2])
        found: list[tuple[float, Any]] = []
        if self.appearance[0]:
            weight, sigma, color_sigma = self.appearance
            places = torch.meshgrid(*(torch.arange(side).to(image) / sigma for side in size), indexing='ij')
            features = torch.cat([torch.stack(places[::-1]), image / color_sigma]).flatten(1).T
            kernel: Any = DirectGaussian if self.filtering == 'exact' else PermutohedralGaussian
            found.append((weight, kernel(features)))
        if self.smoothness[0]:
            found.append((self.smoothness[0], SpatialGaussian(size, self.smoothness[1], image)))
        return [functools.partial(self._message, weight, kernel, self._norm(kernel, image)) for weight, kernel in found]

    def _norm(self, kernel: Any, image: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the factors before and after the filter."""
        if self.normalization is None:
            return 1.0, 1.0
        sums = kernel(image.new_ones(1, image[0].numel()))
        return (1.0, 1 / sums) if self.normalization == 'pixel' else (sums.rsqrt(), sums.rsqrt())

    @staticmethod
    def _message(weight: float, kernel: Any, norm: tuple[Tensor | float, Tensor | float], beliefs: Tensor) -> Tensor:
        before, after = norm
        return weight * after * kernel(before * beliefs)

    def extra_repr(self) -> str:
        return f'iterations={self.iterations}, filtering={self.filtering!r}, normalization={self.normalization!r}'


class _Refined:
    """What a segmentor does more with a CRF; stands before its own class."""

    crf: DenseCRF

    def inference(self, inputs: Tensor, batch_img_metas: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the logits of whole images, refined where an image is, and as they were in the padding."""
        logits = super().inference(inputs, batch_img_metas)  # type: ignore[misc]
        preprocessor: Any = self.data_preprocessor  # type: ignore[attr-defined]
        images = inputs
        if getattr(preprocessor, '_enable_normalize', False):
            images = inputs * preprocessor.std.to(inputs) + preprocessor.mean.to(inputs)
        refined = logits.detach().clone()
        for scores, image, out, meta in zip(logits, images, refined, batch_img_metas, strict=True):
            left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
            part = (slice(None), slice(top, scores.shape[1] - bottom), slice(left, scores.shape[2] - right))
            out[part] = self._refine(scores[part], image[part]).to(out)
        return refined

    def _refine(self, scores: Tensor, image: Tensor) -> Tensor:
        if len(scores) > 1:
            return self.crf(scores, image)
        # One score is the log odds of the foreground.
        background, foreground = self.crf(torch.cat([torch.zeros_like(scores), scores]), image)
        return (foreground - background)[None]


@MODELS.register_module(name='DenseCRFSegmentor')
@wraps_model('crf')
@shown_by(
    model='mmseg.EncoderDecoder',
    backbone=dict(type='mmext.FalconNet', arch=dict(depths=(1, 1, 1), channels=(8, 8, 8)), out_indices=(2,)),
    decode_head=dict(type='mmseg.FCNHead', in_channels=8, channels=8, num_classes=3),
)
@functools.partial(checked, owner='DenseCRFSegmentor')
def dense_crf_segmentor(model: Any, crf: dict | None = None, **model_args: Any) -> nn.Module:
    """Any segmentor of mmseg, with any decode head, whose logits a dense CRF refines at test time.

    Chen et al., *Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs*, ICLR 2015,
    arXiv 1412.7062.

    A decode head sees neither the image nor, in sliding windows, the whole of it. So the segmentor is what is wrapped::

        model=dict(type='mmext.DenseCRFSegmentor', model='EncoderDecoder', crf=dict(color_sigma=10))

    It stays the host's class with the host's state-dict keys. Training, its losses and the plain forward are untouched.
    Windows are joined first, and padding takes no part.

    Args:
        model: The type of the segmentor, or its config.
        crf: Arguments of :class:`DenseCRF`.
        **model_args: Arguments of the segmentor.

    Returns:
        The segmentor.

    Raises:
        ValueError: If ``model`` is no segmentor that classifies pixels.

    Example:
        >>> model = dict(type='mmext.DenseCRFSegmentor', model='mmseg.EncoderDecoder', crf=dict(iterations=5))
    """
    refinement = DenseCRF(**(crf or {}))
    built = build_wrapped(model, model_args, 'DenseCRFSegmentor')
    bases = [base.__name__ for base in type(built).__mro__]
    if not hasattr(built, 'inference') or not hasattr(built, 'decode_head') or 'DepthEstimator' in bases:
        raise UsageError(
            f'DenseCRFSegmentor refines what a segmentor with decode_head and inference() says of each pixel, such as '
            f'EncoderDecoder, got {bases[0]}; take model=dict(...) of a whole segmentor of mmseg'
        )
    built.crf = refinement
    return specialized(built, _Refined)
