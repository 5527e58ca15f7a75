"""Render what a coordinate network has learned of a scene, from a camera that goes around it, as a film.

Example:
    python tools/visualization/render_path_inr.py work_dirs/x/x.py work_dirs/x/iter_2000.pth x.gif --maps prediction depth
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from mmext import cli
from mmext.contracts import GivesPath
from mmext.errors import UsageError
from mmext.inr.tasks.turning import render_frames, save_film


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, render and write the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the network was trained with')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', type=Path, help='the film to write: .gif, .png (animated) or .webp')
    parser.add_argument('--frames', type=cli.positive, default=24, help='pictures of one round (default: 24)')
    parser.add_argument('--seconds', type=float, default=3.0, help='of one round (default: 3)')
    parser.add_argument(
        '--zoom', type=cli.positive, default=2, help='rows and columns a pixel is drawn with (default: 2)'
    )
    parser.add_argument(
        '--maps', nargs='+', default=['prediction'], help='prediction, depth, opacity, normal, side by side'
    )
    cli.add_config_arguments(parser)
    cli.add_trust(parser, 'the checkpoint')
    args = parser.parse_args(argv)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    if not args.seconds > 0:
        raise UsageError(f'a film takes more than no time, got --seconds {args.seconds}')
    cli.refuse_unwritable(args.out)
    cfg = cli.read_config(args.config, args.cfg_options)
    model: Any = cli.load_subject(cfg, args.checkpoint, trust=args.trust)
    dataset = DATASETS.build(cfg.test_dataloader.dataset) if cfg.get('test_dataloader') else None
    if not isinstance(dataset, GivesPath):
        raise UsageError(
            f'{args.config} has no test data with cameras, such as mmext.ViewDataset, to tell where a path goes along'
        )
    number = save_film(render_frames(model, dataset.path(args.frames), args.maps), args.out, args.seconds, args.zoom)
    print(f'{args.out} is written, {number} frames')


if __name__ == '__main__':
    cli.run(main)
