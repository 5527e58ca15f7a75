"""Fold a model: replace every layer that has a plain form by it, and fuse norms.

A layer that folds has a method ``fold()`` that returns its plain replacement. :func:`fold` applies it to a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext.arguments import Cfg, checked, some
from mmext.contracts import CannotFold, Folds, SwitchesToDeploy, find, shown_by
from mmext.convs.base import ExtConv2d
from mmext.errors import reason
from mmext.export import example_inputs, max_relative_error, outputs_of, rounding_tolerance
from mmext.fusing import Fusions, apply_fusions, find_fusions, open_norms
from mmext.registry import MODELS, resolve
from mmext.wrapping import build_wrapped, wraps_model

__all__ = ['fold', 'fold_and_record', 'folded', 'folds_to_plain']


def fold(
    model: nn.Module,
    fuse_bn: bool | Fusions = False,
    inputs: Tensor | None = None,
    tolerance: float | None = None,
) -> nn.Module:
    """Fold everything in ``model`` that folds, in place, and return it (or its replacement, if it is a layer itself).

    Layers with ``fold()`` are replaced by what it returns, the outermost first. A host's module with ``switch_to_deploy()``
    is told to, after the layers inside it have folded. A module that stands in several places is folded once and stays shared.

    With ``inputs`` the function proves that the model computes the same before and after. It needs them for ``fuse_bn`` and
    for a host's switch, and makes images of noise for these where none are given.

    Args:
        model: Any module. Its computation in eval mode is the one that is kept.
        fuse_bn: Also fuse norms into the layers before them, see :func:`mmext.fusing.find_fusions`. What does not fuse is
            left, and a line is logged that says why. A list of fusions is applied as it is, without a forward.
        inputs: What to run the model on, (N, C, H, W).
        tolerance: Largest relative error that counts as equal; 1e-4 by default, more for a model in half precision.

    Raises:
        RuntimeError: If the model holds layers whose computation depends on more than their weights (``cannot_fold`` says
            why), so that no plain form exists; if the folded model does not compute the same; or if ``fuse_bn`` needs inputs
            and the model does not run on images of noise.
    """
    return fold_and_record(model, fuse_bn, inputs, tolerance)[0]


def fold_and_record(
    model: nn.Module, fuse_bn: bool | Fusions, inputs: Tensor | None = None, tolerance: float | None = None
) -> tuple[nn.Module, list[tuple[str, ...]]]:
    """Fold as :func:`fold` does, and return the model and the fusions that were made."""
    _refuse_what_cannot_fold(model)
    given = not isinstance(fuse_bn, bool)
    refusal, reference = '', None
    if inputs is None and not given and (fuse_bn or any(map(_host_switch, model.modules()))):
        inputs = example_inputs(model, 64, 64)
        try:
            reference = _in_eval_mode(model, inputs)
        except Exception as error:  # a host's forward raises nearly anything
            refusal, inputs = f'{reason(error)} on {tuple(inputs.shape)}', None
    elif inputs is not None:
        reference = _in_eval_mode(model, inputs)
    model = _Folder().fold(model)
    fusions = [tuple(names) for names in fuse_bn] if given else []  # type: ignore[union-attr]
    if fuse_bn is True:
        if inputs is None and open_norms(model):
            raise RuntimeError(
                f'which norms fuse is seen in a forward, and that of {type(model).__name__} failed ({refusal}); pass inputs= '
                'that it takes'
            )
        fusions, left = find_fusions(model, inputs)
        _log_left(left)
    apply_fusions(model, fusions)
    if reference is not None and inputs is not None:
        distance = max_relative_error(reference, _in_eval_mode(model, inputs))
        tolerance = rounding_tolerance(model) if tolerance is None else tolerance
        if not distance <= tolerance:
            raise RuntimeError(
                f'the folded model differs from the trained one by {distance:.2e} relative on test inputs, more than the '
                f'tolerance {tolerance:.0e}'
            )
    return model, fusions


def _refuse_what_cannot_fold(model: nn.Module) -> None:
    stuck = {n: (m, m.cannot_fold) for n, m in find(model, CannotFold) if m.cannot_fold}
    if stuck:
        name, (module, reason) = next(iter(stuck.items()))
        raise RuntimeError(
            f'{len(stuck)} layers have no plain form, the first is {name or "the layer"} ({type(module).__name__}: {reason}), '
            f'all are {list(stuck)}; run the model as it was trained'
        )


def _in_eval_mode(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()  # not chained: the train() of some hosts' backbones returns None
        return outputs_of(model, inputs)
    finally:
        for module, mode in training.items():
            module.training = mode


def _log_left(left: Mapping[str, str]) -> None:
    for why in dict.fromkeys(left.values()):
        names = [n for n, w in left.items() if w == why]
        print_log(f'norms left as they are: {", ".join(names)} ({why})', 'current')


def _host_switch(module: nn.Module) -> Any:
    """Return a host's ``switch_to_deploy``; this pack's own, which call :func:`fold`, do not count."""
    switch = type(module).switch_to_deploy if isinstance(module, SwitchesToDeploy) else None
    return None if switch is None or switch.__module__.startswith('mmext.') else switch


class _Folder:
    """One walk over a model: what is folded already, and what stands in the way of a host's switch."""

    def __init__(self) -> None:
        self.done: dict[nn.Module, nn.Module] = {}
        self.new_biases: list[nn.Module] = []
        self.unfolded: list[str] = []

    def fold(self, module: nn.Module, in_host: bool = False) -> nn.Module:
        if module in self.done:
            return self.done[module]
        result = self._replacement(module, in_host)
        self.done[module] = self.done[result] = result
        switch = None if in_host else _host_switch(result)
        # Not named_children(): it names a layer that stands twice in one parent only once.
        for name, child in result._modules.items():
            if child is not None:
                result._modules[name] = self.fold(child, in_host or switch is not None)
        if switch is not None:
            self._switch(result)
        return result

    def _replacement(self, module: nn.Module, in_host: bool) -> nn.Module:
        if not isinstance(module, Folds):
            return module
        if getattr(module, 'fold_in_deploy', True) or getattr(module, 'plain', False):
            result = module.fold()
        elif not in_host:
            return module
        else:  # a host's switch takes ``weight`` for the kernel, so that inside of one the plain form is needed
            try:
                result = module.fold()
            except ValueError as refusal:
                self.unfolded.append(reason(refusal))
                return module
        if in_host and getattr(result, 'bias', None) is not None and getattr(module, 'bias', None) is None:
            self.new_biases.append(result)
        return result

    def _switch(self, host: nn.Module) -> None:
        """Switch a host's module whose layers have folded; leave it where that cannot be right."""
        self._move_biases(host)
        reasons = self.unfolded + [f'{type(m).__name__} with a bias' for m in self.new_biases]
        self.unfolded, self.new_biases = [], []
        slots = [m for m in host.modules() if folds_to_plain(getattr(m, 'conv_cfg', None))]
        try:
            if not reasons:
                for module in slots:  # what the host builds for its merged kernel must be a plain layer
                    module.conv_cfg = None  # type: ignore[assignment]
                host.switch_to_deploy()  # type: ignore[operator]
        except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reasons.append(reason(error))
        if reasons:
            print_log(
                f'{type(host).__name__} keeps its branches, its own switch cannot merge them: {reasons[0]}', 'current'
            )

    def _move_biases(self, host: nn.Module) -> None:
        """Move biases that folding made into the means of the norms behind: hosts merge kernels without a bias."""
        for sequence in (m for m in host.modules() if isinstance(m, nn.Sequential)):
            for layer, norm in pairwise(sequence):
                if layer in self.new_biases and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                    norm.running_mean -= layer.bias.detach()  # type: ignore[operator]
                    layer.bias = None  # type: ignore[assignment]
                    self.new_biases.remove(layer)


@MODELS.register_module(name='folded')
@wraps_model('fuse_bn')
@shown_by(model=dict(type='mmext.RefConv2d', in_channels=8, out_channels=8, kernel_size=3))
@checked
def folded(
    model: nn.Module | str | Cfg | Annotated[list[Cfg], some], fuse_bn: bool | Fusions = False, **model_args: Any
) -> nn.Module:
    """Build a component in its folded form, in the configs that ``tools/deploy.py`` writes (ours).

    The weights are those of a fresh model and come from the checkpoint that was written beside the config.

    Args:
        model: Config or type name of the component; with a type name, ``model_args`` are its arguments.
        fuse_bn: The fusions of the deployed model, pairs of a layer's and a norm's name. They are data, so that the form does
            not depend on a forward. True finds them by one, on images of noise.
        **model_args: Arguments of the component.

    Example:
        >>> folded(dict(type='mmext.RefConv2d', in_channels=8, out_channels=8, kernel_size=3))
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    built = build_wrapped(model, model_args, 'folded')
    built.eval()  # not chained: the train() of some hosts' backbones returns None
    # A list takes the way without a forward: a fresh model is not compared with itself.
    return fold(built, fuse_bn or [])


def folds_to_plain(cfg: Any) -> bool:
    """Tell whether ``cfg`` names a convolution of this pack that :func:`fold` replaces by a plain one."""
    cls = resolve(cfg)
    return (
        isinstance(cls, type)
        and issubclass(cls, ExtConv2d)
        and hasattr(cls, 'fold')
        and getattr(cls, 'fold_in_deploy', True)
    )
