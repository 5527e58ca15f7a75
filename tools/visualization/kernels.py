"""Draw the kernels of chosen layers, generated and dynamic ones, at chosen points over an image.

A dynamic kernel is that of the image. It is drawn at its place, and beside that enlarged.

Example:
    python tools/visualization/kernels.py configs/demo/compare/dcls.py work_dirs/dcls/epoch_6.pth digit.png --out kernels.png
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from mmext import cli
from mmext.analysis.images import load_image, model_inputs
from mmext.analysis.kernels import draw_kernels, kernel_layers, read_kernels
from mmext.drawing import save_figure


def point(text: str) -> tuple[float, float]:
    """Read a place in the image."""
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f'must be X,Y with shares of width and height from 0 to 1, got {text!r}')
    return x, y


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, run the model on the image, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a model of any host')
    parser.add_argument('checkpoint', nargs='?', help='its weights; without them those that it starts with are shown')
    parser.add_argument('image', type=Path, help='an image file')
    parser.add_argument(
        '--out', type=Path, default=Path('kernels.png'), help='the picture to write (default: kernels.png)'
    )
    parser.add_argument(
        '--layers', metavar='REGEX', help='layers by name (default: three with generated or dynamic kernels)'
    )
    parser.add_argument(
        '--points', type=point, nargs='+', default=[(0.25, 0.25), (0.5, 0.5), (0.75, 0.6)], metavar='X,Y', help='shares'
    )
    parser.add_argument('--channels', type=cli.positive, default=2, help='channels of each layer (default: 2)')
    parser.add_argument(
        '--shape', type=cli.positive, nargs=2, default=(224, 224), metavar=('H', 'W'), help='size of the input'
    )
    parser.add_argument('--dpi', type=cli.positive, default=100, help='pixels per inch (default: 100)')
    cli.add_config_arguments(parser)
    cli.add_trust(parser, 'the checkpoint')
    args = parser.parse_args(argv)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    cli.refuse_unwritable(args.out)
    image = load_image(args.image, args.shape)
    model = cli.load_subject(cli.read_config(args.config, args.cfg_options), args.checkpoint, trust=args.trust)
    found = read_kernels(
        model, model_inputs(model, [image]), kernel_layers(model, args.layers), args.points, args.channels
    )
    save_figure(draw_kernels(image, found), args.out, args.dpi)
    for layer in found:
        where = 'the same everywhere' if layer.same else f'at the output pixels {layer.pixels}'
        print(f'{layer.name}: {layer.kind}, {where}, channels {layer.channels}')
    print(f'{args.out} is written')


if __name__ == '__main__':
    cli.run(main)
