"""Fill the channel numbers of necks and heads in from the backbone of a config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmext.arguments import Count, checked, some
from mmext.contracts import shown_by
from mmext.errors import UsageError
from mmext.hosts import HOSTS, build_from_host, without_pretrained
from mmext.registry import MODELS, resolve
from mmext.wrapping import unwrapped, wrapped_cfg, wraps_model

__all__ = ['auto_channels', 'fill_channels']

AUTO = 'auto'
#: Sides of the pictures on which a backbone is tried out, where the user names none.
SIDES = (64, 224)


def _settle(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return fill_channels(unwrapped(cfg), cfg.get('input_shape'))


@MODELS.register_module()
@wraps_model('input_shape', settle=_settle)
@shown_by(
    model=dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type='mmseg.MobileNetV2', out_indices=(1, 2)),
        decode_head=dict(type='mmseg.FCNHead', in_channels='auto', channels=8, num_classes=2),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
)
@checked
def auto_channels(
    model: Any, input_shape: Annotated[Sequence[Count], some] | None = None, **model_args: Any
) -> nn.Module:
    """Build a stock model with the channels of its necks and heads taken from its backbone (ours).

    Use it as the ``type`` of a whole model. Wherever a neck or head says ``'auto'`` for channels, it gets those of the maps
    that come to it. The result is the host's own model.

    .. code:: python

        _base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
        model = dict(
            type='mmext.auto_channels',
            model='mmdet.RetinaNet',
            backbone=dict(_delete_=True, type='mmext.RDNet', arch='T'),
            neck=dict(in_channels='auto'),
        )

    Backbone and necks are built once more and run on zeros, without a trace in the random numbers. A part with ``in_index``
    gets the channels of those maps. Any other gets a list or a number, as its annotation asks. Without an annotation a neck
    of several maps gets a list, and a head a number.

    Args:
        model: Config or type of the model; with a type, ``model_args`` are its arguments.
        input_shape: (C, H, W) of the trial input, where the backbone takes no picture of 64 or 224 pixels.
        **model_args: Arguments of the model.

    Raises:
        ValueError: If a number is asked for where the maps have several; the message lists them. If nothing tells the
            channels, because there is no backbone beside the entry or it cannot be run.

    Example:
        >>> stem = dict(type='mmseg.MobileNetV2', out_indices=(1, 2))
        >>> head = dict(type='mmseg.FCNHead', in_channels='auto', channels=8, num_classes=2)
        >>> net = auto_channels('mmseg.EncoderDecoder', backbone=stem, decode_head=head, test_cfg=dict(mode='whole'))
        >>> net.decode_head.in_channels
        32
    """
    cfg = wrapped_cfg(model, model_args, 'auto_channels')
    # The hosts read settings as attributes (train_cfg.rpn), which a plain dict does not have.
    return build_from_host(ConfigDict(fill_channels(cfg, input_shape)), 'auto_channels')


def fill_channels(cfg: Mapping[str, Any], input_shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the config of a model with every ``'auto'`` for channels filled in; see :func:`auto_channels`."""
    if wrong := [name for name in _worded(cfg, '') if name not in _asked(cfg, '')]:
        raise UsageError(f"auto_channels takes 'auto' or numbers for channels, and {wrong[0]} is another word")
    cls = resolve(cfg)
    scope = cfg.get('_scope_') or str(getattr(cls, '__module__', '')).partition('.')[0]
    with DefaultScope.overwrite_default_scope(scope if scope in HOSTS else None):
        filled = _Filler(input_shape).model(cfg, 'model')
    if left := list(_asked(filled, '')):
        raise UsageError(f'auto_channels finds no backbone beside {left[0]}; write its number')
    return filled


def _asked(node: Any, path: str) -> list[str]:
    """Return the names of the entries that wait for channels."""
    return [name for name, word in _words(node, path) if word == AUTO and name.endswith('channels')]


def _worded(node: Any, path: str) -> list[str]:
    """Return the names of the entries that have a word in the place of input channels."""
    return [name for name, _ in _words(node, path) if name.endswith('.in_channels')]


def _words(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _words(value, f'{path}.{key}'.lstrip('.'))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _words(value, f'{path}[{i}]')
    elif isinstance(node, str):
        yield path, node


class _Filler:
    """Walks through a config with the maps that come to each entry."""

    def __init__(self, input_shape: Sequence[int] | None) -> None:
        self.input_shape = input_shape

    def model(self, node: Any, path: str) -> Any:
        """Fill in the models at and below ``node``: what has a backbone."""
        if isinstance(node, (list, tuple)):
            return type(node)(self.model(value, f'{path}[{i}]') for i, value in enumerate(node))
        if not isinstance(node, Mapping):
            return node
        others = {key: value for key, value in node.items() if key != 'backbone'}
        if not isinstance(node.get('backbone'), Mapping) or not _asked(others, ''):
            return {key: self.model(value, f'{path}.{key}') for key, value in node.items()}
        maps = self.run_backbone(node['backbone'])
        filled = dict(node)
        if neck := node.get('neck'):
            several = isinstance(neck, (list, tuple))
            necks = []
            for i, part in enumerate(neck if several else [neck]):
                part = self.part(part, maps, 'neck' + f'[{i}]' * several, is_neck=True)
                maps = _run(_build(part), maps)
                necks.append(part)
            filled['neck'] = necks if several else necks[0]
        return {
            key: value if key in ('backbone', 'neck') else self.part(value, maps, key, is_neck=False)
            for key, value in filled.items()
        }

    def part(self, node: Any, maps: Sequence[Tensor], path: str, is_neck: bool) -> Any:
        """Fill in a neck or head, to which ``maps`` come."""
        if isinstance(node, (list, tuple)):
            return type(node)(self.part(value, maps, f'{path}[{i}]', is_neck) for i, value in enumerate(node))
        if not isinstance(node, Mapping):
            return node
        filled = {}
        for key, value in node.items():
            name = f'{path}.{key}'
            if isinstance(value, str) and value == AUTO and key.endswith('channels'):
                filled[key] = _channels(node, key, maps, name, is_neck)
                print_log(f'auto_channels: {name}={filled[key]}', logger='current')
            else:
                filled[key] = self.part(value, maps, name, is_neck)
        return filled

    def run_backbone(self, cfg: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the maps of a backbone for zeros."""
        backbone = _build(cfg)
        planes = int(cfg.get('in_channels', 3)) if not self.input_shape else 0
        shapes = [tuple(self.input_shape)] if self.input_shape else [(planes, side, side) for side in SIDES]
        refusal: Exception | None = None
        for shape in shapes:
            try:
                return _run(backbone, torch.zeros(1, *shape))
            except Exception as error:  # a backbone that wants another size may say so by anything
                refusal = refusal or error
        raise UsageError(
            f'auto_channels cannot run {type(backbone).__name__} on a picture of {" or ".join(map(str, shapes))} ({refusal}); '
            'name the shape of one that it takes, input_shape=(C, H, W)'
        ) from refusal


def _build(cfg: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        built = ROOT_MODELS.build(ConfigDict(without_pretrained(dict(cfg))))
    built.eval()  # not chained: the train() of some hosts' models returns None
    return built


def _run(module: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outs = module(inputs)
    return tuple(outs) if isinstance(outs, (list, tuple)) else (outs,)


def _channels(cfg: Mapping[str, Any], key: str, maps: Sequence[Any], name: str, is_neck: bool) -> int | list[int]:
    """Return the channels of the maps that come to an entry, in the form that it asks for."""
    # A (cls, reg) pair per level counts once.
    widths = [(m[0] if isinstance(m, (list, tuple)) else m).shape[1] for m in maps]
    cls = resolve(cfg) if cfg.get('type') else None
    index = cfg.get('in_index', _parameter(cls, 'in_index').default)
    if isinstance(index, int):
        return widths[index]
    if isinstance(index, (list, tuple)):
        return [widths[i] for i in index]
    wanted = str(_parameter(cls, key).annotation)
    several = re.search(r'list|tuple|sequence', wanted, re.IGNORECASE)
    if several or (is_neck and len(widths) > 1 and not re.search(r'\bint\b|Count', wanted)):
        return widths
    if len(set(widths)) > 1:
        raise UsageError(
            f'auto_channels cannot choose {name}: the maps that come to it have {widths} channels; write one of them, or let '
            'the backbone return fewer maps by out_indices'
        )
    return widths[0]


def _parameter(cls: Any, name: str) -> inspect.Parameter:
    """Return a parameter of a class, be it one that it passes on to a base; an empty one if there is none."""
    for layer in cls.__mro__ if inspect.isclass(cls) else [cls] if callable(cls) else []:
        found = inspect.signature(layer).parameters.get(name) if layer is not object else None
        if found is not None and found.kind not in (found.VAR_KEYWORD, found.VAR_POSITIONAL):
            return found
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
