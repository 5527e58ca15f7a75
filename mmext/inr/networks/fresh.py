"""FreSh: choose an encoding's frequencies, before any training, from the spectrum of the target."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor

from mmext.contracts import HasFrequency
from mmext.inr.grid import coordinate_grid
from mmext.registry import DATASETS, MODELS, require

__all__ = [
    'OpenFrequency',
    'choose_for_run',
    'choose_frequencies',
    'diagonal_spectrum',
    'open_frequencies',
    'spectral_distance',
]

#: Arguments of a coordinate network that may have frequencies.
PARTS = ('encoding', 'act_cfg')


def diagonal_spectrum(image: Tensor, crop: int | None = 64, fold: bool = False) -> Tensor:
    r"""Return the spectrum of an image as a function of one frequency, the sum of both axes'.

    .. math:: S_k = \sum_{i + j = k} \sum_c |\mathrm{FFT}(Y_c)_{ij}|, \qquad k = 1 \dots K

    over one of every two conjugate entries, (i, j) and (n - i, n - j): the one with the smaller i + j, of equal ones that with
    :math:`i \le j`. In the first row and column it is the one with a frequency up to n/2. The constant part, k = 0, is left
    out.

    Args:
        image: (C, H, W) or (H, W). It is resized to a square of its shorter side, of 1024 at most, where it is none.
        crop: K, or None for all of the 2n - 2 diagonals of the spectrum. Those beyond k = n are empty.
        fold: Take waves of both orientations by the absolute values of their frequencies (ours). In the original, one whose
            frequencies differ in sign lands at n minus the difference of their magnitudes, which cropping may remove.
    """
    image = image[None] if image.ndim == 2 else image
    image = image.detach().float() if image.dtype != torch.float64 else image.detach()
    side = min(*image.shape[1:], 1024)
    if image.shape[1:] != (side, side):
        image = F.interpolate(image[None], (side, side), mode='bilinear', align_corners=False, antialias=True)[0]
    magnitude = torch.fft.fft2(image).abs().sum(0)
    index = torch.arange(side, device=image.device)
    rows, columns = torch.meshgrid(index, index, indexing='ij')
    total = rows + columns
    on_axis = (rows == 0) | (columns == 0)
    kept = torch.where(on_axis, total <= side // 2, (total < side) | ((total == side) & (rows <= columns)))
    magnitude = magnitude * kept
    if fold:
        rows, columns = torch.minimum(rows, side - rows), torch.minimum(columns, side - columns)
    spectrum = magnitude.new_zeros(2 * side - 1).index_add_(0, (rows + columns).flatten(), magnitude.flatten())
    return spectrum[1:] if crop is None else spectrum[1 : crop + 1]


def spectral_distance(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein distance between two spectra of one length, each scaled to the sum 1."""
    a, b = a.double(), b.double()
    return float((a / a.sum() - b / b.sum()).cumsum(0)[:-1].abs().sum())


@torch.no_grad()
def choose_frequencies(
    cfg: Mapping[str, Any],
    target: Tensor,
    candidates: Sequence[float] | None = None,
    num_inits: int = 10,
    crop: int = 64,
    fold: bool = False,
    seed: int = 0,
) -> tuple[dict, dict[float, float]]:
    r"""Return the config of a network whose untrained output has the spectrum nearest to the target's.

    Kania et al., *FreSh: Frequency Shifting for Accelerated Neural Representation Learning*, 2024, arXiv 2410.05050.

    What is chosen is the argument that an encoding or activation names in its attribute ``frequency``, beside the values to
    try; of the one that asks for it by the value ``'fresh'``, else of the encoding if that has one. Networks of every
    candidate are drawn from the same seed; nothing is trained, and the global random state is as before.

    In the config of a run, the value ``'fresh'``, or ``dict(type='fresh', candidates=..., num_inits=...)`` with the arguments
    below, makes ``tools/train.py`` choose; what it chose is in the config and in the checkpoints that it writes.

    Args:
        cfg: Config of a coordinate network, with ``encoding`` or ``act_cfg``.
        target: The image, (C, H, W); its scale and mean do not matter.
        candidates: Values to try, by default those of the original's search.
        num_inits: Networks per candidate, over which the distance is averaged.
        crop: See :func:`diagonal_spectrum`.
        fold: See :func:`diagonal_spectrum`.
        seed: Of the networks.

    Returns:
        The config with the chosen value, the first of equally near ones, and the distance of every candidate.

    Raises:
        ValueError: If neither the encoding nor the activation has frequencies to choose, or the network does not take two
            coordinates.
    """
    _check_planar(cfg)
    able = [p for p in PARTS if cfg.get(p) and _frequency(cfg[p]) is not None]
    if not able:
        raise ValueError(
            f'choose_frequencies chooses {_choices()}, got a network with encoding={cfg.get("encoding")} and '
            f'act_cfg={cfg.get("act_cfg")}; give it one of them'
        )
    part = next((p for p in able if any(map(_open, cfg[p].values()))), able[0])
    argument, grid_of_values = require(cfg[part]).frequency
    side = min(*target.shape[-2:], 1024)
    wanted = diagonal_spectrum(target, crop, fold)
    coords = coordinate_grid(side, side, device=target.device)
    distances = {}
    devices = [target.device] if target.is_cuda else []
    with torch.random.fork_rng(devices):
        for value in grid_of_values if candidates is None else candidates:
            torch.manual_seed(seed)
            candidate = _with(cfg, part, argument, value)
            found = 0.0
            for _ in range(num_inits):
                network = MODELS.build(candidate).to(target.device)
                found += spectral_distance(wanted, diagonal_spectrum(network(coords).movedim(-1, 0), crop, fold))
            distances[value] = found / num_inits
    return _with(cfg, part, argument, min(distances, key=lambda v: distances[v])), distances


class OpenFrequency(NamedTuple):
    """A place in a config that asks for a choice.

    Args:
        path: Keys that lead to the config of the network.
        part: ``'encoding'`` or ``'act_cfg'``.
        argument: The argument of that part.
        options: Arguments of :func:`choose_frequencies`.
    """

    path: tuple[str, ...]
    part: str
    argument: str
    options: dict[str, Any]


def open_frequencies(cfg: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[OpenFrequency]:
    """Find the networks in a model's config whose frequencies are to be chosen.

    Raises:
        ValueError: If a part asks for a choice that nobody knows how to make.
    """
    for key, value in cfg.items():
        if not isinstance(value, Mapping) or _open(value):
            continue
        asked = [argument for argument, given in value.items() if _open(given)]
        if asked:
            known = _frequency(value) if key in PARTS else None
            if known is None or asked != [known[0]]:
                raise ValueError(
                    f"FreSh chooses {_choices()}, got {asked[0]}='fresh' in {key} of type {value.get('type')}; give "
                    f'{asked[0]} a value'
                )
            options = value[asked[0]]
            options = {} if isinstance(options, str) else {k: v for k, v in options.items() if k != 'type'}
            yield OpenFrequency(path, key, asked[0], options)
        yield from open_frequencies(value, (*path, key))


def choose_for_run(cfg: Config, checkpoint: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Choose the frequencies that the config of a run asks for, and write them into the config.

    Args:
        cfg: The config, with a :class:`mmext.SignalModel` and its training data. In an inverse problem the spectrum is that of
            the classical reconstruction: the truth is not known.
        checkpoint: One of the same run, whose choice is taken over instead.

    Returns:
        What was chosen, by the dotted names of the settings.

    Raises:
        ValueError: If the checkpoint's config does not tell.
    """
    chosen = {}
    wanted = list(open_frequencies(cfg.model.to_dict(), ('model',)))
    if checkpoint is None and wanted:
        for request in wanted:
            _check_planar(reduce(getitem, request.path, cfg))
        dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
        sample = dataset[0]['data_samples']
        operator: Any = MODELS.build(cfg.model.get('operator', dict(type='mmext.IdentityOperator')))
        measured = sample.measurement if 'measurement' in sample else operator.measure(sample.target)
        target = operator.preview(measured, tuple(sample.size))
    for path, part, argument, options in wanted:
        key = '.'.join((*path, part, argument))
        if checkpoint is None:
            network, distances = choose_frequencies(reduce(getitem, path, cfg), target, **options)
            chosen[key] = network[part][argument]
            table = ', '.join(f'{value:g}: {distance:.2f}' for value, distance in distances.items())
            print_log(f'FreSh chose {key} = {chosen[key]:g} (spectral distances {table})', 'current')
        else:
            chosen[key] = _saved(checkpoint, key)
    cfg.merge_from_dict(chosen)
    return chosen


def _check_planar(cfg: Mapping[str, Any]) -> None:
    default = inspect.signature(require(cfg)).parameters.get('in_features')
    features = cfg.get('in_features', 2 if default is None else default.default)
    if features != 2:
        raise ValueError(
            f'FreSh compares the spectra of pictures and needs a network of two coordinates, got in_features={features}; '
            'give the frequency a value'
        )


def _saved(checkpoint: Mapping[str, Any], key: str) -> float:
    value: Any = None
    if text := (checkpoint.get('meta') or {}).get('cfg'):
        value = Config.fromstring(text, '.py')
        for name in key.split('.'):
            value = value.get(name) if isinstance(value, (Mapping, Config)) else None
    if not isinstance(value, (int, float)):
        raise ValueError(
            f'the config leaves {key} to be chosen from the signal, and the checkpoint does not tell what was chosen; pass '
            'the config that the training wrote into its work dir'
        )
    return value


def _open(value: Any) -> bool:
    return (value.get('type') if isinstance(value, Mapping) else value if isinstance(value, str) else None) == 'fresh'


def _frequency(part: Mapping[str, Any]) -> tuple[str, Sequence[float]] | None:
    found = require(part)
    return found.frequency if isinstance(found, HasFrequency) else None


def _choices() -> str:
    MODELS.import_from_location()
    found = {name: c.frequency[0] for name, c in MODELS.module_dict.items() if isinstance(c, HasFrequency)}
    return ', '.join(f'{argument} of mmext.{name}' for name, argument in sorted(found.items()))


def _with(cfg: Mapping[str, Any], part: str, argument: str, value: float) -> dict:
    changed = copy.deepcopy(dict(cfg))
    changed[part] = {**changed[part], argument: value}
    return changed
