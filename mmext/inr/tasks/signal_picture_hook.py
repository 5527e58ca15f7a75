"""What a run that fits a coordinate network draws: the image so far, and its progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmext.arguments import Repeats
from mmext.checkpoints import unwrap
from mmext.drawing import save_figure
from mmext.files import write_whole
from mmext.inr.tasks.drawing import draw_progress, draw_samples, progress_of
from mmext.registry import HOOKS

__all__ = ['SignalPictureHook']


@HOOKS.register_module()
class SignalPictureHook(Hook):
    """Draws what a coordinate network has learned, after each validation and each test (ours).

    ``iter_000500.png``, or ``test.png``, shows the first samples, see :func:`mmext.inr.draw_samples`. Of an image that is
    target, prediction and, where the operator has one, its own reconstruction, with the error and the spectra.
    ``progress.png`` shows PSNR and SSIM over the iterations of a training, see :func:`mmext.inr.draw_progress`.

    The numbers of the latter are in ``progress.json`` beside it. A resumed training reads them again, up to the iteration
    that it starts from, so that its curve has no gap; a training from the start begins anew. They are not in the checkpoint,
    because the runner saves it before the validation of the same iteration.

    Only the main process draws. Without matplotlib or scikit-image there are no pictures: the hook says so once, and the run
    goes on.

    Args:
        out_dir: Where the pictures go, by default ``pictures`` in the folder of the run.
        interval: Draw every so manieth validation, and the last one; the progress has them all.
        dpi: Pixels per inch of the pictures.
        views: How many samples a picture shows at most.

    Raises:
        ValueError: If ``interval`` is below 1.

    Example:
        >>> custom_hooks = [dict(type='mmext.SignalPictureHook', interval=2)]
    """

    priority = 'LOW'
    serves_testing = True

    def __init__(self, out_dir: str | None = None, interval: int = 1, dpi: Repeats = 100, views: Repeats = 4) -> None:
        if interval < 1:
            raise ValueError(f'SignalPictureHook needs an interval of at least 1, got {interval=}')
        self.out_dir = out_dir
        self.interval = interval
        self.dpi = dpi
        self.views = views
        self._samples: list[Any] = []
        self._unable = False
        self._loaded_iter = 0
        self._validations = 0
        self._stale = False
        # None while nothing is trained.
        self._history: list[dict[str, float]] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember how long a model that is only evaluated has been trained."""
        self._loaded_iter = int(checkpoint.get('meta', {}).get('iter', 0))

    def before_train(self, runner: Runner) -> None:
        """Start a history, or go on with that of a run that is resumed."""
        self._history, self._validations = [], 0
        path = self._folder(runner) / 'progress.json'
        if runner.iter and path.is_file():
            try:
                self._history = [point for point in json.loads(path.read_text()) if point['iter'] <= runner.iter]
            except (ValueError, TypeError, KeyError) as error:
                print_log(f'{path} is damaged ({error}); the progress starts here', 'current', logging.WARNING)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the first samples."""
        self._keep(batch_idx, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the first samples."""
        self._keep(batch_idx, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the samples, and add their metrics to the progress."""
        if self._samples:
            self._validations += 1
            due = self._validations % self.interval == 0 or self._history is None or runner.iter >= runner.max_iters
            self._try(self._draw, runner, metrics or {}, 'iter_{:06d}.png' if due else None, self._history)
            self._samples = []

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the samples."""
        if self._samples:
            self._try(self._draw, runner, metrics or {}, 'test.png', None)
            self._samples = []

    def _keep(self, batch_idx: int, outputs: Sequence[Any] | None) -> None:
        self._samples = [] if batch_idx == 0 else self._samples
        self._samples += list(outputs or ())[: self.views - len(self._samples)]

    def after_train(self, runner: Runner) -> None:
        """Draw the progress of a training that was stopped between two pictures."""
        if self._history and self._stale:
            self._try(self._draw_progress, runner, self._history)
        self._history = None

    def _try(self, draw: Callable[..., None], *args: Any) -> None:
        if self._unable or not is_main_process():
            return
        try:
            draw(*args)
        except ImportError as error:
            self._unable = True
            print_log(f'SignalPictureHook draws nothing in this run: {error}', 'current', logging.WARNING)

    def _draw(
        self,
        runner: Runner,
        metrics: Mapping[str, float],
        name: str | None,
        history: list[dict[str, float]] | None,
    ) -> None:
        """Draw the samples if there is a ``name``, and record their metrics if there is a ``history``."""
        iteration, folder, sample = runner.iter or self._loaded_iter, self._folder(runner), self._samples[0]
        # Named as by the evaluator, without the prefix of a metric.
        quality = {key.rpartition('/')[2]: value for key, value in metrics.items()}
        if history is not None and progress_of(quality):
            history[:] = [point for point in history if point['iter'] < iteration]
            history.append({'iter': iteration, **quality})
            write_whole(folder / 'progress.json', json.dumps(history, indent=1).encode())
            self._stale = True
        if name is not None:
            title = Path(str(sample.get('signal', 'signal'))).name + (
                f', {iteration:,} iterations' if iteration else ''
            )
            model: Any = unwrap(runner.model)
            measured = None
            if 'measurement' in sample or model.operator.simulates:
                measured = model.operator.picture(model.measurement(sample).cpu(), tuple(sample.size))
            save_figure(
                draw_samples(self._samples, title, quality, measured), folder / name.format(iteration), self.dpi
            )
            if history:
                self._draw_progress(runner, history)

    def _draw_progress(self, runner: Runner, history: list[dict[str, float]]) -> None:
        save_figure(draw_progress(history), self._folder(runner) / 'progress.png', self.dpi)
        self._stale = False

    def _folder(self, runner: Runner) -> Path:
        return Path(self.out_dir if self.out_dir is not None else Path(runner.work_dir) / 'pictures')
