"""``python -m mmext.doctor``: what is installed, what works, and what to do about what does not."""

from __future__ import annotations

import importlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version

__all__ = ['diagnose', 'main']

#: import name -> what to install on either stack
HOSTS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
REQUIRED = ('torch', 'mmengine', 'mmcv')


def diagnose() -> tuple[list[str], list[str]]:
    """Return the lines of the report and, for each problem, one sentence with its remedy."""
    report, problems = [f'python      {platform.python_version()} ({sys.executable})'], []
    distributions = packages_distributions()
    stacks = set()
    for name in ('torch', *HOSTS):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            report.append(f'{name:11} not usable: {error}')
            onedl, openmmlab = HOSTS.get(name, (name, name))
            remedy = f'pip install {onedl} (or {openmmlab}, with its own stack)'
            if not isinstance(error, ModuleNotFoundError) or error.name != name:
                remedy = f'reinstall {name} built for the installed torch ({error})'
            if name in REQUIRED or not isinstance(error, ModuleNotFoundError):
                problems.append(f'{name} cannot be imported; {remedy}')
            continue
        except AssertionError as error:  # the hosts check each other's versions by assert
            report.append(f'{name:11} refuses its environment: {error}')
            problems.append(f'{name} refuses an installed version; install the set of requirements/ ({error})')
            continue
        distribution = next((d for d in distributions.get(name, ()) if d in HOSTS.get(name, ())), None)
        if distribution:
            stacks.add('onedl' if distribution == HOSTS[name][0] else 'openmmlab')
        report.append(f'{name:11} {getattr(module, "__version__", "?")} ({distribution or name})')
    if len(stacks) > 1:
        problems.append('packages of both stacks are mixed; install one set of requirements/ into a fresh environment')
    report.append(f'stack       {" + ".join(sorted(stacks)) or "none"}')
    problems += _torch_problems(stacks)
    for check in (_mmcv_ops, _native_path, _scopes):
        try:
            lines, found = check()
        except ImportError as error:
            lines, found = [], [f'{check.__name__[1:]} could not be checked: {error}']
        report += lines
        problems += found
    if not problems:
        report += _components()
    return report, problems


def _torch_problems(stacks: set[str]) -> list[str]:
    try:
        torch_version = tuple(int(part) for part in version('torch').split('+')[0].split('.')[:2])
    except PackageNotFoundError:
        return []
    if torch_version < (2, 4):
        return [f'torch {version("torch")} is older than the oldest that mmext supports; install torch >= 2.4']
    if stacks == {'openmmlab'} and torch_version >= (2, 6):
        return [
            f'mmengine {version("mmengine")} cannot load its own checkpoints under torch {version("torch")} (weights_only); '
            'install torch < 2.6, or the onedl stack'
        ]
    return []


def _mmcv_ops() -> tuple[list[str], list[str]]:
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        reason = 'mmcv was built without ops' if isinstance(error, ModuleNotFoundError) else str(error)
        return (
            [f'mmcv ops    missing: {reason}'],
            [f'{reason}; build it from source: MMCV_WITH_OPS=1 pip install --no-cache-dir --no-build-isolation mmcv'],
        )
    return ['mmcv ops    compiled'], []


def _native_path() -> tuple[list[str], list[str]]:
    from mmext.ops import native_status

    path, reason = native_status()
    return [f'mmext ops   {path}: {reason}'], []


def _scopes() -> tuple[list[str], list[str]]:
    from mmengine.config.utils import MODULE2PACKAGE

    import mmext

    return [
        f'mmext       {mmext.__version__}; config scopes mmext:: -> {MODULE2PACKAGE["mmext"]}, mmseg:: -> '
        f'{MODULE2PACKAGE["mmseg"]}'
    ], []


def _components() -> list[str]:
    from mmext.registry import ALL

    lines = []
    for kind, registry in ALL.items():
        registry.import_from_location()
        names = ', '.join(sorted(registry.module_dict)) or 'none yet'
        lines.append(f'{kind}: {names}')
    return ['components', *(f'  {line}' for line in lines)]


def main() -> int:
    """Print the report; return 1 if there is a problem."""
    report, problems = diagnose()
    sys.stdout.write('\n'.join(report) + '\n')
    if problems:
        sys.stdout.write('problems\n' + '\n'.join(f'  - {p}' for p in problems) + '\n')
    return int(bool(problems))


if __name__ == '__main__':
    sys.exit(main())
