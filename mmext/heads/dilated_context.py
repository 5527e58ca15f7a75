"""The context module of dilated convolutions, which starts as the identity, in any segmentation head."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, NonNegative, checked
from mmext.contracts import shown_by
from mmext.errors import UsageError
from mmext.hosts import build_from_host
from mmext.registry import MODELS

__all__ = ['DilatedContext', 'dilated_context_head']

#: Dilations of the 3 x 3 convolutions, and the widths of all eight layers in multiples of the input's.
DILATIONS = (1, 1, 2, 4, 8, 16, 1)
WIDTHS = {'basic': (1,) * 8, 'large': (2, 2, 4, 8, 16, 32, 32, 1)}


@MODELS.register_module()
class DilatedContext(BaseModule):
    r"""Seven dilated 3x3 convolutions and a 1x1 one, which look 67 pixels wide and start as the identity.

    Yu and Koltun, *Multi-Scale Context Aggregation by Dilated Convolutions*, ICLR 2016, arXiv 1511.07122.

    ::

        x ── 3x3 ── 3x3 ── 3x3, 2 ── 3x3, 4 ── 3x3, 8 ── 3x3, 16 ── 3x3 ── 1x1 ──> (ReLU after each but the last)
        sees: 3      5       9        17        33         65        67

    With :math:`c_i` channels of layer i, and C of the input, the weight from channel a to channel b starts as

    .. math:: k^b(t, a) = \frac{C}{c_{i+1}}\, [t = 0]\, [\lfloor a C / c_i \rfloor = \lfloor b C / c_{i+1} \rfloor]

    So what is not negative passes unchanged. In the large form copies of a channel would learn the same; noise tells them
    apart. How large it is the paper does not say.

    Args:
        channels: C.
        form: ``'basic'``: C channels in all layers. ``'large'``: 2, 2, 4, 8, 16, 32, 32 and 1 times C.
        noise: Standard deviation of the noise in the large form, as a share of :math:`C / c_{i+1}`.
        init_cfg: As in every OpenMMLab module.

    Shape:
        (N, C, H, W) to the same.

    Example:
        >>> x = torch.rand(1, 4, 8, 8)
        >>> bool((DilatedContext(4)(x) == x).all())
        True
    """

    example = dict(channels=8)

    def __init__(
        self,
        channels: Count,
        form: Literal['basic', 'large'] = 'basic',
        noise: NonNegative = 0.01,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.channels, self.form, self.noise = channels, form, noise
        widths = [channels, *(channels * width for width in WIDTHS[form])]
        layers = [
            nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
            for before, after, dilation in zip(widths, widths[1:], DILATIONS, strict=False)
        ]
        layers.append(nn.Conv2d(widths[-2], widths[-1], 1))
        self.layers: Any = nn.ModuleList(layers)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make the module the identity."""
        for layer in self.layers:
            before, after = layer.in_channels, layer.out_channels
            group_of = [torch.arange(width) * self.channels // width for width in (before, after)]
            share = self.channels / after
            layer.weight.zero_()
            if self.form == 'large':
                layer.weight.normal_(std=self.noise * share)
            middle = layer.kernel_size[0] // 2
            same = (group_of[1][:, None] == group_of[0]).to(layer.weight.device)
            layer.weight[:, :, middle, middle] = torch.where(same, share, layer.weight[:, :, middle, middle])
            layer.bias.zero_()

    def init_weights(self) -> None:
        """Start as the identity, also where the module around draws its convolutions; then ``init_cfg``, if there is one."""
        self.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its context."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)

    def extra_repr(self) -> str:
        return f'channels={self.channels}, form={self.form!r}'


class _Scores(nn.Conv2d):
    """A head's last layer with context before or after it; its own weights keep their names."""

    def __init__(self, conv: nn.Conv2d, context: DilatedContext, before: bool) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
        self.weight, self.bias = conv.weight, conv.bias
        self.context = context
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.context(x)) if self.before else self.context(super().forward(x))

    def init_weights(self) -> None:
        """Draw nothing here; the context starts anew."""
        self.context.init_weights()


@MODELS.register_module(name='DilatedContextHead')
@shown_by(head='mmseg.FCNHead', in_channels=8, channels=8, num_classes=3)
@partial(checked, owner='DilatedContextHead')
def dilated_context_head(
    head: str | Cfg,
    where: Literal['scores', 'features'] = 'scores',
    form: Literal['basic', 'large'] = 'basic',
    noise: NonNegative = 0.01,
    **head_args: Any,
) -> nn.Module:
    """Any decode head of mmseg with a :class:`DilatedContext` on its scores, or on what it computes them from.

    Yu and Koltun, *Multi-Scale Context Aggregation by Dilated Convolutions*, ICLR 2016, arXiv 1511.07122.

    ::

        maps ── the head's own layers ── features ── conv_seg ── scores ── context ──>      where='scores', as the paper
                                             └────── context ── conv_seg ──>                where='features'

    It is the host's own class with its state-dict keys, and ``conv_seg.context`` beside them. As a diff on a stock config::

        decode_head=dict(type='mmext.DilatedContextHead', head='FCNHead')

    On features, which a ReLU has made, the head starts as the stock one. On scores it starts as the stock one with negative
    scores set to 0. The paper trains the scores first.

    Args:
        head: The type of the head, or its config.
        where: What gets context.
        form: Of the context, and
        noise: in it.
        **head_args: Arguments of the head.

    Returns:
        The head, with nothing but its last layer changed.

    Raises:
        ValueError: If the head has no 1x1 convolution ``conv_seg`` that makes the scores.
        ImportError: If the scope of ``head`` is that of a package that is not installed.

    Example:
        >>> head = dict(type='mmext.DilatedContextHead', head='mmseg.FCNHead', in_channels=8, channels=8, num_classes=3)
    """
    built = build_from_host({**head_args, **({'type': head} if isinstance(head, str) else head)}, 'DilatedContextHead')
    conv = getattr(built, 'conv_seg', None)
    if type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1):
        raise UsageError(
            f'DilatedContextHead needs a head whose scores come from conv_seg, a 1x1 convolution, such as FCNHead, PSPHead or '
            f'ASPPHead; conv_seg of {type(built).__name__} is {conv}'
        )
    width = conv.in_channels if where == 'features' else conv.out_channels
    built.conv_seg = _Scores(conv, DilatedContext(width, form, noise), where == 'features')
    return built
