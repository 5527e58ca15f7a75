"""What a run does for a coordinate network, besides training it."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmext.checkpoints import unwrap
from mmext.contracts import DescribesSignal, GivesOverview, GivesStatisticsSample
from mmext.inr.tasks.signal_model import SignalModel
from mmext.registry import HOOKS

__all__ = ['SignalHook']


@HOOKS.register_module()
class SignalHook(Hook):
    """Shows a coordinate network its signal, and freezes the statistics of its norms when they count (ours).

    - Before the first iteration, networks that generate weights from a description of the signal are shown it: the overview
      that the data set gives, or what was measured.
    - Before each validation, and in each saved checkpoint, norms over positions have the exact statistics of the grid that
      training uses. A data set that draws its items gives a draw for it. Without that, batch norm would be evaluated with a
      moving average over past weights, and the others with the statistics of whatever positions are asked for. Training goes
      on with the statistics of the batch.

    Raises:
        TypeError: If the model is no :class:`mmext.SignalModel` nor has its methods ``describe`` and ``freeze_stats``.

    Example:
        >>> custom_hooks = [dict(type='mmext.SignalHook')]
    """

    # After hooks that exchange weights for the validation.
    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Show the signal to the model, unless the training goes on from a checkpoint that has seen it."""
        model = self._model(runner)
        if runner.iter == 0 and isinstance(model.network, DescribesSignal):
            dataset = runner.train_dataloader.dataset
            if isinstance(dataset, GivesOverview):
                model.network.set_signal(dataset.overview().to(next(model.parameters()).device))
            else:
                model.describe(self._sample(runner)['data_samples'][0])

    def before_val_epoch(self, runner: Runner) -> None:
        """Freeze the statistics of a model that is being trained."""
        if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
            self._model(runner).freeze_stats(self._coords(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put exact statistics into the checkpoint."""
        # A copy, because another hook may have exchanged the weights of the checkpoint, for their average for example. The
        # statistics must be those of what is saved.
        model = copy.deepcopy(self._model(runner))
        model.load_state_dict(checkpoint['state_dict'], strict=False)
        model.freeze_stats(self._coords(runner))
        buffers = dict(model.named_buffers())
        checkpoint['state_dict'].update({k: v.cpu() for k, v in model.state_dict().items() if k in buffers})

    def _coords(self, runner: Runner) -> Tensor:
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, GivesStatisticsSample):
            # Not an item: that would be missing from what is trained on.
            preprocessor: Any = unwrap(runner.model).data_preprocessor
            return preprocessor(dict(inputs=[dataset.statistics_sample()]))['inputs'][0]
        return self._sample(runner)['inputs'][0]

    @staticmethod
    def _model(runner: Runner) -> Any:
        model: Any = unwrap(runner.model)
        if not isinstance(model, SignalModel):
            raise TypeError(f'SignalHook serves a mmext.SignalModel, got {type(model).__name__}; remove the hook')
        return model

    @staticmethod
    def _sample(runner: Runner) -> dict:
        """Return the one item of the training data, as a batch on the model's device."""
        item: dict = runner.train_dataloader.dataset[0]
        preprocessor: Any = unwrap(runner.model).data_preprocessor
        return preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
