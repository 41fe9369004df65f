"""Simple meshes: boxes, balls, solids of revolution, rings, and sheets through rows of points.

All in metres, faces counter-clockwise from outside, texture coordinates in 0..1.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Shape(NamedTuple):
    """A mesh.

    Attributes:
        vertices: f64[v 3].
        normals: f64[v 3], unit, outward.
        faces: i64[f 3].
        uv: f64[v 2].
    """

    vertices: Float[np.ndarray, 'v 3']
    normals: Float[np.ndarray, 'v 3']
    faces: Int[np.ndarray, 'f 3']
    uv: Float[np.ndarray, 'v 2']


def moved(
    shape: Shape, rotation: Float[np.ndarray, '3 3'], offset: Float[np.ndarray, '3']
) -> Shape:
    """The shape turned, then shifted."""
    return shape._replace(
        vertices=shape.vertices @ rotation.T + offset, normals=shape.normals @ rotation.T
    )


@functools.cache
def _grid_faces(rows: int, columns: int) -> Int[np.ndarray, 'f 3']:
    """Two triangles for each cell of a grid of rows x columns vertices."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    halves = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    return halves.reshape(-1, 3)


def grid(points: Float[np.ndarray, 'r c 3']) -> Shape:
    """A smooth sheet through rows of points; seen from outside, columns run right and rows down.

    Args:
        points: rows of equally many points; the first and the last column may coincide.
    """
    rows, columns = points.shape[:2]
    faces = _grid_faces(rows, columns)
    vertices = points.reshape(-1, 3)
    down, right = np.gradient(points, axis=0), np.gradient(points, axis=1)
    if np.allclose(points[:, 0], points[:, -1]):
        seam = (points[:, 1] - points[:, -2]) / 2
        right[:, 0] = right[:, -1] = seam
    normals = np.cross(down, right).reshape(-1, 3)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    v, u = np.meshgrid(np.linspace(1, 0, rows), np.linspace(0, 1, columns), indexing='ij')
    return Shape(vertices, normals, faces, np.stack([u, v], -1).reshape(-1, 2))


def _revolution(radii: Float[np.ndarray, 'r'], heights: Float[np.ndarray, 'r']) -> Shape:
    """A profile turned about the y axis: cylinders, bottles, cups, pens.

    Args:
        radii: of the profile from top to bottom, 0 at both ends to close it.
        heights: y of the profile, falling; repeat a point for a sharp edge.
    """
    turn = np.linspace(0, 2 * np.pi, 29)
    x, z = radii[:, None] * np.cos(turn), -radii[:, None] * np.sin(turn)
    sheet = grid(np.stack([x, np.broadcast_to(heights[:, None], x.shape), z], axis=-1))
    # The grid's normals vanish where the profile meets the axis.
    bad = np.linalg.norm(sheet.normals, axis=1) < 0.5
    sheet.normals[bad] = [0.0, 1.0, 0.0]
    lower = bad & (sheet.vertices[:, 1] < np.mean(heights))
    sheet.normals[lower] = [0.0, -1.0, 0.0]
    return sheet


def cylinder(radius: float, length: float) -> Shape:
    """A cylinder along y with rounded rims."""
    b, top = 0.06 * radius, length / 2
    radii = np.array([0.0, 0.5 * radius, radius - b, radius - 0.3 * b, radius])
    heights = np.array([top, top, top, top - 0.3 * b, top - b])
    return _revolution(
        np.concatenate([radii, radii[::-1]]), np.concatenate([heights, -heights[::-1]])
    )


def bottle(radius: float, length: float) -> Shape:
    """A bottle along y with a neck."""
    radii = radius * np.array([0, 0.36, 0.4, 0.4, 0.42, 0.7, 0.95, 1.0, 1.0, 0.97, 0.9, 0.0])
    heights = length * np.array(
        [0.5, 0.5, 0.49, 0.42, 0.34, 0.26, 0.2, 0.13, -0.46, -0.49, -0.5, -0.5]
    )
    return _revolution(radii, heights)


def ball(radius: float) -> Shape:
    """A sphere."""
    angle = np.linspace(0, np.pi, 17)
    shape = _revolution(radius * np.sin(angle), radius * np.cos(angle))
    return shape._replace(normals=shape.vertices / radius)


def box(sides: Float[np.ndarray, '3']) -> Shape:
    """A box with sharp edges."""
    corners, normals = [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            normal, u, v = np.roll(np.eye(3), -axis, axis=0)
            normal, v = sign * normal, sign * v
            corners += [normal - u - v, normal + u - v, normal + u + v, normal - u + v]
            normals += [normal] * 4
    faces = np.array([[0, 1, 2], [0, 2, 3]]) + 4 * np.arange(6)[:, None, None]
    uv = np.tile(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), (6, 1))
    return Shape(np.array(corners) * sides / 2, np.array(normals), faces.reshape(-1, 3), uv)


def ring(radius: float, thickness: float, *, flat: float) -> Shape:
    """A torus around the y axis.

    Args:
        radius: from the axis to the middle of the tube.
        thickness: radius of the tube.
        flat: the tube's extent along the axis, relative to its thickness.
    """
    around = np.linspace(0, 2 * np.pi, 33)
    tube = np.linspace(0, 2 * np.pi, 11)
    out = radius + thickness * np.cos(tube)[:, None]
    x, z = out * np.cos(around), -out * np.sin(around)
    y = np.broadcast_to(-flat * thickness * np.sin(tube)[:, None], x.shape)
    shape = grid(np.stack([x, y, z], axis=-1))
    centre = shape.vertices * [1.0, 0.0, 1.0]
    centre *= radius / np.linalg.norm(centre, axis=1, keepdims=True)
    normals = (shape.vertices - centre) * [1.0, 1.0 / flat**2, 1.0]
    return shape._replace(normals=normals / np.linalg.norm(normals, axis=1, keepdims=True))
