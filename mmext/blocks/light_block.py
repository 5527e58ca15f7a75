"""Meta Basic Block: one description for the residual blocks of light-weight networks, and these blocks as configs of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any

from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import Sequential
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Positive, at_most
from mmext.blocks.build import build_operator, with_num_channels
from mmext.blocks.recomputed import Recomputed
from mmext.registry import MODELS, require

__all__ = ['LIGHT_BLOCKS', 'MetaBasicBlock', 'MetaLightBlock']


@MODELS.register_module()
class MetaBasicBlock(Recomputed):
    r"""Spatial and channel operators in turn, with a residual around them.

    Cai and Shen, *FalconNet: Factorization for the Light-weight ConvNets*, 2023, arXiv 2306.06365.

    .. math:: y = x + SO_3(CO_2(SO_2(CO_1(SO_1(x)))))

    Each operator carries its norm and activation (:func:`mmext.blocks.build_operator`); the last one of a block has no
    activation. Norms, activations and the residual are our reading, the sequence is the paper's.

    Args:
        channels: C, in and out.
        expansion: C_h / C, where C_h is the width between the channel operators; may be a fraction.
        so1: Spatial operator on C channels: the config of a conv layer, which becomes depthwise 3x3 where it does not say
            otherwise, or of a whole operator such as ``mmext.PartialSO``. None is the identity.
        co1: Channel operator from C to C_h: the config of a conv layer, 1x1 (so ``dict(type='Conv2d')`` is the dense
            one), or of a whole operator such as ``mmext.RefCO``.
        so2: Spatial operator on C_h channels.
        co2: Channel operator from C_h to C.
        so3: Spatial operator on C channels.
        out_act: Whether an activation follows the residual addition.
        drop_path_rate: Probability of dropping the branch beside the residual.
        with_cp: Whether to recompute activations in the backward pass to save memory.
        conv_cfg: Conv layer in the place of every spatial operator that is a plain ``Conv2d``. An operator that is chosen
            by another name, ``mmext.RepSO2d`` included, stays what it is.
        norm_cfg: Norm of the operators.
        act_cfg: Activation of the operators; ``num_channels`` is filled in where it takes it.
        init_cfg: As everywhere in mmengine.

    Shape:
        (N, C, H, W) to the same.

    Raises:
        ValueError: If C times the expansion is no whole number, or a channel operator is missing.

    Example:
        >>> block = MetaBasicBlock(16, so2=dict(type='Conv2d'))
        >>> block(torch.randn(2, 16, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    example = dict(channels=16)

    def __init__(
        self,
        channels: Count,
        expansion: Annotated[Positive, at_most(1024)] = 4,
        so1: Cfg | None = None,
        co1: Cfg | None = dict(type='Conv2d'),  # noqa: B006
        so2: Cfg | None = None,
        co2: Cfg | None = dict(type='Conv2d'),  # noqa: B006
        so3: Cfg | None = None,
        out_act: bool = False,
        drop_path_rate: DropRate = 0.0,
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(with_cp, init_cfg)
        hidden = round(channels * expansion)
        if hidden < 1 or abs(hidden - channels * expansion) > 1e-6:
            raise ValueError(
                f'{type(self).__name__} needs a whole number of hidden channels, got {channels=} * {expansion=}; '
                'change the width or the expansion'
            )
        if co1 is None or co2 is None:
            raise ValueError(
                f"{type(self).__name__} needs both channel operators, got {co1=}, {co2=}; the dense one is dict(type='Conv2d')"
            )
        steps: list[tuple[str, dict | None, int, int, dict[str, Any]]] = [
            ('so1', so1, channels, channels, {}),
            ('co1', co1, channels, hidden, dict(factor=0)),
            ('so2', so2, hidden, hidden, {}),
            ('co2', co2, hidden, channels, dict(factor=1)),
            ('so3', so3, channels, channels, {}),
        ]
        last = 'co2' if so3 is None else 'so3'
        operators = OrderedDict()
        for name, cfg, in_channels, out_channels, hints in steps:
            if cfg is None:
                continue
            layer = dict(kernel_size=1)
            if name.startswith('so'):
                layer = dict(kernel_size=3, groups=in_channels)
                if conv_cfg is not None and require(cfg) is nn.Conv2d:
                    cfg = {**cfg, **conv_cfg}
            operators[name] = build_operator(
                cfg,
                in_channels,
                out_channels,
                layer=layer,
                norm_cfg=norm_cfg,
                act_cfg=None if name == last else act_cfg,
                conv_cfg=conv_cfg,
                **hints,
            )
        self.operators = Sequential(operators)
        self.drop_path = DropPath(drop_path_rate)
        self.out_act = build_activation_layer(with_num_channels(act_cfg, channels)) if out_act else nn.Identity()

    def compute(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.out_act(x + self.drop_path(self.operators(x)))


@MODELS.register_module()
class MetaLightBlock(MetaBasicBlock):
    """Channel operator, one spatial operator, channel operator: the block of FalconNet.

    The paper finds that of the three spatial operators of :class:`MetaBasicBlock` only the middle one matters.

    Args:
        channels: C, in and out.
        expansion: C_h / C; the paper's value is not known to us.
        spatial: The spatial operator on C_h channels, ``dict(type='Conv2d')`` being a plain depthwise convolution and None
            the identity.
        channel: Both channel operators, ``dict(type='Conv2d')`` being the dense ones; or a pair of configs.
        **kwargs: Further ones of :class:`MetaBasicBlock`.

    Example:
        >>> MetaLightBlock(16)(torch.randn(2, 16, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    example = dict(channels=16)

    def __init__(
        self,
        channels: Count,
        expansion: Annotated[Positive, at_most(1024)] = 4,
        spatial: Cfg | None = dict(type='mmext.RepSO2d'),  # noqa: B006
        channel: Cfg | tuple[Cfg, Cfg] = dict(type='mmext.RefCO'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        first, second = (channel, channel) if isinstance(channel, dict) else channel
        super().__init__(channels, expansion, co1=first, so2=spatial, co2=second, **kwargs)


_DENSE = dict(type='Conv2d')
_LINEAR = dict(type='Conv2d', act_cfg=None)
_BARE = dict(type='Conv2d', norm_cfg=None)
_GROUPED = dict(type='mmext.RefCO', groups=4, check_full_range=False)

#: The blocks of well-known networks at stride 1, by name. Each is the sequence of operators, with the places of norms and
#: activations; their kinds are the network's own, so that blocks are compared on equal terms. ConvNeXt's layer scale
#: and GhostNet's and ShuffleNet's special cases at stride 2 are left out, and the expansions of the last three are whole
#: for widths that are multiples of 16. A dense pair of 1x1 convolutions is what ``Conv2d`` means as a channel operator.
LIGHT_BLOCKS: dict[str, dict] = {
    # Sandler et al., 2018, arXiv 1801.04381.
    'mobilenet_v2': dict(type='mmext.MetaBasicBlock', expansion=6, co1=_DENSE, so2=dict(type='Conv2d'), co2=_DENSE),
    # Liu et al., 2022, arXiv 2201.03545: the norm after the depthwise convolution, the activation after the expansion.
    'convnext': dict(
        type='mmext.MetaBasicBlock',
        expansion=4,
        so1=dict(type='Conv2d', kernel_size=7, act_cfg=None),
        co1=_BARE,
        co2=_BARE,
    ),
    # Chen et al., 2023, arXiv 2303.03667: norm and activation between the pointwise convolutions only.
    'fasternet': dict(
        type='mmext.MetaBasicBlock',
        expansion=2,
        so1=dict(type='mmext.PartialSO', norm_cfg=None, act_cfg=None),
        co1=_DENSE,
        co2=dict(type='Conv2d', norm_cfg=None, bias=False),
    ),
    # Zhang et al., 2018, arXiv 1707.01083: a bottleneck of grouped convolutions with a shuffle. Its range is not full.
    'shufflenet': dict(
        type='mmext.MetaBasicBlock', expansion=0.25, co1=_GROUPED, so2=_LINEAR, co2=_GROUPED, out_act=True
    ),
    # Han et al., 2020, arXiv 1911.11907.
    'ghostnet': dict(
        type='mmext.MetaBasicBlock', expansion=3, co1=dict(type='mmext.GhostCO'), co2=dict(type='mmext.GhostCO')
    ),
    # Zhou et al., 2020, arXiv 2007.02269 (sandglass): wide outside, narrow and linear in the middle.
    'mobilenext': dict(
        type='mmext.MetaBasicBlock',
        expansion=0.25,
        so1=dict(type='Conv2d'),
        co1=_LINEAR,
        co2=_DENSE,
        so3=dict(type='Conv2d'),
    ),
}
