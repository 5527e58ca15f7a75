"""Write the surface that a trained model represents as a mesh, by marching cubes.

A shape, a signed distance or a density has one. The level is what the model trains toward: probability one half, distance
zero, or the density at which one cell of the grid is half opaque. ``--level`` is added to it, in values of the field.

Example:
    python tools/analysis_tools/export_mesh.py work_dirs/x/x.py work_dirs/x/iter_500.pth shape.ply --resolution 128
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmext import cli
from mmext.contracts import ExportsSurface
from mmext.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the model was trained with')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', type=Path, help='the .ply or .obj file to write')
    parser.add_argument(
        '--resolution', type=cli.positive, default=128, help='points of the grid per axis (default: 128)'
    )
    parser.add_argument('--level', type=float, default=0.0, help='how far above its own level (default: 0)')
    parser.add_argument('--color', action='store_true', help='write colors of the vertices, too')
    cli.add_trust(parser, 'the checkpoint')
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, build the model, and write its surface."""
    args = parse_args(argv)
    cli.refuse_unwritable(args.out)
    cfg = cli.read_config(args.config, args.cfg_options)
    cli.enter_scope(cfg)
    model = cli.load_subject(cfg, args.checkpoint, trust=args.trust)
    if not isinstance(model, ExportsSurface):
        raise UsageError(f'{args.config} has no model with a surface; give the config of a shape')
    try:
        vertices, faces, volume = model.export_surface(args.out, args.resolution, args.level, args.color)
    except ValueError as refusal:
        raise UsageError(str(refusal)) from refusal
    sys.stdout.write(f'{args.out}: {vertices:,} vertices, {faces:,} faces, volume {volume:.4f}\n')


if __name__ == '__main__':
    cli.run(main)
