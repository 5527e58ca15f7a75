"""Test a checkpoint of any model of mmdet, mmseg or mmpretrain, with or without parts of mmext."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from mmext import cli
from mmext.contracts import ShowsPredictions
from mmext.errors import UsageError
from mmext.registry import resolve


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Parse the command line, test, and return the metrics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    cli.add_trust(parser, 'the checkpoint')
    parser.add_argument('--out', help='write the predictions: a .pkl file, or for segmentation a folder of maps')
    parser.add_argument('--force', action='store_true', help='overwrite what is at --out')
    parser.add_argument('--show-dir', help='write the images with the predictions drawn on them, as the host does')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation with the config's tta_model")
    cli.add_common_arguments(parser)
    args = cli.parse(parser, argv)
    cfg = cli.load_config(args)
    cfg.resume = False
    cli.prepare(cfg, cli.use_checkpoint(cfg, args.checkpoint, args.trust))
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.tta:
        enable_tta(cfg)
    if args.out:
        check_out(cfg, Path(args.out), args.force)
        if cli.host_of(cfg) == 'mmseg':
            metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
            metrics[0].output_dir = args.out
    runner = cli.build_runner(cfg)
    if args.out and cli.host_of(cfg) != 'mmseg':
        runner.test_evaluator.metrics.append(dump_class(cfg)(out_file_path=args.out))
    metrics = runner.test()
    cli.leave_group()
    return metrics


def check_out(cfg: Config, out: Path, force: bool) -> None:
    """Refuse a file name that does not suit the task, and to overwrite anything unless told to."""
    if cli.host_of(cfg) == 'mmseg':
        if out.is_file():
            raise UsageError(f'--out is a folder of maps in segmentation, got the file {out}; name a folder')
        taken = out.is_dir() and any(out.iterdir())
    else:
        if out.suffix not in ('.pkl', '.pickle'):
            raise UsageError(f'--out must end with .pkl or .pickle, got {out}')
        cli.refuse_unwritable(out)
        taken = out.exists()
    if taken and not force:
        raise UsageError(f'{out} exists; pass --force to overwrite it, or choose another --out')


def dump_class(cfg: Config) -> type[DumpResults]:
    """Return the metric that writes predictions; mmdet's own packs the masks."""
    if cli.host_of(cfg) == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults
    return DumpResults


def draw_predictions(cfg: Config, folder: str) -> None:
    """Switch the host's visualization hook on; each host has its own arguments for that."""
    scope, hook = cli.host_of(cfg), (cfg.get('default_hooks') or {}).get('visualization')
    model = resolve(cfg.model)
    if isinstance(model, ShowsPredictions):
        model.show_predictions(cfg, folder)
        return
    if not hook or (scope == 'mmseg' and not cfg.get('visualizer')):
        raise UsageError(
            "--show-dir needs the host's visualization hook in default_hooks, and in mmseg a visualizer; the config lacks "
            "it, start from the host's _base_/default_runtime.py"
        )
    if scope == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=folder)
    elif scope == 'mmseg':
        hook.draw = True
        cfg.visualizer.save_dir = folder
    else:
        hook.update(draw=True, test_out_dir=folder)


def enable_tta(cfg: Config) -> None:
    """Wrap the model and replace the pipeline by the config's own for test-time augmentation."""
    if not (cfg.get('tta_model') and cfg.get('tta_pipeline')):
        raise UsageError('--tta needs tta_model and tta_pipeline in the config, which lacks one')
    cfg.model = ConfigDict(**{**cfg.tta_model, 'module': cfg.model})
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline


if __name__ == '__main__':
    cli.run(main)
