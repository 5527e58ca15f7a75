"""SMPConv: a kernel that is a continuous function, drawn by cones around points that move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Many
from mmext.convs.points import PointConv2d
from mmext.registry import MODELS

__all__ = ['SMPConv2d']


@MODELS.register_module()
class SMPConv2d(PointConv2d):
    r"""Self-moving points: a kernel of cones around points that move, with learned radii.

    *SMPConv: Self-moving Point Representations for Continuous Convolution*, CVPR 2023, arXiv 2304.02330.

    The window is the square :math:`[-1, 1]^2`, x to the right and y upwards; its rows and columns are equally spaced samples
    of it. Around each point stands a cone of the L1 distance, as wide as its radius :math:`\rho`:

    .. math::
        \varphi_p(x, y) = \max\bigl(0,\ 1 - (|x - x_p| + |y - y_p|) / \rho_p\bigr)

    and a kernel is their weighted sum, in one of the released code's two forms:

    .. math::
        \text{shared:}\quad W_{oi} = \sum_p w_{oip}\,\varphi_p, \qquad
        \text{per output:}\quad W_{oi}
        = \frac{\sum_p w_{oip}\,\varphi_{op}}{\max(1,\ \#\{p: \varphi_{op} \ne 0\})}

    where the number of points is counted for every tap. (The code adds 1e-6 to it instead, which half precision rounds away.)

    Args:
        *args: Those of ``nn.Conv2d``.
        n_points: The number of points, a quarter of the number of taps by default.
        shared_points: Whether all channels have the same points, as in the large-kernel ImageNet networks (depthwise there;
            any other grouping works as well), or every output its own, averaged, as in the general form.
        radius: The radius at the start; by default two steps of the grid, but not more than 1, for both forms. (The general
            form's released default, 0.002, is for kernels without a grid; 0.12 at 33 x 33 on CIFAR-10 is two steps, too.)
        coord_std: The spread of the points at the start, by default 0.2 for shared points and 0.1 for others.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        With G = 1 for shared points, else Co: ``weight_coord`` is (G, n, 2), x first; ``radius`` (G, n, 1, 1); ``weights``
        (Co, Ci/groups, n).

    Raises:
        ValueError: If ``n_points``, ``radius`` or ``coord_std`` is not positive.

    Radii are to be kept inside of [0.001, 1] (0.0001 for the general form) after every optimizer step
    (``mmext.ProjectionHook`` does it), and learn a tenth as fast as weights; neither they nor the points decay
    (``mmext.LayerOptionsConstructor``). The released training code does both.

    A plain kernel is taken by the weights that come nearest to it with the points where they are; that is ours.

    Example:
        >>> layer = SMPConv2d(8, 8, 13, padding=6, groups=8).eval()
        >>> layer.fold().kernel_size
        (13, 13)
    """

    typical = dict(kernel_size=13, depthwise=True)
    loads_kernel_exactly = False

    def __init__(
        self,
        *args: Any,
        n_points: Many | None = None,
        shared_points: bool = True,
        radius: float | None = None,
        coord_std: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        height, width = self.kernel_size
        self.n_points = max(1, height * width // 4) if n_points is None else n_points
        self.shared_points = shared_points
        self.start_radius = min(1.0, 4 / min(height, width)) if radius is None else radius
        self.coord_std = (0.2 if shared_points else 0.1) if coord_std is None else coord_std
        for name, value in (
            ('n_points', self.n_points),
            ('radius', self.start_radius),
            ('coord_std', self.coord_std),
        ):
            if value <= 0:
                raise ValueError(f'SMPConv2d needs a positive {name}, got {value}')
        if self.plain:
            return
        like = self.drop_weight()
        sets = 1 if shared_points else self.out_channels
        self.weight_coord = nn.Parameter(like.new_empty(sets, self.n_points, 2))
        self.radius = nn.Parameter(like.new_empty(sets, self.n_points, 1, 1))
        self.weights = nn.Parameter(like.new_empty(self.out_channels, self.in_channels // self.groups, self.n_points))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw points and weights from truncated normal distributions; all radii are equal and the bias 0."""
        if self.plain:
            return super().init_weights()
        nn.init.trunc_normal_(self.weight_coord, std=self.coord_std, a=-1.0, b=1.0)
        nn.init.constant_(self.radius, self.start_radius)
        nn.init.trunc_normal_(self.weights, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Keep the radii positive and inside of the window."""
        if not self.plain:
            self.radius.clamp_(1e-3 if self.shared_points else 1e-4, 1.0)

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Return what points and radii learn with, relative to the other parameters."""
        if self.plain:
            return {}
        return dict(weight_coord=dict(decay_mult=0.0), radius=dict(lr_mult=0.1, decay_mult=0.0))

    def generate_kernel(self) -> Tensor:
        return (self.weights @ self._cones()).unflatten(-1, self.kernel_size)

    def _cones(self) -> Tensor:
        """Return every point's cone on the grid, (sets, n, taps), averaged in the general form."""
        height, width = self.kernel_size
        like = dict(dtype=self.radius.dtype, device=self.radius.device)
        x = _samples(width, like) - self.weight_coord[..., :1]
        y = -_samples(height, like) - self.weight_coord[..., 1:]
        distance = y.abs().unsqueeze(-1) + x.abs().unsqueeze(-2)
        cones = (1 - distance / self.radius).relu().flatten(2)
        if self.shared_points:
            return cones
        return cones / (cones != 0).sum(1, keepdim=True, dtype=cones.dtype).clamp(min=1)

    def load_kernel(self, kernel: Tensor) -> None:
        taps = kernel.flatten(2).double()
        self.weights.copy_(taps @ torch.linalg.pinv(self._cones().double()))

    def own_repr(self) -> str:
        return f'n_points={self.n_points}, shared_points={self.shared_points}'


def _samples(size: int, like: dict[str, Any]) -> Tensor:
    """Return where rows or columns lie in [-1, 1]; a single one lies in the middle."""
    return torch.linspace(-1, 1, size, **like) if size > 1 else torch.zeros(1, **like)
