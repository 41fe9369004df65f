"""Painted skin: where its colours are, and that a seed decides it."""

import numpy as np
import pytest

from handpose_jax.synthetic.body import bundled, skin

SIZE = 128


def paint(seed, tone, size=SIZE):
    return skin.paint(np.random.default_rng(seed), tone, size=size)


def colour_at(texture, x, y, *, palm):
    """Mean colour of 5 x 5 texels around a point of the rest pose."""
    u, v = bundled.chart(np.array([[x, y, 0.0]]), palm=palm)[0]
    row, column = int((1 - v) * SIZE), int(u * SIZE)
    return texture.albedo[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))


def test_a_seed_decides_the_skin():
    one, same, other = paint(1, 0.4), paint(1, 0.4), paint(2, 0.4)
    np.testing.assert_array_equal(one.albedo, same.albedo)
    np.testing.assert_array_equal(one.normals, same.normals)
    assert (one.albedo != other.albedo).any()


def test_tones_darken_steadily():
    tones = (0.0, 0.25, 0.5, 0.75, 1.0)
    brightness = [colour_at(paint(3, t), 0.0, 0.05, palm=False).mean() for t in tones]
    assert np.all(np.diff(brightness) < -15)


def test_dark_hands_have_lighter_palms():
    palm, back = (colour_at(paint(4, 0.9), 0.0, 0.05, palm=p).mean() for p in (True, False))
    assert palm > back + 30


def test_creases_are_darker_than_the_skin_beside_them():
    # Across the last joint of the middle finger, on the palm's side.
    points = np.array([[0.0, y, 0.0] for y in (0.170, 0.162, 0.150)])
    uv = bundled.chart(points, palm=True)
    first, expected, last = (1 - uv[:, 1]) * 512
    rows, column = slice(int(first), int(last)), int(uv[0, 0] * 512)
    profile = paint(5, 0.7, size=512).albedo[rows, column - 3 : column + 4].mean(axis=(1, 2))
    assert abs(rows.start + np.argmin(profile) - expected) < 6
    assert profile.min() < np.median(profile) - 8


def test_relief_is_a_map_of_unit_normals():
    normals = paint(6, 0.5).normals / 127.5 - 1
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=0.02)
    assert normals[..., 2].min() > 0.2
    assert np.abs(normals[..., :2]).max() > 0.05


def test_the_chart_is_covered_where_the_mesh_uses_it():
    texture = paint(7, 0.2)
    part = bundled.skin_part()
    centres = part.uv[part.faces].mean(axis=1)
    rows, columns = ((1 - centres[:, 1]) * SIZE).astype(int), (centres[:, 0] * SIZE).astype(int)
    background = texture.albedo[0, 0]
    assert np.mean((texture.albedo[rows, columns] == background).all(axis=-1)) < 0.01


def test_nails_are_lighter_at_the_free_edge_or_polished():
    rng = np.random.default_rng(8)
    nails = np.stack([skin.paint_nail(rng, 0.3, size=32) for _ in range(40)]).astype(float)
    plain = nails[np.ptp(nails.mean(axis=(2, 3)), axis=1) > 5]
    assert 20 < len(plain) <= 40
    assert plain[:, 0].mean() > plain[:, 16].mean() + 3


@pytest.mark.parametrize('tone', [-0.1, 1.2])
def test_a_tone_out_of_range_is_refused(tone):
    with pytest.raises(ValueError, match='tone must be 0'):
        paint(0, tone)
