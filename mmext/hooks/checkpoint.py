"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

import mmengine.hooks
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmext.checkpoints import read_checkpoint, unwrap
from mmext.errors import CheckpointError, UsageError, reason
from mmext.files import write_whole
from mmext.registry import HOOKS
from mmext.resume import (
    EndlessBatches,
    counts,
    gradients_of,
    histories,
    hook_states,
    is_sharded,
    pending,
    plain_form,
    random_states,
    seed_loader,
    set_hook_states,
    set_random_state,
    wrappers_of,
)

__all__ = ['CheckpointHook']


class _WholeFiles(LocalBackend):
    """mmengine's local files, written under a temporary name and renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_whole(filepath, obj)


register_backend('mmext_whole_files', _WholeFiles, force=True)


class _RemovesLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove


@contextmanager
def _restoring(what: str) -> Iterator[None]:
    """Say which part of a checkpoint is not as this hook writes it."""
    try:
        yield
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'cannot resume: {what} in the checkpoint cannot be restored ({reason(error)}); the file is damaged or was '
            'changed, use an earlier one'
        ) from error


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's ``CheckpointHook``, whose checkpoints a run goes on from bit by bit (ours).

    ``tools/train.py`` puts it in the place of mmengine's. What it does beyond:

    - Every file is written under a temporary name and renamed. An old one is removed after the new one is there.
    - A checkpoint holds tensors and plain values only, so that reading it needs no class of mmengine or numpy.
    - It also holds the random states of Python, numpy, torch and its GPUs, the gradients that wait for a step, the names of
      the optimizer's parameters, what hooks count (``EarlyStoppingHook``, ``mmext.TuckerRankHook`` and every hook that
      answers :class:`mmext.contracts.KeepsRunState`), and whether the validation that was due is done.
    - Samples are loaded with random numbers of their own, see :mod:`mmext.resume`. The batches of an epoch that were seen
      are left out, the rest of that epoch is trained, and a validation that was cut off is done again.
    - Transforms that keep samples of earlier iterations (``CachedMosaic``) forget them where an epoch begins. They see an
      epoch's samples again where a run goes on inside of it, which takes the time of loading them.

    What stays different after a resume: operations that are random by themselves on a GPU, and such transforms where the
    number of workers has changed. Of several processes the mean of the waiting gradients is saved. Under FSDP, where each
    holds parts of them, the checkpoint waits for the step instead.

    Args:
        *args: Those of mmengine's hook.
        **kwargs: Those of mmengine's hook.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='mmext.CheckpointHook', interval=1))
    """

    file_backend: Any
    best_ckpt_path: Any
    best_ckpt_path_dict: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args:  # mmengine hands them to the runner, which takes none, after the first epoch
            names = inspect.signature(mmengine.hooks.CheckpointHook).parameters
            near = difflib.get_close_matches(next(iter(self.args)), names, 1, 0)[0]
            raise UsageError(f'CheckpointHook has no argument {", ".join(self.args)}; the nearest name is {near}')
        if type(self.interval) is not int or type(self.max_keep_ckpts) is not int:
            raise UsageError(
                'CheckpointHook takes whole numbers as interval and max_keep_ckpts, got '
                f'{self.interval!r} and {self.max_keep_ckpts!r}'
            )
        self._resumed: dict[str, Any] | None = None
        self._validated: tuple[int, int] | None = None
        self._waits: int | None = None
        self._states: list[dict[str, Any]] = []
        self._gradients: dict[str, torch.Tensor] = {}
        self._hooks: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Prepare the files and the data; where the run is resumed, do what was cut off."""
        super().before_train(runner)
        if self.file_client_args is None and type(self.file_backend) is LocalBackend:
            self.backend_args = {'backend': 'mmext_whole_files'}
        self._stay_inside()
        loop: Any = runner.train_loop
        loader = seed_loader(loop.dataloader, runner.seed)
        if runner._val_loop is not None:
            seed_loader(runner.val_loop.dataloader, runner.seed)
        if loader is not None and isinstance(loop, IterBasedTrainLoop):
            old = hasattr(type(loop.dataloader_iterator), 'skip_iter')
            loop.dataloader_iterator = EndlessBatches(loader, loop._iter, 0 if old else loop._iter)
        if self._resumed is not None:
            saved, self._resumed = self._resumed, None
            self.last_ckpt = runner.message_hub.get_info(
                'last_ckpt', None
            )  # saved again where a validation finds a best
            self._go_on(runner, saved)

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the data which epoch it is."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and hasattr(runner.train_dataloader, 'plan'):
            runner.train_dataloader.plan.epoch = runner.epoch

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save what is due, or has waited for a step of the optimizer."""
        super().after_train_iter(runner, *args, **kwargs)
        if self._waits is not None and not pending(runner.optim_wrapper):
            now = runner.iter + 1
            step = self._waits if self.by_epoch else now
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=now))

    def after_train(self, runner: Runner) -> None:
        """Save what still waits, where a run is ended early."""
        if self._waits is not None:
            self._save_checkpoint_with_step(runner, self._waits, dict(epoch=runner.epoch, iter=runner.iter), wait=False)
        super().after_train(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint, and remember that this validation is done."""
        self._validated, self._metrics = (runner.epoch, runner.iter), metrics
        try:
            super().after_val_epoch(runner, metrics)
        finally:
            self._metrics = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take what :meth:`before_save_checkpoint` has put in, where the run is resumed."""
        if runner._resume:
            self._resumed = checkpoint.get('mmext', {})
            hub = checkpoint['message_hub']
            with _restoring('the log'):
                hub['log_scalars'] = histories(hub['log_scalars'])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in what a run needs to go on, and make all of it tensors and plain values."""
        if 'optimizer' in checkpoint:
            meta, loop = checkpoint['meta'], runner.train_loop
            names = {id(p): name for name, p in unwrap(runner.model).named_parameters()}
            wrappers = wrappers_of(runner.optim_wrapper)
            checkpoint['mmext'] = {
                'random': self._states,
                'gradients': self._gradients,
                'hooks': self._hooks,
                'metrics': self._metrics,
                'counts': {key: w._inner_count for key, w in wrappers.items()},
                'parameters': {
                    key: [[names.get(id(p), '') for p in group['params']] for group in w.optimizer.param_groups]
                    for key, w in wrappers.items()
                },
                'optimizers': {key: type(w.optimizer).__name__ for key, w in wrappers.items()},
                'batches': len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None,
                'validated': self._validated == (meta['epoch'], meta['iter']),
            }
        plain = plain_form(checkpoint)
        checkpoint.clear()
        checkpoint.update(plain)

    def _go_on(self, runner: Runner, saved: dict[str, Any]) -> None:
        loop: Any = runner.train_loop
        with _restoring('the waiting gradients'):
            for name, p in unwrap(runner.model).named_parameters():
                if name in saved.get('gradients', {}):
                    p.grad = saved['gradients'][name].to(p)
            for key, wrapper in wrappers_of(runner.optim_wrapper).items():
                wrapper._inner_count = index(saved.get('counts', {}).get(key, wrapper._inner_count))
        with _restoring('the state of the hooks'):
            set_hook_states(runner, saved.get('hooks', {}))
        if saved.get('metrics'):  # saved by a best validation, before the hooks behind this one counted it
            for hook in runner.hooks[runner.hooks.index(self) + 1 :]:
                if counts(hook):
                    hook.after_val_epoch(runner, saved['metrics'])
        if saved.get('random'):
            with _restoring('the random state'):
                set_random_state(saved['random'])
        begun = isinstance(loop, EpochBasedTrainLoop) and loop._iter - loop._epoch * len(loop.dataloader)
        if begun and loop._epoch < loop._max_epochs:
            self._finish_epoch(runner, begun, saved.get('batches'))
            self._validate(runner)
        elif saved and not saved['validated']:
            self._validate(runner)

    @staticmethod
    def _finish_epoch(runner: Runner, begun: int, batches: int | None) -> None:
        """Train what an epoch lacks that was cut off after ``begun`` batches."""
        loop: Any = runner.train_loop
        if begun < 0 or begun > len(loop.dataloader) or batches not in (None, len(loop.dataloader)):
            raise CheckpointError(
                f'the checkpoint was saved inside epoch {loop._epoch + 1}, after {loop._iter} iterations of epochs of '
                f'{batches} batches, and the training data now have {len(loop.dataloader)}; resume from one that was '
                'saved at the end of an epoch, or with the same data and batch size'
            )
        runner.call_hook('before_train_epoch')
        runner.model.train()
        if begun < len(loop.dataloader):
            seeded = hasattr(loop.dataloader, 'plan')
            if seeded:
                loop.dataloader.plan.skip = begun
            for number, batch in enumerate(loop.dataloader, start=begun if seeded else 0):
                if number >= begun:
                    loop.run_iter(number, batch)
        runner.call_hook('after_train_epoch')
        loop._epoch += 1

    @staticmethod
    def _validate(runner: Runner) -> None:
        """Do the validation that is due here, as mmengine's loops do it after their training."""
        loop: Any = runner.train_loop
        if runner._val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            return
        loop._decide_current_val_interval()
        now, last = (
            (loop._epoch, loop._max_epochs) if isinstance(loop, EpochBasedTrainLoop) else (loop._iter, loop._max_iters)
        )
        if now and now >= loop.val_begin and (now % loop.val_interval == 0 or now == last):
            runner.val_loop.run()

    def _stay_inside(self) -> None:
        """Let a checkpoint name no file outside of the folder as the best one, which is removed when there is a better."""
        if not self.save_best:
            return

        def inside(path: str | None) -> str | None:
            here = path and self.file_backend.join_path(self.out_dir, os.path.basename(path))
            return here if here and self.file_backend.exists(here) else None

        if len(self.key_indicators) == 1:
            self.best_ckpt_path = inside(self.best_ckpt_path)
        else:
            self.best_ckpt_path_dict = {key: inside(path) for key, path in self.best_ckpt_path_dict.items()}

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict, wait: bool = True) -> None:
        """Save, then say so in ``last_checkpoint``, then remove what is too much."""
        if wait and is_sharded(runner.model) and pending(runner.optim_wrapper):
            runner.logger.info(
                'gradients wait for a step, and each process holds parts of them: so does the checkpoint'
            )
            self._waits = step
            return
        self._waits = None
        expired = []
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                expired.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._states = random_states()
        self._gradients, self._hooks = self._waiting_gradients(runner), hook_states(runner)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._states, self._gradients, self._hooks = [], {}, {}
        if is_main_process():
            write_whole(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt.encode())
            self._remove([self.file_backend.join_path(self.out_dir, old) for old in expired if old != name])

    @staticmethod
    def _waiting_gradients(runner: Runner) -> dict[str, torch.Tensor]:
        if not pending(runner.optim_wrapper):
            return {}
        if is_sharded(runner.model):
            runner.logger.warning(
                'the run was ended while gradients wait for a step; each process holds parts of them (FSDP), so that they are '
                'not saved, and a run that is resumed from here leaves them out'
            )
            return {}
        return gradients_of(unwrap(runner.model))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        later = _RemovesLater(self.file_backend)
        self.file_backend = later
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = later.backend
        if self.save_best and is_main_process():
            best = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
            self._remove([path for path in later.paths if path not in (*best, self.last_ckpt)])

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = read_checkpoint(ckpt_path)
        published = {key: value for key, value in checkpoint.items() if key in (self.published_keys or ())}
        stream = io.BytesIO()
        torch.save(published, stream)
        content = stream.getvalue()
        name = f'{os.path.splitext(ckpt_path)[0]}-{hashlib.sha256(content).hexdigest()[:8]}.pth'
        write_whole(name, content)
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {name}.')
