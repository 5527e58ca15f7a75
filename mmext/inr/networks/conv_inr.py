"""Conv-INR: a convolutional network over the grid of coordinates, with three ways to train more weights than are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn import build_activation_layer, build_conv_layer
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Few, Repeats
from mmext.blocks.build import places_norm
from mmext.convs.conditioned import ConditionedConv2d
from mmext.convs.reparam import ReparamConv2d
from mmext.folding import fold, folds_to_plain
from mmext.fusing import fuse_affine, norm_affine
from mmext.inr.networks.base import CoordNetwork, build_position_norm
from mmext.inr.networks.semantics import describe_image
from mmext.registry import MODELS, require

__all__ = ['ConvINR']

#: What stands for the plain convolution, and its arguments.
REPARAMS: dict[str, dict] = {
    'structural': dict(type=ReparamConv2d, branches=('kxk', '1xk', 'kx1', '1x1')),
    'static': dict(type='mmext.RefConv2d', freeze_basis=False),
    'dynamic': dict(type='mmext.ConditionedConv2d'),
}


@MODELS.register_module()
class ConvINR(CoordNetwork):
    r"""Conv-INR: convolutions over the grid of coordinates, with three re-parameterizations that fold.

    Cai, *Conv-INR: Convolutional Implicit Neural Representation for Multimodal Visual Signals*, 2024, arXiv 2406.04249.

    The grid of coordinates V is not taken apart into points but kept as an image, which convolutions map to the signal:

    .. math:: Z_0 = V, \qquad Z_l = \phi(\mathrm{BN}(K_l * Z_{l-1} + b_l)), \qquad y = K * Z_L + b

    That the network is convolutional at full resolution, the order of convolution, batch norm and activation, the names of
    the re-parameterizations, and that they vanish after training are the author's. Width, depth, the plain output layer and
    the algebra of the re-parameterizations are our reading:

    - ``'structural'``: parallel branches with a batch norm each, :class:`mmext.convs.ReparamConv2d`;
    - ``'static'``: a learned convolution over the kernel itself, :class:`mmext.RefConv2d` with a basis that learns;
    - ``'dynamic'``: a residual generated from a description of the signal, :class:`mmext.ConditionedConv2d`; what the signal
      looks like is asked for by ``dict(type='dynamic', source='given', condition_dim=...)``.

    They replace the hidden layers; the last two start exactly at the plain network.

    Args:
        in_features: d, the number of coordinates.
        out_features: Values per position.
        width: Channels of each hidden layer.
        depth: Number of hidden layers, the first one included.
        kernel_size: Size of all kernels, odd.
        norm_cfg: Norm in each hidden layer; ``'BN'`` or a norm of this package, None for none.
        act_cfg: Activation of the hidden layers.
        reparam: A name above, a config of a conv layer (with arguments; ``dict(type='structural', branches=...)`` changes
            those of a name), or None for plain convolutions.
        semantics: Config of the encoder that :meth:`set_signal` uses, by default one without semantics.
        init_cfg: As in mmengine.

    Shape:
        A grid (H, W, d) to (H, W, out_features), or several, (N, H, W, d); with 1 x 1 kernels also a list of points (N, d).

    Raises:
        ValueError: If the kernel size is even, ``depth`` is below 1, or a list of points meets kernels above 1 x 1.

    Example:
        >>> ConvINR(out_features=3)(coordinate_grid(4, 6)).shape
        torch.Size([4, 6, 3])
    """

    example = dict(width=6, depth=2)

    def __init__(
        self,
        in_features: Count = 2,
        out_features: Count = 3,
        width: Count = 32,
        depth: Few = 10,
        kernel_size: Repeats = 3,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg = dict(type='ReLU'),  # noqa: B006
        reparam: str | Cfg | None = None,
        semantics: Cfg = dict(type='mmext.SemanticEncoder'),  # noqa: B006
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, init_cfg)
        if kernel_size % 2 == 0:
            raise ValueError(f'ConvINR keeps the size of the grid and needs an odd kernel_size, got {kernel_size=}')
        if depth < 1:
            raise ValueError(f'ConvINR needs one hidden layer at least, got {depth=}')
        self.kernel_size = kernel_size
        self.semantics = dict(semantics)
        conv_cfg = _conv_cfg(reparam)
        # A layer that asks for a norm has one in each of its branches.
        own_norm = places_norm(require(conv_cfg))
        if own_norm:
            conv_cfg = {'norm_cfg': norm_cfg, **conv_cfg}
        layers = []
        for index in range(depth):
            channels = in_features if index == 0 else width
            bias = {} if not own_norm else dict(bias=False)
            conv = build_conv_layer(conv_cfg, channels, width, kernel_size, padding=kernel_size // 2, **bias)
            norm = [] if own_norm or norm_cfg is None else [build_position_norm(norm_cfg, width, 1)]
            layers.append(nn.Sequential(conv, *norm, build_activation_layer(act_cfg)))
        # Any, because torch does not tell what a ModuleList holds.
        self.layers: Any = nn.ModuleList(layers)
        self.head = nn.Conv2d(width, out_features, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        for module in (*(part for layer in self.layers for part in layer), self.head):
            init = getattr(module, 'init_weights', None) or getattr(module, 'reset_parameters', None)
            if init is not None:
                init()

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network on a grid of coordinates."""
        shape = coords.shape
        if len(shape) == 2:
            if self.kernel_size != 1:
                raise ValueError(
                    f'ConvINR with kernel_size={self.kernel_size} sees neighbors and needs a grid '
                    f'(H, W, {self.in_features}), got a list of points {tuple(shape)}'
                )
            coords = coords.unsqueeze(1)
        # Every step tells the exporters how many axes and channels there are.
        grids = coords.reshape(-1, *coords.shape[-3:-1], self.in_features)
        maps = grids.permute(0, 3, 1, 2).to(self.head.weight.dtype)
        for layer in self.layers:
            maps = layer(maps)
        return self.head(maps).permute(0, 2, 3, 1).reshape(*shape[:-1], self.out_features)

    def _conditioned(self) -> list[ConditionedConv2d]:
        """Return the layers that ask what the signal looks like."""
        return [m for m in self.modules() if isinstance(m, ConditionedConv2d) and m.source == 'given']

    @property
    def awaits_signal(self) -> bool:
        """Whether a layer asks what the signal looks like, and has not been told."""
        return any(not bool(layer.condition.any()) for layer in self._conditioned())

    def set_condition(self, condition: Tensor) -> None:
        """Describe the signal to every layer that takes a description, see :class:`mmext.ConditionedConv2d`."""
        for module in self.modules():
            if isinstance(module, ConditionedConv2d):
                module.set_condition(condition.to(module.weight))

    def set_signal(self, image: Tensor) -> None:
        """Describe the signal by an image, (C, H, W) or several, in [0, 1], to the layers that ask what it looks like.

        See :func:`mmext.inr.describe_image`; without such layers nothing is done.
        """
        if self._conditioned():
            self.set_condition(describe_image(self.semantics, image))

    def fuse_norms(self) -> None:
        """Fuse the norms that are affine maps in eval mode into the convolutions before them, where the kernel is a weight."""
        for layer in self.layers:
            is_kernel = layer[0].weight is not None and getattr(layer[0], 'weight_is_kernel', True)
            if is_kernel and (affine := norm_affine(layer[1])) is not None:
                fuse_affine(layer[0], *affine)
                layer[1] = nn.Identity()

    @staticmethod
    def deployed_cfg(cfg: Mapping[str, Any], fuse_bn: bool) -> dict[str, Any]:
        """Return the config of the network that :func:`mmext.folding.fold` leaves where it fuses all norms."""
        conv_cfg = _conv_cfg(cfg.get('reparam'))
        in_branches = places_norm(require(conv_cfg))
        if folds_to_plain(conv_cfg):
            cfg = {k: v for k, v in cfg.items() if k not in ('reparam', 'semantics')}
        return {**cfg, 'norm_cfg': None} if fuse_bn or in_branches else dict(cfg)

    def switch_to_deploy(self) -> None:
        """Fold every layer, and every batch norm, into plain convolutions, and set eval mode; doing it twice changes nothing.

        Freeze the statistics of the grid first (``freeze_stats``).
        """
        self.eval()
        fold(self, fuse_bn=True)
        # An Identity stands where a norm was.
        kept = ([part for part in layer if not isinstance(part, nn.Identity)] for layer in self.layers)
        self.layers = nn.ModuleList(nn.Sequential(*parts) for parts in kept)


def _conv_cfg(reparam: str | Cfg | None) -> dict:
    if reparam is None:
        return dict(type='Conv2d')
    cfg = dict(type=reparam) if isinstance(reparam, str) else reparam
    if isinstance(cfg['type'], str) and cfg['type'] in REPARAMS:
        return {**REPARAMS[cfg['type']], **{k: v for k, v in cfg.items() if k != 'type'}}
    if isinstance(reparam, str):
        raise ValueError(f'ConvINR knows reparam {sorted(REPARAMS)} or a config of a conv layer, got {reparam!r}')
    return cfg
