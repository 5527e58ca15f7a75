"""What ``tools/train.py`` and ``tools/test.py`` share: arguments, config, checkpoint checks, the runner."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import is_cuda_available, is_musa_available, is_npu_available
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, OPTIMIZERS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmext.checkpoints import hand_over, read_checkpoint, serve, state_dict_of
from mmext.contracts import HasOpenChoices
from mmext.errors import CheckpointError, UsageError, reason
from mmext.fit import load_all
from mmext.hosts import HOSTS, build_model
from mmext.registry import MODELS, bare_name, resolve
from mmext.registry import OPTIMIZERS as MMEXT_OPTIMIZERS
from mmext.wrapping import innermost

__all__ = [
    'Options',
    'add_common_arguments',
    'add_config_arguments',
    'add_shape',
    'add_trust',
    'build_runner',
    'build_subject',
    'enter_scope',
    'host_of',
    'leave_group',
    'load_config',
    'load_subject',
    'parse',
    'positive',
    'prepare',
    'read_config',
    'reason',
    'refuse_unwritable',
    'run',
    'use_checkpoint',
]


class Options(DictAction):
    """``--cfg-options`` of the hosts; what is no KEY=VALUE is refused by the parser, not by a traceback."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if wrong := [value for value in values if not value.partition('=')[0] or '=' not in value]:
            parser.error(f'{option} takes KEY=VALUE, got {", ".join(map(repr, wrong))}')
        super().__call__(parser, namespace, values, option)


def positive(text: str) -> int:
    """Read a number of pixels, jobs or rounds from the command line."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 2**20:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 to {2**20}, got {text!r}')
    return value


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every tool that reads a config takes."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config: a.b=1, list=1,2 or list="[1,2]" without blanks',
    )
    # Read by run(), before any parser sees it.
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common, spelt as the hosts spell them."""
    parser.add_argument('--work-dir', help='folder for logs and models (default: work_dirs/<config name>)')
    add_config_arguments(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # Launchers older than LOCAL_RANK pass the rank as an argument, in either spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``argv`` and publish the local rank to mmengine, which reads the environment."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def read_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config that describes a model, and override settings.

    Raises:
        UsageError: If there is no such file, it cannot be read, or there is no model in it.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist; check the path')
    serve()
    _refuse_cycle(Path(path))
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(dict(options or {}))
        _mend_dumped(cfg.get('model'))
    except (Exception, SystemExit) as error:  # a config is a program, and may raise anything
        raise UsageError(f'config {path} cannot be read ({reason(error)}); mend the file or the option') from error
    if not isinstance(cfg.get('model'), dict):
        raise UsageError(
            f'config {path} has no model = dict(type=...); pass a whole config, not one of its _base_ parts'
        )
    return cfg


def _mend_dumped(cfg: Any) -> None:
    """Put the names that a host evaluates, such as that of an NMS, in the place of paths that mmengine has dumped."""
    if isinstance(cfg, (list, tuple)):
        for value in cfg:
            _mend_dumped(value)
    elif isinstance(cfg, dict):
        for key, value in list(dict.items(cfg)):  # not cfg.items(), which imports what is lazy
            if isinstance(value, str):
                cfg[key] = bare_name(value)
            else:
                _mend_dumped(value)


def _refuse_cycle(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a config that is its own base: mmengine reads it until Python's stack ends."""
    path = path.resolve()
    if path in above:
        raise UsageError(
            f'config {path} is its own base ({" -> ".join(p.name for p in (*above, path))}); break the circle'
        )
    try:
        bases = [Config._get_cfg_path(base, str(path))[0] for base in Config._get_base_files(str(path))]
    except Exception:  # told by who reads the file
        return
    for base in bases:
        _refuse_cycle(Path(base), (*above, path))


def load_subject(
    cfg: Config, checkpoint: str | None = None, pretrained: bool = False, trust: bool = False
) -> nn.Module:
    """Build the model of a run's config as on one processor, in eval mode.

    Args:
        cfg: The config of a whole run.
        checkpoint: Where its weights are; they must fit whole.
        pretrained: Whether weights that the config names are loaded at construction.
        trust: See :func:`mmext.checkpoints.read`.

    Raises:
        UsageError: If the config builds no model.
        CheckpointError: If the weights do not fit.
    """
    content = None if checkpoint is None else read_checkpoint(checkpoint, trust)
    prepare(cfg, content)
    model_cfg = cfg.model.to_dict()
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    model = build_subject(model_cfg, pretrained)
    if content is not None:
        try:
            load_all(model, state_dict_of(content))
        except RuntimeError as misfit:
            raise CheckpointError(f'{checkpoint}: {misfit}') from misfit
    model.eval()  # not chained: the train() of some hosts' models returns None
    return model


def build_subject(model_cfg: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """Build a model as on one processor; a config that builds none is refused in one sentence."""
    try:
        return build_model(model_cfg, pretrained)
    except Exception as error:  # the constructors of the hosts and of the user's own classes raise anything
        raise UsageError(f'the config builds no model ({reason(error)}); mend the entry that is named') from error


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the common arguments; the folder is that of the argument, the config or its name.

    Raises:
        UsageError: If there is no such config.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    from mmext.hooks.checkpoint_guard import (
        CheckpointGuardHook,  # the hooks are slow to import, and few tools need them
    )

    _refuse_malformed(cfg, args.config)
    hooks = cfg.get('custom_hooks') or []
    if not any(resolve(hook, HOOKS) is CheckpointGuardHook for hook in hooks):
        cfg.custom_hooks = [*hooks, {'type': 'mmext.CheckpointGuardHook'}]
    if host_of(cfg) == 'mmpretrain':
        _set_loader_defaults(cfg)
    return cfg


def _refuse_malformed(cfg: Config, path: str) -> None:
    """Refuse entries of a run that mmengine, or what completes them here, would fail on without naming them."""

    def is_hook(hook: Any) -> bool:
        return isinstance(hook, Hook) or (isinstance(hook, Mapping) and 'type' in hook)

    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, list) or not all(map(is_hook, hooks)):
        wrong = next((h for h in hooks if not is_hook(h)), None) if isinstance(hooks, list) else hooks
        raise UsageError(f'custom_hooks is a list of dict(type=...), got {wrong!r} in {path}')
    defaults = cfg.get('default_hooks') or {}
    if not isinstance(defaults, Mapping):
        raise UsageError(f'default_hooks is a dict of names and dict(type=...), got {defaults!r} in {path}')
    if wrong := next((f'{k}={h!r}' for k, h in defaults.items() if h is not None and not is_hook(h)), None):
        raise UsageError(f'default_hooks has a dict(type=...) or None for each name, got {wrong} in {path}')
    loop = cfg.get('train_cfg')
    for key in ('max_epochs', 'max_iters'):
        most = loop.get(key) if isinstance(loop, Mapping) else None
        if isinstance(most, int) and most < 1:
            raise UsageError(
                f'train_cfg.{key} is a whole number from 1 on, got {most} in {path}; nothing would be trained'
            )
    wrappers = cfg.get('optim_wrapper')
    for wrapper in [wrappers, *wrappers.values()] if isinstance(wrappers, Mapping) else []:
        kind = wrapper.get('optimizer') if isinstance(wrapper, Mapping) else None
        if not isinstance(kind, Mapping):
            continue
        if wrong := next((f'{k}={v}' for k, v in kind.items() if isinstance(v, float) and not math.isfinite(v)), None):
            raise UsageError(f'the optimizer in {path} takes finite numbers, got {wrong}')
        clip = wrapper.get('clip_grad')
        if isinstance(clip, Mapping):
            clips = torch.nn.utils.clip_grad_value_ if clip.get('type') == 'value' else torch.nn.utils.clip_grad_norm_
            known = ['type', *list(inspect.signature(clips).parameters)[1:]]
            if wrong := next((key for key in clip if key not in known), None):
                raise UsageError(f'clip_grad in {path} takes {", ".join(known)}, got {wrong}')
        if isinstance(kind.get('type'), str) and resolve(kind, OPTIMIZERS) is None:
            names = [*OPTIMIZERS.module_dict, *(f'mmext.{name}' for name in MMEXT_OPTIMIZERS.module_dict)]
            raise UsageError(
                f'{kind["type"]} in {path} is no registered optimizer; the nearest names are '
                f'{", ".join(difflib.get_close_matches(kind["type"], names, 3, 0)) or "none"}'
            )


def _set_loader_defaults(cfg: Config) -> None:
    """mmpretrain's configs rely on its train.py for these; the other hosts' configs spell them out."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if loader := cfg.get(name):
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', {'type': 'default_collate'})


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add ``--shape``, the size of the image that a model is run with."""
    parser.add_argument(
        '--shape', type=positive, nargs=2, default=(224, 224), metavar=('H', 'W'), help='size of the input'
    )


def add_trust(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--trust``, which holds for one file: the one that the command line names."""
    parser.add_argument('--trust', action='store_true', help=f'unpickle any object in {what}, which can run any code')


def use_checkpoint(cfg: Config, path: str, trust: bool = False) -> dict[str, Any] | None:
    """Make ``path`` the checkpoint to load, after reading a local one; the runner gets what was read.

    Returns:
        Its content, None for what is downloaded and for a folder.

    Raises:
        CheckpointError: If it is missing or damaged, or needs trust and has it not.
    """
    cfg.load_from = path
    if '://' in path:
        return None
    if Path(path).is_dir() and trust:
        return None
    checkpoint = read_checkpoint(path, trust)
    hand_over(path, checkpoint)
    return checkpoint


def prepare(cfg: Config, checkpoint: Mapping[str, Any] | None = None) -> None:
    """Fill in the values that the config leaves open. With a checkpoint, take those that it was trained with.

    Raises:
        UsageError: If the checkpoint does not tell what was chosen, or the choice cannot be made.
    """
    enter_scope(cfg)
    model = resolve(cfg.model)
    if isinstance(model, HasOpenChoices):
        try:
            model.prepare(cfg, None if checkpoint is None else lambda: checkpoint)
        except ValueError as refusal:
            raise UsageError(str(refusal)) from refusal


def host_of(cfg: Config) -> str:
    """Return the package whose ways a run has: that of its scope, else that of its model's class."""
    scope = cfg.get('default_scope')
    if scope and scope != 'mmengine':
        return str(scope)
    return getattr(resolve(innermost(cfg.model)), '__module__', '').partition('.')[0]


def enter_scope(cfg: Config) -> None:
    """Look names up where the config says; with ``default_scope=None`` every type says where it is."""
    scope = cfg.get('default_scope', 'mmengine')
    if not scope:
        return
    if not isinstance(scope, str) or (
        MODELS.root._search_child(scope) is None and importlib.util.find_spec(scope.partition('.')[0]) is None
    ):
        raise UsageError(
            f'default_scope={scope!r} is no package that is installed; write mmengine or one of {", ".join(HOSTS)}'
        )
    init_default_scope(scope)


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names; on a machine without an accelerator processes talk through gloo."""
    if cfg.launcher == 'pytorch' and not (is_cuda_available() or is_npu_available() or is_musa_available()):
        _distribute_on_cpu(cfg)
    runner = RUNNERS.build(cfg)
    runner.register_hook(_Begun(), 'HIGHEST')
    return runner


class _Begun(Hook):
    """Tells :func:`run` that a batch is computed: what fails from then on is no longer a matter of config or data."""

    now = False

    def __init__(self) -> None:
        _Begun.now = False

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train') -> None:
        _Begun.now = True


def _distribute_on_cpu(cfg: Config) -> None:
    """mmengine's launcher selects a GPU first of all, and its DDP names one; neither is possible here."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    print_log('no accelerator found: the processes run on the CPU, through gloo', 'current')
    wrapper = {'type': 'MMDistributedDataParallel', 'find_unused_parameters': cfg.get('find_unused_parameters', False)}
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}


def leave_group() -> None:
    """End the processes of a job together: one that exits while another still works can abort in gloo's threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def warn(message: str) -> None:
    """Log a decision that the user did not ask for."""
    print_log(message, 'current', logging.WARNING)


def refuse_unwritable(path: Path) -> None:
    """Refuse, before the work is done, a file that could not be written after it.

    Raises:
        UsageError: If ``path`` is a folder, lies under a file, or its folder cannot be written to.
    """
    if path.is_dir():
        raise UsageError(f'{path} is a folder and cannot be written as a file; choose another name')
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), Path('/'))
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = 'may not be written to' if above.is_dir() else 'is no folder'
        raise UsageError(f'{path} cannot be written, because {above} {why}; choose another place')


def run(main: Callable[[], object]) -> None:
    """Run a tool's ``main``. What the user can mend is said in one line with exit code 2; ``--debug`` shows the traceback.

    An error of any kind counts as the user's until the first batch is computed: hosts and configs check themselves late, and
    by any exception. After that it keeps its traceback, except where the disk or a file is at fault.
    """
    try:
        main()
    except Exception as error:
        known = isinstance(error, UsageError)
        if '--debug' in sys.argv or not (known or isinstance(error, OSError) or not _Begun.now):
            raise
        text = str(error) if known else f'{reason(error)}; run it again with --debug to see where'
        sys.stderr.write(f'{Path(sys.argv[0]).name}: error: {text}\n')
        sys.exit(2)
