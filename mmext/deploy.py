"""Deploy a trained model: fold it, prove that it still computes the same, and find the config that builds the folded one.

The new config is stock where a stock one builds the folded form. What must stay of this pack is named by :func:`leftovers`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmext.contracts import HasDeployedConfig, ServesTesting, optional_state
from mmext.errors import reason
from mmext.export import comparable, example_inputs, max_relative_error, outputs_of
from mmext.fit import load_all
from mmext.folding import fold_and_record
from mmext.fusing import Fusions
from mmext.hosts import build_model, without_pretrained
from mmext.ops.depthwise import takes_detour
from mmext.registry import named, resolve
from mmext.surgery import swap_layers
from mmext.wrapping import settled, unwrapped

__all__ = ['deploy', 'leftovers', 'route', 'without_training_parts']

#: The layer that computes what a plain depthwise one does, many times faster on a CPU, with the same state dict.
ROUTED = 'mmext.DepthwiseConv2d'


def deploy(
    model_cfg: Mapping,
    state_dict: Mapping[str, Tensor],
    inputs: Tensor | Sequence[int],
    fuse_bn: bool = False,
    tolerance: float = 1e-4,
    stock: bool = False,
) -> tuple[nn.Module, nn.Module, dict, float]:
    """Build, load and fold a model, and find the config that builds the folded one.

    Args:
        model_cfg: The ``model`` of a config; its scope must be the default scope.
        state_dict: The trained weights; they must fit without a missing or unexpected key.
        inputs: What both forms are compared on, or a size (H, W) of :func:`example_inputs`.
        fuse_bn: See :func:`fold`.
        tolerance: Largest relative error that counts as equal.
        stock: Leave large depthwise kernels to torch's own layer. By default they become
            :class:`mmext.DepthwiseConv2d`, which computes them many times faster on a CPU and has the same state.

    Returns:
        The trained model, the model built from the new config with the folded weights in it, that config, and the relative
        error between the two.

    Raises:
        RuntimeError: If the weights do not fit, the model does not run or returns nothing to compare, or the folded one does
            not compute the same.
    """
    model_cfg = settled(without_pretrained(named(model_cfg)))
    trained = build_model(model_cfg)
    trained.eval()  # not chained: the train() of some hosts' backbones returns None
    load_all(trained, state_dict)
    inputs = inputs if isinstance(inputs, Tensor) else example_inputs(trained, *inputs)
    reference = _reference(trained, inputs)
    folded, fusions = _fold(trained, fuse_bn, inputs, tolerance)
    weights = folded.state_dict()

    failures = []
    for new_cfg in (_by_component(model_cfg, folded, fusions), _wrapped(model_cfg, fusions)):
        try:
            rebuilt, error = _prove(new_cfg, weights, inputs, reference, tolerance)
        except RuntimeError as failure:
            failures.append(str(failure))
            continue
        if not stock and (routed_cfg := _routed(new_cfg, rebuilt)) != new_cfg:
            new_cfg = routed_cfg
            rebuilt, error = _prove(new_cfg, weights, inputs, reference, tolerance)
        return trained, rebuilt, new_cfg, error
    raise RuntimeError(f'{failures[-1]}; nothing was written')


def _reference(trained: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return what the trained model computes, if that can be compared."""
    name = type(trained).__name__
    try:
        reference = outputs_of(trained, inputs)
    except Exception as error:  # a host's forward raises nearly anything
        raise RuntimeError(
            f"{name} does not run on {tuple(inputs.shape)} with mode='tensor' ({reason(error)}), so that nothing can be "
            'compared; try another size, or fold it with mmext.folding.fold and compare what it predicts'
        ) from error
    compared = [t for t in reference if comparable(t)]
    if not compared:
        raise RuntimeError(
            f"{name} returns no tensors with mode='tensor', so that nothing can be compared; fold it with "
            'mmext.folding.fold and compare what it predicts'
        )
    if bad := sum(bool(t.isnan().any()) for t in compared):
        raise RuntimeError(
            f'the trained model itself returns NaN on the test inputs, in {bad} of its {len(compared)} outputs; deploy an '
            'earlier checkpoint'
        )
    return reference


def _fold(
    trained: nn.Module, fuse_bn: bool, inputs: Tensor, tolerance: float
) -> tuple[nn.Module, list[tuple[str, ...]]]:
    try:
        return fold_and_record(copy.deepcopy(trained), fuse_bn, inputs, tolerance)
    except RuntimeError as failure:
        advice = ''
        if fuse_bn:  # said only where it has been tried
            try:
                fold_and_record(copy.deepcopy(trained), False, inputs, tolerance)
                advice = '. Without fusing norms it is equal: leave --fuse-bn out'
            except RuntimeError:
                pass
        raise RuntimeError(f'{failure}; nothing was written{advice}') from failure


def _prove(
    cfg: Mapping, weights: Mapping[str, Tensor], inputs: Tensor, reference: list[Tensor], tolerance: float
) -> tuple[nn.Module, float]:
    """Return the model that ``cfg`` builds, with the weights in it, and how far its outputs are from the reference."""
    rebuilt = build_model(cfg)
    rebuilt.eval()
    load_all(rebuilt, weights)
    # A layer of this pack also takes a plain kernel and stays what it is.
    if {k: v.shape for k, v in rebuilt.state_dict().items()} != {k: v.shape for k, v in weights.items()}:
        raise RuntimeError(f'the config of {type(rebuilt).__name__} does not build its folded form')
    error = max_relative_error(reference, outputs_of(rebuilt, inputs))
    if not error <= tolerance:
        raise RuntimeError(
            f'the folded model differs from the trained one by {error:.2e} relative on test inputs, more than the '
            f'tolerance {tolerance:.0e}'
        )
    return rebuilt, error


def _wrapped(cfg: Any, fusions: Fusions) -> dict:
    """Return ``cfg`` folded, with the norms that fuse as data; modules that fuse their own need none."""
    pairs = [list(names) for names in fusions]
    fuse_bn = dict(fuse_bn=pairs if any(len(names) > 1 for names in pairs) else True) if pairs else {}
    return dict(type='mmext.folded', model=cfg, **fuse_bn)


def _by_component(model_cfg: Mapping, folded: nn.Module, fusions: Fusions) -> dict:
    """Return the config of the folded model: each component in stock form if that has the folded weights, else wrapped."""
    weights = folded.state_dict()
    ours = {k: v.shape for k, v in weights.items()}
    forms = []
    for form in _stock_forms(model_cfg, folded, fusions):
        try:
            shapes = _shapes(form, weights)
        except Exception:  # what a host's class cannot be built with is no form of it
            continue
        if shapes == ours:
            return form
        forms.append((form, shapes))
    new_cfg = dict(model_cfg)
    for name, component in model_cfg.items():
        if not isinstance(component, (Mapping, list)) or not _part(ours, name):
            continue
        fitting = [form[name] for form, shapes in forms if name in form and _part(shapes, name) == _part(ours, name)]
        if fitting:
            new_cfg[name] = fitting[0]
        elif isinstance(component, list):  # a list of heads stays one: hosts look at its type
            new_cfg[name] = [
                _fitting_item(forms, ours, name, i) or _wrapped(item, _under(fusions, f'{name}.{i}'))
                for i, item in enumerate(component)
            ]
        else:
            new_cfg[name] = _wrapped(component, _under(fusions, name))
    return new_cfg


def _fitting_item(forms: list, ours: Mapping[str, torch.Size], name: str, index: int) -> Any:
    part = _part(ours, f'{name}.{index}')
    return next((form[name][index] for form, shapes in forms if _part(shapes, f'{name}.{index}') == part), None)


def _under(fusions: Fusions, prefix: str) -> list[list[str]]:
    """Return the fusions inside one component, by their names there."""
    inside = [names for names in fusions if all(f'{n}.'.startswith(f'{prefix}.') for n in names)]
    return [[n[len(prefix) + 1 :] for n in names] for names in inside]


def _shapes(cfg: Mapping, weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of the state of the model that ``cfg`` builds, once it has loaded ``weights``."""
    model = build_model(cfg)
    optional = {k: weights[k].shape for k in optional_state(model) if k in weights}
    return {**{k: v.shape for k, v in model.state_dict().items()}, **optional}


def _part(shapes: Mapping[str, torch.Size], name: str) -> dict[str, torch.Size]:
    return {k: v for k, v in shapes.items() if k.startswith(f'{name}.')}


def _stock_forms(model_cfg: Mapping, folded: nn.Module, fusions: Fusions) -> list[dict]:
    """Return candidates, each once: with all norms fused or none (that can depend on the weights), and switched or not."""
    forms: list[dict] = []
    whole = {type(m) for m in folded.modules()}
    for fuse_bn in (True, False) if fusions else (False,):
        for switched in (False, True):
            arguments = {}
            for name, value in model_cfg.items():
                part = getattr(folded, name, None)
                kept = {type(m) for m in part.modules()} if isinstance(part, nn.Module) else whole
                arguments[name] = _stock_argument(name, value, kept, fuse_bn, switched)
            form = _stock_component(arguments, whole, fuse_bn, switched)
            if form not in forms:
                forms.append(form)
    return forms


def _stock_form(cfg: Any, kept: set[type], fuse_bn: bool, switched: bool) -> Any:
    """Return ``cfg`` without the layers of this pack that folding has left none of.

    These are convolutions, as a ``conv_cfg`` or put in by surgery, and what a component says itself, see
    :class:`mmext.contracts.HasDeployedConfig`. A host's component with an argument ``deploy`` is built switched with it.
    """
    if isinstance(cfg, list):
        return [_stock_form(c, kept, fuse_bn, switched) for c in cfg]
    if not isinstance(cfg, Mapping):
        return cfg
    arguments = {k: _stock_argument(k, v, kept, fuse_bn, switched) for k, v in cfg.items()}
    return _stock_component(arguments, kept, fuse_bn, switched)


def _stock_argument(name: str, value: Any, kept: set[type], fuse_bn: bool, switched: bool) -> Any:
    if name in ('conv_cfg', 'dcn') and _folded_away(value, kept):
        return None
    return _stock_form(value, kept, fuse_bn, switched)


def _stock_component(cfg: dict, kept: set[type], fuse_bn: bool, switched: bool) -> Any:
    cls = resolve(cfg)
    if isinstance(cls, HasDeployedConfig):
        return cls.deployed_cfg(cfg, fuse_bn)
    if cfg.get('dcn', 0) is None and 'stage_with_dcn' in cfg:
        cfg['stage_with_dcn'] = (False,) * len(cfg['stage_with_dcn'])
    if cls is swap_layers:
        cfg['rules'] = [rule for rule in cfg['rules'] if 'insert' in rule or not _folded_away(rule['to'], kept)]
        if not cfg['rules']:
            cfg = unwrapped(cfg)
    if switched and _takes_deploy(cfg):
        cfg['deploy'] = True
    return cfg


def _folded_away(cfg: Any, kept: set[type]) -> bool:
    cls = resolve(cfg)
    return isinstance(cls, type) and cls.__module__.startswith('mmext.') and cls not in kept


def _takes_deploy(cfg: Mapping) -> bool:
    kind = cfg.get('type')
    if not isinstance(kind, str):
        return False
    # As building does it: a name without a scope is the default scope's.
    with ROOT_MODELS.switch_scope_and_registry(None) as registry:
        cls = registry.get(kind)
    return inspect.isclass(cls) and 'deploy' in inspect.signature(cls).parameters


def _routed(cfg: dict, model: nn.Module) -> dict:
    """Return ``cfg`` with every large depthwise kernel in the routed layer."""
    new_cfg, seen = dict(cfg), set()
    for name, component in cfg.items():
        part = getattr(model, name, None)
        if isinstance(component, Mapping) and isinstance(part, nn.Module):
            new_cfg[name] = _with_routes(component, part)
        elif isinstance(component, list) and isinstance(part, nn.ModuleList):
            new_cfg[name] = [_with_routes(c, m) for c, m in zip(component, part, strict=True)]
        else:
            continue
        seen |= set(_large(part))
    return new_cfg if seen == set(_large(model)) else _with_routes(cfg, model)


def _with_routes(cfg: Any, part: nn.Module) -> Any:
    rules = _routes(part)
    return dict(type='mmext.swap_layers', model=cfg, rules=rules) if rules else cfg


def _routes(part: nn.Module) -> list[dict[str, Any]]:
    sizes = sorted({m.kernel_size for m in _large(part)})
    return [dict(depthwise=True, kernel_size=k[0] if k[0] == k[1] else list(k), to=dict(type=ROUTED)) for k in sizes]


def route(model: nn.Module) -> nn.Module:
    """Put :class:`mmext.DepthwiseConv2d` where :func:`deploy` does, into a folded model in place, and return it."""
    rules = _routes(model)
    return swap_layers(model, rules) if rules else model


def _large(model: nn.Module) -> list[nn.Conv2d]:
    """Return the plain convolutions that the routed layer computes faster."""
    convs = [m for m in model.modules() if type(m).__name__ == 'Conv2d' and isinstance(m, nn.Conv2d)]
    return [
        m
        for m in convs
        if m.groups == m.in_channels == m.out_channels
        and m.padding_mode == 'zeros'
        and takes_detour(m.weight.shape, m.padding, m.dilation)  # type: ignore[arg-type]
    ]


def leftovers(cfg: Mapping | Config) -> list[str]:
    """Return what of this pack a written config still names, each with its place and the reason."""
    return [f'{place or "model"}: {_reason(part)}' for place, part in _of_this_pack(dict(cfg.items()))]


def _of_this_pack(cfg: Any, place: str = '') -> Iterator[tuple[str, Mapping]]:
    """Go through the outermost parts of a config whose type is of this pack."""
    if isinstance(cfg, Mapping):
        if _is_ours(cfg.get('type')):
            yield place, cfg
            return
        for key, value in cfg.items():
            yield from _of_this_pack(value, f'{place}.{key}'.lstrip('.'))
    elif isinstance(cfg, (list, tuple)):
        for index, value in enumerate(cfg):
            yield from _of_this_pack(value, f'{place}[{index}]')


def _names_this_pack(cfg: Any) -> bool:
    """Tell whether any value in ``cfg`` is of this pack, under whatever key."""
    if isinstance(cfg, Mapping):
        return any(map(_names_this_pack, cfg.values()))
    return any(map(_names_this_pack, cfg)) if isinstance(cfg, (list, tuple)) else _is_ours(cfg)


def _is_ours(kind: Any) -> bool:
    return str(kind if isinstance(kind, str) else getattr(kind, '__module__', '')).startswith('mmext.')


def _reason(part: Mapping) -> str:
    name, inner = str(part['type']), part.get('model')  # type: str, Any
    if name == 'mmext.folded':
        fused = part.get('fuse_bn')
        norms = f'{len(fused)} of its norms are' if isinstance(fused, list) else 'its norms are'
        what = f'{norms} fused' if fused else 'its layers are folded'
        return f'{name}, because {what}, and no argument of {_name_of(inner)} builds it so'
    if name == 'mmext.swap_layers':
        kinds = list(dict.fromkeys(str((rule.get('to') or rule['insert'])['type']) for rule in part['rules']))
        if kinds == [ROUTED]:
            sizes = ', '.join(str(rule.get('kernel_size', 'any')) for rule in part['rules'])
            why = (
                f'{ROUTED} computes depthwise kernels of size {sizes} many times faster on a CPU; --stock leaves it out'
            )
        else:
            why = f'{", ".join(kinds)} has no plain form or costs less than it'
        inside = isinstance(inner, Mapping) and _is_ours(inner['type'])
        return f'{name}, because {why}' + (f'; inside, {_reason(inner)}' if inside else '')
    return f'{name} is a part of this pack'


def _type_of(cfg: Any) -> Any:
    return cfg.get('type') if isinstance(cfg, Mapping) else cfg


def _name_of(cfg: Any) -> str:
    kind = _type_of(cfg)
    return kind if isinstance(kind, str) else getattr(kind, '__name__', 'the list')


def without_training_parts(cfg: Config) -> Config:
    """Return ``cfg`` without what of this pack serves training only: a deployed model is tested with its host alone.

    Its hooks leave, but those that serve tests (:class:`mmext.contracts.ServesTesting`). If the optimizer part names this
    pack, the whole training part leaves, because half of one cannot be run.
    """
    cfg = copy.deepcopy(cfg)
    hooks = cfg.get('custom_hooks') or []
    if any(map(_serves_training, hooks)):
        cfg.custom_hooks = [hook for hook in hooks if not _serves_training(hook)]
    for name, hook in list((cfg.get('default_hooks') or {}).items()):
        if _serves_training(hook):
            cfg.default_hooks.pop(name)
    training = ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader')
    if any(_names_this_pack(cfg.get(key)) for key in training):
        for key in (*training, 'auto_scale_lr'):
            cfg.pop(key, None)
    if imports := cfg.get('custom_imports'):
        names = imports['imports'] if isinstance(imports['imports'], (list, tuple)) else [imports['imports']]
        imports['imports'] = [n for n in names if n.partition('.')[0] != 'mmext']
        if not imports['imports']:
            cfg.pop('custom_imports')
    return cfg


def _serves_training(hook: Any) -> bool:
    kind = _type_of(hook)
    if not _is_ours(kind):
        return False
    cls = HOOKS.get(kind) if isinstance(kind, str) else kind
    return not (isinstance(cls, ServesTesting) and cls.serves_testing)
