"""The distance field of the flesh and its meshing."""

import numpy as np
import pytest
from references import directed_sides, volume

from handpose_jax.synthetic.body import flesh, meshes


def test_surface_nets_of_a_sphere_are_closed_and_as_large_as_it():
    axes = tuple(np.linspace(-1.3, 1.3, n) for n in (27, 33, 40))
    x, y, z = np.meshgrid(*axes, indexing='ij')
    mesh = meshes.surface_nets(np.sqrt(x * x + y * y + z * z) - 1, axes)
    np.testing.assert_allclose(volume(*mesh), 4 / 3 * np.pi, rtol=0.02)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 1, atol=0.02)
    sides = directed_sides(mesh.faces)
    assert set(sides.values()) == {1}
    assert set(sides) == {(b, a) for a, b in sides}


def test_a_surface_that_leaves_the_grid_is_refused():
    axes = tuple(np.linspace(-1, 1, 5) for _ in range(3))
    with pytest.raises(ValueError, match='leaves the grid'):
        meshes.surface_nets(-np.ones((5, 5, 5)), axes)


def test_smooth_profiles_pass_through_their_table_without_overshoot():
    table = np.array([[0.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.5, 2.0, 5.0], [3.0, 0.5, 6.0]])
    np.testing.assert_allclose(flesh.smooth_profile(table, table[:, 0]), table[:, 1:])
    fine = flesh.smooth_profile(table, np.linspace(-1, 4, 500))
    assert np.all((fine >= table[:, 1:].min(axis=0)) & (fine <= table[:, 1:].max(axis=0)))
    assert np.abs(np.diff(fine, axis=0)).max() < 0.15


def test_a_smooth_union_is_the_nearer_of_two_far_apart_and_more_where_they_meet():
    one, other = np.array([1.0, 0.01, 0.5]), np.array([0.2, 0.01, 0.55])
    joined = flesh.smooth_union(one, other, 0.1)
    assert joined[0] == 0.2
    np.testing.assert_allclose(joined[1], 0.01 - 0.1 / 4)
    assert joined[2] < 0.5


def test_bones_lie_inside_the_flesh_and_the_air_outside():
    rest = flesh.REST_SKELETON.keypoints
    assert flesh.field(rest).max() < -0.001
    between = (rest[8] + rest[12]) / 2
    assert flesh.field(between[None])[0] > 0.005
    forearm = np.array([[0.0, -0.1, 0.0], [0.0, -0.2, 0.0], [0.0, -0.3, 0.0]])
    np.testing.assert_array_equal(flesh.field(forearm) < 0, [True, True, False])
    # Parts are skipped where they are far away: it makes no difference.
    cloud = np.random.default_rng(0).uniform([-0.1, 0.0, -0.05], [0.1, 0.2, 0.05], (80, 3))
    alone = np.array([flesh.field(point[None])[0] for point in cloud])
    np.testing.assert_allclose(np.sign(alone), np.sign(flesh.field(cloud)))
