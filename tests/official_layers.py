"""The released layers of the generated-kernel systems, written down from their formulas, under the names of their files."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


class RefConvOfficial(nn.Module):
    """Every 2-D slice of the basis is a channel of one image, over which the map convolves."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.groups, slices = groups, outputs * inputs // groups
        self.register_buffer('weight', torch.randn(outputs, inputs // groups, 3, 3))
        self.convmap = nn.Conv2d(slices, slices, 3, padding=1, groups=inputs * outputs // groups**2, bias=False)

    def forward(self, x):
        kernel = self.weight + self.convmap(self.weight.view(1, -1, 3, 3)).view_as(self.weight)
        return F.conv2d(x, kernel, padding=1, groups=self.groups)


class PHCOfficial(nn.Module):
    """Kronecker products; the bias is there and not added."""

    def __init__(self):
        super().__init__()
        self.A, self.F, self.bias = parameter(2, 2, 2), parameter(2, 4, 3, 3, 3), parameter(8)

    def forward(self, x):
        kernel = sum(torch.kron(a[..., None, None], f) for a, f in zip(self.A, self.F, strict=True))
        return F.conv2d(x, kernel, padding=1)


class PHMOfficial(nn.Module):
    """The same for a linear layer, where the bias is added."""

    def __init__(self):
        super().__init__()
        self.a, self.s, self.bias = parameter(3, 3, 3), parameter(3, 2, 4), parameter(6)

    def forward(self, x):
        return F.linear(x, sum(torch.kron(a, s) for a, s in zip(self.a, self.s, strict=True)), self.bias)


class DCLSOfficial(nn.Module):
    """Points drawn one by one, with the released axes and, in all versions but v0, the rows' middle for both."""

    def __init__(self, version, window=(5, 5)):
        super().__init__()
        self.version, self.window = version, window
        self.weight, self.P, self.bias = parameter(4, 1, 3), nn.Parameter(1.2 * torch.randn(2, 4, 1, 3)), parameter(4)
        if version in ('max', 'gauss'):
            self.SIG = parameter(2, 4, 1, 3)

    def kernel(self):
        height, width = self.window
        rows, cols = torch.arange(height)[:, None], torch.arange(width)
        kernel = torch.zeros(4, 1, height, width)
        for index in np.ndindex(4, 1, 3):
            first, second = self.P[0][index], self.P[1][index]
            sigmas = [p[index].abs() for p in self.SIG] if hasattr(self, 'SIG') else [torch.zeros(())] * 2
            if self.version == 'v0':
                dy, dx = rows - (first + height // 2), cols - (second + width // 2)
            else:
                dx, dy = cols - (first + height // 2), rows - (second + width // 2)
            if self.version == 'gauss':
                drawn = torch.exp(-0.5 * ((dx / (sigmas[0] + 0.27)) ** 2 + (dy / (sigmas[1] + 0.27)) ** 2))
            else:
                drawn = F.relu(1 + sigmas[0] - dx.abs()) * F.relu(1 + sigmas[1] - dy.abs())
            if self.version != 'v0':
                drawn = drawn / (drawn.sum() + 1e-7)
            kernel[index[:2]] += self.weight[index] * drawn
        return kernel

    def forward(self, x):
        return F.conv2d(x, self.kernel(), self.bias, padding=[k // 2 for k in self.window], groups=4)


class SMPOfficial(nn.Module):
    """Cones around points of [-1, 1]^2, y upwards: shared and depthwise, or averaged for every output."""

    def __init__(self, shared):
        super().__init__()
        self.shared, sets = shared, 1 if shared else 4
        self.weight_coord = nn.Parameter(torch.rand(sets, 6, 2) * 2 - 1)
        self.radius = nn.Parameter(torch.rand(sets, 6, 1, 1) * 0.5 + 0.4)
        self.weights = parameter(1, 4, 6) if shared else parameter(4, 2, 6)
        lin = torch.linspace(-1, 1, 7)
        grid = torch.stack([lin.expand(7, 7), -lin[:, None].expand(7, 7)])
        if shared:
            self.register_buffer('kernel_coord', grid[None])
        else:
            self.grid = grid

    def forward(self, x):
        grid = self.kernel_coord[0] if self.shared else self.grid
        distance = (grid - self.weight_coord[..., None, None]).abs().sum(2)
        cones = F.relu(1 - distance / self.radius)
        if self.shared:
            kernel = torch.einsum('cn,nhw->chw', self.weights[0], cones[0])[:, None]
            return F.conv2d(x, kernel, padding=3, groups=4)
        count = (cones != 0).sum(1)[:, None]
        return F.conv2d(x, torch.einsum('oin,onhw->oihw', self.weights, cones) / (count + 1e-6), padding=3)


class WeightedOfficial(nn.Module):
    """The kernel times the outer product of a symmetric profile, fixed or trained."""

    def __init__(self, density, trained, size=5):
        super().__init__()
        self.weight, self.bias = parameter(3, 4, size, size), parameter(3)
        density = torch.tensor(density)
        if trained:
            self.den = nn.Parameter(density)
        else:
            profile = torch.cat([density, torch.ones(1), density.flip(0)])
            self.register_buffer('alfa', profile)
            self.register_buffer('Phi', torch.outer(profile, profile))

    def forward(self, x):
        if hasattr(self, 'den'):
            profile = torch.cat([self.den, torch.ones(1), self.den.flip(0)])
            return F.conv2d(x, self.weight * profile[:, None] * profile, self.bias, padding=2)
        return F.conv2d(x, self.weight * self.Phi, self.bias, padding=self.weight.shape[-1] // 2)


class _Inner(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.conv = nn.Module()
        self.conv.weight, self.conv.bias = parameter(*shape), parameter(shape[0])


class DEAOfficial(nn.Module):
    """Five convolutions of the same input, summed; taps are written one by one."""

    def __init__(self):
        super().__init__()
        self.conv1_1, self.conv1_4 = _Inner(4, 3, 3, 3), _Inner(4, 3, 3, 3)
        self.conv1_2, self.conv1_3 = _Inner(4, 3, 3), _Inner(4, 3, 3)
        self.conv1_5 = nn.Conv2d(3, 4, 3)

    def kernels(self):
        central = self.conv1_1.conv.weight.clone()
        central[..., 1, 1] -= self.conv1_1.conv.weight.sum((2, 3))
        horizontal, vertical = torch.zeros(4, 3, 3, 3), torch.zeros(4, 3, 3, 3)
        for tap in range(3):
            for sign, end in ((1, 0), (-1, 2)):
                horizontal[..., tap, end] = sign * self.conv1_2.conv.weight[..., tap]
                vertical[..., end, tap] = sign * self.conv1_3.conv.weight[..., tap]
        w = self.conv1_4.conv.weight.flatten(2)
        angular = (w - w[..., [3, 0, 1, 6, 4, 2, 7, 8, 5]]).view(4, 3, 3, 3)
        return central, horizontal, vertical, angular

    def forward(self, x):
        inner = (self.conv1_1, self.conv1_2, self.conv1_3, self.conv1_4)
        outs = [F.conv2d(x, k, c.conv.bias, padding=1) for k, c in zip(self.kernels(), inner, strict=True)]
        return sum(outs) + F.conv2d(x, self.conv1_5.weight, self.conv1_5.bias, padding=1)


class UniRepLKOfficial(nn.Module):
    """A large depthwise convolution and dilated small ones, each with a batch norm; or what they were merged to."""

    branches = ((5, 1), (5, 2), (3, 3), (3, 4))

    def __init__(self, merged=False):
        super().__init__()
        self.lk_origin = nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=merged)
        self.merged = merged
        if merged:
            return
        self.origin_bn = nn.BatchNorm2d(4)
        for k, r in self.branches:
            conv = nn.Conv2d(4, 4, k, padding=r * (k - 1) // 2, dilation=r, groups=4, bias=False)
            setattr(self, f'dil_conv_k{k}_{r}', conv)
            setattr(self, f'dil_bn_k{k}_{r}', nn.BatchNorm2d(4))

    def forward(self, x):
        if self.merged:
            return self.lk_origin(x)
        small = (getattr(self, f'dil_bn_k{k}_{r}')(getattr(self, f'dil_conv_k{k}_{r}')(x)) for k, r in self.branches)
        return self.origin_bn(self.lk_origin(x)) + sum(small)


class GaussianOfficial(nn.Module):
    """Blur every channel, then convolve without padding."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.weight = nn.Parameter(torch.tensor(sigma)), parameter(4, 3, 3, 3)

    def gaussian(self):
        if self.sigma.numel() == 3:
            a, b, c = self.sigma
            factor = torch.stack([torch.stack([a.exp(), b]), torch.stack([b * 0, c.exp()])])
            covariance = factor.T @ factor
        else:
            covariance = torch.diag(self.sigma.expand(2) ** 2)
        half = max(1, math.ceil(2 * float(covariance.detach().diag().max().sqrt())))
        z = torch.stack(torch.meshgrid(*[torch.arange(-half, half + 1.0)] * 2, indexing='ij'), -1)
        z = z * torch.tensor([-1.0, 1.0])  # y upwards
        density = torch.exp(-0.5 * torch.einsum('hwi,ij,hwj->hw', z, torch.linalg.inv(covariance), z))
        return density / density.sum()

    def forward(self, x):
        blur = self.gaussian()
        x = F.conv2d(x, blur.expand(3, 1, -1, -1), padding=blur.shape[-1] // 2, groups=3)
        return F.conv2d(x, self.weight)


class TuckerOfficial(nn.Module):
    """Tensors as large as ranks may get, of which a leading block counts; the bias is added within and after."""

    def __init__(self, r=(3, 2, 3, 3)):
        super().__init__()
        self.r = list(r)
        self.S = parameter(4, 3, 3, 3)
        self.Us = nn.ParameterList([parameter(6, 4), parameter(5, 3), parameter(3, 3), parameter(3, 3)])
        self.bias = parameter(6)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}r'] = self.r

    def forward(self, x):
        core = self.S[tuple(slice(r) for r in self.r)]
        factors = [u[:, :r] for u, r in zip(self.Us, self.r, strict=True)]
        y = F.conv2d(x, torch.einsum('abcd,oa,ib,uc,vd->oiuv', core, *factors), self.bias, padding=1)
        return y + self.bias.view(-1, 1, 1)


class BinaryOfficial(nn.Conv2d):
    """A plain convolution in the file; the kernel is centered, clamped and binarized before it is used."""

    def forward(self, x):
        latent = (self.weight - self.weight.mean(1, keepdim=True)).clamp(-1, 1)
        scale = latent.abs().flatten(1).sum(1) / latent[0].numel()
        return F.conv2d(x, latent.sign() * scale.view(-1, 1, 1, 1), self.bias, padding=1)


class ComplexOfficial(nn.Module):
    """Two real convolutions with a bias each, on complex tensors."""

    def __init__(self):
        super().__init__()
        self.conv_r, self.conv_i = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x):
        real, imag = x.chunk(2, 1)
        return torch.cat(
            [self.conv_r(real) - self.conv_i(imag), self.conv_r(imag) + self.conv_i(real)],
            1,
        )


class KerasOfficial(nn.Module):
    """A kernel (k, k, Ci, 2 Co) with the real part before the imaginary one, convolved by torch's own complex numbers."""

    def __init__(self):
        super().__init__()
        self.kernel, self.bias = parameter(3, 3, 2, 6), parameter(6)

    def forward(self, x):
        kernel = torch.complex(*self.kernel.permute(3, 2, 0, 1).split(3))
        y = F.conv2d(torch.complex(*x.split(2, 1)), kernel, padding=1)
        return torch.cat([y.real, y.imag], 1) + self.bias.view(-1, 1, 1)


class ShiftwiseOfficial(nn.Module):
    """Small kernels convolve, what comes out is shifted and added; tables are drawn from the global generators."""

    def __init__(self, channels, big=13, paths=2, reps=4, merged=False):
        super().__init__()
        self.big, self.n = big, math.ceil(big / 3)
        count = int(channels * (1 - 0.23)) // 2 * 2
        np.random.seed(123)
        ghost = sorted(np.random.choice(channels, channels - count, replace=False).tolist())
        self.ghost, self.rep = torch.tensor(ghost), torch.tensor(sorted(set(range(channels)) - set(ghost)))
        torch.manual_seed(123)
        self.horizontal = [[torch.randperm(self.n) for _ in range(count)] for _ in range(reps)]
        self.vertical = [[torch.randperm(self.n) for _ in range(count)] for _ in range(reps)]
        self.center = [torch.randint(0, self.n, [count]) for _ in range(reps)]
        convs = [nn.Conv2d(count, count * self.n, 3, padding=2, groups=count, bias=False) for _ in range(paths)]
        if merged:
            self.LoRA = convs[0]
        else:
            self.LoRAs = nn.ModuleList(convs)
        self.bn_lora1, self.bn_lora2, self.bn_small = (nn.BatchNorm2d(count) for _ in range(3))

    def forward(self, x):
        rep = x[:, self.rep]
        convs = [self.LoRA] if hasattr(self, 'LoRA') else self.LoRAs
        y = sum(conv(rep) for conv in convs).unflatten(1, (-1, self.n))
        height, width = x.shape[2:]
        room = 2 * self.big
        y = F.pad(y, (room, room, room, room))

        def shifted(channel, kernel, down, right):
            """What the kernel sees when its first tap lies ``down`` and ``right`` of the pixel."""
            top, left = room + 2 + down, room + 2 + right
            return y[:, channel, kernel, top : top + height, left : left + width]

        sums = torch.zeros(3, *rep.shape)
        for r in range(len(self.center)):
            for c in range(rep.shape[1]):
                for i in range(self.n):
                    far = -(self.big // 2) + 3 * i
                    sums[0, :, c] += shifted(c, self.horizontal[r][c][i], -1, far)
                    sums[1, :, c] += shifted(c, self.vertical[r][c][i], far, -1)
                sums[2, :, c] += shifted(c, self.center[r][c], -1, -1)
        out = self.bn_lora1(sums[0]) + self.bn_lora2(sums[1]) + self.bn_small(sums[2]) + rep
        return torch.cat([out, x[:, self.ghost]], 1)


class ShiftwiseBlock(nn.Module):
    """The layer, norm, squeeze and excitation, two linear layers, residual."""

    def __init__(self, large_kernel, channels):
        super().__init__()
        self.large_kernel, self.norm = large_kernel, nn.BatchNorm2d(channels)
        self.se = nn.Module()
        self.se.down, self.se.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)
        self.pwconv1 = nn.Sequential(nn.Identity(), nn.Linear(channels, 2 * channels))
        self.pwconv2 = nn.Sequential(nn.Linear(2 * channels, channels))

    def forward(self, x):
        y = self.norm(self.large_kernel(x))
        y = y * self.se.up(self.se.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.pwconv2(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class InceptionOfficial(nn.Module):
    """Identity, square, row and column, in this order of the channels."""

    def __init__(self):
        super().__init__()
        self.dwconv_hw = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.dwconv_w = nn.Conv2d(2, 2, (1, 11), padding=(0, 5), groups=2)
        self.dwconv_h = nn.Conv2d(2, 2, (11, 1), padding=(5, 0), groups=2)

    def forward(self, x):
        same, hw, w, h = x.split((10, 2, 2, 2), 1)
        return torch.cat([same, self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)], 1)


class SPDOfficial(nn.Conv2d):
    """Four phases of the image, columns slower than rows, then a convolution."""

    def forward(self, x):
        phases = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return super().forward(torch.cat(phases, 1))


class PartialOfficial(nn.Conv2d):
    """The window's size over the number of pixels in it scales what is added before the bias."""

    def forward(self, x):
        seen = F.conv2d(torch.ones_like(x[:, :1]), torch.ones(1, 1, 3, 3), padding=1)
        return F.conv2d(x, self.weight, padding=1) * 9 / seen + self.bias.view(-1, 1, 1)
