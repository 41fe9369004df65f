"""The renderer against projection by hand, analytic lighting and itself."""

import cv2
import numpy as np
import pytest

from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import shapes

GREY = mitsuba_renderer.Material(np.full(3, 0.5))
CAMERA = np.array([[80.0, 0, 20.3], [0, 80.0, 40.9], [0, 0, 1]])


def ball(centre, radius=0.02):
    shape = shapes.ball(radius)
    return mitsuba_renderer.Surface(
        shape.vertices + centre, shape.faces, GREY, normals=shape.normals
    )


def plate(depth, half=0.1, material=GREY):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return mitsuba_renderer.Surface(
        vertices=np.column_stack([corners, np.full(4, depth)]),
        faces=np.array([[0, 2, 1], [0, 3, 2]]),
        material=material,
        uv=np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]]),
    )


def scene(*surfaces, **overrides):
    values = {
        'environment': np.ones(3),
        'camera': CAMERA,
        'width': 64,
        'height': 48,
        'samples': 2,
    }
    return mitsuba_renderer.Scene(surfaces=surfaces, **(values | overrides))


def silhouette_centre(surface, camera, size, fine=32):
    """Centroid of a convex body's outline, drawn finely with OpenCV."""
    seen = surface.vertices @ camera.T
    points = (seen[:, :2] / seen[:, 2:] + 0.5) * fine - 0.5
    canvas = np.zeros((size[1] * fine, size[0] * fine), np.uint8)
    cv2.fillConvexPoly(canvas, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    y, x = np.nonzero(canvas)
    return np.array([x.mean() + 0.5, y.mean() + 0.5]) / fine - 0.5


@pytest.mark.parametrize('centre', [(0, 0, 0.5), (0.12, -0.12, 0.5), (-0.05, 0.02, 0.6)])
def test_pixels_follow_the_pixel_centre_rule(centre):
    surface = ball(np.array(centre))
    buffers = mitsuba_renderer.render(scene(surface, samples=64))

    y, x = np.mgrid[:48, :64]
    alpha = buffers.alpha / buffers.alpha.sum()
    found = np.array([(x * alpha).sum(), (y * alpha).sum()])
    np.testing.assert_allclose(found, silhouette_centre(surface, CAMERA, (64, 48)), atol=0.1)


def test_a_principal_point_far_outside_the_picture():
    camera = np.array([[300.0, 0, -150.0], [0, 300.0, 200.0], [0, 0, 1]])
    surface = ball(np.array([0.30, -0.29, 0.5]), 0.01)
    buffers = mitsuba_renderer.render(scene(surface, camera=camera, samples=64))

    y, x = np.mgrid[:48, :64]
    alpha = buffers.alpha / buffers.alpha.sum()
    found = np.array([(x * alpha).sum(), (y * alpha).sum()])
    np.testing.assert_allclose(found, silhouette_centre(surface, camera, (64, 48)), atol=0.1)


def test_depth_is_exact_at_pixel_centres_of_a_slanted_plane():
    # z = 0.5 + 0.3 x, seen through pixel (u, v): x = z (u - cx) / f.
    corners = np.array([[-0.4, -0.4], [0.4, -0.4], [0.4, 0.4], [-0.4, 0.4]])
    surface = mitsuba_renderer.Surface(
        np.column_stack([corners, 0.5 + 0.3 * corners[:, 0]]),
        np.array([[0, 2, 1], [0, 3, 2]]),
        GREY,
    )
    buffers = mitsuba_renderer.render(scene(surface))

    slope = 0.3 * (np.arange(64) - CAMERA[0, 2]) / CAMERA[0, 0]
    np.testing.assert_allclose(buffers.depth[24], 0.5 / (1 - slope), rtol=1e-5)


def test_the_nearest_surface_has_the_pixel():
    near, far = plate(0.4, half=0.05), plate(0.6, half=0.5)
    buffers = mitsuba_renderer.render(scene(far, near))

    y, x = np.mgrid[:48, :64]
    ray = np.stack([(x - CAMERA[0, 2]) / 80, (y - CAMERA[1, 2]) / 80], -1) * 0.4
    expected = np.where((np.abs(ray) < 0.05).all(-1), 1, 0)
    np.testing.assert_array_equal(buffers.shape_id, expected)
    np.testing.assert_allclose(buffers.depth, np.where(expected == 1, 0.4, 0.6), rtol=1e-5)


def test_nothing_is_where_nothing_is():
    buffers = mitsuba_renderer.render(scene(ball(np.array([0, 0, 0.5]))))

    assert buffers.shape_id[0, -1] == mitsuba_renderer.NOTHING
    assert np.isinf(buffers.depth[0, -1])
    assert buffers.alpha[0, -1] == 0
    assert (buffers.rgb[0, -1] == 0).all()


def test_lamps_in_view_are_not_seen():
    lamp = mitsuba_renderer.PanelLight(
        np.array([0, 0, 0.3]), np.array([0, 0, 0.5]), 0.2, np.ones(3)
    )
    buffers = mitsuba_renderer.render(scene(plate(0.5), lights=[lamp]))
    without = mitsuba_renderer.render(scene(plate(0.5)))

    np.testing.assert_array_equal(buffers.shape_id, without.shape_id)
    np.testing.assert_allclose(buffers.depth, without.depth, rtol=1e-4)
    depths, shape_ids = mitsuba_renderer.Picture(scene(plate(0.5), lights=[lamp])).surfaces_towards(
        np.array([[0, 0, 1.0], [0.9, 0, 1.0]])
    )
    np.testing.assert_allclose(depths, [0.5, np.inf], rtol=1e-5)
    assert shape_ids.tolist() == [0, mitsuba_renderer.NOTHING]


def test_a_furnace_returns_the_reflectance():
    # A chalk plate under the same light from everywhere shows light times reflectance.
    chalk = mitsuba_renderer.Material(np.array([0.2, 0.4, 0.6]), roughness=1.0, specular=0.0)
    buffers = mitsuba_renderer.render(
        scene(plate(0.3, half=2.0, material=chalk), samples=256, environment=np.full(3, 2.0))
    )

    mean = buffers.rgb.mean(axis=(0, 1))
    # Disney's diffuse term is not Lambert's: it is up to a fifth off at grazing angles.
    np.testing.assert_allclose(mean / mean[1], [0.5, 1.0, 1.5], rtol=0.03)
    assert 0.6 < mean[1] < 0.9


def test_first_row_of_a_texture_is_at_v_1():
    texture = np.zeros((8, 8, 3), np.float32)
    texture[:4, :, 0] = 1
    texture[4:, :, 2] = 1
    camera = np.array([[100.0, 0, 15.5], [0, 100, 15.5], [0, 0, 1]])
    buffers = mitsuba_renderer.render(
        scene(
            plate(0.5, material=mitsuba_renderer.Material(texture)),
            camera=camera,
            width=32,
            height=32,
        )
    )

    top, bottom = buffers.rgb[4, 16], buffers.rgb[27, 16]
    assert top[0] > 5 * top[2]
    assert bottom[2] > 5 * bottom[0]


def test_colours_at_vertices():
    colours = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
    surface = plate(0.2)
    buffers = mitsuba_renderer.render(
        scene(
            mitsuba_renderer.Surface(surface.vertices, surface.faces, GREY, colours=colours),
            samples=32,
        )
    )

    top, bottom = buffers.rgb[10, 20], buffers.rgb[-1, 20]
    assert top[0] > top[2]
    assert bottom[2] > bottom[0]


@pytest.mark.parametrize(
    'up', [np.array([0, -1.0, 0]), np.array([1.0, 0, 0]), np.array([0, 0.6, -0.8])]
)
def test_the_environment_shines_from_up(up):
    sky = np.zeros((8, 16, 3), np.float32)
    sky[:3] = 1
    shape = shapes.ball(0.05)
    surface = mitsuba_renderer.Surface(
        shape.vertices + np.array([0, 0, 0.5]), shape.faces, GREY, normals=shape.normals
    )
    camera = np.array([[120.0, 0, 15.5], [0, 120, 15.5], [0, 0, 1]])
    buffers = mitsuba_renderer.render(
        scene(surface, environment=sky, up=up, camera=camera, width=32, height=32, samples=64)
    )

    y, x = np.mgrid[:32, :32] - 15.5
    weight = buffers.rgb.sum(axis=2) / buffers.rgb.sum()
    bright = np.array([(x * weight).sum(), (y * weight).sum()])
    assert bright @ up[:2] > 0.5 * np.linalg.norm(bright)


@pytest.mark.parametrize(
    'lamp',
    [
        mitsuba_renderer.PanelLight(
            np.array([-0.5, 0, 0.1]), np.array([0, 0, 0.5]), 0.1, np.full(3, 20.0)
        ),
        mitsuba_renderer.PointLight(np.array([-0.5, 0, 0.1]), np.ones(3)),
        mitsuba_renderer.DirectionalLight(np.array([1.0, 0, 0.5]), np.ones(3)),
    ],
    ids=['panel', 'point', 'directional'],
)
def test_a_lamp_lights_the_side_that_faces_it(lamp):
    surface = ball(np.array([0, 0, 0.5]), 0.08)
    camera = np.array([[80.0, 0, 15.5], [0, 80, 15.5], [0, 0, 1]])
    buffers = mitsuba_renderer.render(
        scene(
            surface,
            environment=np.zeros(3),
            camera=camera,
            width=32,
            height=32,
            lights=[lamp],
            samples=16,
        )
    )

    assert buffers.rgb[:, :15].sum() > 3 * buffers.rgb[:, 17:].sum()


def test_the_window_changes_nothing_inside_it():
    surface = ball(np.array([0, 0, 0.5]), 0.1)
    whole = mitsuba_renderer.render(scene(surface))
    part = mitsuba_renderer.render(scene(surface, window=(10, 20, 40, 44)))

    np.testing.assert_array_equal(part.shape_id[20:44, 10:40], whole.shape_id[20:44, 10:40])
    np.testing.assert_allclose(part.depth[20:44, 10:40], whole.depth[20:44, 10:40], rtol=1e-5)
    assert (part.shape_id[:20] == mitsuba_renderer.NOTHING).all()
    assert (part.alpha[:, 40:] == 0).all()


def test_beyond_the_window_the_rest_is_rendered_too():
    surface = ball(np.array([0, 0, 0.5]), 0.1)
    whole = mitsuba_renderer.render(scene(surface))
    part = mitsuba_renderer.render(scene(surface, window=(10, 20, 40, 44), beyond=True))

    np.testing.assert_array_equal(part.shape_id, whole.shape_id)
    np.testing.assert_allclose(part.depth, whole.depth, rtol=1e-5)
    beyond = whole.shape_id == 0
    beyond[20:44, 10:40] = False
    assert beyond.sum() > 50
    assert (part.rgb[beyond] > 0).mean() > 0.95


def test_smoothing_removes_noise_and_neither_edges_nor_texture():
    texture = np.zeros((64, 64, 3), np.float32) + 0.1
    texture[:, ::2] = 0.8
    striped = mitsuba_renderer.Material(texture, roughness=1.0, specular=0.0)
    lamp = mitsuba_renderer.PanelLight(
        np.array([-0.5, 0, 0]), np.array([0, 0, 0.5]), 0.3, np.full(3, 20.0)
    )
    surfaces = [plate(0.5, half=0.3, material=striped), ball(np.array([0, 0, 0.4]), 0.04)]
    few, many = (
        mitsuba_renderer.render(scene(*surfaces, lights=[lamp], samples=n, seed=n)).rgb
        for n in (4, 400)
    )
    noise = np.abs(few - many)
    assert np.median(noise / many) < 0.06
    # Neither the stripes nor the outline of the ball have been washed out.
    assert np.corrcoef(few.ravel(), many.ravel())[0, 1] > 0.985


def test_the_same_picture_on_any_number_of_threads():
    surfaces = [ball(np.array([0, 0, 0.5]), 0.1), plate(0.7, half=1.0)]
    pictures = []
    for threads in (1, 3):
        mitsuba_renderer.set_threads(threads)
        pictures.append(mitsuba_renderer.render(scene(*surfaces, seed=5)))
    mitsuba_renderer.set_threads(1)

    for one, other in zip(*pictures, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_picture_however_often_it_is_loaded():
    lamps = [
        mitsuba_renderer.PanelLight(
            np.array([x, -0.5, 0]), np.array([0, 0, 0.5]), 0.3, np.full(3, 20.0 + x)
        )
        for x in (-0.6, -0.2, 0.2, 0.6)
    ]
    small = np.array([[30.0, 0, 3.5], [0, 30, 3.5], [0, 0, 1]])
    lit = scene(ball(np.array([0, 0, 0.5]), 0.1), lights=lamps, camera=small, width=8, height=8)
    first = mitsuba_renderer.render(lit).rgb
    # Lamps lie elsewhere in memory each time.
    kept = []
    for _ in range(60):
        kept.append(mitsuba_renderer.Picture(lit))
        np.testing.assert_array_equal(kept[-1].render().rgb, first)


def test_another_seed_is_other_noise():
    surfaces = [ball(np.array([0, 0, 0.5]), 0.1), plate(0.7, half=1.0)]
    one, other = (mitsuba_renderer.render(scene(*surfaces, seed=seed)) for seed in (1, 2))

    assert (one.rgb != other.rgb).any()


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
        mitsuba_renderer.render(scene(plate(0.5), **override))
