"""Show what the layers of this pack change in a model, without training it: every replaced layer, parameters and FLOPs.

Builds the config's model twice, as it is and without this pack's layers, and prints a row for every module that differs.
Nothing is downloaded and nothing is written.

Example:
    python tools/analysis_tools/show_swap.py configs/refconv/det/retinanet_r50-refconv_fpn_1x_coco.py --shape 800 1280
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import DictAction
from torch import nn

from mmext import cli
from mmext.analysis.comparison import multiply_adds
from mmext.errors import UsageError, reason
from mmext.export import TensorMode
from mmext.folding import fold
from mmext.registry import resolve
from mmext.surgery import distance, host_class, verdict
from mmext.wrapping import innermost


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose model uses mmext.swap_layers, or an mmext layer as conv_cfg')
    cli.add_shape(parser)
    parser.add_argument('--no-flops', action='store_true', help='count parameters only, which needs no forward')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args(argv)


def without_ours(cfg: Any) -> Any:
    """Return ``cfg`` without surgery and without this pack's layers in the slots for convolutions and activations."""
    cfg = innermost(cfg)
    if isinstance(cfg, (list, tuple)):
        return [without_ours(c) for c in cfg]
    if not isinstance(cfg, Mapping):
        return cfg
    kept = {k: v for k, v in cfg.items() if not (k in ('conv_cfg', 'act_cfg', 'dcn') and _is_ours(v))}
    if 'dcn' in cfg and 'dcn' not in kept:
        kept.pop('stage_with_dcn', None)
    return {k: without_ours(v) for k, v in kept.items()}


def _is_ours(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and getattr(resolve(cfg), '__module__', '').startswith('mmext.')


def build(cfg: Mapping) -> nn.Module:
    """Build a model as on one processor, without loading or downloading weights."""
    model = cli.build_subject(cfg)
    model.eval()  # not chained: the train() of some hosts' models returns None
    return model


def parameters(module: nn.Module) -> int:
    """Count what learns."""
    return sum(p.numel() for p in module.parameters())


def flops(model: nn.Module, shape: Sequence[int]) -> float:
    """Count multiply-adds of one image with mmengine's counter."""
    images = torch.zeros(1, 3, *shape)
    function = TensorMode(model, images).eval()
    try:
        return multiply_adds(function, images)
    except Exception as error:  # the counter traces the model, which not every host's model allows
        raise UsageError(f'the FLOPs cannot be counted ({reason(error)}); pass --no-flops') from error


def changes(before: nn.Module, after: nn.Module) -> list[tuple[str, nn.Module | None, nn.Module]]:
    """Return the outermost modules of another class, or that are new, with what stood there before.

    A norm, neck or head of this pack has no plain form in the config; it counts as new.
    """
    old, rows = dict(before.named_modules()), []
    for name, module in after.named_modules():
        if any(name.startswith(f'{row[0]}.') for row in rows):
            continue
        known = old.get(name)
        if known is None or host_class(known) is not host_class(module):
            rows.append((name, known, module))
        elif name and type(module).__module__.startswith('mmext.'):
            rows.append((name, None, module))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, build both models and print the table."""
    args = parse_args(argv)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    cfg = cli.read_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cli.enter_scope(cfg)
    model_cfg = cfg.model.to_dict()
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    before, after = build(without_ours(model_cfg)), build(model_cfg)
    rows = changes(before, after)
    if not rows:
        raise UsageError(f'{args.config} changes nothing: its model has no mmext.swap_layers and no module of mmext')
    table = [('layer', 'before', 'after', 'parameters', '', 'takes a checkpoint')]
    for name, old, new in rows:
        table.append(
            (
                name,
                '-' if old is None else type(old).__name__,
                type(new).__name__,
                '-' if old is None else f'{parameters(old):,}',
                f'-> {parameters(new):,}',
                '-' if old is None else verdict(distance(old, new)),
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for name, old, new, was, now, taken in table:
        print(
            f'{name:{widths[0]}}  {old:{widths[1]}}  {new:{widths[2]}}  {was:>{widths[3]}} {now:{widths[4]}}  {taken}'
        )
    print(f'{len(rows)} layers change')

    forms = {'without mmext': before, 'as trained': after}
    try:
        forms['deployed'] = fold(copy.deepcopy(after))
    except RuntimeError as refusal:
        print(f'not deployable: {refusal}')
    for form, model in forms.items():
        line = f'{form:14s} {parameters(model):>14,} parameters'
        print(
            line
            if args.no_flops
            else f'{line} {flops(model, args.shape) / 1e9:10.3f} GFLOPs at {args.shape[0]} x {args.shape[1]}'
        )


if __name__ == '__main__':
    cli.run(main)
