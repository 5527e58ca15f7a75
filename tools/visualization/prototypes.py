"""Draw the prototypes of a ProtoPNet, each beside the training image that its patch came from.

Example:
    python tools/visualization/prototypes.py configs/demo/cls/proto_pnet_digits.py \\
        work_dirs/proto_pnet_digits/epoch_6.pth --classes 0 1 2 --out prototypes.png

A row shows the patch, the image with a box around it, and where in the image the prototype answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import DATASETS

from mmext import cli
from mmext.analysis.prototypes import draw_prototypes, show_prototypes
from mmext.drawing import save_figure
from mmext.errors import UsageError
from mmext.heads.proto_pnet import ProtoPNetHead
from mmext.hooks.prototype_push import push_dataset


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose head is a mmext.ProtoPNetHead')
    parser.add_argument('checkpoint', help='its weights, after a push')
    parser.add_argument('--classes', type=int, nargs='+', help='numbers of the classes to show (default: all)')
    parser.add_argument('--number', type=cli.positive, default=12, help='how many prototypes are drawn (default: 12)')
    parser.add_argument('--out', type=Path, default=Path('prototypes.png'), help='the PNG to write')
    cli.add_trust(parser, 'CHECKPOINT')
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, find the patches and draw."""
    args = parse_args(argv)
    cli.refuse_unwritable(args.out)
    cfg = cli.read_config(args.config, args.cfg_options)
    model = cli.load_subject(cfg, args.checkpoint, trust=args.trust)
    if not isinstance(getattr(model, 'head', None), ProtoPNetHead):
        raise UsageError(f"{args.config} has no prototypes; set head=dict(type='mmext.ProtoPNetHead', ...)")
    dataset = DATASETS.build(push_dataset(cfg))
    shown = []
    for one in show_prototypes(model, dataset, args.classes):
        shown.append(one)
        if len(shown) == args.number:
            break
    if not shown:
        raise UsageError(
            f'{args.checkpoint} has no prototype of these classes that was pushed; train with mmext.PrototypePushHook'
        )
    save_figure(draw_prototypes(shown), args.out)
    sys.stdout.write(f'{args.out}: {len(shown)} prototypes\n')


if __name__ == '__main__':
    cli.run(main)
