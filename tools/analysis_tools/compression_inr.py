"""Say what a coordinate network takes to store, and what that does to the image.

Prints a row for the network as trained and one as folded for deployment (batch norms fused), in each storage format: number
of parameters, bytes, bits per pixel (mmext.inr.stored_bits), PSNR and SSIM on the test data of the config. A shorter format
means that all numbers are rounded to it; they are computed with in float32, as a decoder would. Statistics of norms over all
positions are not stored, the decoder measures them on the grid, and so does this tool after rounding. Views and shapes have no
such grid: their statistics are stored, and there are no bits per pixel.

Example:
    python tools/analysis_tools/compression_inr.py work_dirs/x/x.py work_dirs/x/iter_500.pth
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn

from mmext import cli
from mmext.errors import UsageError
from mmext.folding import fold
from mmext.inr.tasks.compression import stored_bits
from mmext.inr.tasks.drawing_shapes import overlap
from mmext.inr.tasks.reconstruction_metric import reconstruction_quality
from mmext.inr.tasks.signal_model import SignalModel
from mmext.norms.position_norm import PositionNorm

FORMATS = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
#: What is reported of images and of volumes, with digits.
COLUMNS = {'image': (('PSNR', 2), ('SSIM', 4)), 'volume': (('IoU', 4),)}
TITLES = {'PSNR': 'PSNR (dB)'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config that the network was trained with')
    parser.add_argument('checkpoint', help='its checkpoint')
    cli.add_trust(parser, 'the checkpoint')
    parser.add_argument(
        '--formats', nargs='+', choices=FORMATS, default=list(FORMATS), help='storage formats to compare'
    )
    cli.add_config_arguments(parser)
    return parser.parse_args(argv)


def load_model(cfg: Config, path: str, trust: bool) -> SignalModel:
    """Build the config's model with the weights of a checkpoint, in eval mode.

    Raises:
        UsageError: If it is no coordinate network, or the checkpoint is of another model.
    """
    cli.enter_scope(cfg)
    kind = cfg.model.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, SignalModel)):
        raise UsageError(
            f'compression_inr serves the coordinate networks of a mmext.SignalModel, but the model of {cfg.filename} is a '
            f'{getattr(cls, "__name__", kind)}'
        )
    model: Any = cli.load_subject(cfg, path, trust=trust)
    return model


def sample_kind(sample: Any) -> str:
    """Return whether a sample is an image or a volume."""
    return 'volume' if len(sample.get('size')) == 3 else 'image'


def sample_quality(sample: Any) -> dict[str, float]:
    """Return what there is to say of a prediction."""
    if sample_kind(sample) == 'image':
        return reconstruction_quality(sample)
    return {'IoU': overlap(sample)} if sample.get('target') is not None else {}


def tensors(network: nn.Module) -> list[Tensor]:
    """Return what is rounded: parameters and buffers that are not integers."""
    found = itertools.chain(network.parameters(), network.buffers())
    return [t for t in found if t.is_floating_point() or t.is_complex()]


def size_in(network: nn.Module, dtype: torch.dtype, statistics: bool = False) -> int:
    """Return the bits of a network whose numbers are stored as ``dtype``; a complex one counts as two."""
    stored = copy.deepcopy(network)
    for tensor in tensors(stored):
        tensor.data = (torch.view_as_real(tensor.data) if tensor.is_complex() else tensor.data).to(dtype)
    return stored_bits(stored, statistics)


@torch.no_grad()
def rounded(model: SignalModel, dtype: torch.dtype, coords: Tensor) -> SignalModel:
    """Return the model that a decoder has: numbers rounded to ``dtype``, statistics over positions measured with them."""
    model = copy.deepcopy(model)
    for tensor in tensors(model.network):
        numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        numbers.copy_(numbers.to(dtype))
    # Where the data set draws what is measured, a decoder has no grid to measure on, and the saved statistics stay.
    norms = [m for m in model.network.modules() if isinstance(m, PositionNorm)] if model.operator.simulates else []
    hooks = [norm.register_forward_pre_hook(lambda norm, args: norm.freeze(args[0])) for norm in norms]
    if norms:
        model.operator.statistics_pass(model.image, coords)
    for hook in hooks:
        hook.remove()
    return model


def report(model: SignalModel, item: Mapping[str, Any], formats: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of the table, as text."""
    batch = model.data_preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
    coords, sample = batch['inputs'][0], batch['data_samples'][0]
    forms = {'trained': rounded(model, torch.float32, coords)}
    try:
        forms['folded'] = fold(copy.deepcopy(forms['trained']), fuse_bn=True)
    except RuntimeError as refusal:
        print(f'not folded: {refusal}')
    rows = []
    for (name, form), kind in itertools.product(forms.items(), formats):
        quality = sample_quality(rounded(form, FORMATS[kind], coords).predict(coords, sample))
        bits = size_in(form.network, FORMATS[kind], statistics=not model.operator.simulates)
        rows.append(
            (
                name,
                kind,
                f'{sum(p.numel() for p in form.network.parameters()):,}',
                f'{bits / 8:,.0f}',
                f'{bits / coords[..., 0].numel():.4f}' if model.operator.simulates else '-',
                *(
                    f'{quality[key]:.{digits}f}' if key in quality else '-'
                    for key, digits in COLUMNS[sample_kind(sample)]
                ),
            )
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate and print the table."""
    args = parse_args(argv)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    cfg = cli.read_config(args.config, args.cfg_options)
    model = load_model(cfg, args.checkpoint, args.trust)
    if not cfg.get('test_dataloader'):
        raise UsageError(f'{args.config} has no test_dataloader, whose image the report is about')
    item = DATASETS.build(cfg.test_dataloader.dataset)[0]
    titles = [TITLES.get(key, key) for key, _ in COLUMNS[sample_kind(item['data_samples'])]]
    table = [('network', 'storage', 'parameters', 'bytes', 'bits/pixel', *titles)]
    table += report(model, item, args.formats)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    size, unit = item['data_samples'].size, 'voxels' if len(item['data_samples'].size) == 3 else 'pixels'
    print(f'{item["data_samples"].get("signal", "signal")}, {" x ".join(map(str, size))} {unit}')
    for row in table:
        texts = [
            f'{text:<{w}}' if i < 2 else f'{text:>{w}}' for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        print('  '.join(texts))


if __name__ == '__main__':
    cli.run(main)
