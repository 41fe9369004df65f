"""Drawn hands with known cameras: truth that agrees with itself and fits the picture."""

import numpy as np
import pytest

from handpose_jax.synthetic.drawing import posed


@pytest.mark.parametrize('is_left', [False, True])
def test_keypoints_are_the_projection_and_inside_the_picture(is_left):
    for seed in range(8):
        found = posed.sample(np.random.default_rng(seed), height=60, width=80, is_left=is_left)
        (fx, _, cx), (_, fy, cy), _ = found.camera
        x, y, z = found.keypoints_3d.T
        assert (z > 0.1).all()
        expected = np.stack([fx * x / z + cx, fy * y / z + cy], axis=1)
        np.testing.assert_allclose(found.keypoints, expected, rtol=0, atol=1e-9)
        assert ((found.keypoints > 0) & (found.keypoints < (79, 59))).all()
        assert found.image.shape == (60, 80, 3)


def test_left_hands_are_mirrored_and_turned_but_not_scaled():
    """The palm's winding, seen from the thumb's side, tells a left hand from a right one."""

    def handedness(is_left, seed):
        found = posed.sample(np.random.default_rng(seed), height=60, width=80, is_left=is_left)
        wrist, thumb, index, little = found.keypoints_3d[[0, 1, 5, 17]]
        return np.linalg.det([index - wrist, little - wrist, thumb - wrist])

    for seed in range(8):
        assert np.sign(handedness(True, seed)) == -np.sign(handedness(False, seed)) != 0


def test_a_given_camera_is_used_and_one_too_narrow_refused():
    camera = np.array([[600.0, 0, 40], [0, 610, 30], [0, 0, 1]])
    found = posed.sample(np.random.default_rng(0), height=480, width=640, camera=camera)
    np.testing.assert_array_equal(found.camera, camera)
    camera[0, 0] = camera[1, 1] = 1e9
    with pytest.raises(ValueError, match='does not fit into 80 x 60 pixels'):
        posed.sample(np.random.default_rng(0), height=60, width=80, camera=camera)
