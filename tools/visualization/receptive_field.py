"""Draw the effective receptive field of models of any host, and print which part of the image holds how much of it.

Example:
    python tools/visualization/receptive_field.py configs/demo/compare/resnet.py configs/demo/compare/dcls.py --shape 96 96
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from mmext import cli
from mmext.analysis.images import load_image, model_inputs
from mmext.analysis.receptive_field import SHARES, draw_receptive_fields, receptive_field, smallest_squares
from mmext.drawing import save_figure
from mmext.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure every model, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='configs of models of any host')
    parser.add_argument('--checkpoints', nargs='+', help='their weights, one for each config (default: as they start)')
    parser.add_argument('--images', type=Path, nargs='+', help='image files to measure on (default: noise)')
    parser.add_argument('--number', type=cli.positive, default=8, help='images of noise (default: 8)')
    parser.add_argument('--layer', help='module whose output is the map (default: the backbone, or the model)')
    parser.add_argument(
        '--shape', type=cli.positive, nargs=2, default=(224, 224), metavar=('H', 'W'), help='size of the input'
    )
    parser.add_argument('--out', type=Path, default=Path('receptive_field.png'), help='the picture to write')
    parser.add_argument('--dpi', type=cli.positive, default=100, help='pixels per inch (default: 100)')
    cli.add_config_arguments(parser)
    cli.add_trust(parser, 'the checkpoints')
    args = parser.parse_args(argv)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    cli.refuse_unwritable(args.out)
    checkpoints = args.checkpoints or [None] * len(args.configs)
    if len(checkpoints) != len(args.configs):
        raise UsageError(
            f'got {len(args.configs)} configs and {len(checkpoints)} checkpoints; give one for each, or none'
        )
    images = [load_image(path, args.shape) for path in args.images or ()]
    noise = torch.randn(args.number, 3, *args.shape, generator=torch.Generator().manual_seed(0))
    fields = []
    print(f'{"config":40s}' + ''.join(f'{share:>9.0%}' for share in SHARES))
    for path, checkpoint in zip(args.configs, checkpoints, strict=True):
        model = cli.load_subject(cli.read_config(path, args.cfg_options), checkpoint, trust=args.trust)
        field = receptive_field(model, model_inputs(model, images) if images else noise, args.layer)
        fields.append((Path(path).stem, field))
        print(f'{Path(path).stem:40s}' + ''.join(f'{square.area:>9.1%}' for square in smallest_squares(field)))
    save_figure(draw_receptive_fields(fields), args.out, args.dpi)
    print(f'{args.out} is written')


if __name__ == '__main__':
    cli.run(main)
