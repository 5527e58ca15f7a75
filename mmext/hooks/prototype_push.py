"""The training of a ProtoPNet: its stages, the push of prototypes onto patches, and pruning."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmext.arguments import Cfg, Natural, Repeats
from mmext.checkpoints import unwrap
from mmext.errors import UsageError
from mmext.heads.proto_pnet import ProtoPNetHead
from mmext.registry import HOOKS

__all__ = ['PrototypePushHook', 'push_dataset']


class Epoch(NamedTuple):
    """What is trained in an epoch, and whether prototypes are pushed after it."""

    stage: Literal['warm', 'joint', 'last']
    push: bool


@HOOKS.register_module()
class PrototypePushHook(Hook):
    """Trains a :class:`ProtoPNetHead` in stages: warm, joint, and after each push the last layer alone.

    Chen et al., *This Looks Like That: Deep Learning for Interpretable Image Recognition*, NeurIPS 2019, arXiv 1806.10574.

    ======  =========================================  ==========================================
    stage   learns                                     when
    ======  =========================================  ==========================================
    warm    add-on layers and prototypes               the first epochs
    joint   these and the backbone                     until the next push
    last    the last layer, with all else as it is     ``last_epochs`` epochs after each push
    ======  =========================================  ==========================================

    Epochs of the last layer are epochs of the run, too. What happens in an epoch follows from its number alone, so a resumed
    run continues alike. Norms of what does not learn keep their statistics, so that pushed prototypes stay patches. (In the
    authors' code they go on to move.)

    Args:
        warm_epochs: Epochs of the first stage.
        push_start: No push before so many warm and joint epochs.
        push_interval: Joint epochs from push to push.
        last_epochs: Epochs of the last layer after a push.
        prune_epoch: After this epoch, counted from 0, prototypes are pruned. From then on only the last layer learns.
        nearest: How many images are looked at for pruning.
        threshold: How many of them must be of the prototype's class.
        dataset: Config of the images that prototypes are pushed to. By default they are those of training, with the pipeline
            of validation.
        batch_size: Images at a time in a push.

    Raises:
        UsageError: If the model has no ProtoPNetHead, the loop counts iterations, no epoch pushes, or DDP does not look for
            unused parameters.

    Example:
        >>> custom_hooks = [dict(type='mmext.PrototypePushHook', warm_epochs=5, push_start=10)]
    """

    priority = 'NORMAL'  # before the checkpoint is written

    def __init__(
        self,
        warm_epochs: Natural = 5,
        push_start: Natural = 10,
        push_interval: Repeats = 10,
        last_epochs: Natural = 20,
        prune_epoch: Natural | None = None,
        nearest: Repeats = 6,
        threshold: Repeats = 3,
        dataset: Cfg | None = None,
        batch_size: Repeats = 64,
    ) -> None:
        self.warm_epochs, self.push_start, self.push_interval = warm_epochs, push_start, push_interval
        self.last_epochs, self.prune_epoch = last_epochs, prune_epoch
        self.nearest, self.threshold = nearest, threshold
        self.dataset, self.batch_size = dataset, batch_size
        self._frozen: list[nn.Module] = []
        self._learnable: list[nn.Parameter] = []

    def plan(self, epochs: int) -> list[Epoch]:
        """Return what happens in each epoch of a run."""
        made: list[Epoch] = []
        done = 0
        while len(made) < epochs:
            done += 1
            push = done >= max(1, self.push_start) and (done - self.push_start) % self.push_interval == 0
            made.append(Epoch('warm' if done <= self.warm_epochs else 'joint', push))
            if push:
                made += [Epoch('last', False)] * self.last_epochs
        made = made[:epochs]
        if self.prune_epoch is not None:
            made[self.prune_epoch + 1 :] = [Epoch('last', False)] * len(made[self.prune_epoch + 1 :])
        return made

    def before_train(self, runner: Runner) -> None:
        """Make sure that the stages can be trained."""
        head = _head(runner)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise UsageError('PrototypePushHook counts epochs; take train_cfg=dict(by_epoch=True, max_epochs=...)')
        if not any(epoch.push for epoch in self.plan(runner.max_epochs)):
            raise UsageError(
                f'PrototypePushHook never pushes in {runner.max_epochs} epochs with push_start={self.push_start}; take a '
                'smaller push_start'
            )
        if is_model_wrapper(runner.model) and not getattr(runner.model, 'find_unused_parameters', True):
            raise UsageError(
                'PrototypePushHook freezes parts of the model in turn; set find_unused_parameters=True in the config'
            )
        self._learnable = [p for p in unwrap(runner.model).parameters() if p.requires_grad]
        print_log(f'{len(head.prototypes)} prototypes are pushed onto patches of training images', 'current')

    def before_train_epoch(self, runner: Runner) -> None:
        """Let what the stage trains learn, and nothing else."""
        stage = self.plan(runner.max_epochs)[runner.epoch].stage
        head, model = _head(runner), unwrap(runner.model)
        early = set(head.add_on.parameters()) | {head.prototypes}
        last = set(head.last.parameters())
        for parameter in self._learnable:
            part = 'early' if parameter in early else 'last' if parameter in last else 'rest'
            learns = part in {'warm': ('early',), 'joint': ('early', 'rest'), 'last': ('last',)}[stage]
            parameter.requires_grad_(learns)
            if not learns:
                parameter.grad = None
        self._frozen = [m for m in model.modules() if isinstance(m, _BatchNorm)] if stage != 'joint' else []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the statistics of frozen norms; the loop has just called ``model.train()``."""
        for norm in self._frozen:
            norm.eval()

    def after_train_epoch(self, runner: Runner) -> None:
        """Push or prune, where it is due."""
        head, model = _head(runner), unwrap(runner.model)
        push = self.plan(runner.max_epochs)[runner.epoch].push
        if push or runner.epoch == self.prune_epoch:
            training = model.training
            model.eval()
            batches = list(self._batches(runner, model))
            if push:
                moved = head.push(batches)
                print_log(f'prototypes were pushed by {float(moved.mean()):.3g} on average', 'current')
            if runner.epoch == self.prune_epoch:
                pruned = head.prune(batches, self.nearest, self.threshold)
                print_log(f'{len(pruned)} prototypes were pruned, {int(head.kept.sum())} stay', 'current')
            model.train(training)

    def after_train(self, runner: Runner) -> None:
        """Let all parameters learn again."""
        self._frozen = []
        for parameter in self._learnable:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def _batches(self, runner: Runner, model: Any) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
        """Go through all images in their order; every process through all, so that all get the same prototypes."""
        dataset = DATASETS.build(self.dataset or push_dataset(runner.cfg))
        for data in DataLoader(dataset, self.batch_size, collate_fn=_collate):
            data = model.data_preprocessor(data, False)
            labels = torch.stack([sample.gt_label.flatten()[0] for sample in data['data_samples']])
            yield model.extract_feat(data['inputs']), labels


def push_dataset(cfg: Any) -> dict[str, Any]:
    """Return the config of the images that prototypes come from: what the hook of a run's config says, or its default."""
    for hook in cfg.get('custom_hooks') or []:
        if str(hook.get('type')).endswith('PrototypePushHook') and hook.get('dataset'):
            return copy.deepcopy(hook['dataset'])
    dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    if cfg.get('val_dataloader'):
        dataset['pipeline'] = copy.deepcopy(cfg.val_dataloader.dataset.pipeline)
    return dataset


def _collate(items: Sequence[dict]) -> dict[str, list]:
    return {key: [item[key] for item in items] for key in items[0]}


def _head(runner: Runner) -> ProtoPNetHead:
    model = unwrap(runner.model)
    head = getattr(model, 'head', None)
    if not isinstance(head, ProtoPNetHead):
        raise UsageError(
            f"PrototypePushHook needs a classifier with head=dict(type='mmext.ProtoPNetHead', ...), got the head "
            f'{type(head).__name__} of {type(model).__name__}'
        )
    return head
