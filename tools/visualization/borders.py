"""Print what a dense CRF gains near the borders between labels, and draw predictions without and with it.

Example:
    python tools/visualization/borders.py configs/demo/seg/dense_crf_scenes.py work_dirs/dense_crf_scenes/epoch_6.pth

The config's model is a mmext.DenseCRFSegmentor. The images are those of its val_dataloader. A band of n pixels holds what is
at most n pixels away from a true border.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.runner import Runner

from mmext import cli
from mmext.analysis.borders import compare_borders, draw_borders
from mmext.drawing import save_figure
from mmext.errors import UsageError
from mmext.heads.dense_crf import DenseCRF


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose model is a mmext.DenseCRFSegmentor')
    parser.add_argument('checkpoint', help='its weights; those of the plain segmentor fit')
    parser.add_argument('--number', type=cli.positive, help='how many images are compared (default: all)')
    parser.add_argument('--show', type=cli.positive, default=4, help='how many images are drawn (default: 4)')
    parser.add_argument('--out', type=Path, default=Path('borders.png'), help='the PNG to write')
    cli.add_trust(parser, 'CHECKPOINT')
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, predict, print the table and draw."""
    args = parse_args(argv)
    cli.refuse_unwritable(args.out)
    cfg = cli.read_config(args.config, args.cfg_options)
    model = cli.load_subject(cfg, args.checkpoint, trust=args.trust)
    if not isinstance(getattr(model, 'crf', None), DenseCRF):
        raise UsageError(
            f"{args.config} has no dense CRF; set model=dict(type='mmext.DenseCRFSegmentor', model='EncoderDecoder', ...)"
        )
    loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    found = compare_borders(model, loader, args.number, show=args.show)
    sys.stdout.write('\n'.join(found.lines()) + '\n')
    save_figure(draw_borders(found, loader.dataset.metainfo['palette']), args.out)
    sys.stdout.write(f'{args.out}: {len(found.shown)} images\n')


if __name__ == '__main__':
    cli.run(main)
