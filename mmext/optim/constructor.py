"""Learning rates and decays that layers ask for, beside those of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from torch import nn

from mmext.arguments import Law, check, laws_of
from mmext.contracts import TellsOptimOptions, find
from mmext.errors import UsageError
from mmext.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['LayerOptionsConstructor']

DEFAULT = 'DefaultOptimWrapperConstructor'
FIELDS = {'lr_mult': 'lr', 'decay_mult': 'weight_decay'}


def _has_optimizer(cfg: Mapping) -> bool:
    return isinstance(cfg.get('optimizer'), Mapping)


def _paramwise(
    custom_keys: dict[str, dict] | None = None,
    bias_lr_mult: float | None = None,
    bias_decay_mult: float | None = None,
    norm_decay_mult: float | None = None,
    flat_decay_mult: float | None = None,
    dwconv_decay_mult: float | None = None,
    dcn_offset_lr_mult: float | None = None,
    bypass_duplicate: bool = False,
) -> None:
    """State what mmengine's constructor reads of ``paramwise_cfg``."""


def _check_paramwise(owner: str, cfg: Mapping[str, Any], closed: bool) -> None:
    known = laws_of(_paramwise)
    if closed and (unknown := sorted(map(str, set(cfg) - set(known)))):
        raise UsageError(
            f'{owner} passes paramwise_cfg on to {DEFAULT}, which reads {", ".join(known)}, got '
            f'{", ".join(unknown)}; correct the name, or set base_constructor'
        )
    check(f'paramwise_cfg of {owner}', _paramwise, (), {k: v for k, v in cfg.items() if k in known})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerOptionsConstructor:
    """Gives layers the learning rates and decays that they ask for, beside the config's (ours).

    A module may define ``optim_options()``, a mapping of the names of its own parameters to
    ``dict(lr_mult=..., decay_mult=...)``: DCLS's positions learn five times as fast and do not decay, SMPConv's radii a tenth
    as fast. In a config:

    .. code-block:: python

        optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')

    and if the config has a constructor already, say the hosts' layer-wise decay, that one becomes ``base_constructor=...``
    beside it.

    What the config says goes first: the options are multiplied with what the base constructor gives a parameter. Only if a
    key of ``paramwise_cfg['custom_keys']`` reaches into the parameter's own name (``'conv1.P'``, ``'.P'``; not
    ``'backbone'``, which names modules) that key decides alone about what it gives.

    Parameters with options come last, since the log shows the learning rate of the first. A parameter that several layers
    share is taken once. A schedule in absolute numbers, such as ``OneCycleLR``, gives all parameters the same.

    Args:
        optim_wrapper_cfg: As in mmengine, with an optional ``base_constructor``, mmengine's default one otherwise.
        paramwise_cfg: As in mmengine, for the base constructor.

    Raises:
        ValueError: If a layer has options for a parameter that it does not have, or unknown ones; or if mmengine's
            constructor would not read a key of ``paramwise_cfg``.

    Example:
        >>> optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor', optimizer=dict(type='SGD', lr=0.1))
    """

    example: Mapping[str, Any] = dict(optim_wrapper_cfg=dict(optimizer=dict(type='mmext.SAGD', lr=0.1)))

    def __init__(
        self,
        optim_wrapper_cfg: Annotated[dict, Law("with the key 'optimizer', a dict", _has_optimizer)],
        paramwise_cfg: dict | None = None,
    ) -> None:
        optim_wrapper_cfg = dict(optim_wrapper_cfg)
        base = optim_wrapper_cfg.pop('base_constructor', DEFAULT)
        _check_paramwise(type(self).__name__, paramwise_cfg or {}, closed=base == DEFAULT)
        self.custom_keys = (paramwise_cfg or {}).get('custom_keys', {})
        if base == DEFAULT and paramwise_cfg:
            paramwise_cfg = {'bypass_duplicate': True, **paramwise_cfg}
        self.base = ROOT_CONSTRUCTORS.build(
            dict(type=base, optim_wrapper_cfg=optim_wrapper_cfg, paramwise_cfg=paramwise_cfg)
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimizer wrapper for ``model``."""
        wrapper = self.base(model)
        _regroup(wrapper.optimizer, self._asked(getattr(model, 'module', model)))
        return wrapper

    def _asked(self, model: nn.Module) -> dict[int, dict[str, float]]:
        """Return the factors of parameters, by their identity."""
        asked: dict[int, dict[str, float]] = {}
        for name, parameter, options in _own_options(model):
            if id(parameter) not in asked:
                decided = self._decided(name)
                asked[id(parameter)] = options = {k: v for k, v in options.items() if k not in decided}
                print_log(f'layer options -- {name}: {options}', logger='current')
        return asked

    def _decided(self, name: str) -> dict[str, Any]:
        """Return the custom key's options that mmengine applies, if the key names the parameter and not only modules."""
        longest_first = sorted(sorted(self.custom_keys), key=len, reverse=True)
        key = next((key for key in longest_first if key in name), None)
        modules = name[: name.rfind('.') + 1]
        return {} if key is None or key in modules else self.custom_keys[key]


def _own_options(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, dict[str, float]]]:
    """Yield the name, the parameter and the options of all that layers ask for."""
    for prefix, module in find(model, TellsOptimOptions):
        asked = module.optim_options()
        own = dict(model.get_submodule(prefix).named_parameters(recurse=False))
        wrong = set(asked) - set(own) | {k for options in asked.values() for k in options if k not in FIELDS}
        if wrong:
            raise ValueError(
                f'{type(module).__name__} ({prefix or "the model"}) has optim_options() for {sorted(wrong)}; they give '
                f'{sorted(FIELDS)} for its own parameters'
            )
        for name, options in asked.items():
            yield f'{prefix}.{name}' if prefix else name, own[name], dict(options)


def _regroup(optimizer: Any, asked: dict[int, dict[str, float]]) -> None:
    """Part the optimizer's groups by what was asked for, and multiply."""
    parts: dict[tuple, dict] = {}
    for number, group in enumerate(optimizer.param_groups):
        lists = [key for key in ('params', 'param_names') if key in group]
        for i, parameter in enumerate(group['params']):
            options = asked.get(id(parameter), {})
            part = parts.setdefault((number, *sorted(options.items())), {**group, **{key: [] for key in lists}})
            for key in lists:
                part[key].append(group[key][i])
            for option, factor in options.items():
                part[FIELDS[option]] = factor * group[FIELDS[option]]
    # A key with more than the group's number has options; the sort is stable.
    optimizer.param_groups[:] = [parts[key] for key in sorted(parts, key=lambda key: len(key) > 1)]
