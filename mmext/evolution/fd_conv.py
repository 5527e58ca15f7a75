"""FDConv: a kernel whose frequencies are weighed in runs, by what the image looks like."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Natural, Positive, Repeats
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.frequency import FrequencyBands, gated, inverse_rfft2, runs
from mmext.evolution.kernels import ImageKernel
from mmext.numerics import at_least_float32, full_precision, is_depthwise
from mmext.registry import MODELS

__all__ = ['FDConv2d']


@MODELS.register_module()
class FDConv2d(EvolutionOperator2d):
    r"""Frequency dynamic convolution, with all its modulations.

    Chen, Gu, Li, Yan, Fu, *Frequency Dynamic Convolution for Dense Image Prediction*, CVPR 2025, arXiv 2503.18783.

    The kernel of an image is a product. The first factor comes from weights D in the frequency domain, whose cells are sorted
    by frequency, cut into n runs, and each run j is weighed by :math:`a_j`. The others weigh taps, inputs, outputs and single
    entries:

    .. math:: E(p)_{n,o,c} = s_n\, f_o\, g_c\, \ell_{o,c,n}\; \mathrm{irfft2}(\textstyle\sum_j a_j D_j)_{o,c,n}

    s, f, g and a come from the mean of the image by a small network, :math:`\ell` by a convolution along its channels. E acts
    on the image with its frequency bands weighed pixel by pixel (:class:`mmext.evolution.frequency.FrequencyBands`),
    unless the kernel is 1 x 1.

    A layer with few channels stays a plain convolution, as in the paper.

    Args:
        *args: Those of ``nn.Conv2d``. Groups and kernels of any size are ours; the released layer has neither.
        kernel_num: n, at most the number of cells. Where it does not divide that, some runs are one cell longer (ours).
        param_ratio: How many sets of weights D there are; they are summed.
        min_channels: A layer stays plain if it has no more inputs or no more outputs.
        reduction: How many times narrower the small network is; it has 16 channels at least.
        act: How s, f, g and l come about, ``'sigmoid'`` (times two) or ``'tanh'`` (plus one).
        kernel_act: How a comes about: one of these, over n, or ``'softmax'``.
        temperature: What logits of a, s, f and g are divided by.
        local: Whether there is a factor for single entries.
        bands: Divisors of the highest frequency, at which bands begin; none leaves the image as it is.
        band_groups: Groups of channels with a map of their own; they divide the channels.
        mask_size: See :class:`mmext.evolution.frequency.FrequencyBands`.
        norm_cfg: The norm inside of the small network. A batch norm needs two images in training.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``dft_weight`` (D) is (param_ratio, Co * kh, Ci/groups * kw // 2 + 1, 2): the kernel as one image whose rows are
        (output, tap row) and whose columns are (input, tap column), in the frequency domain, over half the smaller side.

    Raises:
        ValueError: If ``kernel_num`` or ``band_groups`` do not fit.

    All factors start as one (ours; the released code draws f, so that it starts one percent off), so a plain kernel is taken
    exactly.

    Example:
        >>> layer = FDConv2d(32, 32, 3, padding=1, kernel_num=16)
        >>> layer(torch.randn(2, 32, 9, 9)).shape
        torch.Size([2, 32, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = False, True, True
    mixes_channels = True
    keeps_kernel = True
    example = dict(kernel_num=4, min_channels=1)
    typical = dict(kernel_num=64)
    dft_weight: nn.Parameter
    local_weight: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        kernel_num: Repeats = 64,
        param_ratio: Repeats = 1,
        min_channels: Natural = 16,
        reduction: Count = 16,
        act: Literal['sigmoid', 'tanh'] = 'sigmoid',
        kernel_act: Literal['sigmoid', 'tanh', 'softmax'] = 'sigmoid',
        temperature: Positive = 1.0,
        local: bool = True,
        bands: tuple[Repeats, ...] = (2, 4, 8),
        band_groups: Repeats = 1,
        mask_size: Count | None = 64,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plain = min(self.in_channels, self.out_channels) <= min_channels
        if self.plain:
            self.refuses_weight, self.dynamic = None, False
            return
        each = self.in_channels // self.groups
        self.cells = (self.out_channels * self.kernel_size[0], each * self.kernel_size[1] // 2 + 1)
        if kernel_num > math.prod(self.cells) or self.in_channels % band_groups:
            raise ValueError(
                f'FDConv2d needs kernel_num of at most {math.prod(self.cells)} frequencies and band_groups that divide '
                f'in_channels, got {kernel_num=}, {band_groups=}, in_channels={self.in_channels}'
            )
        self.kernel_num, self.param_ratio = kernel_num, param_ratio
        self.act, self.kernel_act, self.temperature = act, kernel_act, temperature
        self.drop_weight()
        self.dft_weight = self.inner_parameter(param_ratio, *self.cells, 2)
        hidden = max(self.in_channels // reduction, 16)
        self.reduce = self.inner_block(self.in_channels, hidden, norm_cfg=norm_cfg)
        self.star = self.inner_parameter(2)
        taps = self.positions.taps
        sizes = dict(inputs=self.in_channels, kernels=kernel_num * param_ratio)
        sizes |= {} if is_depthwise(self) else dict(outputs=self.out_channels)
        sizes |= dict(taps=taps) if taps > 1 else {}
        self.heads = nn.ModuleDict({name: self.inner_conv(hidden, size) for name, size in sizes.items()})
        self.local_norm: Any = nn.LayerNorm(self.in_channels, **self._factory) if local else None
        width = round(math.log2(self.in_channels) / 2 + 0.5) // 2 * 2 + 1
        weight = self.inner_parameter(self.out_channels * taps, 1, width) if local else None
        self.register_parameter('local_weight', weight)
        convs = [self.inner_conv(self.in_channels, band_groups, 3, padding=1, groups=band_groups) for _ in bands]
        used = bool(bands) and taps > 1
        self.bands = FrequencyBands(nn.ModuleList(convs), bands, mask_size) if used else None
        self.init_weights()

    @property
    def weight_is_kernel(self) -> bool:  # type: ignore[override]
        """Whether this very layer is a plain one."""
        return self.plain

    @property
    def loads_kernel(self) -> bool:
        """Whether this very layer keeps its kernel in the frequency domain."""
        return not self.plain

    def init_kernel(self) -> None:
        if self.plain:
            return
        kernel = self.dft_weight.new_empty(self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.load_kernel(nn.init.kaiming_uniform_(kernel, a=5**0.5))
        nn.init.kaiming_normal_(self.reduce.conv.weight, mode='fan_out', nonlinearity='relu')
        self.star.copy_(self.star.new_tensor([1.0, 0.0]))
        of_bands = () if self.bands is None else self.bands.parameters()
        for parameter in (*self.heads.parameters(), *of_bands):
            nn.init.zeros_(parameter)
        if self.local_weight is not None:
            nn.init.zeros_(self.local_weight)

    @property
    def unit(self) -> float:
        """What the kernel is divided by in the frequency domain."""
        return float(max(min(self.out_channels, self.in_channels // self.groups) // 2, 1))

    def load_kernel(self, kernel: Tensor) -> None:
        image = at_least_float32(kernel).transpose(1, 2).flatten(2).flatten(0, 1)
        self.dft_weight.copy_(torch.view_as_real(torch.fft.rfft2(image) / (self.unit * self.param_ratio)))

    def weighed_kernel(self, share: Tensor) -> Tensor:
        """Return the kernels of the runs so weighed, (B, param_ratio * n) to (B, Co, Ci/groups, kh, kw)."""
        rows, columns = self.kernel_size
        each = self.in_channels // self.groups
        run = runs(self.cells[0], each * columns, self.kernel_num, str(share.device))
        cells = at_least_float32(self.dft_weight).flatten(1, 2)
        shares = (share * (self.unit * share.shape[1])).unflatten(1, (self.param_ratio, -1)).index_select(2, run)
        spectrum = (cells * shares.to(cells.dtype)[..., None]).sum(1).unflatten(1, self.cells)
        image = inverse_rfft2(spectrum, each * columns)
        return image.unflatten(2, (each, columns)).unflatten(1, (self.out_channels, rows)).transpose(2, 3)

    def evolution_kernel(self, x: Tensor) -> ImageKernel:
        if self.plain:
            return ImageKernel(weight=self.weight, positions=self.positions, groups=self.groups)
        with full_precision(x):
            mean = at_least_float32(x).mean((2, 3), keepdim=True).to(self.dft_weight.dtype)
            hidden = self.star[0] * F.relu(self.reduce(mean)) ** 2 + self.star[1]
            logits = {name: head(hidden).flatten(1) / self.temperature for name, head in self.heads.items()}
            share = logits.pop('kernels')
            share = share.softmax(1) if self.kernel_act == 'softmax' else gated(share, self.kernel_act) / share.shape[1]
            kernel = self.weighed_kernel(share).unflatten(1, (self.groups, -1))
            shapes = dict(inputs=(self.groups, 1, -1, 1, 1), outputs=(self.groups, -1, 1, 1, 1))
            shapes['taps'] = (1, 1, 1, *self.kernel_size)
            for name, logit in logits.items():
                kernel = kernel * gated(logit, self.act).unflatten(1, shapes[name])
            if self.local_weight is not None:
                kernel = kernel * gated(self.local_logits(mean.flatten(1), self.local_weight), self.act)
            return ImageKernel(weight=kernel.flatten(1, 2), positions=self.positions, groups=self.groups)

    def local_logits(self, mean: Tensor, weight: Tensor) -> Tensor:
        """Return the logits of single entries, (B, groups, Co/groups, Ci/groups, kh, kw), of the mean, (B, Ci)."""
        weight = weight[:, 0].unflatten(0, (self.groups, -1))
        reach = weight.shape[2] // 2
        padded = F.pad(self.local_norm(mean), (reach, reach))
        seen = torch.stack([padded[:, tap : tap + self.in_channels] for tap in range(weight.shape[2])], 2)
        logits = torch.einsum('bgck,gnk->bgnc', seen.unflatten(1, (self.groups, -1)), weight)
        return logits.unflatten(2, (-1, *self.kernel_size)).permute(0, 1, 2, 5, 3, 4)

    def features(self, x: Tensor) -> Tensor:
        return x if self.plain or self.bands is None else self.bands(x)

    def own_repr(self) -> str:
        return 'plain' if self.plain else f'kernel_num={self.kernel_num}, param_ratio={self.param_ratio}'
