"""Fold a trained model into its deployment form and prove that it still computes the same.

A layer that folds has a method ``fold()`` that returns its plain replacement; :func:`fold` applies it to a whole model.
:func:`deploy` folds a model built from a config, compares outputs, and finds the config that builds the folded model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.convs.base import ExtConv2d
from mmext.convs.generated import GeneratedConv2d
from mmext.convs.reparam import bn_affine
from mmext.norms.position_norm import PositionNorm, frozen_names
from mmext.registry import MODELS
from mmext.surgery import build_wrapped, swap_layers, unwrapped

__all__ = [
    'TensorMode',
    'deploy',
    'example_inputs',
    'export_onnx',
    'fold',
    'folded',
    'folds_to_plain',
    'fuse_affine',
    'load_all',
    'max_relative_error',
    'norm_affine',
    'outputs_of',
]


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
    stuck = {n: (m, reason) for n, m in model.named_modules() if (reason := getattr(m, 'cannot_fold', None))}
    if stuck:
        name, (module, reason) = next(iter(stuck.items()))
        raise RuntimeError(
            f'{len(stuck)} layers have no plain form, the first is {name or "the layer"} ({type(module).__name__}: {reason}), '
            f'all are {list(stuck)}; run the model as it was trained'
        )


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift, (C,) each, that a norm applies in eval mode, None where it is no such map.

    Batch norms with running statistics are, and norms over positions that say so, see
    :meth:`mmext.norms.PositionNorm.affine`.
    """
    if isinstance(norm, _BatchNorm):
        return None if norm.running_mean is None else bn_affine(norm)
    return norm.affine() if isinstance(norm, PositionNorm) else None


@torch.no_grad()
def fuse_affine(layer: nn.Conv2d | nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Put a map of the layer's outputs, one scale and shift each, into its weight and bias."""
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.weight, layer.bias = nn.Parameter(weight.to(layer.weight)), nn.Parameter(bias.to(layer.weight))


def _fuse_norms(module: nn.Module) -> None:
    """Fuse as mmcv's ``fuse_conv_bn`` does, but leave the norm behind a layer that keeps generating its kernel."""
    own = getattr(module, 'fuse_norms', None)
    if callable(own):
        own()
        return
    conv = None
    for name, child in module.named_children():
        if isinstance(child, (_BatchNorm, PositionNorm)):
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
    folding, switch = getattr(module, 'fold', None), getattr(module, 'switch_to_deploy', None)
    if callable(folding) and getattr(module, 'fold_in_deploy', True):
        result = folding()
    elif callable(switch) and not in_switched and not type(module).__module__.startswith('mmext.'):
        switch()
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
def folded(model: nn.Module | str | dict | list, fuse_bn: bool = False, **model_args: Any) -> nn.Module:
    """Build a component in its folded form; the config that ``tools/deploy.py`` writes uses it where it must.

    The weights are those of a fresh model and come from the checkpoint that was written beside the config.
    """
    built = build_wrapped(model, model_args, 'folded')
    built.eval()  # not chained: the train() of some hosts' backbones returns None
    return fold(built, fuse_bn)


class TensorMode(nn.Module):
    """A host's model, or a bare component, as a function from images to a tuple of tensors, without post-processing.

    This is what is compared before and after folding, and what exporters and compilers take.

    Args:
        model: The model, of any host, or one over coordinates.
        inputs: Images, (N, 3, H, W), whose number and size all later calls have, or what :func:`example_inputs` gives.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        from mmengine.model import BaseModel
        from mmengine.structures import BaseDataElement

        self.model = model
        self.whole = isinstance(model, BaseModel)
        # Any, because a bare component need have neither.
        rpn_head: Any = getattr(model, 'rpn_head', None)
        self.two_stages = self.whole and hasattr(rpn_head, 'prior_generator') and hasattr(model, 'roi_head')
        size = tuple(inputs.shape[2:])
        # Two-stage detectors and DETRs ask the samples for the size of their image.
        sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        self.samples = [BaseDataElement(metainfo=dict(sizes, scale_factor=(1.0, 1.0))) for _ in inputs]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return all tensors that come out of the model, in their order."""
        if not self.whole:
            out = self.model(inputs)
        elif self.two_stages:
            out = _two_stages(self.model, inputs, self.samples)
        else:
            out = self.model(inputs, self.samples, mode='tensor')
        return tuple(_tensors(out))


def example_inputs(model: nn.Module, height: int, width: int) -> Tensor:
    """Return inputs to try ``model`` out on: what its own ``example_inputs(height, width)`` gives, else two images of noise.

    A model over coordinates has that method, see :class:`mmext.SignalModel`.
    """
    if _takes_coordinates(model):
        return model.example_inputs(height, width)  # type: ignore[operator]
    return torch.randn(2, 3, height, width, generator=torch.Generator('cpu').manual_seed(0))


def _takes_coordinates(model: nn.Module) -> bool:
    return callable(getattr(model, 'example_inputs', None))


def outputs_of(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run a host's model, or a bare component, without post-processing, and return all tensors that come out."""
    with torch.no_grad():
        return list(TensorMode(model, inputs)(inputs))


def export_onnx(model: nn.Module, inputs: Tensor, path: str | PathLike) -> float:
    """Write the tensor mode of a folded model as ONNX and run it with onnxruntime on the CPU.

    Args:
        model: A model in eval mode.
        inputs: Images, (N, 3, H, W); the file is for this size, and any N where the model allows it. For a model over
            coordinates what :func:`example_inputs` gives, (1, H, W, d); the file is for any H and W.
        path: File to write.

    Returns:
        The relative error of onnxruntime's outputs against the model's own, see :func:`max_relative_error`.

    Raises:
        RuntimeError: If onnx or onnxruntime is not installed, or the model computes with complex numbers.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f'the ONNX export needs onnx and onnxruntime ({error}); pip install onnx onnxruntime'
        ) from error
    function = TensorMode(model, inputs).eval()
    expected = outputs_of(model, inputs)
    if any(t.is_complex() for t in (*model.parameters(), *expected)):
        raise RuntimeError(f'ONNX has no complex numbers, and {type(model).__name__} computes with them')
    name, axes = ('coords', {1: 'height', 2: 'width'}) if _takes_coordinates(model) else ('images', {0: 'batch'})
    # The exporter by tracing is in every supported torch; newer ones must be told so, older ones do not know the word.
    by_tracing: dict[str, Any] = (
        dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    )
    torch.onnx.export(
        function,
        (inputs,),
        str(path),
        input_names=[name],
        dynamic_axes={name: axes},
        opset_version=17,
        **by_tracing,
    )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    outputs = [torch.from_numpy(o) for o in session.run(None, {name: inputs.numpy()})]
    return max_relative_error(expected, outputs)


def _two_stages(model: Any, inputs: Tensor, samples: list) -> tuple:
    """Run the second stage on given boxes: a rounding error can change which proposals the first one's NMS keeps."""
    from mmengine.structures import InstanceData

    height, width = inputs.shape[2:]
    corners = inputs.new_tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.2, 0.3, 0.9, 0.7], [0.4, 0.1, 0.6, 0.8]])
    boxes = corners * inputs.new_tensor([width, height, width, height])
    features = model.extract_feat(inputs)
    proposals = [InstanceData(bboxes=boxes) for _ in samples]
    return model.rpn_head(features), model.roi_head.forward(features, proposals, samples)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, (list, tuple)):
        for value in out:
            yield from _tensors(value)


def max_relative_error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest over all tensors of max|reference - other| / max|reference|; inf if they do not correspond."""
    if [t.shape for t in reference] != [t.shape for t in other]:
        return float('inf')
    errors = [
        float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny))
        for a, b in zip(reference, other, strict=True)
        if _comparable(a)
    ]
    return float('inf') if any(e != e for e in errors) else max(errors, default=0.0)


def _comparable(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 0


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
    if not any(map(_comparable, reference)):
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


def load_all(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that must fit without a missing or unexpected key.

    Raises:
        RuntimeError: If they do not; in one sentence.
    """
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as misfit:
        # The first line names the class, each of the others a tensor.
        lines = str(misfit).splitlines()[1:] or [str(misfit)]
        raise RuntimeError(
            f'the checkpoint does not fit the model: {lines[0].strip().rstrip(".")}, and {len(lines) - 1} more like it; pass '
            'the config that it was trained with'
        ) from misfit
    if missing or unexpected:
        raise RuntimeError(
            f'the checkpoint does not fit the model: {len(missing)} keys are missing ({missing[:3]} ...) and '
            f'{len(unexpected)} unexpected ({unexpected[:3]} ...); pass the config that it was trained with'
        )


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
    # A fresh norm has no frozen statistics, and takes those that are saved.
    frozen = {k: weights[k].shape for k in frozen_names(model) if k in weights}
    return {**{k: v.shape for k, v in model.state_dict().items()}, **frozen}


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
    cls = _resolve(cfg)
    if hasattr(cls, 'deployed_cfg'):
        return cls.deployed_cfg(cfg, fuse_bn)
    if cfg.get('dcn', 0) is None and 'stage_with_dcn' in cfg:
        cfg['stage_with_dcn'] = (False,) * len(cfg['stage_with_dcn'])
    if cls is swap_layers:
        cfg['rules'] = [rule for rule in cfg['rules'] if not folds_to_plain(rule['to'])]
        if not cfg['rules']:
            return unwrapped(cfg)
    return cfg


def folds_to_plain(cfg: Any) -> bool:
    """Tell whether ``cfg`` names a convolution of this pack that :func:`fold` replaces by a plain one."""
    cls = _resolve(cfg)
    return (
        isinstance(cls, type)
        and issubclass(cls, ExtConv2d)
        and hasattr(cls, 'fold')
        and getattr(cls, 'fold_in_deploy', True)
    )


def _resolve(cfg: Any) -> Any:
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    return ROOT_MODELS.get(kind) if isinstance(kind, str) and kind.startswith('mmext.') else kind


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
