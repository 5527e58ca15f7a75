"""What ``tools/train.py`` and ``tools/test.py`` share: arguments, config, checkpoint checks, the runner."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import is_cuda_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from mmext.checkpoints import read_checkpoint
from mmext.contracts import HasOpenChoices
from mmext.errors import CheckpointError, UsageError
from mmext.folding import resolve

__all__ = [
    'add_common_arguments',
    'build_runner',
    'leave_group',
    'load_config',
    'parse',
    'prepare',
    'read_config',
    'run',
    'use_checkpoint',
]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common, spelt as the hosts spell them."""
    parser.add_argument('--work-dir', help='folder for logs and models (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: a.b=1, list=1,2 or list="[1,2]" without blanks',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # Launchers older than LOCAL_RANK pass the rank as an argument, in either spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``argv`` and publish the local rank to mmengine, which reads the environment."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def read_config(path: str) -> Config:
    """Read a config that describes a model.

    Raises:
        UsageError: If there is no such file, or no model in it.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist; check the path')
    cfg = Config.fromfile(path)
    if not isinstance(cfg.get('model'), dict):
        raise UsageError(
            f'config {path} has no model = dict(type=...); pass a whole config, not one of its _base_ parts'
        )
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the common arguments; the folder is that of the argument, the config or its name.

    Raises:
        UsageError: If there is no such config.
    """
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(hook['type'] == 'mmext.CheckpointGuardHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, {'type': 'mmext.CheckpointGuardHook'}]
    if cfg.get('default_scope') == 'mmpretrain':
        _set_loader_defaults(cfg)
    return cfg


def _set_loader_defaults(cfg: Config) -> None:
    """mmpretrain's configs rely on its train.py for these; the other hosts' configs spell them out."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if loader := cfg.get(name):
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', {'type': 'default_collate'})


def use_checkpoint(cfg: Config, path: str) -> None:
    """Make ``path`` the checkpoint to load, after proving that a local one can be read.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    if '://' not in path and not Path(path).is_dir():
        read_checkpoint(path)
    cfg.load_from = path


def prepare(cfg: Config, checkpoint: str | None = None) -> None:
    """Fill in the values that the config leaves open. With a checkpoint, take those that it was trained with.

    Raises:
        UsageError: If the checkpoint does not tell what was chosen, or the choice cannot be made.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = resolve(cfg.model)
    if isinstance(model, HasOpenChoices):
        try:
            model.prepare(cfg, None if checkpoint is None else partial(read_checkpoint, checkpoint))
        except ValueError as refusal:
            raise UsageError(str(refusal)) from refusal


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names; on a machine without an accelerator processes talk through gloo."""
    if cfg.launcher == 'pytorch' and not (is_cuda_available() or is_npu_available() or is_musa_available()):
        _distribute_on_cpu(cfg)
    return RUNNERS.build(cfg)


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


def run(main: Callable[[], object]) -> None:
    """Run a tool's ``main``; what the user can mend is said in one line, anything else keeps its traceback."""
    try:
        main()
    except (UsageError, CheckpointError) as error:
        sys.stderr.write(f'{Path(sys.argv[0]).name}: error: {error}\n')
        sys.exit(2)
