"""IDF's block, as it is in its first step."""

import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.dynamic_filter import DynamicFilter2d
from official_layers import Case


def over_size(x):
    return x / (1e-4 + x.square().mean((1, 2, 3), keepdim=True).sqrt())


class IDFOfficial(nn.Module):
    """Patches, their correlations, and powers that sum to one."""

    def __init__(self, channels, hidden, dilation, reflect):
        super().__init__()
        self.dilation, self.reflect = dilation, reflect
        self.feature_extractor = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.ReLU(),
        )
        self.kernel_predictor = nn.Conv2d(hidden + 9, 9, 3, padding=1, bias=False)

    def forward(self, x):
        padded = F.pad(x, [self.dilation] * 4, mode='reflect' if self.reflect else 'constant')
        patches = F.unfold(padded, 3, self.dilation).unflatten(1, (x.shape[1], 9)).unflatten(3, x.shape[2:])
        apart = patches - patches.mean(1, keepdim=True)
        apart = apart / (patches.std(1, keepdim=True) + 1e-4)
        correlation = (apart * apart[:, :, 4:5]).sum(1)
        features = torch.cat((self.feature_extractor(over_size(x)), correlation), 1)
        powers = self.kernel_predictor(over_size(features)).abs() ** 3
        return (patches * (powers / (powers.sum(1, keepdim=True) + 1e-4))[:, None]).sum(2)


def ours(**kwargs):
    return DynamicFilter2d(3, 3, 3, hidden_channels=8, bias=False, **kwargs)


CASES = {
    'even steps': Case(
        lambda: IDFOfficial(3, 8, 2, True), lambda: ours(padding=2, dilation=2, padding_mode='reflect'), 3
    ),
    'odd steps': Case(lambda: IDFOfficial(3, 8, 1, False), lambda: ours(padding=1), 3),
}
