"""The stages that a config of a host goes through when it is tried out: stock, rewired, trained, deployed, reloaded."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from mmext.analysis.rewire import draw_moves, rewired
from mmext.analysis.samples import batch_for, fewest_classes, take_step
from mmext.deploy import deploy, leftovers, without_training_parts
from mmext.errors import reason
from mmext.export import comparable, example_inputs, outputs_of, unfinished
from mmext.hosts import build_model

__all__ = ['Row', 'examine']

#: Image sizes that are tried in turn; some models serve the size of their training only.
SIZES = (64, 224)
#: How many draws surgery may refuse.
DRAWS = 6


@dataclass
class Row:
    """What became of one drawn config."""

    config: str
    #: The sentence of why it does not count: the stock model takes no step.
    skipped: str = ''
    size: int = 0
    moves: list[str] = field(default_factory=list)
    #: What surgery refused before, each with its sentence.
    refused: list[str] = field(default_factory=list)
    trains: bool = False
    deploys: bool = False
    #: Whether the deployed config needs this pack no longer, and computes the same where it is blocked.
    stock: bool = False
    #: What the deployed config needs this pack for; that is no failure.
    needs: list[str] = field(default_factory=list)
    #: The stage that is being tried.
    stage: str = 'stock'
    reason: str = ''

    def verdict(self) -> str:
        """Return the row of the table."""
        marks = ' '.join(f'{"yes" if done else "-":6s}' for done in (self.trains, self.deploys, self.stock))
        why = f'skipped: {self.skipped}' if self.skipped else self.reason or '; '.join(self.needs)
        return f'{marks} {self.config}  [{"; ".join(self.moves)}]  {why}'


def examine(row: Row, path: Path, folder: Path, seed: int = 0, most: int = 60, fuse_bn: bool = False) -> None:
    """Go through the stages up to the reloading, and note in ``folder/row.json`` how far it comes.

    Args:
        row: What is filled in.
        path: The config of a host.
        folder: Where the deployed model is written too, see :func:`mmext.analysis.isolated.compare`.
        seed: What the surgery and the weights are drawn from, together with the config's name.
        most: Largest number of parameters of the stock model, in millions.
        fuse_bn: See :func:`mmext.deploy.deploy`.
    """
    MMLogger.get_instance('mmengine', log_level='ERROR').setLevel(logging.ERROR)
    torch.manual_seed(seed)
    stock: nn.Module | None = None
    _note(row, folder, 'stock')
    try:
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        cfg.dump(folder / 'plain.py')
        plain = Config(cfg.to_dict())
        stock = _stock_model(row, plain, most)
        if stock is not None:
            _note(row, folder, 'surgery')
            model = _rewired_model(row, cfg, stock, random.Random(f'{seed} {row.config}'))
            _note(row, folder, 'training')
            _trained(model, cfg, row.size)
            row.trains = True
            _note(row, folder, 'deployment')
            row.needs = _deployed(cfg, model, row.size, fuse_bn, folder)
            row.deploys = True
            _note(row, folder, 'reloading')
    except Exception as error:  # hosts raise anything
        row.skipped, row.reason = (reason(error), '') if row.stage == 'stock' else ('', reason(error))
        if row.stage == 'deployment' and stock is not None:
            try:
                _deployed(plain, stock, row.size, fuse_bn, folder)
            except Exception:
                row.reason += ' (so does the stock model)'
    _note(row, folder, row.stage)


def _note(row: Row, folder: Path, stage: str) -> None:
    row.stage = stage
    with unfinished(folder / 'row.json') as path:
        path.write_text(json.dumps(asdict(row)))


def _stock_model(row: Row, cfg: Config, most: int) -> nn.Module | None:
    """Return the stock model after a step, at the first size that it serves; None if it does not count."""
    for size in SIZES:
        model = _built(cfg)
        if (millions := sum(p.numel() for p in model.parameters()) / 1e6) > most:
            row.skipped = f'it has {millions:.0f} million parameters, more than {most}'
            return None
        try:
            _trained(model, cfg, size)
        except Exception as error:  # hosts raise anything
            row.skipped = row.skipped or reason(error)
        else:
            row.skipped, row.size = '', size
            return model
    return None


def _rewired_model(row: Row, cfg: Config, stock: nn.Module, rng: random.Random) -> nn.Module:
    """Draw surgery until it is one that the layers accept, and put it into ``cfg``."""
    plain = cfg.model.to_dict()
    for _ in range(DRAWS):
        moves = draw_moves(plain, stock, rng)
        row.moves = [str(move) for move in moves]
        cfg.model = rewired(plain, moves)
        try:
            return _built(cfg)
        except ValueError as refusal:  # a law of a layer or of surgery
            row.refused.append(f'{"; ".join(row.moves)}: {reason(refusal)}')
    raise RuntimeError(f'surgery refused {DRAWS} draws, at last: {row.refused[-1]}')


def _trained(model: Any, cfg: Config, size: int) -> None:
    """Take a training step with a model, and refuse values that are not finite."""
    with _undrawn_is_nan():
        model.init_weights()
    if bad := _not_finite(model):
        raise RuntimeError(
            f'{len(bad)} of its tensors are drawn neither when it is built nor by init_weights(), such as {bad[0]}'
        )
    model.train()
    batch = batch_for(cfg.default_scope, size=size, classes=fewest_classes(cfg.model.to_dict()))
    log = take_step(model, cfg.optim_wrapper, batch, size)
    if not bool(torch.as_tensor(log['loss']).isfinite()):
        raise RuntimeError(f'the loss is {float(log["loss"])}')
    if bad := _not_finite(model):
        raise RuntimeError(f'{len(bad)} tensors are not finite after a step, such as {bad[0]}')


def _not_finite(model: nn.Module) -> list[str]:
    """Return the names of parameters that hold anything but finite numbers."""
    return [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]


def _built(cfg: Config) -> nn.Module:
    with _undrawn_is_nan():
        return build_model(_whole_model(cfg))


@contextmanager
def _undrawn_is_nan() -> Iterator[None]:
    """Fill memory that torch hands out unwritten with NaN, so that a weight that nobody draws is found in every run."""
    state = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _whole_model(cfg: Config) -> dict[str, Any]:
    """Return the model as the runner completes it, without augmentations that resize a batch to that of the training."""
    model_cfg = cfg.model.to_dict()
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    if isinstance(model_cfg.get('data_preprocessor'), dict):
        model_cfg['data_preprocessor'].pop('batch_augments', None)
    return model_cfg


def _deployed(cfg: Config, model: nn.Module, size: int, fuse_bn: bool, folder: Path) -> list[str]:
    """Deploy, write what the reloading needs, and return what the config needs this pack for."""
    before, folded, new_model, _ = deploy(cfg.model, model.state_dict(), (size, size), fuse_bn, stock=True)
    cfg = without_training_parts(cfg)
    cfg.model, cfg.load_from, cfg.resume = new_model, None, False
    cfg.dump(folder / 'deployed.py')
    torch.save(dict(state_dict=folded.state_dict()), folder / 'deployed.pth')
    inputs = example_inputs(before, size, size)
    outputs = [t for t in outputs_of(before, inputs) if comparable(t)]
    torch.save(dict(inputs=inputs, outputs=outputs), folder / 'expected.pt')
    return leftovers(cfg)
