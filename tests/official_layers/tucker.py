"""Tucker convolution."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.tucker import TuckerConv2d
from official_layers import Case, parameter


class TuckerOfficial(nn.Module):
    """Tensors as large as ranks may get, of which a leading block counts; the bias is added within and after."""

    def __init__(self, r=(3, 2, 3, 3), listed=4):
        super().__init__()
        self.r, self.listed = list(r), listed
        self.S = parameter(4, 3, 3, 3)
        self.Us = nn.ParameterList([parameter(6, 4), parameter(5, 3), parameter(3, 3), parameter(3, 3)])
        self.bias = parameter(6)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}r'] = self.r[: self.listed]

    def forward(self, x):
        core = self.S[tuple(slice(r) for r in self.r)]
        factors = [u[:, :r] for u, r in zip(self.Us, self.r, strict=True)]
        y = F.conv2d(x, torch.einsum('abcd,oa,ib,uc,vd->oiuv', core, *factors), self.bias, padding=1)
        return y + self.bias.view(-1, 1, 1)


CASES = {
    'with room': Case(TuckerOfficial, lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(4, 3)), 5),
    'cut': Case(TuckerOfficial, lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(3, 2)), 5, {'ranks': 'live'}),
    'with two ranks': Case(lambda: TuckerOfficial(listed=2), lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(4, 3)), 5),
}
