"""Fold a trained model, prove that it computes the same, and write a checkpoint and a config that need no folding.

Example:
    python tools/deploy.py work_dirs/x/x.py work_dirs/x/epoch_12.pth deployed/x.pth --fuse-bn
    python tools/test.py deployed/x.py deployed/x.pth
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.registry import init_default_scope
from torch import nn

import mmext
from mmext import cli
from mmext.checkpoints import read_checkpoint, state_dict_of
from mmext.contracts import MakesInputs, WarnsOnDeploy, find
from mmext.deploy import deploy
from mmext.errors import UsageError
from mmext.export import example_inputs, export_onnx, outputs_of


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the model was trained with')
    parser.add_argument('checkpoint', help='its checkpoint')
    cli.add_trust(parser, 'the checkpoint')
    parser.add_argument('out', help='checkpoint to write, OUT.pth; the config is written beside it as OUT.py')
    parser.add_argument(
        '--fuse-bn',
        action='store_true',
        help='also fuse batch norms, and norms over positions where that is exact, into the layers beside them',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('H', 'W'),
        help='size of the test input: two images of noise, or what the model makes for that size',
    )
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest relative difference that is accepted')
    parser.add_argument('--onnx', action='store_true', help='also write OUT.onnx and compare it in onnxruntime')
    parser.add_argument('--force', action='store_true', help='overwrite OUT.pth and OUT.py')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args(argv)


def milliseconds(models: list[nn.Module], inputs: torch.Tensor, rounds: int = 10) -> list[float]:
    """Return the median single-thread CPU time of a forward of each model, measured in turns in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + 1):
        for model, spent in zip(models, times, strict=True):
            start = time.thread_time()
            outputs_of(model, inputs)
            spent.append(1e3 * (time.thread_time() - start))
    torch.set_num_threads(threads)
    return [statistics.median(spent[1:]) for spent in times]


def slow_on_cpu(model: nn.Module) -> int:
    """Count the plain convolutions that mmext.DepthwiseConv2d computes many times faster on a CPU."""
    plain = [m for m in model.modules() if type(m) is nn.Conv2d]
    return sum(m.groups == m.in_channels == m.out_channels and min(m.kernel_size) >= 15 for m in plain)


def warnings(model: nn.Module) -> list[str]:
    """Return what parts of the model have to say about being deployed, each reason with its count."""
    reasons = Counter(m.deploy_warning() for _, m in find(model, WarnsOnDeploy))
    return [f'{count} {reason}' for reason, count in reasons.items() if reason]


def why_no_onnx(model: nn.Module) -> str:
    """Return what to do about a model that the exporter refuses."""
    if isinstance(model, MakesInputs):
        return model.export_hint
    return (
        'where a model pools to fixed sizes, as PSPNet and UPerNet do, choose a --shape whose maps these divide, such as '
        '192 192'
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fold, compare and write."""
    args = parse_args(argv)
    out = Path(args.out)
    if out.suffix != '.pth':
        raise UsageError(
            f'deploy writes a checkpoint and a config beside it and needs an OUT that ends in .pth, got {out}'
        )
    written = [out, out.with_suffix('.py')] + ([out.with_suffix('.onnx')] if args.onnx else [])
    for existing in (p for p in written if p.exists() and not args.force):
        raise UsageError(f'{existing} exists and is not overwritten; choose another OUT or pass --force')

    cfg = cli.read_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    checkpoint = read_checkpoint(args.checkpoint, args.trust)
    cli.prepare(cfg, checkpoint)
    state_dict = state_dict_of(checkpoint)

    try:
        trained, folded, cfg.model, error = deploy(cfg.model, state_dict, args.shape, args.fuse_bn, args.tolerance)
    except RuntimeError as refusal:
        raise UsageError(f'not deployed: {refusal}') from refusal

    meta = {k: v for k, v in checkpoint.get('meta', {}).items() if k == 'dataset_meta'}
    meta['mmext'] = dict(version=mmext.__version__, source=str(args.checkpoint), max_relative_error=error)
    # The weights are in the checkpoint; a config that loads others as well would undo them.
    cfg.load_from, cfg.resume = None, False
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix('.partial')
    torch.save(dict(state_dict=folded.state_dict(), meta=meta), partial)
    cfg.dump(out.with_suffix('.py'))
    os.replace(partial, out)

    count = [sum(p.numel() for p in m.parameters()) for m in (trained, folded)]
    inputs = example_inputs(folded, *args.shape)
    before, after = milliseconds([trained, folded], inputs)
    print(f'largest relative difference of the outputs: {error:.2e}')
    print(f'parameters: {count[0]:,} -> {count[1]:,}')
    print(
        f'forward of {tuple(inputs.shape)}, one CPU thread: {before:.1f} ms -> {after:.1f} ms ({before / after:.2f}x)'
    )
    print(f'wrote {out} and {out.with_suffix(".py")}')
    if slow := slow_on_cpu(folded):
        print(
            f'{slow} depthwise convolutions have kernels of 15 x 15 or larger, for which torch is slow on CPUs in the NCHW '
            'layout; for such a machine wrap the component in mmext.swap_layers with '
            "rules=[dict(depthwise=True, to=dict(type='mmext.DepthwiseConv2d'))], the same checkpoint loads"
        )
    for warning in warnings(folded):
        print(warning)
    if args.onnx:
        try:
            error = export_onnx(folded, inputs, out.with_suffix('.onnx'))
        except RuntimeError as refusal:
            reason = (str(refusal).strip().splitlines() or [type(refusal).__name__])[0].partition('. ')[0]
            raise UsageError(
                f'checkpoint and config are written, but no ONNX file ({reason}); {why_no_onnx(folded)}'
            ) from refusal
        print(f'wrote {out.with_suffix(".onnx")}: onnxruntime differs by {error:.2e}')


if __name__ == '__main__':
    cli.run(main)
