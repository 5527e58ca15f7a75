"""Deploy a trained model: fold it, prove that it still computes the same, and find the config that builds the folded one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.checkpoints import load_all
from mmext.contracts import HasDeployedConfig, optional_state
from mmext.export import comparable, example_inputs, max_relative_error, outputs_of
from mmext.folding import fold, folds_to_plain, resolve
from mmext.surgery import swap_layers, unwrapped

__all__ = ['deploy']


def deploy(
    model_cfg: Mapping,
    state_dict: Mapping[str, Tensor],
    inputs: Tensor | Sequence[int],
    fuse_bn: bool = False,
    tolerance: float = 1e-4,
) -> tuple[nn.Module, nn.Module, dict, float]:
    """Build, load and fold a model, and find the config that builds the folded one.

    Args:
        model_cfg: The ``model`` of a config; its scope must be the default scope.
        state_dict: The trained weights; they must fit without a missing or unexpected key.
        inputs: What both forms are compared on, or a size (H, W) of :func:`example_inputs`.
        fuse_bn: See :func:`fold`.
        tolerance: Largest relative error that counts as equal.

    Returns:
        The trained model, the model built from the new config with the folded weights in it, that config, and the relative
        error between the two.

    Raises:
        RuntimeError: If the weights do not fit, the model returns nothing to compare, or the folded one does not compute the
            same.
    """
    model_cfg = _without_pretrained(model_cfg)
    trained = _build(model_cfg).eval()
    load_all(trained, state_dict)
    inputs = inputs if isinstance(inputs, Tensor) else example_inputs(trained, *inputs)
    reference = outputs_of(trained, inputs)
    if not any(map(comparable, reference)):
        raise RuntimeError(
            f"{type(trained).__name__} returns no tensors with mode='tensor', so that nothing can be compared; fold it with "
            'mmext.deploy.fold and compare what it predicts'
        )
    weights = fold(copy.deepcopy(trained), fuse_bn).state_dict()

    failures = []
    for new_cfg in (_by_component(model_cfg, weights, fuse_bn), _wrapped(model_cfg, fuse_bn)):
        rebuilt = _build(new_cfg).eval()
        try:
            load_all(rebuilt, weights)
        except RuntimeError as misfit:
            failures.append(str(misfit))
            continue
        error = max_relative_error(reference, outputs_of(rebuilt, inputs))
        if error <= tolerance:
            return trained, rebuilt, new_cfg, error
        failures.append(
            f'the folded model differs from the trained one by {error:.2e} relative on test inputs, more than the '
            f'tolerance {tolerance:.0e}'
        )
    raise RuntimeError(
        f'{failures[-1]}; nothing was written. If a batch norm does not follow its convolution, fold without fuse_bn; if the '
        'model computes in half precision, raise the tolerance'
    )


def _build(cfg: Mapping) -> nn.Module:
    # The hosts read settings as attributes (train_cfg.rpn), which a plain dict does not have.
    return ROOT_MODELS.build(ConfigDict(copy.deepcopy(cfg)))


def _wrapped(cfg: Any, fuse_bn: bool) -> dict:
    return dict(type='mmext.folded', model=cfg, **(dict(fuse_bn=True) if fuse_bn else {}))


def _by_component(model_cfg: Mapping, weights: Mapping[str, Tensor], fuse_bn: bool) -> dict:
    """Return the config of the folded model: each component in stock form if that has the folded weights, else wrapped.

    Which norms were fused can depend on the weights, so that the stock form with all norms is tried as well.
    """
    stock, unfused = _stock_form(model_cfg, fuse_bn), _stock_form(model_cfg, False)
    forms = [(form, _shapes(form, weights)) for form in ([stock] if stock == unfused else [stock, unfused])]
    ours = {k: v.shape for k, v in weights.items()}
    for form, shapes in forms:
        if shapes == ours:
            return form
    new_cfg = dict(stock)
    for name, component in model_cfg.items():
        part = _part(ours, name)
        if part and isinstance(component, (Mapping, list)):
            fitting = (form[name] for form, shapes in forms if name in form and _part(shapes, name) == part)
            new_cfg[name] = next(fitting, _wrapped(component, fuse_bn))
    return new_cfg


def _shapes(cfg: Mapping, weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of the state of the model that ``cfg`` builds, once it has loaded ``weights``."""
    model = _build(cfg)
    optional = {k: weights[k].shape for k in optional_state(model) if k in weights}
    return {**{k: v.shape for k, v in model.state_dict().items()}, **optional}


def _part(shapes: Mapping[str, torch.Size], name: str) -> dict[str, torch.Size]:
    return {k: v for k, v in shapes.items() if k.startswith(f'{name}.')}


def _stock_form(cfg: Any, fuse_bn: bool) -> Any:
    """Return ``cfg`` without layers that fold to plain ones.

    These are convolutions, as a ``conv_cfg`` or put in by surgery, and what a component says itself: its class may define
    ``deployed_cfg(cfg, fuse_bn)``, which returns the config of what folding makes of it.
    """
    if isinstance(cfg, list):
        return [_stock_form(c, fuse_bn) for c in cfg]
    if not isinstance(cfg, Mapping):
        return cfg
    cfg = {
        k: None if k in ('conv_cfg', 'dcn') and folds_to_plain(v) else _stock_form(v, fuse_bn) for k, v in cfg.items()
    }
    cls = resolve(cfg)
    if isinstance(cls, HasDeployedConfig):
        return cls.deployed_cfg(cfg, fuse_bn)
    if cfg.get('dcn', 0) is None and 'stage_with_dcn' in cfg:
        cfg['stage_with_dcn'] = (False,) * len(cfg['stage_with_dcn'])
    if cls is swap_layers:
        cfg['rules'] = [rule for rule in cfg['rules'] if not folds_to_plain(rule['to'])]
        if not cfg['rules']:
            return unwrapped(cfg)
    return cfg


def _without_pretrained(cfg: Any) -> Any:
    """Return ``cfg`` without weights to be loaded at construction: the checkpoint holds them all."""
    if isinstance(cfg, list):
        return [_without_pretrained(c) for c in cfg]
    if not isinstance(cfg, Mapping):
        return cfg
    return {
        k: _without_pretrained(v)
        for k, v in cfg.items()
        if not (k == 'init_cfg' and isinstance(v, Mapping) and v.get('type') == 'Pretrained') and k != 'pretrained'
    }
