"""FreSh: choose an encoding's frequencies, before any training, from the spectrum of the target."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.inr.grid import coordinate_grid
from mmext.registry import MODELS

__all__ = ['FRESH_GRIDS', 'diagonal_spectrum', 'select_frequencies', 'spectral_distance']

#: Which argument sets the frequencies of an encoding or activation, and the values to try (for octaves, ours).
FRESH_GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    'mmext.SineActivation': ('first_w0', tuple(range(10, 201, 10))),
    'mmext.FourierFeatures': ('sigma', tuple(range(1, 21))),
    'mmext.PositionalEncoding': ('num_octaves', tuple(range(1, 11))),
}


def diagonal_spectrum(image: Tensor, crop: int | None = 64, fold: bool = False) -> Tensor:
    r"""Return the spectrum of an image as a function of one frequency, the sum of both axes'.

    .. math:: S_k = \sum_{i + j = k} \sum_c |\mathrm{FFT}(Y_c)_{ij}|, \qquad k = 1 \dots K

    over the half of the plane that is not conjugate to the other. The constant part, k = 0, is left out.

    Args:
        image: (C, H, W) or (H, W). It is resized to a square of its shorter side, of 1024 at most, where it is none.
        crop: K, or None for all of the 2n - 2 diagonals of the spectrum.
        fold: Take waves of both orientations by the absolute values of their frequencies (ours). In the original, one whose
            frequencies differ in sign lands far up, near k = n, which cropping removes.
    """
    image = image[None] if image.ndim == 2 else image
    image = image.detach().float() if image.dtype != torch.float64 else image.detach()
    side = min(*image.shape[1:], 1024)
    if image.shape[1:] != (side, side):
        image = F.interpolate(image[None], (side, side), mode='bilinear', align_corners=False, antialias=True)[0]
    magnitude = torch.fft.fft2(image).abs().sum(0)
    index = torch.arange(side, device=image.device)
    rows, columns = torch.meshgrid(index, index, indexing='ij')
    # Of every pair of conjugates, (i, j) and (n - i, n - j), the one that comes first is kept.
    conjugate = ((side - rows) % side) * side + (side - columns) % side
    magnitude = magnitude * (rows * side + columns <= conjugate)
    if fold:
        rows, columns = torch.minimum(rows, side - rows), torch.minimum(columns, side - columns)
    spectrum = magnitude.new_zeros(2 * side - 1).index_add_(0, (rows + columns).flatten(), magnitude.flatten())
    return spectrum[1:] if crop is None else spectrum[1 : crop + 1]


def spectral_distance(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein distance between two spectra of one length, each scaled to the sum 1."""
    a, b = a.double(), b.double()
    return float((a / a.sum() - b / b.sum()).cumsum(0)[:-1].abs().sum())


@torch.no_grad()
def select_frequencies(
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

    What is chosen is the argument in :data:`FRESH_GRIDS` of the config's encoding, or else of its activation. Networks of
    every candidate are drawn from the same seed; nothing is trained, and the global random state is as before.

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
        ValueError: If neither the encoding nor the activation has frequencies to choose.
    """
    part = next((p for p in ('encoding', 'act_cfg') if (cfg.get(p) or {}).get('type') in FRESH_GRIDS), None)
    if part is None:
        raise ValueError(
            f'select_frequencies needs an encoding or an act_cfg of type {sorted(FRESH_GRIDS)}, got '
            f'{cfg.get("encoding")} and {cfg.get("act_cfg")}'
        )
    argument, grid_of_values = FRESH_GRIDS[cfg[part]['type']]
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


def _with(cfg: Mapping[str, Any], part: str, argument: str, value: float) -> dict:
    changed = copy.deepcopy(dict(cfg))
    changed[part] = {**changed[part], argument: value}
    return changed
