"""What every backbone of the pack promises beside its maps: choice of outputs, freezing, norms, deployment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.arguments import check
from mmext.errors import UsageError
from mmext.folding import fold

__all__ = ['Backbone']


class Backbone(BaseModule):
    """A stem and scales of falling size.

    A subclass builds its modules, calls :meth:`set_outputs`, and calls :meth:`finish` at the end of its constructor. With a
    ``stem`` and ``stages``, each with its ``blocks``, all else is here. A network of another shape defines :meth:`parts`,
    :meth:`forward` and :meth:`get_layer_depth`.

    Args:
        out_indices: Scales whose maps are returned, negative ones counted from the last.
        num_scales: How many there are.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n scales.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        init_cfg: As in mmengine.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Strides of the returned maps.
        out_indices: The chosen scales, ascending.

    Raises:
        ValueError: If ``out_indices`` are not ascending scales, or ``frozen_stages`` lies outside of the scales built.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    init_cfg: dict | list | None
    stem: Any
    #: Any, because torch does not tell what attributes a module has.
    stages: Any
    #: The known architectures by name, and the laws of one: a function of its entries, whose annotations are checked first.
    arch_zoo: ClassVar[Mapping[Any, Mapping[str, Any]]] = {}
    arch_laws: ClassVar[Callable[..., None]]

    def __init__(
        self,
        out_indices: int | Sequence[int],
        num_scales: int,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if not given or not all(-num_scales <= i < num_scales for i in given):
            raise ValueError(f'{name} needs out_indices within its {num_scales} stages, got {out_indices}')
        self.out_indices = tuple(i % num_scales for i in given)
        if list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(
                f'{name} returns maps from large to small and needs ascending out_indices, got {out_indices}'
            )
        #: Scales after the last that is returned are not built, so that every parameter gets a gradient.
        self.num_scales = self.out_indices[-1] + 1
        if not -1 <= frozen_stages <= self.num_scales:
            raise ValueError(
                f'{name} needs frozen_stages from -1 to {self.num_scales} (the stages built), got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_norms: Any = nn.ModuleList()
        self.pooled_norm: nn.Module | None = None

    @classmethod
    def architecture(cls, arch: str | int | Mapping[str, Any]) -> dict[str, Any]:
        """Return an architecture by its name in ``arch_zoo``, or check one that is given.

        Raises:
            ValueError: If the name is unknown, or an entry is missing, unknown or against the laws.
        """
        name, entries = cls.__name__, inspect.signature(cls.arch_laws).parameters
        form = f'dict({", ".join(f"{entry}=..." for entry in entries)})'
        if not isinstance(arch, Mapping):
            if arch not in cls.arch_zoo:
                raise ValueError(f'{name} knows the archs {sorted(cls.arch_zoo)}, got {arch!r}; or pass {form}')
            arch = cls.arch_zoo[arch]
        defaults = {entry: p.default for entry, p in entries.items() if p.default is not p.empty}
        if not set(entries) - set(defaults) <= set(arch) <= set(entries):
            raise ValueError(f'{name} needs arch={form}, got the keys {sorted(map(str, arch))}')
        check(name, cls.arch_laws, (), arch)
        whole = {entry: arch.get(entry, defaults.get(entry)) for entry in entries}
        listed = {key for key, value in whole.items() if isinstance(value, Sequence) and not isinstance(value, str)}
        found = {key: tuple(value) if key in listed else value for key, value in whole.items()}
        cls.arch_laws(**found)
        return found

    @staticmethod
    def drop_rates(last: float, number: int) -> list[float]:
        """Return the drop probabilities of ``number`` blocks, which rise linearly from 0 to ``last``."""
        return [last * i / max(number - 1, 1) for i in range(number)]

    def set_outputs(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_norm: dict | None = None,
        pooled_norm: nn.Module | None = None,
    ) -> None:
        """Say what the maps of ``out_indices`` are, and build what stands behind them.

        Args:
            channels: Channels of each returned map.
            strides: Stride of each returned map.
            out_norm: Norm of each returned map.
            pooled_norm: Norm of vectors; with it the last output is the mean over its positions, normalized, (N, C, 1, 1).
        """
        self.out_channels, self.out_strides = tuple(channels), tuple(strides)
        if out_norm is not None:
            self.out_norms = nn.ModuleList(build_norm_layer(out_norm, c)[1] for c in self.out_channels)
        self.pooled_norm = pooled_norm

    def outputs(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the hosts get of the maps of ``out_indices``."""
        outs = [norm(x) for norm, x in zip(self.out_norms, maps, strict=True)] if len(self.out_norms) else list(maps)
        if self.pooled_norm is not None:
            outs[-1] = self.pooled_norm(outs[-1].mean((2, 3)))[..., None, None]
        return tuple(outs)

    @torch.no_grad()
    def draw_kernels(self, *own: type[nn.Module], std: float = 0.02) -> None:
        """Draw kernels from a truncated normal distribution and set biases to zero.

        Args:
            *own: Layers of the pack whose kernels are meant, too, beside torch's convolutions and linear layers.
            std: Standard deviation.
        """
        for module in self.modules():
            if type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, own):
                for name, parameter in module.named_parameters():
                    if parameter.ndim > 1:
                        nn.init.trunc_normal_(parameter, std=std)
                    elif name.endswith('bias'):
                        nn.init.zeros_(parameter)

    def reset_kernels(self) -> None:
        """Start plain layers as torch does, also where a host has drawn all layers of their kind before."""
        for module in self.modules():
            if type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
                module.reset_parameters()

    def draw(self) -> None:
        """Draw the start as the authors do, in place; torch's own start where a subclass says nothing."""

    def finish(self) -> None:
        """Draw the start and freeze; the last line of a constructor."""
        self.draw()
        self.freeze()

    def init_weights(self) -> None:
        """Draw the start again, or apply ``init_cfg`` where there is one.

        A ``Pretrained`` checkpoint in it may be a local file as the authors of the network published it.
        """
        if self.is_init:
            super().init_weights()
            return
        given, published = self.init_cfg, {}
        if given:
            from mmext.official import (  # converters know all layers, and are slow to import
                local_files,
                published_state,
            )

            for cfg in local_files(self):
                if (state := published_state(self, cfg['checkpoint'])) is not None:
                    published[cfg['checkpoint']] = state
        if published:
            cfgs = [given] if isinstance(given, dict) else given or []
            self.init_cfg = [cfg for cfg in cfgs if cfg.get('checkpoint') not in published]
        super().init_weights()
        self.init_cfg = given
        if not given:
            self.draw()
        for state in published.values():
            self.load_state_dict(state, strict=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (N, C, H, W), to the maps of ``out_indices``."""
        outs = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return self.outputs(outs)

    def steps(self) -> list[nn.Module]:
        """Return the stem, then the blocks in their order: in series they map an image to the last map.

        Raises:
            UsageError: If this network is no such series.
        """
        if type(self).forward is not Backbone.forward:
            raise UsageError(f'{type(self).__name__} is no series of a stem and blocks, so it cannot be run in steps')
        found = [self.stem]
        for stage in self.stages:
            parts = stage.named_children() if isinstance(stage, nn.Sequential) else [('stage', stage)]
            for name, part in parts:
                found += part.children() if name == 'blocks' else [part]
        return found

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then those of each scale."""
        return [[self.stem], *([stage] for stage in self.stages)]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, for a layer-wise learning rate.

        The stem is 0, and everything outside of the backbone comes last. The blocks of ``stages`` follow one by one, what
        stands before them in a stage counts to the first, and what stands behind the stages comes last.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: What the names of this backbone's parameters start with, e.g. ``'backbone.'``.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        number = sum(depths) + 2
        parts = param_name[len(prefix) :].split('.')
        if not param_name.startswith(prefix) or parts[0] not in ('stem', 'stages'):
            return number - 1, number
        if parts[0] == 'stem':
            return 0, number
        block = int(parts[3]) if parts[2] == 'blocks' else 0
        return 1 + sum(depths[: int(parts[1])]) + block, number

    def freeze(self) -> None:
        """Freeze the stem and the first ``frozen_stages`` scales."""
        for part in self.parts()[: self.frozen_stages + 1]:
            for module in part:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Switch the mode; frozen scales, and with ``norm_eval`` all batch norms, stay in eval mode."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Fold everything that folds, in place; outputs in eval mode stay the same."""
        fold(self)
