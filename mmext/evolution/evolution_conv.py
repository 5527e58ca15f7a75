"""The paper's table as one layer: an operator by the name of its Evolution Function."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor

from mmext.arguments import Cfg
from mmext.contracts import Folds
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import FactoredKernel
from mmext.registry import MODELS, require

__all__ = ['EvolutionConv2d']

FUNCTIONS = {
    'static': 'mmext.StaticConv2d',
    'involution': 'mmext.Involution2d',
    'self_attention': 'mmext.SelfAttention2d',
    'token_mixing': 'mmext.TokenMixing2d',
    'conditional': 'mmext.CondConv2d',
}


@MODELS.register_module()
class EvolutionConv2d(EvolutionOperator2d):
    r"""A layer whose Evolution Function is an argument, so that operators are compared by one word in a config.

    Cai, *Evolution: A Unified Formula for Feature Operators from a High-level Perspective*, 2023, arXiv 2305.14409.

    .. math:: Y_{o,p} = \sum_{n} \sum_{c} E(p)_{n,o,c}\, X_{c,\,s_n(p)} + b_o

    | ``type`` | kernel | spatial | channel | dynamic |
    | :-- | :-- | :-- | :-- | :-- |
    | ``static`` | a parameter: ``nn.Conv2d`` | agnostic | specific | no |
    | ``involution`` | from the pixel itself | specific | agnostic in a group | yes |
    | ``self_attention`` | from pairs of pixels, all of them or those of a window | specific | agnostic in a head | yes |
    | ``token_mixing`` | a parameter for every pair of pixels | specific | agnostic | no |
    | ``conditional`` | experts, mixed by the whole image | agnostic | specific | yes |

    Args:
        *args: Those of ``nn.Conv2d``.
        function: Config of the function: a ``type`` of the table, or any operator of :mod:`mmext.evolution` by its registered
            name, with the operator's own arguments.
        **kwargs: Those of ``nn.Conv2d``.

    Attributes:
        function: The operator of that name, of this layer's geometry.

    Raises:
        ValueError: If ``function`` is no such operator, or the operator refuses the geometry.

    The names of the functions and the table are our reading. The paper has no code.

    Example:
        >>> layer = EvolutionConv2d(16, 16, 7, padding=3, function=dict(type='involution', reduction=2))
        >>> layer(torch.randn(1, 16, 9, 9)).shape, layer.spatial_specific
        (torch.Size([1, 16, 9, 9]), True)
    """

    mixes_channels = True

    def __init__(self, *args: Any, function: Cfg = dict(type='static'), **kwargs: Any) -> None:  # noqa: B006
        super().__init__(*args, **kwargs)
        kind = FUNCTIONS.get(function['type'], function['type'])
        operator = require(kind)
        if not (isinstance(operator, type) and issubclass(operator, EvolutionOperator2d)) or operator is type(self):
            raise ValueError(
                f'EvolutionConv2d needs a function of type {", ".join(FUNCTIONS)} or an operator of mmext.evolution, got '
                f'function={function}'
            )
        geometry = (
            'in_channels',
            'out_channels',
            'kernel_size',
            'stride',
            'padding',
            'dilation',
            'groups',
            'padding_mode',
        )
        shared = {key: getattr(self, key) for key in geometry}
        bias, self.bias = self.bias is not None, None
        self.function = ROOT_MODELS.build({**shared, **function, 'type': operator, 'bias': bias, **self._factory})
        for flag in ('spatial_specific', 'channel_specific', 'dynamic', 'mixes_channels'):
            setattr(self, flag, getattr(self.function, flag))
        if isinstance(self.function, Folds):  # what stands inside is replaced by the whole, or not at all
            self.fold = self.function.fold
            self.fold_in_deploy = getattr(self.function, 'fold_in_deploy', True)

    @property
    def positions(self) -> Any:
        """The positions of the function's operator."""
        return self.function.positions

    def evolution_kernel(self, x: Tensor) -> FactoredKernel:
        return self.function.evolution_kernel(x)

    def features(self, x: Tensor) -> Tensor:
        return self.function.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate ``x``, (B, Ci, H, W), to (B, Co, Ho, Wo)."""
        self.check_input(x)
        return self.function(x)

    def by_definition(self, x: Tensor) -> Tensor:
        return self.function.by_definition(x)

    @property
    def loads_kernel(self) -> bool:
        """Whether the function's operator is a plain kernel or starts from one."""
        return self.function.keeps_kernel or self.function.loads_kernel

    @property
    def loads_bias(self) -> bool:  # type: ignore[override]
        """Whether the function's operator has a bias."""
        return self.function.bias is not None or self.function.loads_bias

    def load_kernel(self, kernel: Tensor) -> None:
        if self.function.keeps_kernel:
            self.function.weight.copy_(kernel)
        else:
            self.function.load_kernel(kernel)

    def load_bias(self, bias: Tensor) -> None:
        if self.function.loads_bias:
            self.function.load_bias(bias)
        else:
            self.function.get_parameter('bias').copy_(bias)

    def init_weights(self) -> None:
        self.function.init_weights()
