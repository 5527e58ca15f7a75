"""Networks of a stem and stages of equal blocks, with a strided layer before each stage but the first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mmext.arguments import Count, Few
from mmext.backbones.base import Backbone
from mmext.blocks.recomputed import recomputed

__all__ = ['StagedBackbone', 'one_entry_per_stage']


class StagedBackbone(Backbone):
    """A stem, and stages of ``depths[i]`` blocks with ``channels[i]`` channels.

    A subclass builds ``stem``, and calls :meth:`build_stages`. Its ``arch_laws`` may have more entries.

    Args:
        arch: Name of a variant, or a mapping of what ``arch_laws`` takes.
        out_indices: Scales whose maps are returned.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval: Whether batch norms keep their running statistics fixed in training.
        with_cp: Whether blocks recompute their activations in the backward pass to save memory.
        init_cfg: As in mmengine.

    Raises:
        ValueError: As :class:`mmext.backbones.base.Backbone`.
    """

    def __init__(
        self,
        arch: str | Mapping,
        out_indices: int | Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict | list | None,
    ) -> None:
        whole = self.architecture(arch)
        super().__init__(out_indices, len(whole['depths']), frozen_stages, norm_eval, init_cfg)
        self.arch = whole
        self.with_cp = with_cp
        self.channels: tuple[int, ...] = whole['channels'][: self.num_scales]

    @staticmethod
    def arch_laws(depths: Sequence[Few], channels: Sequence[Count]) -> None:
        """State the laws of an architecture."""
        one_entry_per_stage(depths, channels=channels)

    def build_stages(
        self,
        shrink: Callable[[int, int], nn.Module] | None,
        block: Callable[[int, int, float], nn.Module],
        drop_path_rate: float = 0.0,
    ) -> None:
        """Build the stages.

        Args:
            shrink: Makes the layer between two stages from their channels; None where the first block of a stage shrinks.
            block: Makes a block from the number of its stage, its number in the stage, and its drop probability.
            drop_path_rate: Drop probability of the network's last block; it rises linearly from 0 at the first.
        """
        depths = self.arch['depths']
        rates = iter(self.drop_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        for stage in range(self.num_scales):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if stage and shrink is not None:
                layers['shrink'] = shrink(*self.channels[stage - 1 : stage + 1])
            layers['blocks'] = _Blocks(*(block(stage, i, next(rates)) for i in range(depths[stage])))
            layers['blocks'].with_cp = self.with_cp  # type: ignore[assignment]
            self.stages.append(nn.Sequential(layers))

    def set_staged_outputs(self, out_norm: dict | None = None, pooled_norm: nn.Module | None = None) -> None:
        """Set the outputs of a network whose first stage has stride 4."""
        channels = [self.channels[i] for i in self.out_indices]
        self.set_outputs(channels, [4 * 2**i for i in self.out_indices], out_norm, pooled_norm)


class _Blocks(nn.Sequential):
    """Blocks one after the other, which may be computed again in the backward pass."""

    with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = recomputed(block, x, with_cp=self.with_cp)
        return x


def one_entry_per_stage(depths: Sequence[int], **others: Sequence) -> None:
    """Refuse an architecture whose entries do not have one value for each stage, or that has an empty stage.

    Raises:
        ValueError: In one sentence.
    """
    if not depths or min(depths) < 1 or any(len(value) != len(depths) for value in others.values()):
        given = ', '.join(f'{name}={tuple(value)}' for name, value in dict(depths=depths, **others).items())
        raise ValueError(f'an arch needs positive depths, and one entry per stage in {", ".join(others)}, got {given}')
