"""The first surface under a pixel, against Mitsuba's rays and a brute force ray test."""

import numpy as np
import pytest
from references import cast

from handpose_jax.synthetic.render import first_hits, mitsuba_renderer
from handpose_jax.synthetic.scene import shapes

CAMERA = np.array([[40.0, 0, 9.7], [0, 40.0, 14.2], [0, 0, 1]])
REGION = (3, 2, 25, 30)
NEAR = 1e-3


def soup(seed, count=60, depth=(0.2, 1.0)):
    """Triangles anywhere, so that they run through each other."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform([-0.3, -0.3, depth[0]], [0.3, 0.3, depth[1]], (count, 3))
    vertices = (middles[:, None] + rng.normal(0, 0.15, (count, 3, 3))).reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(3 * count).reshape(-1, 3)


def rays():
    """The direction that is seen at the centre of every pixel of the region, at depth 1."""
    y, x = np.mgrid[REGION[1] : REGION[3], REGION[0] : REGION[2]]
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1) @ np.linalg.inv(CAMERA).T


@pytest.mark.parametrize('depth', [(0.2, 1.0), (-0.3, 0.3)], ids=['ahead', 'around the eye'])
@pytest.mark.parametrize('seed', range(3))
def test_triangles_anywhere_are_hit_as_by_brute_force(seed, depth):
    meshes = [soup(seed, depth=depth), soup(seed + 10, depth=depth)]
    hits = first_hits.find(meshes, CAMERA, REGION, near=NEAR)
    expected, which = cast(meshes, rays(), NEAR)

    assert np.isfinite(expected).mean() > 0.3
    np.testing.assert_allclose(hits.depth.ravel(), expected, rtol=1e-9)
    np.testing.assert_array_equal(hits.shape_id.ravel(), which)


def test_face_and_weights_give_the_point_back():
    meshes = [soup(5), soup(6)]
    hits = first_hits.find(meshes, CAMERA, REGION, near=NEAR)
    shown = np.argwhere(hits.shape_id != first_hits.NOTHING)
    assert len(shown) > 100
    for y, x in shown:
        vertices, faces = meshes[hits.shape_id[y, x]]
        point = hits.weights[y, x] @ vertices[faces[hits.face[y, x]]]
        pixel = CAMERA @ point / point[2]
        np.testing.assert_allclose(pixel[:2], [x + REGION[0], y + REGION[1]], atol=1e-3)
        assert point[2] == pytest.approx(hits.depth[y, x], rel=1e-5)


def test_a_closed_surface_has_no_holes():
    shape = shapes.ball(0.1)
    vertices = shape.vertices + np.array([0.0, 0.0, 0.4])
    camera = np.array([[700.0, 0, 99.5], [0, 700.0, 99.5], [0, 0, 1]])
    hits = first_hits.find([(vertices, shape.faces)], camera, (20, 20, 180, 180), near=NEAR)

    assert (hits.shape_id == 0).all()
    assert (hits.depth < 0.4).all()


def test_it_agrees_with_the_rays_of_the_renderer():
    vertices, faces = soup(8)
    surface = mitsuba_renderer.Surface(vertices, faces, mitsuba_renderer.Material(np.ones(3)))
    picture = mitsuba_renderer.Picture(
        mitsuba_renderer.Scene([surface], np.ones(3), CAMERA, width=30, height=32)
    )
    hits = first_hits.find([(vertices, faces)], CAMERA, REGION, near=NEAR)
    depths, shape_ids = picture.surfaces_towards(rays())

    np.testing.assert_array_equal(hits.shape_id.ravel(), shape_ids)
    np.testing.assert_allclose(hits.depth.ravel(), depths, rtol=1e-4)


def test_nothing_is_hit_where_there_is_nothing():
    hits = first_hits.find([], CAMERA, REGION, near=NEAR)

    assert (hits.shape_id == first_hits.NOTHING).all()
    assert np.isinf(hits.depth).all()
    assert (hits.weights == 0).all()
