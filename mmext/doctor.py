"""``python -m mmext.doctor``: what is installed, what works, and what to do about what does not."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from mmext.hosts import HOSTS

__all__ = ['diagnose', 'main']

REQUIRED = ('torch', 'mmengine', 'mmcv')


def diagnose() -> tuple[list[str], list[str]]:
    """Return the lines of the report and, for each problem, one sentence with its remedy."""
    report, problems = [f'python      {platform.python_version()} ({sys.executable})'], []
    distributions = packages_distributions()
    found: dict[str, list[str]] = {'onedl': [], 'openmmlab': []}
    usable = set()
    for name in ('torch', *HOSTS):
        names = [d for d in dict.fromkeys(distributions.get(name, ())) if d in HOSTS.get(name, ())]
        for distribution in names:
            found['onedl' if distribution == HOSTS[name][0] else 'openmmlab'].append(distribution)
        try:
            module = importlib.import_module(name)
        except (ImportError, AssertionError) as error:  # the hosts check each other's versions by assert
            line, problem = _not_usable(name, error)
            report.append(f'{name:11} {line}')
            problems += problem
            continue
        usable.add(name)
        report.append(f'{name:11} {getattr(module, "__version__", "?")} ({" and ".join(names) or name})')
    stacks = [stack for stack, names in found.items() if names]
    if len(stacks) > 1:
        problems.append(
            f'packages of both stacks are mixed ({", ".join(found["onedl"])} and {", ".join(found["openmmlab"])}); '
            'install one set of requirements/ into a fresh environment'
        )
    report.append(f'stack       {" + ".join(stacks) or "none"}')
    problems += _torch_problems(stacks)
    if usable.issuperset(REQUIRED):
        for check in (_mmcv_ops, _native_path, _scopes):
            lines, more = check()
            report += lines
            problems += more
        report += _components()
    return report, problems


def _not_usable(name: str, error: Exception) -> tuple[str, list[str]]:
    """Return what the report says of a package that cannot be imported, and the problem, if it is one of its own."""
    onedl, openmmlab = HOSTS.get(name, (name, name))
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == name:
        install = f'pip install {onedl}' + (f' (or {openmmlab}, with its own stack)' if name in HOSTS else '')
        problem = f'{name} is not installed, and nothing works without it; {install}'
        return f'not installed; if you need it: {install}', [problem] if name in REQUIRED else []
    if missing in REQUIRED:
        return f'not usable without {missing}', []
    if isinstance(error, AssertionError):
        return f'refuses its environment: {error}', [
            f'{name} refuses an installed version; install the set of requirements/ ({error})'
        ]
    if missing is not None and missing.partition('.')[0] != name:
        return f'not usable without {missing}', [
            f'{name} needs {missing}, which is not installed; pip install {missing}'
        ]
    return f'not usable: {error}', [f'{name} does not load; reinstall {name} built for the installed torch ({error})']


def _torch_problems(stacks: list[str]) -> list[str]:
    try:
        torch_version = tuple(int(part) for part in version('torch').split('+')[0].split('.')[:2])
    except PackageNotFoundError:
        return []
    if torch_version < (2, 4):
        return [f'torch {version("torch")} is older than the oldest that mmext supports; install torch >= 2.4']
    if stacks == ['openmmlab'] and torch_version >= (2, 6):
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
        installed = packages_distributions().get('mmcv', ())
        name = next((name for name in HOSTS['mmcv'] if name in installed), HOSTS['mmcv'][0])
        return (
            [f'mmcv ops    missing: {reason}'],
            [
                f'{reason}; build it from source: MMCV_WITH_OPS=1 pip install --no-cache-dir --no-build-isolation '
                f'--force-reinstall --no-deps {name}, with CXX from tools/misc/torch_std.sh if torch asks for a newer C++'
            ],
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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 1 if there is a problem."""
    argparse.ArgumentParser('python -m mmext.doctor', description=__doc__.partition(': ')[2]).parse_args(argv)
    report, problems = diagnose()
    sys.stdout.write('\n'.join(report) + '\n')
    if problems:
        sys.stdout.write('problems\n' + '\n'.join(f'  - {p}' for p in problems) + '\n')
    return int(bool(problems))


if __name__ == '__main__':
    sys.exit(main())
