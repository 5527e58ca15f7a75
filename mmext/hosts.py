"""The packages that mmext plugs into: their names in both stacks, and how to build one of their modules."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

__all__ = ['HOSTS', 'build_from_host']

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
    if find_spec(scope) is None:
        onedl, openmmlab = HOSTS[scope]
        raise ImportError(
            f'{user} builds {cfg["type"]}, but the package {scope} is not installed; pip install {onedl} (or {openmmlab}, '
            'with its own stack)'
        )
    # The host's own defaults have no prefix: they are looked up in its scope, whatever the run's default scope is.
    return MODELS.build({'_scope_': scope, **cfg})
