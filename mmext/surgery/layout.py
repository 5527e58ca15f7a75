"""Where the channels are: in maps, (N, C, H, W), in maps with the channels last, (N, H, W, C), and in tokens, (N, L, C)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ['ChannelsLast', 'channel_axis']


class ChannelsLast(nn.Module):
    """Apply a layer that expects the channels on axis 1 to tensors that have them on the last, as ConvNeXt's do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map (N, ..., C) to the same shape."""
        # Not movedim(): ONNX takes no negative axes there.
        y = self.layer(*(x.permute(0, x.ndim - 1, *range(1, x.ndim - 1)) for x in inputs))
        return y.permute(0, *range(2, y.ndim), 1)


def channel_axis(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return which axis of these shapes holds the channels: it is as long in all of them. None if they do not tell.

    Where rows and columns have constant sizes too, as behind RoI pooling, two equal ones beside another one are they.
    """
    rank = len(shapes[0])
    if any(len(shape) != rank for shape in shapes):
        return None
    fixed = [axis for axis in range(1, rank) if len({shape[axis] for shape in shapes}) == 1]
    fixed = [axis for axis in fixed if shapes[0][axis] > 1] or fixed[:1]
    if rank == 4 and len(fixed) > 1:
        others = {axis: [i for i in (1, 2, 3) if i != axis] for axis in fixed}
        fixed = [a for a, (i, j) in others.items() if all(s[i] == s[j] != s[a] for s in shapes)]
    return fixed[0] if len(fixed) == 1 else None
