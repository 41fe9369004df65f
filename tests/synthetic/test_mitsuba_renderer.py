"""The renderer against projection by hand, analytic lighting and itself."""

import cv2
import numpy as np
import pytest

from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.render.mitsuba_renderer import (
    NOTHING,
    DirectionalLight,
    Material,
    PanelLight,
    Picture,
    PointLight,
    Surface,
)
from handpose_jax.synthetic.scene import shapes

GREY = Material(np.full(3, 0.5))
CAMERA = np.array([[80.0, 0, 20.3], [0, 80.0, 40.9], [0, 0, 1]])


def ball(centre=(0, 0, 0.5), radius=0.1):
    shape = shapes.ball(radius)
    return Surface(shape.vertices + np.array(centre), shape.faces, GREY, normals=shape.normals)


def plate(depth, half=0.1, material=GREY, slope=0.0):
    """A square across the view; its depth grows by `slope` a metre to the right."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return Surface(
        vertices=np.column_stack([corners, depth + slope * corners[:, 0]]),
        faces=np.array([[0, 2, 1], [0, 3, 2]]),
        material=material,
        uv=np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]]),
    )


def panel(position, side, light):
    return PanelLight(np.array(position), np.array([0, 0, 0.5]), side, np.full(3, light))


def scene(*surfaces, **overrides):
    values = {'environment': np.ones(3), 'camera': CAMERA, 'width': 64, 'height': 48, 'samples': 2}
    return mitsuba_renderer.Scene(surfaces=surfaces, **(values | overrides))


def small(focal, size):
    """A square picture that looks straight ahead."""
    middle = (size - 1) / 2
    camera = np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]])
    return {'camera': camera, 'width': size, 'height': size}


def render(*surfaces, **overrides):
    return Picture(scene(*surfaces, **overrides)).render()


def silhouette_centre(surface, camera, size, fine=32):
    """Centroid of a convex body's outline, drawn finely with OpenCV."""
    seen = surface.vertices @ camera.T
    points = (seen[:, :2] / seen[:, 2:] + 0.5) * fine - 0.5
    canvas = np.zeros((size[1] * fine, size[0] * fine), np.uint8)
    cv2.fillConvexPoly(canvas, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    y, x = np.nonzero(canvas)
    return np.array([x.mean() + 0.5, y.mean() + 0.5]) / fine - 0.5


@pytest.mark.parametrize(
    ('centre', 'radius', 'camera'),
    [
        ((0, 0, 0.5), 0.02, CAMERA),
        ((0.12, -0.12, 0.5), 0.02, CAMERA),
        ((-0.05, 0.02, 0.6), 0.02, CAMERA),
        # The principal point lies far outside the picture.
        ((0.30, -0.29, 0.5), 0.01, np.array([[300.0, 0, -150], [0, 300, 200], [0, 0, 1]])),
    ],
)
def test_pixels_follow_the_pixel_centre_rule(centre, radius, camera):
    surface = ball(centre, radius)
    alpha = render(surface, camera=camera, samples=64).alpha
    y, x = np.mgrid[:48, :64]
    found = np.array([(x * alpha).sum(), (y * alpha).sum()]) / alpha.sum()
    np.testing.assert_allclose(found, silhouette_centre(surface, camera, (64, 48)), atol=0.1)


def test_depth_is_exact_at_pixel_centres_of_a_slanted_plane():
    # z = 0.5 + 0.3 x, seen through pixel (u, v): x = z (u - cx) / f.
    buffers = render(plate(0.5, half=0.4, slope=0.3))
    slope = 0.3 * (np.arange(64) - CAMERA[0, 2]) / CAMERA[0, 0]
    np.testing.assert_allclose(buffers.depth[24], 0.5 / (1 - slope), rtol=1e-5)


def test_the_nearest_surface_has_the_pixel():
    buffers = render(plate(0.6, half=0.5), plate(0.4, half=0.05))
    y, x = np.mgrid[:48, :64]
    ray = np.stack([(x - CAMERA[0, 2]) / 80, (y - CAMERA[1, 2]) / 80], -1) * 0.4
    expected = np.where((np.abs(ray) < 0.05).all(-1), 1, 0)
    np.testing.assert_array_equal(buffers.shape_id, expected)
    np.testing.assert_allclose(buffers.depth, np.where(expected == 1, 0.4, 0.6), rtol=1e-5)


def test_nothing_is_where_nothing_is():
    buffers = render(ball(radius=0.02))
    assert buffers.shape_id[0, -1] == NOTHING
    assert np.isinf(buffers.depth[0, -1])
    assert buffers.alpha[0, -1] == 0
    assert (buffers.rgb[0, -1] == 0).all()


def test_lamps_in_view_are_not_seen():
    lit = Picture(scene(plate(0.5), lights=[panel([0, 0, 0.3], 0.2, 1.0)]))
    buffers, without = lit.render(), render(plate(0.5))
    np.testing.assert_array_equal(buffers.shape_id, without.shape_id)
    np.testing.assert_allclose(buffers.depth, without.depth, rtol=1e-4)
    depths, shape_ids = lit.surfaces_towards(np.array([[0, 0, 1.0], [0.9, 0, 1.0]]))
    np.testing.assert_allclose(depths, [0.5, np.inf], rtol=1e-5)
    assert shape_ids.tolist() == [0, NOTHING]


def test_a_furnace_returns_the_reflectance():
    # A chalk plate under the same light from everywhere shows light times reflectance.
    chalk = Material(np.array([0.2, 0.4, 0.6]), roughness=1.0, specular=0.0)
    surface = plate(0.3, half=2.0, material=chalk)
    mean = render(surface, samples=256, environment=np.full(3, 2.0)).rgb.mean(axis=(0, 1))
    # Disney's diffuse term is not Lambert's: it is up to a fifth off at grazing angles.
    np.testing.assert_allclose(mean / mean[1], [0.5, 1.0, 1.5], rtol=0.03)
    assert 0.6 < mean[1] < 0.9


def test_first_row_of_a_texture_is_at_v_1():
    texture = np.zeros((8, 8, 3), np.float32)
    texture[:4, :, 0] = 1
    texture[4:, :, 2] = 1
    rgb = render(plate(0.5, material=Material(texture)), **small(100.0, 32)).rgb
    top, bottom = rgb[4, 16], rgb[27, 16]
    assert top[0] > 5 * top[2]
    assert bottom[2] > 5 * bottom[0]


@pytest.mark.parametrize(
    'lamp',
    [
        panel([-0.5, 0, 0.1], 0.1, 20.0),
        PointLight(np.array([-0.5, 0, 0.1]), np.ones(3)),
        DirectionalLight(np.array([1.0, 0, 0.5]), np.ones(3)),
    ],
    ids=['panel', 'point', 'directional'],
)
def test_a_lamp_lights_the_side_that_faces_it(lamp):
    dark = {'environment': np.zeros(3), 'lights': [lamp], 'samples': 16}
    rgb = render(ball(radius=0.08), **dark, **small(80.0, 32)).rgb
    assert rgb[:, :15].sum() > 3 * rgb[:, 17:].sum()


def test_the_window_changes_nothing_inside_it_and_what_lies_beyond_can_be_had():
    whole = render(ball())
    part, both = (render(ball(), window=(10, 20, 40, 44), beyond=b) for b in (False, True))
    np.testing.assert_array_equal(part.shape_id[20:44, 10:40], whole.shape_id[20:44, 10:40])
    np.testing.assert_allclose(part.depth[20:44, 10:40], whole.depth[20:44, 10:40], rtol=1e-5)
    assert (part.shape_id[:20] == NOTHING).all()
    assert (part.alpha[:, 40:] == 0).all()

    np.testing.assert_array_equal(both.shape_id, whole.shape_id)
    np.testing.assert_allclose(both.depth, whole.depth, rtol=1e-5)
    beyond = whole.shape_id == 0
    beyond[20:44, 10:40] = False
    assert beyond.sum() > 50
    assert (both.rgb[beyond] > 0).mean() > 0.95


def test_smoothing_removes_noise_and_neither_edges_nor_texture():
    texture = np.zeros((64, 64, 3), np.float32) + 0.1
    texture[:, ::2] = 0.8
    striped = Material(texture, roughness=1.0, specular=0.0)
    surfaces = [plate(0.5, half=0.3, material=striped), ball((0, 0, 0.4), 0.04)]
    lamps = [panel([-0.5, 0, 0], 0.3, 20.0)]
    few, many = (render(*surfaces, lights=lamps, samples=n, seed=n).rgb for n in (4, 400))
    assert np.median(np.abs(few - many) / many) < 0.06
    # Neither the stripes nor the outline of the ball have been washed out.
    assert np.corrcoef(few.ravel(), many.ravel())[0, 1] > 0.985


def test_the_same_picture_on_any_number_of_threads_and_other_noise_from_another_seed():
    surfaces = [ball(), plate(0.7, half=1.0)]
    pictures = []
    for threads, seed in ((1, 5), (3, 5), (1, 6)):
        mitsuba_renderer.set_threads(threads)
        pictures.append(render(*surfaces, seed=seed))
    for one, other in zip(*pictures[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (pictures[0].rgb != pictures[2].rgb).any()


def test_the_same_picture_however_often_it_is_loaded():
    lamps = [panel([x, -0.5, 0], 0.3, 20.0 + x) for x in (-0.6, -0.2, 0.2, 0.6)]
    lit = scene(ball(), lights=lamps, **small(30.0, 8))
    first = Picture(lit).render().rgb
    # Lamps lie elsewhere in memory each time.
    kept = []
    for _ in range(60):
        kept.append(Picture(lit))
        np.testing.assert_array_equal(kept[-1].render().rgb, first)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'window': (0, 0, 65, 48)}, 'Scene.window must lie inside 64 x 48'),
        ({'window': (10, 10, 10, 20)}, 'Scene.window'),
        ({'camera': np.diag([80.0, 81.0, 1.0])}, 'square pixels'),
    ],
)
def test_impossible_scenes_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        Picture(scene(plate(0.5), **override))
