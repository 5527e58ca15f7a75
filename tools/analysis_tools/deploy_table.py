"""Print what each of a fixed list of host models can do when it is deployed: fold, fuse its norms, and be exported.

The models have random weights, moved away from their start, and small images. Every entry is measured by the functions that
``tools/deploy.py`` uses. docs/deployment.md shows the table.

Example:
    python tools/analysis_tools/deploy_table.py
    python tools/analysis_tools/deploy_table.py mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py --shape 128 128
    python tools/analysis_tools/deploy_table.py mmdet::atss/atss_r50_fpn_1x_coco.py --formats boxes
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmext import cli
from mmext.boxes import export_boxes
from mmext.deploy import deploy
from mmext.errors import reason
from mmext.export import FORMATS, example_inputs, export_axes
from mmext.hosts import build_model

MODELS = (
    'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'mmpretrain::repvgg/repvgg-A0_8xb32_in1k.py',
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', help=f'configs of the hosts, by default {len(MODELS)} of them')
    parser.add_argument('--shape', type=cli.positive, nargs=2, default=(64, 64), metavar=('H', 'W'))
    parser.add_argument(
        '--formats',
        nargs='*',
        choices=[*FORMATS, 'boxes'],
        default=list(FORMATS),
        help='boxes: with NMS inside, of mmdet',
    )
    return parser.parse_args(argv)


@torch.no_grad()
def moved_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model whose weights and statistics are not those of its start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.state_dict()


def cells(config: str, shape: Sequence[int], formats: Sequence[str]) -> Iterator[str]:
    """Return the entries of one row."""
    scope, _, name = config.partition('::')
    yield f'`{scope}` {Path(name).stem.split("_8xb")[0].split("_1x")[0]}'
    DefaultScope._instance_dict.clear()
    init_default_scope(scope)
    cfg = get_config(config).model.to_dict()
    torch.manual_seed(0)
    try:
        trained, folded, _, error = deploy(cfg, moved_state(build_model(cfg)), shape, fuse_bn=True)
    except Exception as refusal:  # a row of the table tells what each host does
        yield str(refusal).partition(', so that')[0].replace('|', '/')
        yield from [''] * (1 + len(formats))
        return
    before, after = (sum(isinstance(m, _BatchNorm) for m in model.modules()) for model in (trained, folded))
    yield f'{error:.0e}'
    yield f'{before - after} of {before}'
    for kind in formats:
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield exported(folded, example_inputs(folded, *shape), Path(folder), kind)
            except RuntimeError as refusal:
                yield f'no: {reason(refusal).partition(": ")[2][:80]}'.replace('|', '/')


def exported(model: nn.Module, inputs: Tensor, folder: Path, kind: str) -> str:
    """Return the free axes of a file; of one with boxes also which share of them is not the host's."""
    if kind == 'boxes':
        share, axes, _ = export_boxes(model, inputs, folder / 'boxes.onnx', dynamic=True)
        return f'{", ".join(axes.values())}; {share:.1%} differ'
    _, axes, _ = export_axes(model, inputs, folder / f'model{FORMATS[kind].suffix}', kind, True, 1e-4)
    return ', '.join(axes.values()) or 'this size and batch'


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    args = parse_args(argv)
    MMLogger.get_instance('deploy_table', logger_name='mmext', log_level=logging.ERROR)
    titles = [f'{FORMATS[kind].title if kind in FORMATS else "ONNX with boxes"}, free axes' for kind in args.formats]
    print('|', ' | '.join(['Model', 'Difference', 'Norms fused', *titles]), '|')
    print('| :-- ' * (3 + len(args.formats)) + '|')
    for config in args.configs or MODELS:
        print('|', ' | '.join(cells(config, args.shape, args.formats)), '|', flush=True)


if __name__ == '__main__':
    cli.run(main)
