"""The packages that mmext plugs into: their names in both stacks, and how to build one of their modules."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    'HOSTS',
    'build_from_host',
    'build_model',
    'derived',
    'loads_weights',
    'require_host',
    'without_pretrained',
]

#: Import name, which is the scope in a config too, to the distribution in the maintained builds and in OpenMMLab's own.
HOSTS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}


def build_from_host(cfg: dict, user: str) -> Any:
    """Build ``cfg``, whose type may carry a host's scope, on behalf of the component ``user``.

    Raises:
        ImportError: If the type carries the scope of a host that is not installed.
    """
    from mmengine.registry import MODELS

    scope = str(cfg['type']).partition('.')[0]
    if scope not in HOSTS or scope == str(cfg['type']):
        return MODELS.build(cfg)
    require_host(scope, f'{user} builds {cfg["type"]}')
    # The host's own defaults have no prefix: they are looked up in its scope, whatever the run's default scope is.
    return MODELS.build({'_scope_': scope, **cfg})


def require_host(scope: str, reason: str) -> None:
    """Make sure that a host is installed.

    Args:
        scope: Its name.
        reason: Who needs it and what for, the begin of a sentence.

    Raises:
        ImportError: If it is not installed.
    """
    if find_spec(scope) is None:
        onedl, openmmlab = HOSTS[scope]
        raise ImportError(
            f'{reason}, but the package {scope} is not installed; pip install {onedl} (or {openmmlab}, with its own stack)'
        )


@functools.cache
def derived(cls: type, base: type) -> Any:
    """Return ``cls`` on top of a host's class, which no import may name; the same two give the same class."""
    return type(base)(cls.__name__.lstrip('_'), (cls, base), {'__module__': cls.__module__, '__doc__': cls.__doc__})


def build_model(cfg: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """Build a model from its config as on one processor, in the default scope.

    Args:
        cfg: The ``model`` of a config. It is not changed.
        pretrained: Whether weights that it names are loaded at construction.
    """
    from mmengine.config import ConfigDict
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS

    # The hosts read settings as attributes (train_cfg.rpn), which a plain dict does not have.
    return revert_sync_batchnorm(
        MODELS.build(ConfigDict(copy.deepcopy(cfg if pretrained else without_pretrained(cfg))))
    )


def without_pretrained(cfg: Any) -> Any:
    """Return ``cfg`` without weights to be loaded at construction."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretrained(c) for c in cfg)
    if not isinstance(cfg, Mapping):
        return cfg
    return {
        k: without_pretrained(v)
        for k, v in cfg.items()
        if not (k == 'init_cfg' and isinstance(v, Mapping) and loads_weights(v)) and k != 'pretrained'
    }


def loads_weights(init_cfg: Mapping[str, Any]) -> bool:
    """Tell whether an ``init_cfg`` loads a checkpoint."""
    from mmengine.model import PretrainedInit
    from mmengine.registry import WEIGHT_INITIALIZERS

    from mmext.registry import resolve

    return resolve(init_cfg, WEIGHT_INITIALIZERS) is PretrainedInit
