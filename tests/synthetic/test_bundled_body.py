"""The bundled body: a closed skin around its keypoints in every pose."""

import numpy as np
import pytest
from references import directed_sides, volume, winding

from handpose_jax.synthetic.body import bundled, flesh, poses, skeleton
from handpose_jax.synthetic.body.types import CLOTH, NAIL, SKIN

# Coarser than the default, to be quick; the same code.
STEP = 0.004
TIPS = np.array([4, 8, 12, 16, 20])


@pytest.fixture(scope='module')
def bare():
    return bundled.BundledBody(step=STEP)


def welded(posed, region):
    """Vertices that coincide made one, and the faces of one region between them."""
    points, number = np.unique(posed.vertices, axis=0, return_inverse=True)
    return points.astype(np.float64), number.reshape(-1)[posed.faces[posed.regions == region]]


def test_the_rest_pose_is_the_modelled_one(bare):
    posed = bare.pose(skeleton.AVERAGE, flesh.REST)
    modelled = flesh.mesh(STEP).vertices
    skin = posed.vertices[np.unique(posed.faces[posed.regions == SKIN])]
    lowest = np.array([np.abs(modelled - vertex).sum(axis=1).min() for vertex in skin[::25]])
    assert lowest.max() < 1e-6
    off = np.abs(flesh.field(skin.astype(np.float64)))
    assert np.quantile(off, 0.9) < 0.001
    assert off.max() < 0.004


def test_the_skin_is_closed_and_turned_outward(bare):
    relaxed, rest = (
        welded(bare.pose(skeleton.AVERAGE, pose), SKIN)
        for pose in (poses.library()['relaxed'], flesh.REST)
    )
    counts = directed_sides(relaxed[1])
    assert all(counts[b, a] == count for (a, b), count in counts.items())
    assert 0.0008 < volume(*relaxed) < 0.0018  # a hand and a forearm, cubic metres
    np.testing.assert_allclose(volume(*relaxed), volume(*rest), rtol=0.03)


def test_keypoints_are_the_skeletons_and_inside_the_skin_in_every_pose(bare):
    rng = np.random.default_rng(0)
    chosen = [poses.library()[name] for name in ('fist', 'spread', 'ok')]
    chosen += [poses.sample_pose(rng) for _ in range(9)]
    for index, pose in enumerate(chosen):
        shape = skeleton.AVERAGE if index < 3 else skeleton.sample_shape(rng)
        posed = bare.pose(shape, pose)
        expected = skeleton.forward_kinematics(shape, pose).keypoints
        np.testing.assert_array_equal(posed.keypoints, expected)
        skin = welded(posed, SKIN)
        assert winding(*skin, posed.keypoints).min() > 0.5, index
        far = winding(*skin, posed.keypoints + np.array([0.0, 0.0, 0.5]))
        np.testing.assert_allclose(far, 0.0, atol=1e-3)


def test_fingertip_keypoints_are_just_under_the_skin(bare):
    posed = bare.pose(skeleton.AVERAGE, poses.library()['spread'])
    depths = np.linalg.norm(posed.vertices[:, None] - posed.keypoints[TIPS], axis=2).min(axis=0)
    assert np.all((depths > 0.001) & (depths < 0.006))


def test_everything_is_finite_and_of_the_stated_kind(bare):
    rng = np.random.default_rng(1)
    posed = bare.pose(skeleton.sample_shape(rng), poses.sample_pose(rng))
    assert posed.vertices.dtype == posed.normals.dtype == posed.uv.dtype == np.float32
    assert posed.faces.dtype == posed.regions.dtype == np.int32
    assert np.isfinite(posed.vertices).all()
    np.testing.assert_allclose(np.linalg.norm(posed.normals, axis=1), 1, atol=1e-4)
    assert posed.faces.min() == 0
    assert posed.faces.max() == len(posed.vertices) - 1
    assert np.all((posed.uv >= 0) & (posed.uv <= 1))


@pytest.mark.parametrize('name', ['flat', 'fist'])
def test_nails_lie_on_the_backs_of_the_fingertips(bare, name):
    pose = poses.library()[name]
    posed = bare.pose(skeleton.AVERAGE, pose)
    frames = skeleton.forward_kinematics(skeleton.AVERAGE, pose).frames
    nails = posed.faces[posed.regions == NAIL]
    centres = posed.vertices[nails].mean(axis=1)
    normals = posed.normals[nails].mean(axis=1)
    nearest = np.linalg.norm(centres[:, None] - posed.keypoints[TIPS], axis=-1).argmin(axis=1)
    assert set(nearest) == set(range(5))
    for finger, tip in enumerate(TIPS):
        mine = nearest == finger
        local = (centres[mine] - posed.keypoints[tip]) @ frames[tip]
        assert local[:, 2].min() > 0.0005
        assert np.all((local[:, 1] > -0.020) & (local[:, 1] < 0.004))
        assert (normals[mine] @ frames[tip]).mean(axis=0)[2] > 0.6


def test_shapes_change_what_they_say(bare):
    def posed(**changes):
        return bare.pose(skeleton.AVERAGE._replace(**changes), flesh.REST)

    plain = posed().vertices
    np.testing.assert_allclose(posed(size=1.1).vertices, 1.1 * plain, atol=1e-6)
    long = posed(lengths=np.array([1.0, 1.0, 1.1, 1.0, 1.0]))
    assert long.keypoints[12, 1] - 0.0925 > 1.09 * (0.0446 + 0.0263 + 0.0205)
    assert long.vertices[:, 1].max() > long.keypoints[12, 1]
    thick, wide = posed(thickness=1.2).vertices, posed(palm_width=1.1).vertices
    knuckles = (plain[:, 1] > 0.05) & (plain[:, 1] < 0.07) & (plain[:, 0] > 0)
    assert np.ptp(thick[knuckles, 2]) > 1.15 * np.ptp(plain[knuckles, 2])
    assert wide[knuckles, 0].max() > 1.08 * plain[knuckles, 0].max()


def test_bent_joints_keep_their_thickness(bare):
    """Skin over the back of a bent middle joint stays as far from it as on a straight finger."""
    straight = bare.pose(skeleton.AVERAGE, flesh.REST)
    bent_pose = flesh.REST._replace(fingers=flesh.REST.fingers.copy())
    bent_pose.fingers[2, 2] = np.radians(95)
    bent = bare.pose(skeleton.AVERAGE, bent_pose)
    local = straight.vertices - straight.keypoints[10]
    ring = (np.abs(local[:, 1]) < 0.004) & (np.abs(local[:, 0]) < 0.005) & (local[:, 2] > 0)
    ring &= np.linalg.norm(local, axis=1) < 0.02
    assert ring.sum() > 4
    before = np.linalg.norm(local[ring], axis=1)
    after = np.linalg.norm(bent.vertices[ring] - bent.keypoints[10], axis=1)
    assert np.all(after > 0.88 * before)


def test_a_sleeve_is_cloth_around_the_forearm():
    sleeve = bundled.Sleeve(cuff=0.04, looseness=0.004, seed=1)
    posed = bundled.BundledBody(sleeve=sleeve, step=STEP).pose(skeleton.AVERAGE, skeleton.FLAT)
    assert set(posed.regions) == {SKIN, NAIL, CLOTH}
    vertices = posed.vertices[posed.faces[posed.regions == CLOTH]]
    assert vertices[..., 1].max() < -0.035
    # The cloth's outside is seen from outside, and it hides the skin.
    centres = vertices.mean(axis=1)
    outer = centres[:, 1] < -0.06
    across = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
    radial = centres * [1, 0, 1]
    assert np.all(np.einsum('fi,fi->f', across, radial)[outer] > 0)
    behind = centres[(centres[:, 1] < -0.07) & (centres[:, 1] > -0.22)].astype(np.float64)
    assert flesh.field(behind).min() > 0.0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'sleeve': bundled.Sleeve(cuff=0.4, looseness=0.004, seed=1)}, r'cuff 0 to 0\.2 m'),
        ({'step': 0.02}, 'step must be'),
    ],
)
def test_sleeves_and_steps_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bundled.BundledBody(**{'step': STEP, **arguments})


def test_sampled_sleeves_are_accepted_and_decided_by_the_seed():
    drawn = [bundled.sample_sleeve(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for sleeve in drawn[1:]:
        bundled.BundledBody(sleeve=sleeve, step=STEP)


def test_the_body_is_the_same_every_time(bare):
    again = bundled.BundledBody(step=STEP)
    one, other = (b.pose(skeleton.AVERAGE, poses.library()['asl_y']) for b in (bare, again))
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.normals, other.normals)


@pytest.mark.parametrize('palm', [False, True])
def test_the_chart_has_an_inverse_and_two_halves(palm):
    points = np.random.default_rng(3).uniform([-0.11, -0.25, -0.03], [0.09, 0.19, 0.03], (100, 3))
    uv = bundled.chart(points, palm=palm)
    np.testing.assert_allclose(bundled.unchart(uv), points[:, :2], atol=1e-9)
    assert np.all((uv[:, 0] > 0.5) == palm)
