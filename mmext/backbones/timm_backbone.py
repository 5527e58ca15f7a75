"""Any network of timm as a backbone of the hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Count
from mmext.backbones.base import Backbone
from mmext.checkpoints import read_checkpoint, state_dict_of
from mmext.errors import CheckpointError
from mmext.registry import MODELS

__all__ = ['TimmBackbone']


@MODELS.register_module()
class TimmBackbone(Backbone):
    """Any network of timm by its name, with the contract of the hosts' backbones (ours).

    Scales are counted as timm counts them. Some networks begin at stride 2 (ResNet: 2, 4, 8, 16, 32), others at stride 4
    (ConvNeXt: 4, 8, 16, 32). A plain ViT has one scale per block, all of the same stride. ``out_strides`` tells.

    Nothing is downloaded. Weights come from a local file that timm's own names fit, or from a checkpoint of this backbone
    by ``init_cfg``.

    Args:
        name: As in ``timm.create_model``.
        in_channels: Channels of the image.
        out_indices: Scales whose maps are returned; by default the last four, or all if there are fewer.
        frozen_stages: -1 freezes nothing, 0 what comes before the first scale, n also the first n scales.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        with_cp: Whether timm recomputes activations in the backward pass to save memory.
        checkpoint: A local file with weights of timm, ``.safetensors`` or of ``torch.save``. A classifier in it is left.
        init_cfg: As in mmengine.
        **kwargs: Those of the network, e.g. ``img_size`` and ``drop_path_rate``.

    Shape:
        (N, 3, H, W) to a tuple of (N, C_i, H_i, W_i), also where timm keeps the channels last.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm knows no such network, it gives no maps, or scales are asked for that it does not have.
        CheckpointError: If ``checkpoint`` lacks weights of the network.

    Example:
        >>> net = TimmBackbone('convnext_atto', out_indices=(2, 3))
        >>> net.out_channels, net.out_strides
        ((160, 320), (16, 32))
    """

    example = dict(name='convnext_atto', depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))

    def __init__(
        self,
        name: str,
        in_channels: Count = 3,
        out_indices: int | Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        checkpoint: str | None = None,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        scales = _scales(name, in_channels, kwargs)
        if out_indices is None:
            out_indices = tuple(range(max(scales - 4, 0), scales))
        super().__init__(out_indices, scales, frozen_stages, norm_eval, init_cfg)
        self.name = name
        # Any, because torch does not tell what attributes a module has.
        self.network: Any = _create(name, in_channels, kwargs, out_indices=self.out_indices)
        self.out_channels = tuple(self.network.feature_info.channels())
        self.out_strides = tuple(self.network.feature_info.reduction())
        if with_cp:
            self.network.set_grad_checkpointing(True)
        if checkpoint is not None:
            self._load(checkpoint)
        self._units = self._find_units()
        if frozen_stages >= 0 and self._units is None:
            raise ValueError(
                f'TimmBackbone cannot tell which modules of {name} make which scale, got {frozen_stages=}; leave it at -1'
            )
        self.finish()

    @property
    def _inner(self) -> tuple[str, nn.Module]:
        """The network of timm and the beginning of its names; a ViT stands inside of the module that collects its maps."""
        inside = isinstance(getattr(self.network, 'model', None), nn.Module)
        return ('model.', self.network.model) if inside else ('', self.network)

    def _find_units(self) -> list[tuple[str, int]] | None:
        """Return the name and the number of the part (0 the stem, n the n-th scale) of what the network is made of."""
        ends = [info['module'].replace('.', '_') for info in self.network.feature_info.info][: self.num_scales]
        prefix, inner = self._inner
        units: list[str] = []
        for name, child in inner.named_children():
            split = any(end.startswith(f'{name}_') for end in ends)
            units += [f'{name}.{n}' for n, _ in child.named_children()] if split else [name]
        keys = [name.replace('.', '_') for name in units]
        places = [max((i for i, key in enumerate(keys) if f'{end}_'.startswith(f'{key}_')), default=-1) for end in ends]
        if not places or min(places) < 0:
            return None
        found = []
        for index, name in enumerate(units):
            number = 1 + sum(place < index for place in places)
            found.append((prefix + name, 0 if index < places[0] else min(number, len(places))))
        return found

    def parts(self) -> list[list[nn.Module]]:
        # By name: surgery and folding replace modules.
        units = [(self.network.get_submodule(name), part) for name, part in self._units or []]
        return [[module for module, part in units if part == number] for number in range(self.num_scales + 1)]

    def freeze(self) -> None:
        super().freeze()
        if self.frozen_stages >= 0:
            # Position embeddings and class tokens are parameters of the network itself.
            for parameter in self._inner[1].parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, 3, H, W), to the maps of ``out_indices``."""
        maps = self.network(x)
        if str(getattr(self.network, 'output_fmt', 'NCHW')).endswith('NHWC'):
            maps = [y.permute(0, 3, 1, 2).contiguous() for y in maps]
        return tuple(maps)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        units = [name for name, part in self._units or [] if part]
        number = len(units) + 2
        name = param_name[len(prefix) :].removeprefix('network.')
        if not param_name.startswith(prefix) or not param_name[len(prefix) :].startswith('network.'):
            return number - 1, number
        found = [i for i, unit in enumerate(units) if name.startswith(f'{unit}.')]
        return (1 + found[0] if found else 0), number

    def _load(self, path: str) -> None:
        """Load weights under timm's own names, of which the module of maps has renamed some."""
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file

            saved = load_file(path)
        else:
            saved = state_dict_of(read_checkpoint(path))
        own, prefix = self.network.state_dict(), self._inner[0]
        renamed = {prefix + re.sub(r'^([^.]+)\.([^.]+)', self._joined, key): value for key, value in saved.items()}
        lacking = [key for key in own if key not in renamed or renamed[key].shape != own[key].shape]
        if lacking:
            raise CheckpointError(
                f'{path} lacks {len(lacking)} of the {len(own)} tensors of {self.name}, the first is {lacking[0]}; pass the '
                'file that timm publishes for this network'
            )
        self.network.load_state_dict({key: renamed[key] for key in own})

    def _joined(self, match: re.Match) -> str:
        joined = f'{match[1]}_{match[2]}'
        return joined if hasattr(self.network, joined) else match[0]


def _create(name: str, in_channels: int, kwargs: dict[str, Any], **more: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'TimmBackbone needs timm, which is not installed ({error}); pip install timm') from error
    try:
        return timm.create_model(name, pretrained=False, features_only=True, in_chans=in_channels, **more, **kwargs)
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError) as error:
        raise ValueError(
            f'TimmBackbone cannot build {name!r} with {kwargs}: {error or type(error).__name__}; '
            'timm.list_models() shows the names'
        ) from error


def _scales(name: str, in_channels: int, kwargs: dict[str, Any]) -> int:
    """Count the scales of a network without making its weights."""
    with torch.device('meta'):
        return len(_create(name, in_channels, kwargs).feature_info.info)
