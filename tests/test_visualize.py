"""Pictures are drawn where the keypoints are, and nothing that is drawn can crash."""

import builtins
import functools

import numpy as np
import pytest
from PIL import Image

from handpose_jax import hand, visualize


def spread_keypoints(side=200.0):
    """A hand with every keypoint well apart from every other."""
    keypoints = np.zeros((21, 2))
    keypoints[0] = 0.5 * side, 0.9 * side
    for finger, indices in enumerate(hand.FINGERS.values()):
        for part, keypoint in enumerate(indices):
            keypoints[keypoint] = (0.15 + 0.17 * finger) * side, (0.7 - 0.18 * part) * side
    return keypoints


def only(*points):
    """Keypoints 1, 2 and so on of the thumb alone; one point alone has no bone."""
    keypoints = np.full((21, 2), np.nan)
    keypoints[1 : 1 + len(points)] = points
    return keypoints


def blank(height=200, width=200, value=128):
    return np.full((height, width, 3), value, np.uint8)


def centroid(image):
    weight = np.abs(image.astype(float) - image[0, 0]).sum(axis=2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def test_a_hand_has_its_fingers_colours_at_its_keypoints_and_along_its_bones():
    keypoints = spread_keypoints()
    image = blank()
    drawn = visualize.draw_hand(image, keypoints)
    assert (image == 128).all()
    assert drawn.dtype == np.uint8
    for keypoint, (x, y) in enumerate(keypoints):
        assert tuple(drawn[round(y), round(x)]) == hand.keypoint_colour(keypoint)
    for parent, child in hand.BONES:
        if parent != hand.WRIST:
            x, y = (keypoints[parent] + keypoints[child]) / 2
            np.testing.assert_allclose(
                drawn[round(y), round(x)], hand.keypoint_colour(child), atol=40
            )


@pytest.mark.parametrize('fraction', [0.0, 0.25, 0.5, 0.75])
def test_keypoints_and_bones_are_drawn_at_their_fraction_of_a_pixel(fraction):
    point = np.array([20 + fraction, 21 - fraction])
    drawn = visualize.draw_hand(blank(41, 41), only(point), thickness=3)
    # The pixel-centre rule broken would be off by 0.5.
    np.testing.assert_allclose(centroid(drawn), point, atol=0.05)
    bone = only([8, 20 + fraction], [32, 20 + fraction])
    drawn = visualize.draw_hand(blank(41, 41), bone, thickness=3)
    np.testing.assert_allclose(centroid(drawn), [20, 20 + fraction], atol=0.1)


def test_thickness_grows_with_the_image():
    def painted(side):
        drawn = visualize.draw_hand(blank(side, side), spread_keypoints(side))
        return (drawn != 128).any(axis=2).mean()

    # A line of one width throughout would paint a quarter of the share.
    assert painted(1600) > 0.6 * painted(400)


def test_keypoints_that_are_not_visible_are_left_out_with_their_bones():
    keypoints, visible = spread_keypoints(), np.ones(21, bool)
    visible[list(hand.FINGERS['little'])] = False
    hidden = visualize.draw_hand(blank(), keypoints, visible=visible)
    assert (hidden[:, 156:] == 128).all()
    assert (visualize.draw_hand(blank(), keypoints)[:, 156:] != 128).any()
    nothing = visualize.draw_hand(blank(), keypoints, visible=np.zeros(21, bool))
    assert (nothing == 128).all()


def test_a_keypoint_of_low_confidence_is_hollow_and_its_bone_thin():
    keypoints, confidence = spread_keypoints(), np.full(21, 0.9)
    confidence[8] = 0.05
    sure = visualize.draw_hand(blank(), keypoints, thickness=5)
    unsure = visualize.draw_hand(blank(), keypoints, thickness=5, confidence=confidence)
    x, y = np.round(keypoints[8]).astype(int)
    colour = np.array(hand.keypoint_colour(8))
    assert (sure[y, x] == colour).all()
    assert (np.abs(unsure[y, x].astype(int) - colour) > 10).all()
    np.testing.assert_allclose(unsure[y, x - 5], colour, atol=60)

    def bone_width(drawn):
        middle = round((keypoints[7] + keypoints[8])[1] / 2)
        return (drawn[middle, x - 15 : x + 16] != 128).any(axis=1).sum()

    assert bone_width(unsure) < bone_width(sure)
    # The threshold decides, and at the threshold a keypoint is sure.
    settings = {'thickness': 5, 'confidence': confidence, 'threshold': 0.05}
    assert (visualize.draw_hand(blank(), keypoints, **settings) == sure).all()


@pytest.mark.parametrize(
    'point', [(np.nan, 3), (np.inf, -np.inf), (1e300, 1e300), (-3e9, 50), (1e5, -1e5), (-1, 205)]
)
def test_a_wild_keypoint_harms_nobody(point):
    keypoints = spread_keypoints()
    keypoints[8] = point
    drawn = visualize.draw_hand(blank(), keypoints)
    without = np.ones(21, bool)
    without[8] = False
    expected = visualize.draw_hand(blank(), keypoints, visible=without)
    # Only the cut bone towards it may differ, and the neighbour's end of it stays in place.
    x, y = np.round(keypoints[16]).astype(int)
    assert (drawn[y - 5 : y + 5, x - 5 : x + 5] == expected[y - 5 : y + 5, x - 5 : x + 5]).all()
    if not np.isfinite(point).all():
        assert (drawn == expected).all()


@pytest.mark.parametrize('far', [300.0, 1e4, 1e7, 1e12])
def test_a_bone_that_leaves_the_image_keeps_its_direction(far):
    bone = only([100, 100], [100 + far, 100 + far])
    drawn = visualize.draw_hand(blank(), bone, thickness=3)
    for place in (120, 150, 190):
        np.testing.assert_allclose(drawn[place, place], hand.keypoint_colour(2), atol=40)
    painted = np.argwhere((drawn != 128).any(axis=2))
    assert (np.abs(painted[:, 0] - painted[:, 1]) < 10).all()


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (3, 500), (500, 3)])
def test_a_strip_of_an_image_can_be_drawn_on(height, width):
    strip = blank(height, width)
    assert visualize.draw_hand(strip, spread_keypoints()).shape == strip.shape


def test_enlarging_moves_keypoints_with_the_picture():
    rng = np.random.default_rng(0)
    for height, width in [(50, 70), (41, 97)]:
        point = np.array([width, height]) / 2 + rng.uniform(-8, 8, 2)
        y, x = np.mgrid[:height, :width]
        spot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 18) * 255
        image = np.repeat(spot[:, :, None], 3, axis=2).astype(np.uint8)
        larger, moved = visualize.enlarge(image, point[None], 128)
        assert min(larger.shape[:2]) == 128
        assert larger.shape[1] / larger.shape[0] == pytest.approx(width / height, rel=0.01)
        np.testing.assert_allclose(centroid(larger), moved[0], atol=0.15)


def test_enlarging_leaves_a_large_image_alone():
    image, keypoints = blank(60, 50), spread_keypoints(50)
    larger, moved = visualize.enlarge(image, keypoints, 50)
    assert larger is image
    assert moved is keypoints


def test_a_contact_sheet_shows_every_tile_whole_and_unsquashed():
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]
    shapes = [(40, 40), (20, 80), (80, 20), (300, 300), (1, 1)]
    tiles = [blank(*shape, colour) for shape, colour in zip(shapes, colours, strict=True)]
    sheet = visualize.contact_sheet(tiles, list('abcde'), columns=2, tile_size=64)
    for (height, width), colour in zip(shapes, colours, strict=True):
        where = np.argwhere((sheet == colour).all(axis=2))
        extent = where.max(axis=0) - where.min(axis=0) + 1
        scale = 64 / max(height, width)
        np.testing.assert_array_equal(extent, [round(height * scale), round(width * scale)])
        assert len(where) == extent.prod()
    # Five tiles in two columns: the third row starts below the first.
    first, last = (np.argwhere((sheet == colours[i]).all(axis=2)).min(axis=0) for i in (0, 4))
    assert first[1] == last[1]
    assert last[0] > first[0] + 2 * 64


def test_captions_and_title_are_written_and_only_there():
    sheet = functools.partial(
        visualize.contact_sheet, [blank(32, 32, 200)] * 3, columns=3, tile_size=96
    )
    plain, titled = sheet([''] * 3), sheet([''] * 3, title='A title')
    written = sheet(['', 'Ångström\n3.2 px', ''])
    assert written.shape[0] > plain.shape[0]
    below = written[plain.shape[0] - 6 :]
    dark = np.argwhere(below.max(axis=2) < 90)[:, 1]
    third = written.shape[1] / 3
    assert len(dark) > 30
    assert third - 3 <= dark.min() <= dark.max() <= 2 * third + 3
    assert not (plain.max(axis=2) < 90).any()
    added = titled.shape[0] - plain.shape[0]
    assert (titled[:added].max(axis=2) < 90).any()
    assert (titled[added:] == plain).all()


def test_a_caption_that_is_too_long_stays_in_its_column():
    tiles = [blank(32, 32, 200)] * 2
    sheet = visualize.contact_sheet(tiles, ['m' * 300, ''], columns=2, tile_size=96)
    dark = np.argwhere(sheet.max(axis=2) < 90)
    assert len(dark) > 30
    assert dark[:, 1].max() < sheet.shape[1] / 2


@pytest.mark.parametrize(('number', 'captions'), [(0, []), (2, ['one'])])
def test_a_sheet_needs_tiles_and_a_caption_for_each(number, captions):
    with pytest.raises(ValueError, match=f'{number} tiles and {len(captions)} captions'):
        visualize.contact_sheet([blank(8, 8)] * number, captions)


def test_a_prediction_sheet_shows_prediction_in_colour_and_truth_in_white():
    truth = spread_keypoints(100)
    predicted = truth + np.array([6, 0])
    visible = np.ones(21, bool)
    visible[20] = False
    given = ([blank(100, 100)], [predicted], [truth], [6.0], ['a'])
    sheets = [
        visualize.prediction_sheet(*given, visible=[shown], tile_size=200)
        for shown in (visible, np.ones(21, bool))
    ]
    corner = np.argwhere((sheets[0] == 128).all(axis=2)).min(axis=0)[::-1]

    def at(sheet, point):
        x, y = np.round(corner + (point + 0.5) * 2 - 0.5).astype(int)
        return sheet[y, x]

    for tip in (4, 8, 12, 16):
        assert tuple(at(sheets[0], predicted[tip])) == hand.keypoint_colour(tip)
        assert (at(sheets[0], truth[tip]) > 240).all()
    assert tuple(at(sheets[0], truth[20])) == (128, 128, 128)
    assert (at(sheets[1], truth[20]) > 240).all()


def test_a_prediction_sheet_takes_images_of_any_size_and_failed_predictions():
    shapes = [(20, 30), (300, 200), (1, 9)]
    sheet = visualize.prediction_sheet(
        [blank(*shape) for shape in shapes],
        [np.full((21, 2), np.nan), spread_keypoints(), np.full((21, 2), 1e9)],
        [spread_keypoints(20)] * 3,
        [float('inf'), float('nan'), 3.0],
        confidence=[np.zeros(21)] * 3,
        columns=3,
        tile_size=64,
        title='failures',
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] > 3 * 64


def test_a_prediction_sheet_wants_one_of_each():
    points = [spread_keypoints()]
    with pytest.raises(ValueError, match=r'\[1, 1, 1, 2\]'):
        visualize.prediction_sheet([blank()], points, points, [1.0, 2.0])


def test_a_png_keeps_every_pixel_and_colour_or_is_an_error(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    path = tmp_path / 'new' / 'folder' / 'a.png'
    visualize.save_png(path, image)
    np.testing.assert_array_equal(Image.open(path), image)
    with pytest.raises(OSError, match=r'a\.png'):
        visualize.save_png(path / 'b.png', image)


def test_drawing_a_hand_needs_no_matplotlib(monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        assert not name.startswith('matplotlib')
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_matplotlib)
    visualize.contact_sheet([visualize.draw_hand(blank(), spread_keypoints())], ['a'])
