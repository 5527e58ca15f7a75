"""Fold a trained model, prove that it computes the same, and write a checkpoint and a config that need no folding.

Example:
    python tools/deploy.py work_dirs/x/x.py work_dirs/x/epoch_12.pth deployed/x.pth --fuse-bn
    python tools/test.py deployed/x.py deployed/x.pth
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

import mmext
from mmext import cli
from mmext.boxes import export_boxes
from mmext.checkpoints import read_checkpoint, state_dict_of
from mmext.contracts import MakesInputs, WarnsOnDeploy, find
from mmext.deploy import deploy, leftovers, without_training_parts
from mmext.errors import UsageError, reason
from mmext.export import FORMATS, example_inputs, export, outputs_of, unfinished


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
        type=cli.positive,
        nargs=2,
        default=(128, 128),
        metavar=('H', 'W'),
        help='size of the test input: two images of noise, or what the model makes for that size',
    )
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest relative difference that is accepted')
    parser.add_argument(
        '--stock', action='store_true', help="leave large depthwise kernels to torch's own layer, slow on a CPU"
    )
    parser.add_argument('--onnx', action='store_true', help='also write OUT.onnx and compare it in onnxruntime')
    parser.add_argument(
        '--torchscript', action='store_true', help='also write OUT.pt, by torch.jit.trace, and compare it'
    )
    parser.add_argument('--export', action='store_true', help='also write OUT.pt2, by torch.export, and compare it')
    parser.add_argument(
        '--boxes',
        action='store_true',
        help='also write OUT.boxes.onnx, a detector with boxes and NMS inside, and compare what it predicts with the host',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='try height and width as dynamic axes of these files too; the batch is tried always',
    )
    parser.add_argument('--force', action='store_true', help='overwrite existing outputs')
    cli.add_config_arguments(parser)
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


def warnings(model: nn.Module) -> list[str]:
    """Return what parts of the model have to say about being deployed, each reason with its count."""
    reasons = Counter(m.deploy_warning() for _, m in find(model, WarnsOnDeploy))
    return [f'{count} {reason}' for reason, count in reasons.items() if reason]


def why_no_export(model: nn.Module) -> str:
    """Return what to do about a model that the exporter refuses."""
    if isinstance(model, MakesInputs):
        return model.export_hint
    return (
        'where a model pools to fixed sizes, as PSPNet and UPerNet do, choose a --shape whose maps these divide, such as '
        '192 192'
    )


def check_outputs(paths: Sequence[Path], inputs: Sequence[str], force: bool) -> None:
    """Refuse, before any work, outputs that exist, that are the tool's own inputs, or that cannot be written."""
    for path in paths:
        for given in inputs:
            if path.resolve() == Path(given).resolve():
                raise UsageError(f'{path} is what this tool reads, and is never overwritten; choose another OUT')
        if path.is_file() and not force:
            raise UsageError(f'{path} exists and is not overwritten; choose another OUT or pass --force')
        cli.refuse_unwritable(path)


def write_pair(cfg: Config, needs: Sequence[str], checkpoint: dict, out: Path) -> None:
    """Write checkpoint and config, both or neither, after reading the config back."""
    reasons = ['# It needs mmext for', *(f'#   {need}' for need in needs)] if needs else ['# It does not need mmext.']
    text = '\n'.join(['# Written by tools/deploy.py of mmext.', *reasons, '', cfg.pretty_text])
    made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    try:
        if Config.fromstring(text, '.py').model != cfg.model:
            raise UsageError('not deployed: the config does not read back as it was written')
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(out.with_suffix('.py')) as config, unfinished(out) as weights:
            torch.save(checkpoint, weights)
            config.write_text(text, encoding='utf-8')
    except (OSError, RuntimeError, SyntaxError, NameError) as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise UsageError(
            f'{out} and its config could not be written ({reason(error)}); nothing is left of them'
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fold, compare and write."""
    args = parse_args(argv)
    out = Path(args.out)
    if out.suffix != '.pth':
        raise UsageError(
            f'deploy writes a checkpoint and a config beside it and needs an OUT that ends in .pth, got {out}'
        )
    exports = {kind: out.with_suffix(form.suffix) for kind, form in FORMATS.items() if getattr(args, kind)}
    config = out.with_suffix('.py')
    boxes = out.with_suffix('.boxes.onnx')
    written = [out, config, *exports.values(), *([boxes] if args.boxes else [])]
    check_outputs(written, inputs=[args.config, args.checkpoint], force=args.force)

    cfg = cli.read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint, args.trust)
    cli.prepare(cfg, checkpoint)
    state_dict = state_dict_of(checkpoint)

    try:
        trained, folded, new_model, error = deploy(
            cfg.model, state_dict, args.shape, args.fuse_bn, args.tolerance, args.stock
        )
    except RuntimeError as refusal:
        raise UsageError(f'not deployed: {refusal}') from refusal

    cfg = without_training_parts(cfg)
    # The weights are in the checkpoint; a config that loads others as well would undo them.
    cfg.model, cfg.load_from, cfg.resume = new_model, None, False
    needs = leftovers(cfg)
    meta = {k: v for k, v in checkpoint.get('meta', {}).items() if k == 'dataset_meta'}
    meta['mmext'] = dict(
        version=mmext.__version__, source=str(args.checkpoint), max_relative_error=error, needed_for=needs
    )
    write_pair(cfg, needs, dict(state_dict=folded.state_dict(), meta=meta), out)

    count = [sum(p.numel() for p in m.parameters()) for m in (trained, folded)]
    inputs = example_inputs(folded, *args.shape)
    before, after = milliseconds([trained, folded], inputs)
    print(f'largest relative difference of the outputs: {error:.2e}')
    print(f'parameters: {count[0]:,} -> {count[1]:,}')
    print(
        f'forward of {tuple(inputs.shape)}, one CPU thread: {before:.1f} ms -> {after:.1f} ms ({before / after:.2f}x)'
    )
    print(f'wrote {out} and {config}')
    print('\n  '.join(['it needs mmext for', *needs]) if needs else 'it needs mmext no longer')
    for warning in warnings(folded):
        print(warning)
    for kind, path in exports.items():
        try:
            error = export(folded, inputs, path, kind, args.dynamic, args.tolerance)
        except RuntimeError as refusal:
            raise UsageError(
                f'checkpoint and config are written, but no {FORMATS[kind].title} file ({refusal}); '
                f'{why_no_export(folded)}'
            ) from refusal
        print(f'wrote {path}: {FORMATS[kind].runtime} differs by {error:.2e}')
    if args.boxes:
        try:
            share, axes, why = export_boxes(folded, inputs, boxes, args.dynamic)
        except RuntimeError as refusal:
            raise UsageError(f'checkpoint and config are written, but no file with boxes ({refusal})') from refusal
        free = ', '.join(axes.values()) or 'no axis'
        print(
            f"wrote {boxes}: {1 - share:.1%} of its boxes are the host's own; free: {free}"
            + (f' ({why})' if why else '')
        )


if __name__ == '__main__':
    cli.run(main)
