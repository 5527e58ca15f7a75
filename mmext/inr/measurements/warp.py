"""Two photographs from cameras side by side: a disparity map that takes the right one to the left one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.arguments import Natural, NonNegative
from mmext.inr.measurements.operators import Field, MeasurementOperator
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['WarpOperator', 'match_blocks', 'warp']


def warp(image: Tensor, disparity: Tensor) -> Tensor:
    """Return ``image[i, j - disparity[i, j]]`` by linear interpolation, with the last column repeated beyond the edges.

    Args:
        image: (H, W, C).
        disparity: (H, W), in pixels.
    """
    height, width = disparity.shape
    columns = torch.arange(width, dtype=disparity.dtype, device=disparity.device)
    place = (columns - disparity).clamp(0, width - 1)
    left = place.detach().floor().clamp(max=max(width - 2, 0)).long()
    share = (place - left)[..., None]
    row = torch.arange(height, device=disparity.device)[:, None]
    return image[row, left] * (1 - share) + image[row, (left + 1).clamp(max=width - 1)] * share


def match_blocks(left: Tensor, right: Tensor, max_disparity: int, side: int = 5) -> Tensor:
    """Return the disparity, (H, W), whole pixels, at which blocks of two pictures differ least in absolute values.

    Args:
        left: (H, W, C).
        right: (H, W, C).
        max_disparity: The largest one that is tried.
        side: Of the square blocks, odd.
    """
    costs = []
    for disparity in range(max_disparity + 1):
        shifted = warp(right, torch.full(left.shape[:2], float(disparity)).to(right))
        cost = (left - shifted).abs().mean(-1)
        costs.append(F.avg_pool2d(cost[None, None], side, 1, side // 2, count_include_pad=False)[0, 0])
    return torch.stack(costs).argmin(0).to(left.dtype)


@MODELS.register_module()
class WarpOperator(MeasurementOperator):
    r"""The left of two photographs is measured: the right one, moved by a disparity map (ours).

    .. math:: y_{ij} \approx R_{i,\, j - d(i, j)}, \qquad d = D\, \mathrm{sigmoid}(f)

    with the network f, one value a pixel, and the largest disparity D. The loss is the mean over pixels of the root mean
    square difference over colors, plus the total variation of d. Both photographs are blurred at the beginning, so that what
    is far apart finds together.

    Args:
        max_disparity: D, in pixels.
        smoothness: Weight of the total variation, the mean absolute difference of neighboring disparities in pixels.
        blur: Standard deviation of the blur in the first step, in pixels.
        blur_steps: Steps in which it falls to none.

    Shape:
        A grid (H, W, 2) to shares of D, (H, W, 1). What is measured has both photographs, (H, W, 6), the left one first.

    Raises:
        ValueError: If it is to simulate a measurement, or what was measured is no pair of photographs.

    Example:
        >>> operator = WarpOperator(max_disparity=4)
        >>> operator.predict(lambda grid: grid[..., :1], torch.zeros(3, 5, 2))[0].shape
        torch.Size([3, 5, 1])
    """

    simulates = False
    step: Tensor

    def __init__(
        self,
        max_disparity: float = 18.0,
        smoothness: NonNegative = 3e-3,
        blur: NonNegative = 6.0,
        blur_steps: Natural = 200,
    ) -> None:
        super().__init__()
        if max_disparity <= 0:
            raise ValueError(f'WarpOperator needs a largest disparity above 0, got {max_disparity=}')
        self.max_disparity = max_disparity
        self.smoothness = smoothness
        self.blur, self.blur_steps = blur, blur_steps
        # Counted here, because the blur must go on where a run is resumed.
        self.register_buffer('step', torch.zeros((), dtype=torch.long))

    def measure(self, image: Tensor) -> Tensor:
        """Refuse: a pair of photographs comes from the data set."""
        raise ValueError(
            'WarpOperator simulates no photographs; train on mmext.StereoDataset, which brings a pair of them'
        )

    def predict(self, field: Field, coords: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return disparities as shares of the largest one, (H, W, 1)."""
        return at_least_float32(field(coords)).sigmoid(), {}

    def reconstruct(self, field: Field, coords: Tensor) -> dict[str, Tensor]:
        """Return the same as ``prediction``."""
        return {'prediction': self.predict(field, coords)[0]}

    def loss(self, prediction: Tensor, measurement: Tensor) -> dict[str, Tensor]:
        """Compare the left photograph with the right one after it is moved."""
        if measurement.shape != (*prediction.shape[:2], 6) or prediction.shape[2] != 1:
            raise ValueError(
                f'WarpOperator needs one value per pixel and two photographs, (H, W, 1) and (H, W, 6), got '
                f'{tuple(prediction.shape)} and {tuple(measurement.shape)}; set out_features=1'
            )
        sigma = self.blur * float((1 - self.step / max(self.blur_steps, 1)).clamp(min=0))
        if self.training:
            self.step += 1
        left, right = _blurred(measurement, sigma).split(3, dim=-1)
        disparity = self.max_disparity * prediction[..., 0]
        squared = (warp(right, disparity) - left).square().mean(-1)
        losses: dict[str, Tensor] = {'loss_photo': (squared + 1e-6).sqrt().mean()}
        if self.smoothness:
            changes: list[Any] = [disparity.diff(dim=axis).abs() for axis in (0, 1)]
            losses['loss_smooth'] = self.smoothness * sum(c.sum() for c in changes) / disparity.numel()
        losses['fit_dB'] = -10 * squared.detach().mean().log10()
        return losses

    def extra_repr(self) -> str:
        return f'max_disparity={self.max_disparity}, smoothness={self.smoothness}, blur={self.blur}'


def _blurred(image: Tensor, sigma: float) -> Tensor:
    if sigma < 0.1:
        return image
    reach = int(3 * sigma + 1)
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).expand(image.shape[-1], 1, -1)
    maps = image.movedim(-1, 0)[None]
    maps = F.pad(maps, (reach, reach, reach, reach), mode='replicate')
    maps = F.conv2d(maps, kernel[:, :, None, :], groups=image.shape[-1])
    return F.conv2d(maps, kernel[:, :, :, None], groups=image.shape[-1])[0].movedim(0, -1)
