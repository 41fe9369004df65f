"""Triangle meshes: normals, neighbours, grids, and the surface of a sampled field."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Mesh(NamedTuple):
    """A closed surface.

    Attributes:
        vertices: f64[v 3], metres.
        faces: i32[f 3], counter-clockwise from outside.
    """

    vertices: Float[np.ndarray, 'v 3']
    faces: Int[np.ndarray, 'f 3']


def vertex_normals(
    vertices: Float[np.ndarray, 'v 3'],
    faces: Int[np.ndarray, 'f 3'],
    welded: Int[np.ndarray, 'v'] | None = None,
) -> Float[np.ndarray, 'v 3']:
    """Smooth normals: the faces' own, weighted by their area.

    Args:
        vertices: any frame.
        faces: counter-clockwise from outside.
        welded: a number for each vertex, equal for those that are one point of the surface (doubled
            along a seam of the texture); all different unless given.

    Returns:
        f32[v 3], unit, outward.
    """
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    points = faces if welded is None else welded[faces]
    count = len(vertices)
    sums = np.stack(
        [
            np.bincount(points.ravel(), np.repeat(areas[:, axis], 3), minlength=count)
            for axis in range(3)
        ],
        axis=1,
    )
    lengths = np.sqrt((sums**2).sum(axis=1, keepdims=True))
    normals = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
    return normals if welded is None else normals[welded]


class Neighbours:
    """Which vertices of a mesh share an edge."""

    def __init__(self, faces: Int[np.ndarray, 'f 3'], count: int) -> None:
        """Finds the neighbours of `count` vertices, each of which has some."""
        self._from, self._to = np.concatenate([faces[:, [a, (a + 1) % 3]] for a in range(3)]).T
        self._degree = np.bincount(self._from, minlength=count)[:, None]

    def means(self, values: Float[np.ndarray, 'v c']) -> Float[np.ndarray, 'v c']:
        """Returns the mean of each vertex's neighbours."""
        columns = [np.bincount(self._from, v[self._to], len(values)) for v in values.T]
        return np.stack(columns, axis=1) / self._degree


def grid_faces(rows: int, columns: int) -> Int[np.ndarray, 'f 3']:
    """Two triangles a cell; counter-clockwise where columns run to the right and rows up."""
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    pairs = [np.stack([a, b, c], axis=-1), np.stack([a, c, d], axis=-1)]
    return np.concatenate([pair.reshape(-1, 3) for pair in pairs]).astype(np.int32)


def surface_nets(
    values: Float[np.ndarray, 'x y z'], axes: tuple[Float[np.ndarray, '_'], ...]
) -> Mesh:
    """Meshes the zero surface of a sampled field: one vertex a cell, one quad an edge it crosses.

    Args:
        values: f64[x y z], negative inside, positive on the whole border.
        axes: coordinates of the samples along each axis, rising, not necessarily even.

    Returns:
        The mesh.

    Raises:
        ValueError: if the surface leaves the grid.
    """
    inside = values < 0
    for axis in range(3):
        if np.take(inside, (0, -1), axis=axis).any():
            raise ValueError('the surface leaves the grid: expected positive values on its border')
    cells = [slice(None, -1), slice(1, None)]
    corners = np.stack([inside[a, b, c] for a, b, c in itertools.product(cells, repeat=3)])
    active = corners.any(axis=0) & ~corners.all(axis=0)
    where = np.argwhere(active)
    number = np.full(active.shape, -1, dtype=np.int64)
    number[active] = np.arange(len(where))
    total, count = np.zeros((len(where), 3)), np.zeros((len(where), 1))
    for axis in range(3):
        for rest in itertools.product((0, 1), repeat=2):
            near = np.insert(np.array(rest), axis, 0)
            first, second = where + near, where + np.insert(np.array(rest), axis, 1)
            a, b = values[tuple(first.T)], values[tuple(second.T)]
            cross = (a < 0) != (b < 0)
            t = a[cross] / (a[cross] - b[cross])
            ends = [
                np.stack([axes[k][side[cross, k]] for k in range(3)], axis=1)
                for side in (first, second)
            ]
            total[cross] += ends[0] + t[:, None] * (ends[1] - ends[0])
            count[cross] += 1
    quads = []
    for axis in range(3):
        low = np.moveaxis(inside, axis, 0)
        change = np.moveaxis(low[:-1] != low[1:], 0, axis)
        edges = np.argwhere(change)
        u, v = np.eye(3, dtype=np.int64)[[(axis + 1) % 3, (axis + 2) % 3]]
        ring = np.stack(
            [number[tuple((edges - o).T)] for o in (u + v, v, np.zeros(3, np.int64), u)], axis=1
        )
        outward = inside[tuple(edges.T)]
        quads.append(np.where(outward[:, None], ring, ring[:, ::-1]))
    quad = np.concatenate(quads)
    vertices = total / count
    # Each quad is cut along its shorter diagonal.
    diagonals = [
        np.linalg.norm(vertices[quad[:, a]] - vertices[quad[:, a + 2]], axis=1) for a in (0, 1)
    ]
    quad = np.where((diagonals[0] > diagonals[1])[:, None], np.roll(quad, -1, axis=1), quad)
    faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]).astype(np.int32)
    return Mesh(vertices, faces)
