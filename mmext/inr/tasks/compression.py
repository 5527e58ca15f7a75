"""How many bits a coordinate network takes as a compressed form of its signal."""

from __future__ import annotations

from torch import nn

from mmext.contracts import optional_state

__all__ = ['stored_bits']


def stored_bits(network: nn.Module, statistics: bool = False) -> int:
    """Return the bits of all parameters and buffers that a decoder needs, at the precision that they have.

    Frozen statistics of the norms over positions do not count: whoever evaluates the whole grid finds them anew. The running
    statistics of batch norm do, as in the results of the released image fitting code.

    Args:
        network: The network.
        statistics: Count frozen statistics, too, for a signal that has no grid.
    """
    frozen = () if statistics else optional_state(network)
    return sum(8 * t.element_size() * t.numel() for name, t in network.state_dict().items() if name not in frozen)
