"""Complex convolution, of two frameworks."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.complex_conv import ComplexConv2d
from official_layers import Case, parameter


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
    """A kernel (k, k, Ci, 2 Co) with the real part before the imaginary one, convolved by torch's own complex numbers.

    Theano's convolution is one of mathematics, which turns the kernel over.
    """

    def __init__(self, theano):
        super().__init__()
        self.theano = theano
        self.kernel, self.bias = parameter(3, 3, 2, 6), parameter(6)

    def forward(self, x):
        kernel = torch.complex(*self.kernel.permute(3, 2, 0, 1).split(3))
        kernel = kernel.flip(2, 3) if self.theano else kernel
        y = F.conv2d(torch.complex(*x.split(2, 1)), kernel, padding=1)
        return torch.cat([y.real, y.imag], 1) + self.bias.view(-1, 1, 1)


CASES = {
    'two layers': Case(ComplexOfficial, lambda: ComplexConv2d(4, 6, 3, padding=1), 4),
    'Keras on Theano': Case(
        lambda: KerasOfficial(theano=True), lambda: ComplexConv2d(4, 6, 3, padding=1), 4, {'backend': 'theano'}
    ),
    'Keras on TensorFlow': Case(
        lambda: KerasOfficial(theano=False), lambda: ComplexConv2d(4, 6, 3, padding=1), 4, {'backend': 'tensorflow'}
    ),
}
