"""Sums over all pixels under a Gaussian: along rows and columns, over all pairs, and on the permutohedral lattice.

Each filter maps ``values``, (K, N) over N points, to :math:`\\sum_j k(f_i, f_j)\\, v_j` with
:math:`k(f, g) = \\exp(-\\lVert f - g \\rVert^2 / 2)`. The point itself counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.errors import UsageError

__all__ = ['DirectGaussian', 'PermutohedralGaussian', 'SpatialGaussian']

#: Bytes of kernel that are kept from one call to the next, and bytes of a block where it is made anew.
_KEPT, _BLOCK = 2**28, 2**26


class SpatialGaussian:
    """The Gaussian of the places of all pixels. It is separable, so two small matrices give the sum exactly.

    Args:
        size: Height and width.
        sigma: Standard deviation in pixels.
        like: A tensor of the wanted type and device.
    """

    def __init__(self, size: tuple[int, int], sigma: float, like: Tensor) -> None:
        self.size = size
        places = [torch.arange(side, dtype=like.dtype, device=like.device) / sigma for side in size]
        self.rows, self.columns = (torch.exp(-(p[:, None] - p).square() / 2) for p in places)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the sums, (K, N)."""
        return (self.rows @ values.unflatten(1, self.size) @ self.columns).flatten(1)


class DirectGaussian:
    """The sum over all pairs of points, exact and quadratic in their number; a block of rows at a time.

    Args:
        features: (N, D), in units of the standard deviation.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features - features.mean(0)
        bytes_of_row = features.shape[0] * features.element_size()
        self.step = max(1, _BLOCK // bytes_of_row)
        kept = features.shape[0] * bytes_of_row <= _KEPT
        self.kernel = torch.cat([self._rows(i) for i in self._starts()]) if kept else None

    def __call__(self, values: Tensor) -> Tensor:
        """Return the sums, (K, N)."""
        if self.kernel is not None:
            return values @ self.kernel
        return torch.cat([values @ self._rows(start).T for start in self._starts()], 1)

    def _starts(self) -> range:
        return range(0, len(self.features), self.step)

    def _rows(self, start: int) -> Tensor:
        some, norms = self.features[start : start + self.step], self.features.square().sum(1) / 2
        exponent = some @ self.features.T - norms
        return exponent.sub_(norms[start : start + self.step, None]).clamp_(max=0).exp_()


class PermutohedralGaussian:
    r"""The sum on the permutohedral lattice: near the exact one, and linear in the number of points.

    Adams, Baek and Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*, 2010.

    ::

        points ── each to the d + 1 corners of its simplex ──> lattice ── blur (1/2, 1, 1/2) along d + 1 axes ──┐
        points <──────────────────── the same corners, the same barycentric weights ───────────────────────────┘

    Args:
        features: (N, D), in units of the standard deviation.

    Raises:
        UsageError: If the features spread so far that a corner has no 64-bit number.
    """

    def __init__(self, features: Tensor) -> None:
        d = features.shape[1]
        self.scale = 1 / (1 + 2.0**-d)
        places, closest, rank = self._simplex(features)
        self.weights = self._barycentric((places - closest) / (d + 1), rank)

        # A corner is numbered by its first d coordinates; the last follows, because all sum to 0.
        steps = torch.arange(d + 1, device=features.device)
        corner = closest[:, None].long() + steps[:, None] - (d + 1) * (rank[:, None] > d - steps[:, None])
        corner = corner[..., :d]
        low = corner.amin((0, 1)) - (d + 1)
        radix = (corner.amax((0, 1)) + (d + 2) - low).tolist()
        strides = [1]
        for number in radix:
            strides.append(strides[-1] * number)
        if strides[-1] >= 2**62:
            raise UsageError(
                f'the lattice would have {strides[-1]:.1e} places, 2^62 at most can be numbered: take larger standard '
                f'deviations, the features spread over {[round(float(s), 1) for s in features.amax(0) - features.amin(0)]}'
            )
        stride = torch.tensor(strides[:-1], device=features.device)
        codes, index = ((corner - low) * stride).sum(-1).unique(return_inverse=True)
        self.corners = index.view(-1, d + 1)
        self.number = len(codes)
        self.neighbors = []
        for axis in range(d + 1):
            step = (d + 1) * strides[axis] * (axis < d) - int(stride.sum())
            self.neighbors.append([self._find(codes, codes + sign * step) for sign in (1, -1)])

    @staticmethod
    def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points on the plane of the lattice, (N, D + 1), their remainder-0 corner and the rank of their parts."""
        d = features.shape[1]
        j = torch.arange(1, d + 1, dtype=features.dtype, device=features.device)
        scaled = features * ((2 / 3) ** 0.5 * (d + 1) / (j * (j + 1)).sqrt())
        after = scaled.flip(1).cumsum(1).flip(1)  # the sum from a part on
        places = torch.cat([after[:, :1], torch.cat([after[:, 1:], torch.zeros_like(after[:, :1])], 1) - j * scaled], 1)
        closest = (places / (d + 1)).round() * (d + 1)
        order = (places - closest).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=order.device).expand_as(order))
        rank = rank + (closest.sum(1, keepdim=True) / (d + 1)).round().long()
        turn = (d + 1) * ((rank < 0).long() - (rank > d).long())
        return places, closest + turn, rank + turn

    @staticmethod
    def _barycentric(offset: Tensor, rank: Tensor) -> Tensor:
        d = rank.shape[1] - 1
        weights = offset.new_zeros(len(offset), d + 2)
        weights.scatter_add_(1, d - rank, offset).scatter_add_(1, d + 1 - rank, -offset)
        weights[:, 0] += 1 + weights[:, -1]
        return weights[:, :-1]

    @staticmethod
    def _find(codes: Tensor, wanted: Tensor) -> Tensor:
        """Return where a code stands; the number of codes, which is an empty place, where it stands nowhere."""
        place = torch.searchsorted(codes, wanted).clamp_(max=len(codes) - 1)
        return torch.where(codes[place] == wanted, place, len(codes))

    def __call__(self, values: Tensor) -> Tensor:
        """Return the sums, (K, N)."""
        points = values.T
        lattice = points.new_zeros(self.number + 1, len(values))
        pairs = list(zip(self.corners.unbind(1), self.weights.unbind(1), strict=True))
        for corner, weight in pairs:
            lattice.index_add_(0, corner, weight[:, None] * points)
        for one, other in self.neighbors:
            lattice[:-1] += (lattice[one] + lattice[other]) / 2
        shares = (weight[:, None] * lattice[corner] for corner, weight in pairs)
        return self.scale * sum(shares, torch.zeros_like(points)).T
