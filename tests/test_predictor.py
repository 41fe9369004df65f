"""What `handpose_jax.load` takes, answers and refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import handpose_jax
from handpose_jax import hand, predictor
from handpose_jax.evaluation import calibration
from handpose_jax.runtimes import Runtime

SIZE = 32


class _Fitted:
    """A calibration that is easy to check: the probability is the confidence, 3 px of 224."""

    step = 7

    @staticmethod
    def apply(confidence):
        return confidence.astype(np.float64), np.where(np.isnan(confidence), np.nan, 3.0)

    @staticmethod
    def apply_presence(confidence):
        return np.float64(confidence.mean())


def network(images):
    """Answers keypoint i with column i of the middle row of the crop, and what is red there."""
    x = np.arange(hand.NUM_KEYPOINTS, dtype=np.float32)
    y = np.full_like(x, (SIZE - 1) / 2)
    confidence = images[:, SIZE // 2, : hand.NUM_KEYPOINTS, 0] / np.float32(255)
    points = np.broadcast_to(np.stack([x, y], axis=1), (len(images), hand.NUM_KEYPOINTS, 2))
    return np.zeros((len(images), 8, 8, 22), np.float32), np.concatenate(
        [points, confidence[..., None]], axis=-1
    ).astype(np.float32)


@pytest.fixture
def model():
    return predictor.Predictor(Runtime(network, SIZE), crop_scale=2.0, step=7)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_path_array_and_pil_image_are_the_same_picture(model, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / 'a.png')
    first, *others = model(
        [picture, Image.fromarray(picture), tmp_path / 'a.png', str(tmp_path / 'a.png')]
    )
    for other in others:
        np.testing.assert_array_equal(first.keypoints, other.keypoints)
        np.testing.assert_array_equal(first.confidence, other.confidence)


def test_a_pil_image_is_turned_as_its_exif_says(model, picture):
    turned = Image.fromarray(picture)
    turned.getexif()[0x0112] = 3
    expected = model(np.ascontiguousarray(picture[::-1, ::-1]))
    np.testing.assert_array_equal(model(turned).confidence, expected.confidence)


@pytest.mark.parametrize('kind', [tuple, list, np.array])
def test_a_box_of_any_sequence_is_enlarged_about_its_center(model, picture, kind):
    found = model(picture, kind([40, 20, 60, 30]))
    np.testing.assert_allclose(found.crop_box, [30, 5, 70, 45])
    # Column i of a crop of 32 pixels over 40 of the picture, pixel centers at whole numbers.
    x = 30 + (np.arange(21) + 0.5) * 40 / 32
    np.testing.assert_allclose(found.keypoints[:, 0], x, atol=1e-4)
    np.testing.assert_allclose(found.keypoints[:, 1], 25, atol=1e-4)


def test_without_a_box_the_network_sees_the_whole_picture(model, picture):
    np.testing.assert_allclose(model(picture).crop_box, [-0.5, -16.5, 95.5, 79.5])


def test_a_left_hand_is_the_mirrored_right_hand(model, picture):
    right = model(picture, (40, 20, 60, 30))
    width = picture.shape[1]
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    left = model(mirrored, (width - 1 - 60, 20, width - 1 - 40, 30), side='left')
    np.testing.assert_allclose(left.keypoints[:, 0], width - 1 - right.keypoints[:, 0], atol=1e-3)
    np.testing.assert_allclose(left.keypoints[:, 1], right.keypoints[:, 1], atol=1e-3)
    np.testing.assert_allclose(left.confidence, right.confidence, atol=2 / 255)
    assert (left.side, right.side) == ('left', 'right')


def test_a_list_of_pictures_has_a_list_of_boxes(model, picture):
    both = model([picture, picture], [(40, 20, 60, 30), None])
    np.testing.assert_array_equal(both[0].keypoints, model(picture, (40, 20, 60, 30)).keypoints)
    np.testing.assert_array_equal(both[1].keypoints, model(picture).keypoints)
    with pytest.raises(ValueError, match='one for each of 2 pictures, got 1'):
        model([picture, picture], [None])


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (3, 'expected a path, an RGB array or a PIL image, or a list of them, got int'),
        (None, 'got NoneType'),
        (np.zeros((8, 8, 3)), 'float64 of shape'),
        (np.zeros((8, 8), np.uint8), r'uint8 of shape \(8, 8\)'),
        ('missing.jpg', 'missing.jpg: no such image file'),
    ],
)
def test_a_wrong_picture_is_one_sentence(model, wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        model(wrong)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('box', 'message'),
    [
        ((1, 2, 3), 'four numbers'),
        ('whole', 'four numbers'),
        ((5, 5, 5, 9), 'x0 < x1'),
        ((np.nan, 5, 6, 9), 'x0 < x1'),
        ((500, 500, 600, 600), 'beside the picture of 96 x 64'),
    ],
)
def test_a_wrong_box_is_one_sentence(model, picture, box, message):
    with pytest.raises(ValueError, match=message):
        model(picture, box)


def test_a_wrong_side_is_one_sentence(model, picture):
    with pytest.raises(ValueError, match="'left' or 'right', got 'both'"):
        model(picture, side='both')


@pytest.mark.usefixtures('unchecked')
def test_a_calibration_is_in_pixels_of_the_picture(picture):
    model = predictor.Predictor(Runtime(network, SIZE), crop_scale=2.0, step=7, fitted=_Fitted())
    found = model(picture, (40, 20, 60, 30))
    np.testing.assert_allclose(found.probability_correct, found.confidence)
    np.testing.assert_allclose(found.std_px, 3 * 40 / 224)
    unknown = found._replace(std_px=np.where(np.arange(21) == 4, np.nan, found.std_px))
    rows = json.loads(json.dumps(predictor.describe(unknown), allow_nan=False))
    assert [row['name'] for row in rows] == list(hand.KEYPOINT_NAMES)
    assert rows[4]['std_px'] is None
    assert rows[3]['std_px'] == round(3 * 40 / 224, 2)
    assert found.presence == pytest.approx(found.confidence.mean())
    plain = predictor.Predictor(Runtime(network, SIZE), crop_scale=2.0, step=7)
    assert plain(picture).presence is None


@pytest.mark.usefixtures('unchecked')
def test_a_calibration_of_another_checkpoint_is_not_used(monkeypatch):
    monkeypatch.setattr(calibration, 'load', lambda workdir: _Fitted)
    assert predictor._load_calibration('w', 7) is _Fitted
    with pytest.warns(UserWarning, match='of step 7, the checkpoint of step 80'):
        assert predictor._load_calibration('w', 80) is None


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('nowhere', 'nothing was trained here'),
        ('nowhere.onnx', 'nowhere.onnx: no such file'),
        ('lonely.onnx', r'lonely\.onnx\.json: no such file'),
        ('odd.onnx', r'odd\.onnx\.json: expected what handpose export writes'),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path, name, message):
    for file in ('lonely.onnx', 'odd.onnx'):
        (tmp_path / file).write_bytes(b'')
    (tmp_path / 'odd.onnx.json').write_text('[]')
    with pytest.raises(ValueError, match=message):
        handpose_jax.load(tmp_path / name)


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'handpose_jax', *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize('words', [['--help'], ['--version'], [], ['predict', '--help']])
def test_help_imports_nothing_heavy(tmp_path, words):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert 'handpose' in done.stdout
    for heavy in ('numpy', 'jax', 'absl', 'cv2'):
        assert f'| {heavy}\n' not in done.stderr
        assert f'   {heavy}\n' not in done.stderr


def test_every_command_answers_help(tmp_path):
    for verb in ('evaluate', 'calibrate', 'report', 'export', 'prepare', 'browse'):
        done = run(verb, '--help', cwd=tmp_path)
        assert 'usage' in done.stdout.lower() or 'flags' in done.stdout, (verb, done.stderr[-500:])


def test_an_unknown_command_lists_the_others(tmp_path):
    done = run('detect', cwd=tmp_path)
    assert done.returncode == 1
    assert "'detect' is no command of handpose" in done.stderr
    assert 'calibrate' in done.stderr
