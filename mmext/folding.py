"""Fold a model: replace every layer that has a plain form by it, and fuse norms.

A layer that folds has a method ``fold()`` that returns its plain replacement. :func:`fold` applies it to a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.contracts import CannotFold, Folds, FusesNorms, IsAffine, SwitchesToDeploy, find, shown_by
from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.convs.reparam import bn_affine
from mmext.registry import MODELS
from mmext.surgery import build_wrapped

__all__ = ['fold', 'folded', 'folds_to_plain', 'fuse_affine', 'norm_affine', 'resolve']


def fold(model: nn.Module, fuse_bn: bool = False) -> nn.Module:
    """Fold everything in ``model`` that folds, in place, and return it (or its replacement, if it is a layer itself).

    Layers with ``fold()`` are replaced by what it returns, the outermost first; a host's module with
    ``switch_to_deploy()`` is told to; a module that stands in several places is folded once and stays shared.

    Args:
        model: Any module; it should be in eval mode, whose computation is the one that is kept.
        fuse_bn: Also fuse every norm that :func:`norm_affine` knows into the convolution before it; not behind a layer that is
            cheaper unfolded. A module with a method ``fuse_norms()`` fuses its own.

    Raises:
        RuntimeError: If the model holds layers whose computation depends on more than their weights (``cannot_fold`` says
            why), so that no plain form exists.
    """
    _refuse_what_cannot_fold(model)
    model = _fold(model, {}, in_switched=False)
    if fuse_bn:
        _fuse_norms(model)
    return model


def _refuse_what_cannot_fold(model: nn.Module) -> None:
    stuck = {n: (m, m.cannot_fold) for n, m in find(model, CannotFold) if m.cannot_fold}
    if stuck:
        name, (module, reason) = next(iter(stuck.items()))
        raise RuntimeError(
            f'{len(stuck)} layers have no plain form, the first is {name or "the layer"} ({type(module).__name__}: {reason}), '
            f'all are {list(stuck)}; run the model as it was trained'
        )


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift, (C,) each, that a norm applies in eval mode, None where it is no such map.

    Batch norms with running statistics are, and norms that say so, see :class:`mmext.contracts.IsAffine`.
    """
    if isinstance(norm, _BatchNorm):
        return None if norm.running_mean is None else bn_affine(norm)
    return norm.affine() if isinstance(norm, IsAffine) else None


@torch.no_grad()
def fuse_affine(layer: nn.Conv2d | nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Put a map of the layer's outputs, one scale and shift each, into its weight and bias."""
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.weight, layer.bias = nn.Parameter(weight.to(layer.weight)), nn.Parameter(bias.to(layer.weight))


def _fuse_norms(module: nn.Module) -> None:
    """Fuse as mmcv's ``fuse_conv_bn`` does, but leave the norm behind a layer that keeps generating its kernel."""
    if isinstance(module, FusesNorms):
        module.fuse_norms()
        return
    conv = None
    for name, child in module.named_children():
        if isinstance(child, (_BatchNorm, IsAffine)):
            affine = None if conv is None else norm_affine(child)
            if conv is not None and affine is not None:
                fuse_affine(conv, *affine)
                module._modules[name] = nn.Identity()
            conv = None
        elif isinstance(child, nn.Conv2d):
            conv = None if isinstance(child, GeneratedConv2d) and not child.plain else child
        else:
            _fuse_norms(child)


def _fold(module: nn.Module, done: dict[int, nn.Module], in_switched: bool) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    result = module
    if isinstance(module, Folds) and getattr(module, 'fold_in_deploy', True):
        result = module.fold()
    elif isinstance(module, SwitchesToDeploy) and not in_switched and not type(module).__module__.startswith('mmext.'):
        module.switch_to_deploy()
        in_switched = True
    # The replaced module is kept alive in the table: its id must not be given to another while the walk goes on.
    done[id(module)] = done[id(result)] = result
    done.setdefault(-id(module), module)
    # Not named_children(): it names a layer that stands twice in one parent only once.
    for name, child in result._modules.items():
        if child is not None:
            result._modules[name] = _fold(child, done, in_switched)
    return result


@MODELS.register_module(name='folded')
@shown_by(model=dict(type='mmext.RefConv2d', in_channels=8, out_channels=8, kernel_size=3))
def folded(model: nn.Module | str | dict | list, fuse_bn: bool = False, **model_args: Any) -> nn.Module:
    """Build a component in its folded form, in the configs that ``tools/deploy.py`` writes (ours).

    The weights are those of a fresh model and come from the checkpoint that was written beside the config.

    Example:
        >>> folded(dict(type='mmext.RefConv2d', in_channels=8, out_channels=8, kernel_size=3))
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    built = build_wrapped(model, model_args, 'folded')
    built.eval()  # not chained: the train() of some hosts' backbones returns None
    return fold(built, fuse_bn)


def folds_to_plain(cfg: Any) -> bool:
    """Tell whether ``cfg`` names a convolution of this pack that :func:`fold` replaces by a plain one."""
    cls = resolve(cfg)
    return (
        isinstance(cls, type)
        and issubclass(cls, ExtConv2d)
        and hasattr(cls, 'fold')
        and getattr(cls, 'fold_in_deploy', True)
    )


def resolve(cfg: Any) -> Any:
    """Return the class or function of this pack that ``cfg['type']`` names, any other type as it stands."""
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    return ROOT_MODELS.get(kind) if isinstance(kind, str) and kind.startswith('mmext.') else kind
