"""Compare a checkpoint with what it is loaded into, by the intent: to test and deploy, to go on, or to start from it.

*Whole* (test, deploy): the file says every tensor of the model. *Go on* (resume): model, optimizer and schedules agree by name
and shape. *Start* (``load_from``, ``Pretrained``): what fits is loaded, and one line says what did not. In every one of them
values that are not finite, or of another kind of number, are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmext.checkpoints import state_dict_of, unwrap
from mmext.contracts import FitsWhole, StartsFromKernel, find, optional_state
from mmext.errors import CheckpointError
from mmext.resume import wrappers_of

__all__ = ['Fit', 'check_resumable', 'check_start', 'check_whole', 'compare', 'load_all']

#: Entries of an optimizer's state that have the shape of their parameter, in torch's optimizers.
LIKE_PARAMETER = {'momentum_buffer', 'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'square_avg', 'grad_avg', 'acc_delta'}
LIKE_PARAMETER |= {'sum', 'prev', 'step_size', 'exp_inf'}
#: Options that came with later versions of torch, or that do not change what is computed.
OPTIONAL = {'foreach', 'maximize', 'capturable', 'differentiable', 'fused', 'decoupled_weight_decay'}


@dataclass
class Fit:
    """Names of tensors, by what becomes of them.

    Attributes:
        loaded: In the model as saved.
        missing: The model's, and not saved.
        unexpected: Saved, and not the model's.
        shapes: Saved in another shape.
        new: Not saved, and expected so: a head for other classes, and what a layer learns beside a plain kernel.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    new: list[str]

    def text(self) -> str:
        """Count and name what does not fit."""
        return f'{_named(self.missing)} missing, {_named(self.unexpected)} unexpected, {_named(self.shapes)} of another shape'


def check_start(saved: Mapping[str, Tensor], model: nn.Module, what: str, logger: logging.Logger) -> None:
    """Log one line about weights that a training starts from, as a warning if anything does not fit.

    What is expected to be new is told apart: a layer of a head for another number of classes, and what a layer that takes a
    plain kernel learns beside it.

    Raises:
        CheckpointError: If nothing fits, or a model that says of itself ``fits_whole`` is fitted in part, or a value is not
            finite or another kind of number, or unfolded kernels meet plain layers.
    """
    fit = compare(saved, model, what)
    if isinstance(model, FitsWhole) and model.fits_whole and (fit.missing or fit.unexpected or fit.shapes):
        raise _in_part(fit, model, what)
    logger.log(
        logging.WARNING if fit.missing or fit.unexpected or fit.shapes else logging.INFO,
        f'{what}: {len(fit.loaded)} tensors loaded, {fit.text()}'
        + (f'; {_named(fit.new)} new, as expected' if fit.new else ''),
    )


def check_whole(saved: Mapping[str, Tensor], model: nn.Module, what: str, logger: logging.Logger) -> None:
    """Log one line about weights that are tested; what the file has beside the model's is only counted.

    Raises:
        CheckpointError: If the file does not say every tensor of the model, exactly, or holds a weight or bias of a layer that
            the model's layer lacks.
    """
    fit = compare(saved, model, what)
    own = model.state_dict()
    layers = {k.rpartition('.')[0] for k in fit.loaded}
    extra = [k for k in fit.unexpected if k.rpartition('.')[0] in layers and k.rpartition('.')[2] in ('weight', 'bias')]
    if isinstance(model, FitsWhole) and model.fits_whole:
        extra = fit.unexpected
    fit.missing += fit.new
    if fit.missing or fit.shapes or extra:
        fit.missing = [k for k in fit.missing if k not in fit.shapes]
        raise _in_part(fit, model, what)
    lossy = [k for k in fit.loaded if k in own and torch.promote_types(saved[k].dtype, own[k].dtype) != own[k].dtype]
    if lossy and (lossy := [k for k in lossy if saved[k].is_floating_point() or saved[k].is_complex()]):
        key = lossy[0]
        raise CheckpointError(
            f'{what}: {key} is {saved[key].dtype} (and {len(lossy) - 1} more), which the {own[key].dtype} of the model cannot '
            'hold exactly; convert the file, or the model'
        )
    logger.info(f'{what}: {len(fit.loaded)} tensors loaded, {fit.text()}')


def check_resumable(checkpoint: Mapping[str, Any], runner: Any) -> None:
    """Refuse to go on from what does not belong to this run.

    Raises:
        CheckpointError: If content is missing or damaged, or the model's tensors, the optimizer's parameters or the schedules
            are others than those of ``runner``.
    """
    saved = state_dict_of(dict(checkpoint))
    schedules = _schedules(getattr(runner, 'param_schedulers', None))
    wanted = ['meta', 'message_hub', 'optimizer', *(['param_schedulers'] if schedules else [])]
    lacking = [key for key in wanted if key not in checkpoint]
    if lacking:
        raise CheckpointError(
            f'cannot resume from a checkpoint without {" and ".join(lacking)} (weights only, as a published or '
            'deployed model has); start from it instead: --cfg-options load_from=PATH, without --resume'
        )
    _check_content(checkpoint)
    model = unwrap(runner.model)
    fit = compare(saved, model, 'checkpoint')
    fit.missing += fit.new
    if fit.missing or fit.unexpected or fit.shapes:
        fit.missing = [k for k in fit.missing if k not in fit.shapes]
        raise CheckpointError(
            f'cannot resume: the checkpoint fits {type(model).__name__} in part only: {fit.text()}; go on with the config '
            'that it was trained with, or start from it: --cfg-options load_from=PATH, without --resume'
        )
    ema = checkpoint.get('ema_state_dict')
    if isinstance(ema, Mapping):
        _check_values({k: v for k, v in ema.items() if isinstance(v, Tensor)}, {}, 'checkpoint, ema_state_dict')
    names = {id(p): name for name, p in model.named_parameters()}
    for key, wrapper in wrappers_of(runner.optim_wrapper).items():
        _check_optimizer(checkpoint, key, wrapper.optimizer, names)
    _check_schedules(_schedules(checkpoint.get('param_schedulers')), schedules)


def load_all(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that must fit without a missing or unexpected key.

    Raises:
        RuntimeError: If they do not, or a value is not finite or another kind of number; in one sentence.
    """
    try:
        _check_values(state_dict, model.state_dict(), 'the checkpoint')
    except CheckpointError as refusal:
        raise RuntimeError(str(refusal)) from refusal
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


def compare(saved: Mapping[str, Tensor], model: nn.Module, what: str) -> Fit:
    """Tell what becomes of each tensor of ``saved`` when ``model`` loads it; ``what`` names the file in errors.

    Raises:
        CheckpointError: If nothing fits, a value is not finite or another kind of number, or unfolded kernels meet plain
            layers.
    """
    own = dict(model.state_dict())
    _refuse_unfolded(saved, own)
    _check_values(saved, own, what)
    # Layers that keep no kernel and yet start from a plain one: they take it, and their own keys are not missed.
    starters = {f'{n}.': m for n, m in find(model, StartsFromKernel) if m.loads_kernel and f'{n}.weight' in saved}
    takers = {p for p in starters if not any(k in saved for k in own if k.startswith(p) and k != f'{p}bias')}
    own = {k: v for k, v in own.items() if not any(k.startswith(p) and k != f'{p}bias' for p in takers)}
    own |= {f'{p}weight': saved[f'{p}weight'] for p in takers}
    own |= {f'{p}bias': saved[f'{p}bias'] for p in takers if starters[p].loads_bias and f'{p}bias' in saved}
    own |= {k: saved[k] for k in optional_state(model) if k in saved}
    fit = Fit(
        loaded=[k for k in own if k in saved and _fits(saved[k], own[k])],
        missing=[k for k in own if k not in saved and not k.endswith('num_batches_tracked')],
        unexpected=[k for k in saved if k not in own],
        shapes=[k for k in own if k in saved and not _fits(saved[k], own[k])],
        new=[],
    )
    if not fit.loaded:
        raise CheckpointError(
            f'{what}: no tensor fits ({_named(fit.unexpected or fit.shapes)} in the checkpoint, '
            f'{_named(fit.missing or fit.shapes)} in the model); it belongs to another model, check config, checkpoint and '
            'prefix'
        )
    # A plain kernel is loaded into a layer that generates its own from it, by what the layer learns beside.
    plain = {k for k in fit.loaded if k.endswith('weight') and own[k].ndim == saved[k].ndim + 1}
    beside = {k.removesuffix('weight') for k in plain} | {
        p for p in starters.keys() - takers if f'{p}weight' in fit.loaded
    }
    learned = [k for k in fit.missing if any(k.startswith(p) for p in beside)]
    classes = _of_other_classes(fit.shapes, saved, own, model)
    fit.missing = [k for k in fit.missing if k not in learned]
    fit.shapes = [k for k in fit.shapes if k not in classes]
    fit.new = learned + classes
    return fit


def _of_other_classes(
    shapes: Sequence[str], saved: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module
) -> list[str]:
    """Return what differs in its first axis alone, in a layer below a part that knows a number of classes."""
    counting = [name for name, m in model.named_modules() if name and isinstance(getattr(m, 'num_classes', None), int)]
    below = [k for k in shapes if any(k.startswith(f'{name}.') for name in counting)]
    fitting = {k for k in below if saved[k].shape[1:] == own[k].shape[1:] and saved[k].ndim == own[k].ndim}
    layers = {k.rpartition('.')[0] for k in fitting if saved[k].ndim > 1}
    return [k for k in below if k in fitting and k.rpartition('.')[0] in layers]


def _check_values(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Refuse values that are not finite where the model's are, and another kind of number than the model's."""
    for key, tensor in saved.items():
        mine = own.get(key)
        if odd := _odd_form(tensor):
            raise CheckpointError(
                f'{what}: {key} is {odd}; save the model in plain tensors of a type that torch computes in'
            )
        if key.endswith('running_var') and not tensor.is_complex() and tensor.numel() and float(tensor.min()) < 0:
            raise CheckpointError(f'{what}: {key} holds negative variances; the file is damaged, use an earlier one')
        if isinstance(mine, Tensor) and _kind(tensor) != _kind(mine) and not key.endswith('num_batches_tracked'):
            raise CheckpointError(
                f'{what}: {key} holds {_kind(tensor)} ({tensor.dtype}) where the model has {_kind(mine)}; it is another '
                "model's, or damaged"
            )
        if not _is_finite(tensor):
            bad = ~torch.isfinite(tensor)
            if isinstance(mine, Tensor) and mine.shape == bad.shape and bad.any():
                bad &= torch.isfinite(mine.detach().cpu())
            if bad.any():
                raise CheckpointError(
                    f'{what}: {key} holds {int(bad.sum())} values of {bad.numel()} that are NaN or infinite; the training '
                    'has diverged or the file is damaged, use an earlier one'
                )


def _odd_form(tensor: Tensor) -> str:
    """Name a form of tensor that no model of the hosts computes with, empty for a plain one."""
    if tensor.is_meta:
        return 'a tensor without data, of the meta device'
    if tensor.is_quantized:
        return f'a quantized tensor ({tensor.dtype})'
    return f'a tensor of {tensor.dtype}' if tensor.is_floating_point() and tensor.element_size() < 2 else ''


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a mask as large as the tensor; NaN is both the least and the largest.
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return 'complex numbers'
    return 'real numbers' if tensor.is_floating_point() else 'integers'


def _refuse_unfolded(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """A generated kernel's source is saved with a leading axis of length 1; a plain layer's kernel has none."""
    unfolded = [k for k in own if k in saved and saved[k].ndim == 5 and saved[k].shape == (1, *own[k].shape)]
    if unfolded:
        raise CheckpointError(
            f'the checkpoint holds the unfolded kernel of {unfolded[0].removesuffix(".weight")} '
            f'(and of {len(unfolded) - 1} more layers), where the model has a plain convolution; fold the checkpoint '
            'with `python tools/deploy.py CONFIG CHECKPOINT OUT`, or use the config that it was trained with'
        )


def _fits(saved: Tensor, own: Tensor | Any) -> bool:
    """Equal shapes; a plain kernel also fits a layer that generates its own from it."""
    shape = getattr(own, 'shape', torch.Size())
    return saved.shape == shape or (len(shape) == 5 and (1, *saved.shape) == shape)


def _named(keys: Sequence[str]) -> str:
    few = ', '.join(keys[:3]) + (', ...' if len(keys) > 3 else '')
    return f'{len(keys)} ({few})' if keys else '0'


def _in_part(fit: Fit, model: nn.Module, what: str) -> CheckpointError:
    return CheckpointError(
        f'{what} fits {type(model).__name__} in part only: {fit.text()}; use the config that it was trained with'
    )


def _damaged(place: str, found: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f'cannot resume: {place} of the checkpoint is {_short(found)}, not {wanted}; the file is damaged or was changed, use '
        'an earlier one'
    )


def _short(value: Any) -> str:
    return f'{value!r}' if value is None or isinstance(value, (int, float, str)) else f'a {type(value).__name__}'


def _check_content(checkpoint: Mapping[str, Any]) -> None:
    """Refuse content of other types than mmengine writes, which it would meet in a traceback."""
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    for place, value in (('meta', meta), ('message_hub', hub), ('optimizer', checkpoint['optimizer'])):
        if not isinstance(value, Mapping):
            raise _damaged(place, value, 'a dictionary')
    for key in ('epoch', 'iter'):
        if isinstance(meta.get(key), bool) or not isinstance(meta.get(key), int) or meta[key] < 0:
            raise _damaged(f"meta['{key}']", meta.get(key), 'a count')
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub.get(key), Mapping):
            raise _damaged(f"message_hub['{key}']", hub.get(key), 'a dictionary')
    extra = checkpoint.get('mmext', {})
    if not isinstance(extra, Mapping):
        raise _damaged('mmext', extra, 'a dictionary')


def _check_optimizer(
    checkpoint: Mapping[str, Any], key: str, optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> None:
    saved = checkpoint['optimizer'].get(key) if key else checkpoint['optimizer']
    place = f"optimizer['{key}']" if key else 'optimizer'
    if not isinstance(saved, Mapping):
        raise _damaged(place, saved, 'a dictionary')
    groups, states = saved.get('param_groups'), saved.get('state')
    if not isinstance(groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get('params'), list) for g in groups
    ):
        raise _damaged(f"{place}['param_groups']", groups, 'a list of groups')
    if not isinstance(states, Mapping) or not all(isinstance(s, Mapping) for s in states.values()):
        raise _damaged(f"{place}['state']", states, 'a dictionary of states')
    extra = checkpoint.get('mmext', {})
    kind, before = type(optimizer).__name__, extra.get('optimizers', {}).get(key)
    lacking = sorted(set(optimizer.defaults) - set(groups[0] if groups else ()) - OPTIONAL)
    if before not in (None, kind) or lacking:
        raise CheckpointError(
            f'cannot resume: the state of the optimizer is that of {before or "another one"}'
            + (f' without {", ".join(lacking)}' if lacking else '')
            + f', and the config has {kind}; go on with the same optimizer, or start from the weights: --cfg-options '
            'load_from=PATH, without --resume'
        )
    own = [[names.get(id(p), '') for p in group['params']] for group in optimizer.param_groups]
    then = extra.get('parameters', {}).get(key)
    counts = [[len(g['params']) for g in groups], [len(g) for g in own]]
    if counts[0] != counts[1] or (then is not None and then != own):
        pairs = [(a, b) for x, y in zip(then or [], own, strict=False) for a, b in zip(x, y, strict=False) if a != b]
        raise CheckpointError(
            'cannot resume: the optimizer of the checkpoint has other parameters than that of the config ('
            + (f'{pairs[0][0]} where {pairs[0][1]} is now' if pairs else f'groups of {counts[0]} and {counts[1]}')
            + '); go on with the config that it was trained with'
        )
    numbered = [p for group in groups for p in group['params']]
    for number, parameter in zip(
        numbered, (p for group in optimizer.param_groups for p in group['params']), strict=True
    ):
        for entry, value in states.get(number, {}).items():
            name = f'{entry} of {names.get(id(parameter), number)}'
            if isinstance(value, Tensor):
                if entry in LIKE_PARAMETER and value.shape != parameter.shape:
                    raise CheckpointError(
                        f'cannot resume: {name} in the optimizer of the checkpoint has the shape {tuple(value.shape)}, its '
                        f'parameter {tuple(parameter.shape)}; go on with the config that it was trained with'
                    )
                _check_values({name: value}, {}, 'checkpoint, optimizer')


def _schedules(schedulers: Any) -> list[Any]:
    """Return the schedules of a run, or their states, in one list."""
    if isinstance(schedulers, Mapping):
        return [s for part in schedulers.values() for s in (part or [])]
    return list(schedulers) if isinstance(schedulers, (list, tuple)) else []


def _check_schedules(saved: list[Any], schedules: list[Any]) -> None:
    if len(saved) != len(schedules):
        raise CheckpointError(
            f'cannot resume: the checkpoint holds {len(saved)} parameter schedules, the config {len(schedules)}; go on with '
            'the config that it was trained with'
        )
    for number, (state, schedule) in enumerate(zip(saved, schedules, strict=False)):
        if not isinstance(state, Mapping):
            raise _damaged(f'param_schedulers[{number}]', state, 'a dictionary')
        wanted = {k for k, v in vars(schedule).items() if k != 'optimizer' and not callable(v)}
        if lacking := sorted(wanted - set(state)):
            raise CheckpointError(
                f'cannot resume: parameter schedule {number} of the checkpoint lacks {", ".join(lacking[:3])}, so it is none '
                f'of {type(schedule).__name__}; go on with the config that it was trained with'
            )
