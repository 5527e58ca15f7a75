"""The optimizer wrapper that does the same as another, in mixed precision."""

from __future__ import annotations

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

__all__ = ['mixed_precision_of']


def mixed_precision_of(wrapper: type[OptimWrapper]) -> type[AmpOptimWrapper] | None:
    """Return the registered counterpart of an optimizer wrapper, itself if it is one, None where there is none.

    The counterpart of a wrapper derives from it and from mmengine's ``AmpOptimWrapper``, and from nothing else.

    Example:
        >>> from mmext import GradNoiseOptimWrapper
        >>> mixed_precision_of(GradNoiseOptimWrapper).__name__
        'GradNoiseAmpOptimWrapper'
    """
    if issubclass(wrapper, AmpOptimWrapper):
        return wrapper
    if wrapper is OptimWrapper:
        return AmpOptimWrapper
    for registry in (OPTIM_WRAPPERS, *OPTIM_WRAPPERS.children.values()):
        registry.import_from_location()
        for known in registry.module_dict.values():
            if isinstance(known, type) and set(known.__bases__) == {wrapper, AmpOptimWrapper}:
                return known
    return None
