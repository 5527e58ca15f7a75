"""Draw the weights between all pixels of a network that has them as one matrix, such as X-MLP, into a PNG.

Example:
    python tools/visualization/spatial_weights.py configs/xmlp/cls/xmlp-t_32xb128_in1k.py --stage 2 --out weights.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmext import cli
from mmext.analysis.spatial_weights import draw_spatial_weights
from mmext.contracts import HasSpatialWeights, find
from mmext.drawing import save_figure
from mmext.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose model holds such a network')
    parser.add_argument('checkpoint', nargs='?', help='its weights; without them the start is drawn')
    parser.add_argument('--stage', type=int, default=0, help='which stage, from 0 on (default: 0)')
    parser.add_argument('--channel', type=int, default=0, help='which channel, from 0 on (default: 0)')
    parser.add_argument('--points', type=cli.positive, default=3, help='how many pixels are drawn as maps (default: 3)')
    parser.add_argument('--out', type=Path, default=Path('spatial_weights.png'), help='the PNG to write')
    cli.add_trust(parser, 'CHECKPOINT')
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, build the model and draw."""
    args = parse_args(argv)
    cli.refuse_unwritable(args.out)
    model = cli.load_subject(cli.read_config(args.config, args.cfg_options), args.checkpoint, trust=args.trust)
    name, network = next(find(model, HasSpatialWeights), ('', None))
    if network is None:
        raise UsageError(f'{args.config} has no network whose pixels mix by one known matrix, as X-MLP is')
    try:
        figure = draw_spatial_weights(network, args.stage, args.channel, args.points)
    except ValueError as refusal:
        raise UsageError(str(refusal)) from refusal
    save_figure(figure, args.out)
    sys.stdout.write(f'{args.out}: stage {args.stage}, channel {args.channel} of {name or "the model"}\n')


if __name__ == '__main__':
    cli.run(main)
