"""LENI: a rectifier that keeps the negative half of the feature map, transforms it and adds it back."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, Sides, check_conv2d
from mmext.contracts import Folds
from mmext.norms.normalized import normalized
from mmext.registry import MODELS

__all__ = ['LENI', 'LENIConv']


@MODELS.register_module()
class LENI(nn.Module):
    r"""LENI: a ReLU that keeps, transforms and re-uses the negative half.

    Cai, Peng, Shen, *Learn to Enhance the Negative Information in Convolutional Neural Network*, 2023, arXiv 2306.10536.

    Of an input :math:`x` of shape (N, C, H, W), one branch keeps the positive half, the other transforms the negative half
    by a convolution :math:`T` and re-uses it:

    .. math::
        P &= \mathrm{relu}(x), \qquad E = \phi(\mathrm{BN}(T * \mathrm{relu}(-x))) \\
        y_c &= a_c P_c + b_c E_c \quad \text{(compress)} \qquad y = [P, E] \quad \text{(concat, 2C channels)}

    The two branches, concatenation and compression are the paper's. That :math:`T` is depthwise 3x3 with BN and
    :math:`\phi = \mathrm{relu}`, that the compression is two scalars per channel, and the initialization
    :math:`a = 1, b = 0` (equal to ReLU, so that a trained network can be given LENI and fine-tuned) are our reading; each
    is an argument. At :math:`b = 0` learning starts through :math:`b`: its gradient is not zero, that of :math:`T` is.

    The scalars are one-dimensional parameters: ``paramwise_cfg=dict(flat_decay_mult=0.)`` exempts them from weight decay.

    Args:
        num_channels: C. A conv module does not tell its activation how many channels it has; ``mmext.swap_layers`` fills
            this in.
        kernel_size: Size of T, odd.
        t_group_size: Channels that T mixes with each other; 1 is depthwise.
        neg_input: ``'rectified'`` feeds T with relu(-x), ``'negated'`` with -x.
        norm_cfg: Normalization after T, None for none.
        post_act: Whether phi is ReLU (else the identity).
        mode: ``'compress'`` or ``'concat'``.
        init_pos: Initial a.
        init_neg: Initial b; -0.25 makes the negative branch alive from the first step.
        inplace: Accepted because mmcv's ``ConvModule`` passes it, and ignored: x is read twice.

    Raises:
        ValueError: If ``num_channels`` is missing, ``t_group_size`` does not divide it, ``kernel_size`` is even, or
            ``mode`` or ``neg_input`` is unknown.

    Example:
        >>> LENI(num_channels=8)(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    example = dict(num_channels=8)

    def __init__(
        self,
        num_channels: Count | None = None,
        kernel_size: Repeats = 3,
        t_group_size: Count = 1,
        neg_input: Literal['rectified', 'negated'] = 'rectified',
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        post_act: bool = True,
        mode: Literal['compress', 'concat'] = 'compress',
        init_pos: float = 1.0,
        init_neg: float = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if num_channels is None:
            raise ValueError(
                "LENI needs num_channels, which act_cfg does not tell it: write act_cfg=dict(type='mmext.LENI', "
                'num_channels=...), or let mmext.swap_layers put it in the place of an existing activation'
            )
        if kernel_size % 2 == 0:
            raise ValueError(f'LENI keeps the size of its input and needs an odd kernel_size, got {kernel_size=}')
        if num_channels % t_group_size:
            raise ValueError(f'LENI needs t_group_size to divide num_channels, got {t_group_size=}, {num_channels=}')
        self.num_channels = num_channels
        self.out_channels = num_channels * (2 if mode == 'concat' else 1)
        self.neg_input, self.post_act, self.mode = neg_input, post_act, mode
        self.init_pos, self.init_neg = init_pos, init_neg
        groups = num_channels // t_group_size
        self.transform = nn.Conv2d(
            num_channels, num_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = _build_norm(norm_cfg, num_channels)
        if mode == 'compress':
            self.pos_scale = nn.Parameter(torch.full((num_channels,), float(init_pos)))
            self.neg_scale = nn.Parameter(torch.full((num_channels,), float(init_neg)))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw T (Kaiming normal) and set the scalars, so that LENI with the defaults equals ReLU."""
        nn.init.kaiming_normal_(self.transform.weight, mode='fan_out', nonlinearity='relu')
        if self.mode == 'compress':
            nn.init.constant_(self.pos_scale, self.init_pos)
            nn.init.constant_(self.neg_scale, self.init_neg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W), or to (N, 2C, H, W) with ``mode='concat'``."""
        negative = F.relu(-x) if self.neg_input == 'rectified' else -x
        enhanced = normalized(self.transform(negative), self.norm, 'LENI')
        if self.post_act:
            enhanced = F.relu(enhanced)
        positive = F.relu(x)
        if self.mode == 'concat':
            return torch.cat((positive, enhanced), dim=1)
        return positive * self.pos_scale.view(-1, 1, 1) + enhanced * self.neg_scale.view(-1, 1, 1)

    def fold(self) -> LENI:
        """Return the same activation with its batch norm folded into T, which thereby gets a bias; else, itself."""
        folded = copy.deepcopy(self).eval()
        norm = folded.norm
        transform: nn.Module = folded.transform
        if isinstance(transform, Folds) and getattr(transform, 'fold_in_deploy', True):
            transform = transform.fold()
        if type(transform) is not nn.Conv2d:  # surgery may have put a layer there that has no kernel of its own
            return self
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            return self
        folded.transform = nn.utils.fuse_conv_bn_eval(transform, norm)
        folded.norm = nn.Identity()
        return folded.train(self.training)

    def extra_repr(self) -> str:
        return f'{self.num_channels}, mode={self.mode!r}, neg_input={self.neg_input!r}, post_act={self.post_act}'


@MODELS.register_module()
class LENIConv(BaseModule):
    """A normalized convolution to half of the channels; LENI makes the other half of its negative part.

    This is our reading of the paper's *channel compensation*: ``LENIConv(C_in, C_out)`` yields C_out channels from a kernel
    of half the size. It stands where conv, norm and activation stand, never after a residual addition.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, even.
        kernel_size: Of the convolution, like the further arguments of ``nn.Conv2d`` in ``kwargs``.
        norm_cfg: Normalization between the convolution and LENI, None for none.
        leni_cfg: Further arguments of :class:`LENI`, all but ``mode``.
        init_cfg: As everywhere in mmengine.

    Raises:
        ValueError: If ``out_channels`` is odd.

    Example:
        >>> LENIConv(8, 16, 3)(torch.randn(2, 8, 6, 6)).shape[1]
        16
    """

    example = dict(in_channels=8, out_channels=8, kernel_size=3)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        kernel_size: Sides,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        leni_cfg: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_conv2d('LENIConv', (in_channels, out_channels, kernel_size), kwargs)
        super().__init__(init_cfg)
        if out_channels % 2:
            raise ValueError(
                f'LENIConv makes half of its channels from the other half and needs an even {out_channels=}'
            )
        half = out_channels // 2
        kwargs.setdefault('bias', norm_cfg is None)
        self.conv = nn.Conv2d(in_channels, half, kernel_size, **kwargs)
        self.norm = _build_norm(norm_cfg, half)
        self.activate = LENI(half, mode='concat', **(leni_cfg or {}))
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self.activate(self.norm(self.conv(x)))


def _build_norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    if norm_cfg is None:
        return nn.Identity()
    from mmcv.cnn import build_norm_layer

    return build_norm_layer(norm_cfg, channels)[1]
