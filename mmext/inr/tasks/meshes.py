"""Triangle meshes: what is inside, points on them, and how far two of them are apart."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ['Mesh', 'surface_distances']

#: Pairs of a column and a triangle that are looked at together.
_PAIRS = 2**21


class Mesh:
    """A surface of triangles; seen from outside, the corners of each go round counterclockwise.

    Args:
        vertices: (V, 3).
        faces: Indices of three vertices each, (F, 3).

    Raises:
        ValueError: If the shapes do not fit, a coordinate is no number, or a face names a vertex that there is not.
    """

    def __init__(self, vertices: Any, faces: Any) -> None:
        self.vertices = np.ascontiguousarray(vertices, dtype=np.float64).reshape(-1, 3)
        self.faces = np.ascontiguousarray(faces, dtype=np.int64).reshape(-1, 3)
        if not np.isfinite(self.vertices).all():
            raise ValueError(
                f'a mesh has {(~np.isfinite(self.vertices)).any(1).sum()} vertices that are no numbers; remove them'
            )
        if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < len(self.vertices):
            raise ValueError(
                f'a mesh of {len(self.vertices)} vertices has a face with the vertex {self.faces.max()}; the file is damaged'
            )

    @cached_property
    def corners(self) -> np.ndarray:
        """The corners of each face, (F, 3, 3)."""
        return self.vertices[self.faces]

    @cached_property
    def _normals_and_areas(self) -> tuple[np.ndarray, np.ndarray]:
        a, b, c = self.corners.transpose(1, 0, 2)
        cross = np.cross(b - a, c - a)
        length = np.linalg.norm(cross, axis=1)
        return cross / np.maximum(length, 1e-300)[:, None], length / 2

    def volume(self) -> float:
        """Return the volume inside, negative where faces are seen from inside."""
        a, b, c = self.corners.transpose(1, 0, 2)
        return float(np.einsum('ij,ij->', a, np.cross(b, c)) / 6)

    def vertex_normals(self) -> np.ndarray:
        """Return the mean normal of the faces about each vertex, by their areas, (V, 3)."""
        normals, areas = self._normals_and_areas
        total = np.zeros_like(self.vertices)
        for corner in self.faces.T:
            np.add.at(total, corner, normals * areas[:, None])
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)

    def turned_outward(self) -> Mesh:
        """Return the mesh with the corners of all faces the other way round where its volume is negative."""
        return Mesh(self.vertices, self.faces[:, ::-1]) if self.volume() < 0 else self

    def scaled(self, margin: float = 1.05) -> Mesh:
        """Return the mesh in the middle of [-1, 1], of which its longest half extent, times ``margin``, is one."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        half = (high - low).max() / 2 * margin
        return Mesh((self.vertices - (low + high) / 2) / half, self.faces)

    def sample(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return points on the surface, even over its area, and the normals there, (count, 3) each."""
        generator = np.random.default_rng(seed)
        normals, areas = self._normals_and_areas
        chosen = generator.choice(len(areas), count, p=areas / areas.sum())
        u, v = np.sqrt(generator.random(count)), generator.random(count)
        a, b, c = self.corners[chosen].transpose(1, 0, 2)
        points = (1 - u)[:, None] * a + (u * (1 - v))[:, None] * b + (u * v)[:, None] * c
        return points, normals[chosen]

    def crossings(self, columns: np.ndarray, axis: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """Return where lines along an axis cross the surface.

        Args:
            columns: The two other coordinates of the lines, in the order of the axes, (M, 2).
            axis: The axis.

        Returns:
            The index of the line and the place on it of each crossing, without order.
        """
        others = [a for a in range(3) if a != axis]
        # Off the vertices and edges of regular meshes, where a line would hit two triangles or none.
        columns = columns + np.array((1.234e-7, 2.718e-7))
        flat = self.corners[..., others]
        low, high = flat.min(1), flat.max(1)
        origin = low.min(0) if len(low) else np.zeros(2)
        side = np.maximum((high.max(0) if len(high) else np.ones(2)) - origin, 1e-12)
        bins = int(np.clip(math.sqrt(len(self.faces)) / 2, 1, 512))

        def cell(places: np.ndarray) -> np.ndarray:
            return np.clip(((places - origin) / side * bins).astype(np.int64), 0, bins - 1)

        first, last = cell(low), cell(high)
        spans = last - first + 1
        faces, within = _ragged(spans[:, 0] * spans[:, 1])
        cells = (first[faces, 0] + within // spans[faces, 1]) * bins + first[faces, 1] + within % spans[faces, 1]
        order = np.argsort(cells, kind='stable')
        faces, starts = faces[order], np.searchsorted(cells[order], np.arange(bins**2 + 1))
        in_box = ((columns >= origin) & (columns <= origin + side)).all(1)
        where = cell(columns) @ np.array((bins, 1))
        counts = np.where(in_box, starts[where + 1] - starts[where], 0)
        found = []
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(columns):
            done = ends[begin - 1] if begin else 0
            end = max(int(np.searchsorted(ends, done + _PAIRS, side='right')), begin + 1)
            line, within = _ragged(counts[begin:end])
            line += begin
            face = faces[starts[where[line]] + within]
            found.append(_cross(columns[line], flat[face], self.corners[face, :, axis], line))
            begin = end
        if not found:
            return np.zeros(0, np.int64), np.zeros(0)
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (..., 3) are inside: an odd number of crossings lies below."""
        flat = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        line, place = self.crossings(flat[:, :2])
        below = np.bincount(line[place < flat[line, 2]], minlength=len(flat))
        return (below % 2 == 1).reshape(np.shape(points)[:-1])

    def voxels(self, size: int) -> np.ndarray:
        """Return :meth:`contains` for the grid of that many points from -1 to 1 on each axis, (size, size, size)."""
        axis = np.linspace(-1, 1, size)
        line, place = self.crossings(np.stack(np.meshgrid(axis, axis, indexing='ij'), -1).reshape(-1, 2))
        above = np.zeros((size**2, size + 1), np.int64)
        np.add.at(above, (line, np.searchsorted(axis, place, side='right')), 1)
        return (above.cumsum(1)[:, :size] % 2 == 1).reshape(size, size, size)

    def odd_columns(self, size: int = 64) -> tuple[int, int]:
        """Return how many of the lines of a grid cross an odd number of times, none of a closed surface, and of how many."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        odd = 0
        for axis in range(3):
            places = [np.linspace(low[a], high[a], size + 2)[1:-1] for a in range(3) if a != axis]
            line, _ = self.crossings(np.stack(np.meshgrid(*places, indexing='ij'), -1).reshape(-1, 2), axis)
            odd += int((np.bincount(line, minlength=size**2) % 2).sum())
        return odd, 3 * size**2

    def check_closed(self, name: str) -> None:
        """Refuse a surface with holes, which has no inside.

        Raises:
            ValueError: If a line crosses it an odd number of times, or it has no face.
        """
        if not len(self.faces):
            raise ValueError(f'{name} has no face, and a shape needs a closed surface; export its triangles')
        odd, lines = self.odd_columns()
        if odd:
            raise ValueError(
                f'{name} is not watertight: {odd} of {lines} columns cross it an odd number of times; close its holes, or '
                'give a volume (.npy)'
            )


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of ``counts[i]`` entries the index i, and its number among these."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def _cross(
    places: np.ndarray, corners: np.ndarray, heights: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return of pairs of a line and a triangle those that meet, and where."""
    ahead = corners[:, (1, 2, 0)] - corners
    offset = places[:, None] - corners
    # Twice the signed area beside each edge: the weight of the corner across from it.
    areas = ahead[..., 0] * offset[..., 1] - ahead[..., 1] * offset[..., 0]
    met = (areas > 0).all(1) | (areas < 0).all(1)
    weights = areas[met][:, (1, 2, 0)]
    return line[met], (weights * heights[met]).sum(1) / weights.sum(1)


def surface_distances(
    found: Mesh, true: Mesh, queries: int = 20_000, targets: int = 200_000, threshold: float = 0.02, seed: int = 0
) -> dict[str, float]:
    r"""Return how far two surfaces are apart, from points that are even over their areas.

    With the distances :math:`d_i` of queries on the one to the nearest target on the other, in both directions:

    - ``chamfer``: the mean of both means of d;
    - ``chamfer_squared_sum``: the sum of both means of :math:`d^2`;
    - ``normal_consistency``: the mean of both means of :math:`|n \cdot n'|`;
    - ``f_score``: the harmonic mean of both shares of d below the threshold.

    The first and the last two have floors and ceilings: what two samples of the true surface give.

    Args:
        found: A surface; of one without faces all are NaN.
        true: The other one.
        queries: Points that look for the nearest one.
        targets: Points that are looked at.
        threshold: Of the f-score.
        seed: Of the points.

    Raises:
        ImportError: If scipy is missing.
    """
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError(f'distances of surfaces need scipy ({error}); pip install scipy') from error
    if not len(found.faces):
        return dict.fromkeys(('chamfer', 'chamfer_squared_sum', 'normal_consistency', 'f_score'), math.nan)
    distances, consistent = [], []
    for number, (a, b) in enumerate(((found, true), (true, found))):
        points, normals = a.sample(queries, seed + 2 * number)
        there, there_normals = b.sample(targets, seed + 2 * number + 1)
        distance, nearest = cKDTree(there).query(points)
        distances.append(distance)
        consistent.append(float(np.abs((normals * there_normals[nearest]).sum(1)).mean()))
    shares = [float((d < threshold).mean()) for d in distances]
    return {
        'chamfer': float(sum(d.mean() for d in distances) / 2),
        'chamfer_squared_sum': float(sum((d**2).mean() for d in distances)),
        'normal_consistency': sum(consistent) / 2,
        'f_score': 2 * shares[0] * shares[1] / max(sum(shares), 1e-12),
    }
