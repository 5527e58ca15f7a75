"""Tucker convolution."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.tucker import TuckerConv2d
from official_layers import Case, parameter


class TuckerOfficial(nn.Module):
    """Tensors as large as ranks may get, of which a leading block counts; the bias is added within and after."""

    def __init__(self, r=(3, 2, 3, 3), listed=4, core=(4, 3, 3, 3)):
        super().__init__()
        self.r, self.listed = list(r), listed
        self.S = parameter(*core)
        self.Us = nn.ParameterList(parameter(n, r) for n, r in zip((6, 5, 3, 3), core, strict=True))
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
    'made from scratch': Case(
        # The list of ranks knows nothing of the core, which has half of each mode.
        lambda: TuckerOfficial(r=(50, 50, 3, 3), core=(3, 2, 1, 1)),
        lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(3, 2, 1, 1)),
        5,
    ),
    'with two ranks': Case(lambda: TuckerOfficial(listed=2), lambda: TuckerConv2d(5, 6, 3, padding=1, rank=(4, 3)), 5),
}
