"""Write the embedded data (digits on photographs) as COCO boxes and masks, semantic maps and a classification folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from mmext.datasets import DigitScenes, create


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = DigitScenes()
    parser.add_argument('--out', default='data/digit_scenes', help='root folder of the set')
    parser.add_argument('--train', type=int, default=default.train, help='scenes for training')
    parser.add_argument('--val', type=int, default=default.val, help='scenes for validation')
    parser.add_argument('--size', type=int, default=default.size, help='side of a scene in pixels')
    parser.add_argument('--overlap', type=float, default=default.overlap, help='share of a digit that may be hidden')
    parser.add_argument('--cls-size', type=int, default=default.cls_size, help='side of a classification image')
    parser.add_argument('--cls-views', type=int, default=default.cls_views, help='images per training digit')
    parser.add_argument('--seed', type=int, default=default.seed, help='the same seed gives the same files')
    parser.add_argument('--force', action='store_true', help='replace a set that is already there')
    args = vars(parser.parse_args(argv))
    out, force = Path(args.pop('out')), args.pop('force')
    try:
        written = create(DigitScenes(**args), out, force=force, track=track)
    except (ValueError, FileExistsError, ModuleNotFoundError) as error:
        parser.error(str(error))
    if written:
        print(f'wrote {out} (see {out / "contact_sheet.png"})')
    else:
        print(f'{out} is complete and has these parameters, nothing to do (--force makes it again)')


if __name__ == '__main__':
    sys.exit(main())
