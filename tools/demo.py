"""The demo: make the data, then train, test, deploy and draw, all of it through the tools and the configs of configs/demo.

What is done is skipped, and an interrupted training goes on from its last checkpoint. Everything lands in work_dirs/demo.
The coordinate networks need no data: they fit a picture, reconstruct a phantom from few X-ray views and from a part of its
Fourier transform, and a scene from pictures of it.

Example:
    python tools/demo.py det        # a detector of mmext's parts beside the same one from stock parts
    python tools/demo.py seg        # a segmentor
    python tools/demo.py sagd       # the detector, trained with SA-GD
    python tools/demo.py inr        # coordinate networks: a picture, CT and MRI
    python tools/demo.py shape      # coordinate networks: a shape, with and without batch norm
    python tools/demo.py views      # a scene from 24 pictures, seen from where no picture was taken
    python tools/demo.py surface    # its surface from the same pictures, and depth from two photographs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmext.datasets import PALETTE, SEG_PALETTE

ROOT = Path(__file__).resolve().parents[1]
WORK = Path('work_dirs/demo')
CONFIGS = Path('configs/demo')
DATA = Path('data/digit_scenes')
ZOOM = 2
Drawing = Callable[[Image.Image], Image.Image]
METRICS = {
    'accuracy/top1': 'top-1 %',
    'coco/bbox_mAP_50': 'AP50',
    'coco/bbox_mAP': 'AP',
    'mIoU': 'mIoU %',
    'signal/PSNR': 'PSNR, dB',
    'signal/SSIM': 'SSIM',
    'signal/baseline_PSNR': 'classical PSNR, dB',
    'signal/baseline_SSIM': 'classical SSIM',
    'signal/bpp': 'bits per pixel',
    'shape/IoU': 'IoU',
    'shape/chamfer': 'chamfer',
    'shape/chamfer_floor': 'of the truth itself',
    'shape/normal_consistency': 'normal consistency',
    'surface/chamfer': 'chamfer',
    'surface/chamfer_floor': 'of the truth itself',
    'surface/normal_consistency': 'normal consistency',
    'signal/depth_error': 'depth error',
    'signal/mask_IoU': 'mask IoU',
    'stereo/EPE': 'disparity error, px',
    'stereo/baseline_EPE': 'by block matching, px',
}


@dataclass(frozen=True)
class Job:
    """One training with its test.

    Args:
        name: What it makes, and the name of its folder.
        config: Its config below configs/demo.
        start: The job whose last checkpoint it starts from.
        start_key: The setting of its config that takes that checkpoint.
        budget: The setting of its training loop that ends it.
        per_epoch: How much of the budget is taken for an epoch where a shortened demo counts these.
    """

    name: str
    config: str
    start: str | None = None
    start_key: str = 'load_from'
    budget: str = 'max_epochs'
    per_epoch: int = 1

    def trained(self, work: Path) -> tuple[Path, Path]:
        """Return the config with all overrides, as the training wrote it, and the last checkpoint."""
        folder = work / self.name
        return folder / Path(self.config).name, Path((folder / 'last_checkpoint').read_text())


DIGITS = Job('digits', 'cls/falconnet_digits.py')
REFOCUS = Job('refocus', 'cls/falconnet_refconv_digits.py', 'digits')
STOCK_DIGITS = Job('stock_digits', 'cls/r18_digits.py')
SURGERY = 'model.backbone.model.init_cfg.checkpoint'
PLAIN = 'model.backbone.init_cfg.checkpoint'
DETECTOR = Job('detector', 'det/retinanet_falconnet_sepc_scenes.py', 'refocus', SURGERY)
SAGD_DETECTOR = Job('sagd_detector', 'det/retinanet_falconnet_sepc_sagd_scenes.py', 'refocus', SURGERY)
STOCK_DETECTOR = Job('stock_detector', 'det/retinanet_r18_fpn_scenes.py', 'stock_digits', PLAIN)
SEGMENTOR = Job('segmentor', 'seg/falconnet_fpn_scenes.py', 'refocus', SURGERY)
SIGNAL: dict[str, Any] = dict(budget='max_iters', per_epoch=20)
PICTURE = Job('picture', 'inr/picture_astronaut.py', **SIGNAL)
CT = Job('ct', 'inr/ct_phantom.py', **SIGNAL)
MRI = Job('mri', 'inr/mri_phantom.py', **SIGNAL)
SHAPE = Job('shape', 'inr/shape_terrain.py', **SIGNAL)
PLAIN_SHAPE = Job('plain_shape', 'inr/shape_terrain_pe.py', **SIGNAL)
VIEWS = Job('views', 'inr/views_blocks.py', **SIGNAL)
SURFACE = Job('surface', 'inr/surface_blocks.py', **SIGNAL)
STEREO = Job('stereo', 'inr/stereo_motorcycle.py', **SIGNAL)


@dataclass
class Chain:
    """Jobs that follow each other, with the share of the machine and the place for their output.

    Small networks gain little from a second thread; two chains of one thread each are done in half the time.
    """

    jobs: list[Job]
    work: Path
    threads: int
    log: Path | None = None

    def tool(self, *args: object) -> None:
        """Run one of the tools as a user would, and stop the demo where it fails."""
        command = [str(a) for a in args]
        say(f'\n$ python {" ".join(command)}' + (f'     # output: {self.log}' if self.log else ''))
        environment = {**os.environ, 'OMP_NUM_THREADS': str(self.threads)}
        with self.log.open('a') if self.log else nullcontext() as output:
            code = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output
            ).returncode
        if code:
            where = f'in {self.log}' if self.log else 'above'
            raise RuntimeError(f'the demo stopped: python {command[0]} failed with exit code {code}; see {where}')

    def run(self, epochs: int | None) -> dict[str, dict[str, float]]:
        """Do every job that is not done, and return their metrics by name."""
        if self.log:
            self.log.parent.mkdir(parents=True, exist_ok=True)
        return {job.name: self.do(job, epochs) for job in self.jobs}

    def do(self, job: Job, epochs: int | None) -> dict[str, float]:
        """Train and test a job, unless that is done already, and return its metrics and the seconds that it took."""
        folder = self.work / job.name
        record = folder / 'result.json'
        if not record.exists():
            options = []
            if epochs is not None:
                budget = epochs * job.per_epoch
                options = [f'train_cfg.{job.budget}={budget}', f'train_cfg.val_interval={budget}']
            if job.start:
                options.append(f'{job.start_key}={(self.work / job.start / "last_checkpoint").read_text()}')
            begin = time.monotonic()
            self.tool(
                'tools/train.py',
                CONFIGS / job.config,
                *('--work-dir', folder, '--resume'),
                *(['--cfg-options', *options] if options else []),
            )
            seconds = time.monotonic() - begin
            metrics = self.test(*job.trained(self.work), folder / 'test')
            record.write_text(json.dumps({'seconds': round(seconds), **metrics}))
        return json.loads(record.read_text())

    def test(self, config: Path, checkpoint: Path, folder: Path, *args: object) -> dict[str, float]:
        """Test a checkpoint and return its metrics; ``folder`` keeps them."""
        record = folder / 'metrics.json'
        if not record.exists():
            self.tool('tools/test.py', config, checkpoint, '--work-dir', folder, *args)
            newest = max(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
            record.write_text(newest.read_text())
        return json.loads(record.read_text())


def say(message: str) -> None:
    """Print at once, whatever the tools are printing."""
    print(message, flush=True)


def boxes_of(predictions: Path) -> list[tuple[Path, Drawing, Drawing]]:
    """Return, for every validation scene, its image and two functions that draw its true and its predicted boxes."""
    from mmengine.fileio import load

    truth = json.loads((DATA / 'det/annotations/val.json').read_text())
    boxes = {image['id']: [] for image in truth['images']}
    for a in truth['annotations']:
        x, y, w, h = a['bbox']
        boxes[a['image_id']].append(((x, y, x + w, y + h), a['category_id'] - 1, ''))
    scenes = []
    for sample in load(predictions):
        found = sample['pred_instances']
        rows = zip(found['bboxes'].tolist(), found['labels'].tolist(), found['scores'].tolist(), strict=True)
        good = [(box, label, f' {score:.0%}') for box, label, score in rows if score > 0.3]
        scenes.append((Path(sample['img_path']), with_boxes(boxes[sample['img_id']]), with_boxes(good)))
    return scenes


def with_boxes(boxes: list[tuple[Sequence[float], int, str]]) -> Drawing:
    """Return a function that draws boxes with their digits onto an enlarged image."""

    def draw_on(image: Image.Image) -> Image.Image:
        pen = ImageDraw.Draw(image)
        for (x1, y1, x2, y2), label, note in boxes:
            corners = [ZOOM * v for v in (x1, y1, x2, y2)]
            pen.rectangle(corners, outline=PALETTE[label], width=2)
            place = (corners[0] + 3, corners[1] + 2)
            pen.rectangle(pen.textbbox(place, f'{label}{note}'), fill='black')
            pen.text(place, f'{label}{note}', fill=PALETTE[label])
        return image

    return draw_on


def maps_of(predictions: Path) -> list[tuple[Path, Drawing, Drawing]]:
    """Return, for every validation scene, its image and two functions that draw its true and its predicted map."""
    scenes = sorted((DATA / 'det/val').glob('*.png'))
    return [(p, with_map(DATA / 'seg/val' / p.name), with_map(predictions / p.name)) for p in scenes]


def with_map(path: Path) -> Drawing:
    """Return a function that lays a semantic map over an enlarged, dimmed image."""

    def draw_on(image: Image.Image) -> Image.Image:
        classes = np.asarray(Image.open(path).resize(image.size, Image.Resampling.NEAREST))
        colors = np.array(SEG_PALETTE, dtype=np.uint8)[classes]
        gray = np.asarray(image.convert('L').convert('RGB')) // 2
        return Image.fromarray(np.where(classes[..., None] > 0, colors, gray))

    return draw_on


def sheet(scenes: list[tuple[Path, Drawing, Drawing]], out: Path, columns: int = 3, rows: int = 3) -> None:
    """Write some scenes, each with the truth on the left and the prediction on the right."""
    count = columns * rows
    chosen = scenes[:: max(len(scenes) // count, 1)][:count]
    width, height = (ZOOM * side for side in Image.open(chosen[0][0]).size)
    header, gap = 18, 12
    page = Image.new('RGB', (columns * (2 * width + 2 + gap) - gap, header + rows * (height + gap) - gap), 'white')
    pen = ImageDraw.Draw(page)
    for i, (path, *drawings) in enumerate(chosen):
        left, top = i % columns * (2 * width + 2 + gap), header + i // columns * (height + gap)
        for half, (title, drawing) in enumerate(zip(('truth', 'prediction'), drawings, strict=True)):
            x = left + half * (width + 2)
            if i < columns:
                pen.text((x + 4, 3), title, fill='black')
            page.paste(drawing(Image.open(path).convert('RGB').resize((width, height))), (x, top))
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out)


def stack(pictures: list[Path], out: Path) -> None:
    """Write pictures below each other."""
    opened = [Image.open(path).convert('RGB') for path in pictures]
    page = Image.new('RGB', (max(p.width for p in opened), sum(p.height for p in opened)), 'white')
    top = 0
    for image in opened:
        page.paste(image, (0, top))
        top += image.height
    page.save(out)


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the metrics of all jobs as a Markdown table."""
    shown = {k: title for k, title in METRICS.items() if any(k in result for result in results.values())}
    lines = ['| job | ' + ' | '.join(shown.values()) + ' | training, s |', '|---' * (len(shown) + 2) + '|']
    for name, result in results.items():
        cells = [f'{result[key]:.3g}' if key in result else '' for key in shown]
        lines.append(f'| {name} | ' + ' | '.join(cells) + f' | {result.get("seconds", "")} |')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=list(TASKS))
    parser.add_argument('--epochs', type=int, help='train every job that short, to see that it runs')
    args = parser.parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs must be 1 or more, got {args.epochs}')
    begin = time.monotonic()
    os.chdir(ROOT)
    # A shortened demo keeps to itself: its results are never taken for those of the whole one.
    work = WORK if args.epochs is None else WORK.with_name(f'{WORK.name}_{args.epochs}_epochs')
    task = TASKS[args.task]
    jobs, *others = task.chains
    threads = max((os.cpu_count() or 1) // (1 + len(others)), 1)
    main_chain = Chain(jobs, work, threads)
    chains = [main_chain, *(Chain(c, work, threads, work / f'{c[-1].name}.log') for c in others)]
    try:
        if task.scenes:
            main_chain.tool('tools/dataset_converters/digit_scenes.py')
        with ThreadPoolExecutor(len(chains)) as pool:
            done = list(pool.map(lambda chain: chain.run(args.epochs), chains))
        results = {name: metrics for chain in done for name, metrics in chain.items()}
        finish(args.task, task, main_chain, results)
    except RuntimeError as failure:
        sys.exit(str(failure))
    say(f'This run took {(time.monotonic() - begin) / 60:.1f} minutes.')


def finish(name: str, task: Task, chain: Chain, results: dict[str, dict[str, float]]) -> None:
    """Deploy the last model of a chain, test what was deployed, draw its predictions, and write the table."""
    main_job = chain.jobs[-1]
    deployed = chain.work / f'{main_job.name}_deployed'
    model = deployed / 'model.pth'
    if not model.exists():
        chain.tool('tools/deploy.py', *main_job.trained(chain.work), model, '--fuse-bn')
    trained = list(results)
    out = [] if task.predictions is None else ['--out', deployed / task.predictions, '--force']
    results[deployed.name] = chain.test(model.with_suffix('.py'), model, deployed / 'test', *out)
    for tool, ending in task.films:
        film = chain.work / f'{name}{ending}'
        if not film.exists():
            chain.tool(tool, *main_job.trained(chain.work), film)
    picture = chain.work / f'{name}.png'
    if task.scenes is None or task.predictions is None:
        stack([chain.work / job / 'test/pictures/test.png' for job in trained], picture)
    else:
        sheet(task.scenes(deployed / task.predictions), picture)

    summary = chain.work / f'{name}.md'
    summary.write_text(table(results) + '\n')
    say(f'\n{summary.read_text()}\nTruth beside predictions: {picture}; this table: {summary}')


@dataclass(frozen=True)
class Task:
    """What the demo can do.

    Args:
        chains: Trainings, the chains side by side. What the first one ends with is deployed and drawn.
        predictions: Where its test writes what it predicts on the scenes; None where the jobs need no scenes and draw
            themselves.
        scenes: Reads these predictions, as pairs of drawings.
        films: Tools that make a file of config and checkpoint of the main job, with its ending.
    """

    chains: list[list[Job]]
    predictions: str | None = None
    scenes: Callable[[Path], list[tuple[Path, Drawing, Drawing]]] | None = None
    films: tuple[tuple[str, str], ...] = ()


TURNING = ('tools/visualization/render_path_inr.py', '.gif')
TASKS = {
    'det': Task([[DIGITS, REFOCUS, DETECTOR], [STOCK_DIGITS, STOCK_DETECTOR]], 'predictions.pkl', boxes_of),
    'seg': Task([[DIGITS, REFOCUS, SEGMENTOR]], 'maps', maps_of),
    'sagd': Task([[DIGITS, REFOCUS, SAGD_DETECTOR]], 'predictions.pkl', boxes_of),
    'inr': Task([[MRI, PICTURE], [CT]]),
    'shape': Task([[SHAPE], [PLAIN_SHAPE]]),
    'views': Task([[VIEWS]], films=(TURNING,)),
    'surface': Task([[SURFACE], [STEREO]], films=(TURNING, ('tools/analysis_tools/export_mesh.py', '.ply'))),
}


if __name__ == '__main__':
    main()
