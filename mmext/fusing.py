"""Which norms of a model fuse into which layers: found by watching one forward, and kept as data.

Order of registration says nothing about order of computation. A convolution may stand under several norms, and its output
may be read elsewhere. So one real forward is watched: every operation is seen, with the tensors that it reads.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from mmext.contracts import FusesNorms, IsAffine, RunsInserted, find
from mmext.convs.absent import AbsentWeight
from mmext.convs.reparam import bn_affine
from mmext.export import TensorMode, same_draws

__all__ = ['Fusions', 'apply_fusions', 'find_fusions', 'fuse_affine', 'norm_affine', 'open_norms']

#: Names of (layer, norm) for each norm that fuses, and (module,) for a module that fuses its own norms.
Fusions = Sequence[Sequence[str]]


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift, (C,) each, that a norm applies in eval mode, None where it is no such map.

    Batch norms with running statistics are, and norms that say so, see :class:`mmext.contracts.IsAffine`.
    """
    if isinstance(norm, _BatchNorm):
        return None if norm.running_mean is None else bn_affine(norm)
    # Torch's own norms have a flag of that name.
    return norm.affine() if isinstance(norm, IsAffine) and callable(norm.affine) else None


@torch.no_grad()
def fuse_affine(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Put a map of the layer's outputs, one scale and shift each, into its weight and bias."""
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.weight, layer.bias = nn.Parameter(weight.to(layer.weight)), nn.Parameter(bias.to(layer.weight))


@torch.no_grad()
def find_fusions(model: nn.Module, inputs: Tensor | None) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Watch one forward of ``model`` in eval mode and find the norms that fuse.

    A norm fuses into a layer if that layer makes all that the norm reads, if the norm alone reads what the layer makes, if
    nothing else reads the weights of either, and if the layer's output scales with its weight.

    Args:
        model: Any module. It is left as it was.
        inputs: What :class:`mmext.export.TensorMode` runs it on; needed where there are :func:`open_norms`.

    Returns:
        The fusions, see :data:`Fusions`, and why each of the other norms is left, by its name.
    """
    names = {module: name for name, module in reversed([*model.named_modules()])}
    norms = open_norms(model)
    fusions: list[tuple[str, ...]] = [(name,) for name, _ in find(model, FusesNorms)]
    if not norms or inputs is None:
        return fusions, {}
    layers = [m for m in names if _is_layer(m)]
    watch = _Watch(layers, norms)
    watch.run(model, inputs)
    left: dict[str, str] = {}
    for norm in norms:
        layer, reason = watch.layer_before(norm, names)
        if layer is None:
            left[names[norm]] = reason
        else:
            fusions.append((names[layer], names[norm]))
    return fusions, left


def open_norms(model: nn.Module) -> list[nn.Module]:
    """Return the norms that are affine maps in eval mode, but those of modules that fuse their own (``fuse_norms()``)."""
    names = [name for name, _ in find(model, FusesNorms)]
    if '' in names:
        return []
    inside = tuple(f'{name}.' for name in names)
    return [m for n, m in model.named_modules() if norm_affine(m) is not None and not n.startswith(inside)]


@torch.no_grad()
def apply_fusions(model: nn.Module, fusions: Fusions) -> None:
    """Fuse exactly these norms, in place.

    The form of the model depends on ``fusions`` alone and not on its weights, so that a fresh model gets the form of a
    trained one.
    """
    for names in fusions:
        if len(names) == 1:
            model.get_submodule(names[0]).fuse_norms()  # type: ignore[operator]
            continue
        layer, norm = (model.get_submodule(name) for name in names)
        weight = layer.get_parameter('weight')
        affine = norm_affine(norm)
        if affine is None:  # a fresh norm without statistics yet; its weights come from a checkpoint
            affine = weight.new_ones(weight.shape[0]), weight.new_zeros(weight.shape[0])
        fuse_affine(layer, *(t.to(weight) for t in affine))
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = nn.Identity()


def _is_layer(module: nn.Module) -> bool:
    return (
        isinstance(module, (_ConvNd, nn.Linear))
        and not isinstance(module, _ConvTransposeNd)
        and isinstance(weight := getattr(module, 'weight', None), Tensor)
        and not isinstance(weight, AbsentWeight)
        and not isinstance(module, RunsInserted)
    )


class _Watch(TorchDispatchMode):
    """Sees who reads the outputs of layers, and the parameters of layers and norms, during one forward."""

    def __init__(self, layers: Sequence[nn.Module], norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.norms = layers, norms
        self.running: list[nn.Module] = []
        # Weakly, so that no map of the network lives longer than in any other forward.
        self.readers: Any = WeakIdKeyDictionary()
        self.makers: Any = WeakIdKeyDictionary()
        self.readers_of_outputs: dict[nn.Module, set] = defaultdict(set)
        self.readers_of_weights: dict[nn.Module, set] = defaultdict(set)
        self.sources: dict[nn.Module, set] = defaultdict(set)
        self.shapes: dict[nn.Module, torch.Size] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        reader = self.running[-1] if self.running else None
        for value in tree_flatten((args, kwargs))[0]:
            if isinstance(value, Tensor) and value in self.readers:
                for readers in self.readers[value]:
                    readers.add(reader)
        return func(*args, **(kwargs or {}))

    def run(self, model: nn.Module, inputs: Tensor) -> None:
        for module in (*self.layers, *self.norms):
            for tensor in (*module.parameters(), *module.buffers()):
                self.readers.setdefault(tensor, []).append(self.readers_of_weights[module])
        hooks = [m.register_forward_pre_hook(self._enter) for m in (*self.layers, *self.norms)]
        hooks += [m.register_forward_hook(self._leave) for m in (*self.layers, *self.norms)]
        training = {m: m.training for m in model.modules()}
        try:
            model.eval()  # not chained: the train() of some hosts' backbones returns None
            function = TensorMode(model, inputs)
            with same_draws(inputs), self:
                outputs = function(inputs)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in training.items():
                module.training = mode
        for out in outputs:
            if out in self.makers:
                self.readers_of_outputs[self.makers[out]].add(model)

    def _enter(self, module: nn.Module, args: tuple) -> None:
        self.running.append(module)
        x = args[0] if args else None
        if module in self.norms:
            self.sources[module].add(self.makers.get(x) if isinstance(x, Tensor) else None)
        elif isinstance(x, Tensor):
            self.shapes[module] = x.shape

    def _leave(self, module: nn.Module, args: tuple, out: Any) -> None:
        self.running.pop()
        if module in self.layers and isinstance(out, Tensor):
            self.makers[out] = module
            self.readers.setdefault(out, []).append(self.readers_of_outputs[module])

    def layer_before(self, norm: nn.Module, names: dict[nn.Module, str]) -> tuple[nn.Module | None, str]:
        """Return the layer that ``norm`` fuses into, or None and the reason."""
        sources = self.sources.get(norm)
        if sources is None:
            return None, 'the forward does not call it'
        layer = next(iter(sources))
        if len(sources) > 1 or layer is None:
            return None, 'what it normalizes is not the output of one convolution or linear layer'
        name = names[layer]
        if self.readers_of_outputs[layer] != {norm}:
            return None, f'it does not read the output of {name} alone'
        if self.readers_of_weights[layer] != {layer} or self.readers_of_weights[norm] - {norm}:
            return None, f'its weights, or those of {name}, are used elsewhere too'
        if layer not in self.shapes or not _scales(layer, self.shapes[layer]):
            return None, f'the output of {name} ({type(layer).__name__}) does not scale with its weight'
        return layer, ''


def _scales(layer: nn.Module, shape: torch.Size) -> bool:
    """Tell whether scaling weight and bias, channel by channel, does the same to the outputs on noise."""
    generator = torch.Generator('cpu').manual_seed(0)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    x = torch.randn(1, *shape[1:], generator=generator).to(weight)
    scale, shift = torch.randn(2, weight.shape[0], generator=generator).to(weight)
    scaled = copy.deepcopy(layer)
    try:
        y = layer(x)
        fuse_affine(scaled, scale, shift)
        z = scaled(x)
    except Exception:  # a layer that guards its weight, or computes it, does so by any error
        return False
    if isinstance(layer, _ConvNd):
        scale, shift = (t.view(-1, *[1] * (y.ndim - 2)) for t in (scale, shift))
    expected = y * scale + shift
    return bool((z - expected).norm() <= torch.finfo(weight.dtype).eps ** 0.5 * expected.norm())
