"""FDConv, with equal frequencies in the order in which they are counted."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.fd_conv import FDConv2d
from official_layers import Case, parameter


class StarReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.bias = parameter(1), parameter(1)

    def forward(self, x):
        return self.scale * x.relu() ** 2 + self.bias


class Global(nn.Module):
    def __init__(self, inputs, outputs, size, kernels):
        super().__init__()
        self.fc, self.bn, self.relu = nn.Conv2d(inputs, 16, 1, bias=False), nn.BatchNorm2d(16), StarReLU()
        self.channel_fc, self.filter_fc = nn.Conv2d(16, inputs, 1), nn.Conv2d(16, outputs, 1)
        self.spatial_fc, self.kernel_fc = nn.Conv2d(16, size**2, 1), nn.Conv2d(16, kernels, 1)


class Local(nn.Module):
    def __init__(self, inputs, entries):
        super().__init__()
        width = round(math.log2(inputs) / 2 + 0.5) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, entries, width, padding=width // 2, bias=False)
        self.norm = nn.LayerNorm(inputs)


class Bands(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.freq_weight_conv_list = nn.ModuleList([nn.Conv2d(inputs, 1, 3, padding=1) for _ in range(3)])

    def forward(self, x):
        rows, columns = torch.fft.fftfreq(64), torch.fft.rfftfreq(64)
        largest = torch.maximum(rows.abs()[:, None], columns.abs())
        low, out = x, 0
        for divisor, conv in zip((2, 4, 8), self.freq_weight_conv_list, strict=True):
            mask = (largest < 0.5 / divisor + 1e-8).double()[None, None]
            mask = F.interpolate(mask, (x.shape[2], x.shape[3] // 2 + 1))[0, 0]
            lower = torch.fft.irfft2(torch.fft.rfft2(x) * mask, s=x.shape[2:])
            out, low = out + 2 * conv(x).sigmoid() * (low - lower), lower
        return out + low


class FDConvOfficial(nn.Module):
    """One image after the other."""

    def __init__(self, inputs, outputs, size, kernels, stride=1):
        super().__init__()
        self.shape, self.kernels, self.stride = (outputs, inputs, size, size), kernels, stride
        self.dft_weight = parameter(1, outputs * size, inputs * size // 2 + 1, 2)
        self.bias = parameter(outputs)
        self.KSM_Global, self.KSM_Local = Global(inputs, outputs, size, kernels), Local(inputs, outputs * size**2)
        self.FBM = Bands(inputs)

    def forward(self, x):
        outputs, inputs, size, _ = self.shape
        here, mean = self.KSM_Global, x.mean((2, 3), keepdim=True)
        hidden = here.relu(here.bn(here.fc(mean)))
        share = 2 * here.kernel_fc(hidden).sigmoid().flatten(1) / self.kernels
        rows, columns = torch.fft.fftfreq(outputs * size), torch.fft.rfftfreq(inputs * size)
        distance = torch.stack(torch.meshgrid(rows.float(), columns.float(), indexing='ij'), -1).norm(dim=-1)
        cells = distance.flatten().sort(stable=True).indices.view(self.kernels, -1)
        spectrum = torch.zeros(len(x), distance.numel(), 2)
        for run, own in enumerate(cells):
            spectrum[:, own] = self.dft_weight[0].flatten(0, 1)[own] * share[:, run, None, None]
        spectrum = spectrum.unflatten(1, distance.shape) * (min(outputs, inputs) // 2 * self.kernels)
        kernel = torch.fft.irfft2(torch.view_as_complex(spectrum)).view(-1, outputs, size, inputs, size).transpose(2, 3)
        for head, shape in (
            ('channel_fc', (1, -1, 1, 1)),
            ('filter_fc', (-1, 1, 1, 1)),
            ('spatial_fc', (1, 1, size, size)),
        ):
            kernel = kernel * 2 * getattr(here, head)(hidden).sigmoid().view(len(x), *shape)
        local = self.KSM_Local.conv(self.KSM_Local.norm(mean.flatten(1))[:, None])
        local = local.view(len(x), outputs, size, size, inputs).permute(0, 1, 4, 2, 3)
        kernel, x = kernel * 2 * local.sigmoid(), self.FBM(x)
        images = [
            F.conv2d(one[None], own, self.bias, self.stride, size // 2) for one, own in zip(x, kernel, strict=True)
        ]
        return torch.cat(images)


CASES = {
    'usual': Case(
        lambda: FDConvOfficial(8, 12, 3, 4),
        lambda: FDConv2d(8, 12, 3, padding=1, kernel_num=4, min_channels=1),
        8,
        tolerance=1e-6,
    ),
    'strided': Case(
        lambda: FDConvOfficial(16, 8, 3, 8, stride=2),
        lambda: FDConv2d(16, 8, 3, stride=2, padding=1, kernel_num=8, min_channels=1),
        16,
        tolerance=1e-6,
    ),
}
