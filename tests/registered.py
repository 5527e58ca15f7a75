"""The registered components, and the smallest arguments that each says of itself."""

from mmext.contracts import example_of
from mmext.registry import ALL

for registry in ALL.values():
    registry.import_from_location()


def members(package: str) -> list[str]:
    """Return the names of the modules that live in ``mmext.<package>`` and are registered."""
    return sorted(n for n, c in ALL['model'].module_dict.items() if c.__module__.startswith(f'mmext.{package}.'))


COMPONENTS = {name: component for registry in ALL.values() for name, component in registry.module_dict.items()}
ARGUMENTS = {name: example_of(component) for name, component in COMPONENTS.items()}
