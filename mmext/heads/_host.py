"""Build a module of a host, or say which package is missing."""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.registry import MODELS
from torch import nn

#: The distribution of each host in the maintained builds; the upstream one has the scope's own name.
_DISTRIBUTIONS = {'mmdet': 'onedl-mmdetection', 'mmpretrain': 'onedl-mmpretrain', 'mmseg': 'onedl-mmsegmentation'}


def build_from_host(cfg: dict, user: str) -> nn.Module:
    """Build ``cfg``, whose type may carry a host's scope, on behalf of the component ``user``.

    Raises:
        ImportError: If the type carries the scope of a host that is not installed.
    """
    scope, dot, _ = str(cfg['type']).partition('.')
    if dot and scope in _DISTRIBUTIONS and find_spec(scope) is None:
        raise ImportError(
            f'{user} builds {cfg["type"]}, but the package {scope} is not installed; '
            f'install {_DISTRIBUTIONS[scope]}, or {scope} of the upstream stack'
        )
    # The host's own defaults have no prefix: they are looked up in its scope, whatever the run's default scope is.
    return MODELS.build({'_scope_': scope, **cfg} if dot else cfg)
