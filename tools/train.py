"""Train any model of mmdet, mmseg or mmpretrain, with or without parts of mmext, from a config."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.hooks import CheckpointHook
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner

from mmext import cli
from mmext.checkpoints import hand_over, newest_checkpoint
from mmext.errors import UsageError
from mmext.optim.mixed_precision import mixed_precision_of
from mmext.registry import name_of, resolve


def main(argv: Sequence[str] | None = None) -> Runner:
    """Parse the command line, train, and return the runner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a value, from the newest one of the work dir that is intact',
    )
    cli.add_trust(parser, 'the checkpoint that --resume or --cfg-options load_from names, and in no other')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    cli.add_common_arguments(parser)
    args = cli.parse(parser, argv)
    cfg = cli.load_config(args)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    keep_one_spare(cfg)
    make_resume_exact(cfg)
    named = args.resume not in (None, 'auto') or 'load_from' in (args.cfg_options or {})
    if args.trust and not named:
        raise UsageError('--trust is for a checkpoint that the command line names; pass --resume CHECKPOINT --trust')
    cli.prepare(cfg, choose_start(cfg, args.resume, args.trust))
    runner = cli.build_runner(cfg)
    runner.train()
    cli.leave_group()
    return runner


def enable_amp(cfg: Config) -> None:
    """Replace the optimizer wrapper by the one that does the same in mixed precision."""
    wrapper = cfg.optim_wrapper
    given = resolve(wrapper.get('type', 'OptimWrapper'), OPTIM_WRAPPERS)
    kind = None if given is None else mixed_precision_of(given)
    if kind is None:
        raise UsageError(
            f'--amp replaces an optimizer wrapper by the registered one that derives from it and from AmpOptimWrapper, and '
            f'{wrapper.type if given is None else given.__name__} has none; register one, or leave out --amp'
        )
    if not (is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available()):
        raise UsageError('--amp needs an accelerator (mmengine has no mixed precision on the CPU); leave it out')
    wrapper.type = name_of(kind, OPTIM_WRAPPERS)
    wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Switch the learning rate's scaling on, as the config describes it."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen for; '
            'add auto_scale_lr = dict(base_batch_size=N) to the config'
        )
    cfg.auto_scale_lr.enable = True


def keep_one_spare(cfg: Config) -> None:
    """CheckpointHook deletes the old file before it writes the new one: with one kept, a kill in between loses all."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if hook and hook.get('max_keep_ckpts') == 1:
        hook['max_keep_ckpts'] = 2
        cli.warn('max_keep_ckpts raised from 1 to 2: while one checkpoint is written another one must exist')


def make_resume_exact(cfg: Config) -> None:
    """Put mmext.CheckpointHook in the place of mmengine's; one of the user's own stays."""
    hooks = dict(cfg.get('default_hooks') or {})
    hook = hooks.setdefault('checkpoint', {'type': 'CheckpointHook'})
    if hook and hook.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        hook['type'] = 'mmext.CheckpointHook'
        cfg.default_hooks = hooks


def choose_start(cfg: Config, resume: str | None, trust: bool = False) -> dict[str, Any] | None:
    """Decide from which checkpoint to start, and return its content.

    A run that has a checkpoint goes on from it. One that has none starts as its config says, from ``load_from`` if that is
    set: the same command serves the first start and every restart. Only what the command line names is trusted.
    """
    if resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, resume
    elif resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        newest = newest_checkpoint(cfg.work_dir, *checkpoint_folders(cfg))
        cfg.resume = newest is not None
        if newest:
            cfg.load_from, checkpoint = newest
            hand_over(cfg.load_from, checkpoint)
            take_seed(cfg, checkpoint)
            return checkpoint
        cli.warn(f'nothing to resume in {cfg.work_dir} yet: the run starts from the beginning')
    checkpoint = cli.use_checkpoint(cfg, cfg.load_from, trust) if cfg.get('load_from') else None
    if cfg.get('resume') and checkpoint:
        take_seed(cfg, checkpoint)
    return checkpoint


def take_seed(cfg: Config, checkpoint: Mapping[str, Any]) -> None:
    """Give a resumed run whose config names no seed that of its first start, before the samplers are made."""
    meta = checkpoint.get('meta')
    seed = meta.get('seed') if isinstance(meta, Mapping) else None
    if type(seed) is int and (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Return where the config has the checkpoints written, if that is not the work dir."""
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    return [Path(out_dir) / Path(cfg.work_dir).name] if out_dir else []


if __name__ == '__main__':
    cli.run(main)
