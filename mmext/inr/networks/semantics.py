"""The description of an image that weights are generated from: pooled features of every stage of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, some
from mmext.registry import MODELS

__all__ = ['RandomPyramid', 'SemanticEncoder', 'describe_image']

# Of ImageNet, which the backbones are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@MODELS.register_module()
class RandomPyramid(nn.Module):
    """An untrained convolutional pyramid with fixed weights: what stands for a semantic network where none is given.

    It needs no download, for tests and examples. Its features are statistics of the image, not semantics; results that use
    it must say so.

    Args:
        widths: Channels of the stages, each of half the resolution of the one before.
        seed: Draws the weights, from a generator of its own.

    Example:
        >>> len(RandomPyramid()(torch.rand(1, 3, 32, 32)))
        3
    """

    def __init__(self, widths: Annotated[Sequence[Count], some] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator('cpu').manual_seed(seed)
        self.stages = nn.ModuleList()
        channels = 3
        for width in widths:
            conv = nn.utils.skip_init(nn.Conv2d, channels, width, 3, stride=2, padding=1, bias=False)
            with torch.no_grad():
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5)
            self.stages.append(conv)
            channels = width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, 3, H, W) to one map per stage."""
        maps = []
        for stage in self.stages:
            x = F.relu(stage(x))
            maps.append(x)
        return tuple(maps)


@MODELS.register_module()
class SemanticEncoder(nn.Module):
    r"""The semantic neural network of SPW: :math:`v = [\mathrm{GAP}(F_1), \dots, \mathrm{GAP}(F_n)]`, frozen.

    Cai, Shen, *Encoding Semantic Priors into the Weights of Implicit Neural Representation*, 2024, arXiv 2406.04178, with an
    EfficientNet-B7 that was trained on ImageNet, and the last features of each of its seven stages.

    Args:
        backbone: Config of any registered backbone that returns several maps; a checkpoint comes by its ``init_cfg``. The
            default is :class:`mmext.RandomPyramid`, which has no semantics.
        modules: Names of submodules whose outputs are pooled instead of the maps that the backbone returns:
            mmpretrain's EfficientNet merges stages, and ``layers.4.9`` is the last block of the one with 160 channels.
        size: Side to which images are resized, None to leave them.

    Shape:
        (C, H, W) or (N, C, H, W) in [0, 1], with one or three channels, to the sum of the stages' channels; the mean over
        several images.

    Raises:
        ValueError: If the backbone has no submodule of a name.

    Example:
        >>> encoder = SemanticEncoder(dict(type='mmext.RandomPyramid'))
        >>> encoder(torch.rand(1, 3, 32, 32)).ndim
        1
    """

    def __init__(
        self,
        backbone: Cfg = dict(type='mmext.RandomPyramid'),  # noqa: B006
        modules: Sequence[str] | None = None,
        size: Repeats | None = 224,
    ) -> None:
        super().__init__()
        # Any, because torch does not tell what attributes a module has.
        self.backbone: Any = MODELS.build(dict(backbone))
        if hasattr(self.backbone, 'init_weights'):
            self.backbone.init_weights()
        known = dict(self.backbone.named_modules())
        if unknown := set(modules or ()) - set(known):
            raise ValueError(f'SemanticEncoder finds no submodule {sorted(unknown)} in {type(self.backbone).__name__}')
        self.modules_to_pool = tuple(modules or ())
        self.size = size
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SemanticEncoder:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Describe an image, or several together."""
        image = image[None] if image.ndim == 3 else image
        image = image.expand(-1, 3, -1, -1)
        if self.size is not None:
            image = F.interpolate(image, (self.size, self.size), mode='bilinear', align_corners=False, antialias=True)
        image = (image - image.new_tensor(MEAN).view(3, 1, 1)) / image.new_tensor(STD).view(3, 1, 1)
        pooled: dict[str, Tensor] = {}
        hooks = [
            self.backbone.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: pooled.__setitem__(name, out)
            )
            for name in self.modules_to_pool
        ]
        try:
            maps = self.backbone(image)
        finally:
            for hook in hooks:
                hook.remove()
        if hooks:
            maps = [pooled[name] for name in self.modules_to_pool]
        elif isinstance(maps, Tensor):
            maps = [maps]
        return torch.cat([m.mean((2, 3)) for m in maps], dim=1).mean(0)


def describe_image(encoder_cfg: Mapping[str, Any], image: Tensor) -> Tensor:
    """Return the description of an image, (C, H, W) or several, in [0, 1], by an encoder that is built for this call only.

    For an inverse problem pass a first reconstruction, not the truth.

    Args:
        encoder_cfg: Config of a :class:`mmext.SemanticEncoder`.
        image: The image.
    """
    # What an untrained encoder draws must not change what the training draws after it.
    with torch.random.fork_rng([]):
        encoder: Any = MODELS.build(dict(encoder_cfg)).to(image.device)
    return encoder(image)
