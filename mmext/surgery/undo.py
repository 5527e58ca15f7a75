"""Take a swap back, or make it permanent."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmext.folding import fold
from mmext.surgery.insert import inserted_blocks
from mmext.surgery.sites import host_class
from mmext.surgery.trial import Place

__all__ = ['Replaced', 'merge_swap', 'remember', 'undo_swap']


@dataclass
class Replaced:
    """What stood at an attribute of a module, without its weights."""

    holder: str
    attribute: str
    old: nn.Module


def remember(model: nn.Module, places: list[Place]) -> None:
    """Note in ``model`` what stood at ``places``, for :func:`undo_swap`."""
    names = {module: name for name, module in reversed([*model.named_modules()])}
    olds = {place.old: copy.deepcopy(place.old).to('meta') for place in places}
    notes = [Replaced(names[place.holder], place.attribute, olds[place.old]) for place in places]
    # In a list: as an attribute of its own a layer would be part of the model.
    model.__dict__['swapped'] = [*model.__dict__.get('swapped', []), *notes]


def undo_swap(model: nn.Module) -> nn.Module:
    """Give a model, in place, the layers back that :func:`swap_layers` replaced in it, and take inserted blocks out.

    The model has the classes and the keys of the plain one again. A convolution takes the kernel that the layer in its place
    computes with, if that has its shape. Any other layer takes the tensors that agree in name and shape. What is left is
    initialized anew, and a line in the log names it.

    Args:
        model: A model, or one that contains some, built by ``mmext.swap_layers``.

    Raises:
        ValueError: If nothing in it was swapped.
    """
    parts = [m for m in model.modules() if m.__dict__.get('swapped')]
    blocks = [m for m in model.modules() if inserted_blocks(m)]
    if not parts and not blocks:
        raise ValueError(f'undo_swap found nothing that mmext.swap_layers did in {type(model).__name__}')
    anew: list[str] = []
    for module in blocks:
        for name in inserted_blocks(module):
            del module._modules[name]
        del module.__dict__['inserted']
        module.__class__ = type(module).__dict__['plain_class']
    for part in parts:
        made: dict[tuple[nn.Module, nn.Module], nn.Module] = {}
        for note in reversed(part.__dict__.pop('swapped')):
            holder = part.get_submodule(note.holder)
            new: Any = holder._modules[note.attribute]
            if (new, note.old) not in made:
                made[new, note.old] = _restored(note.old, new, f'{note.holder}.{note.attribute}'.strip('.'), anew)
            holder._modules[note.attribute] = made[new, note.old]
            holder.__class__ = host_class(holder)
    if anew:
        print_log(f'undo_swap initialized anew: {", ".join(anew)}', 'current')
    return model


@torch.no_grad()
def _restored(old: nn.Module, new: Any, name: str, anew: list[str]) -> nn.Module:
    like = next(new.parameters(), None)
    plain = copy.deepcopy(old).to_empty(device='cpu' if like is None else like.device)
    for module in plain.modules():
        if callable(reset := getattr(module, 'reset_parameters', None)):
            reset()
    source = new.fold() if isinstance(plain, nn.Conv2d) and callable(getattr(new, 'fold', None)) else new
    given = source.state_dict()
    fitting = {k: v for k, v in plain.state_dict().items() if k in given and given[k].shape == v.shape}
    plain.load_state_dict({k: given[k] for k in fitting}, strict=False)
    if len(fitting) < len(plain.state_dict()):
        anew.append(name)
    return plain.train(new.training) if like is None else plain.to(like).train(new.training)


def merge_swap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Make a swap permanent, in place: every new layer that has a plain form becomes it.

    Args:
        model: A model in eval mode.

    Returns:
        The model, or its replacement, and the names of the layers of this pack that stay, inserted blocks among them.
    """
    merged = fold(model)
    stay = [n for n, m in merged.named_modules() if type(m).__module__.startswith('mmext.')]
    return merged, [n for n in stay if not any(n.startswith(f'{other}.') for other in stay)]
