"""Keypoints in photographs: python -m handpose_jax.predict --workdir W photo.jpg --out DIR.

For each photograph DIR receives NAME.png, the skeleton drawn over it, and NAME.json, the keypoints
in the photograph's pixels with their confidences. Where the workdir holds a calibration (python -m
handpose_jax.evaluation.calibration --workdir W) the JSON also says how likely each keypoint is
correct, and how exact.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from handpose_jax import geometry, hand, models, runtimes, visualize
from handpose_jax.data import images
from handpose_jax.data.transforms import crop_example
from handpose_jax.evaluation import calibration
from handpose_jax.evaluation.metrics import EPE_FRAME
from handpose_jax.training import checkpoints
from handpose_jax.types import Prediction, Sample

_MIN_OVERLAY_SIDE = 480


class Predictor:
    """A trained network, ready for photographs."""

    def __init__(self, workdir: str) -> None:
        """Loads the newest checkpoint of a training run, and its calibration if there is one.

        Raises:
            ValueError: if the workdir holds no checkpoint, or a damaged calibration.
        """
        self.config: ConfigDict = checkpoints.load_config(workdir)
        model = models.build(**self.config.model.to_dict())
        self.step, self._variables = runtimes.load_variables(workdir, self.config, model)
        self._predict = runtimes.make_predict_step(model, self.config.decode.to_dict())
        self._calibration = load_calibration(workdir, self.step)

    def __call__(
        self,
        image: UInt8[np.ndarray, 'h w 3'],
        *,
        box: Float[np.ndarray, '4'] | None = None,
        is_left: bool = False,
    ) -> Prediction:
        """Finds the keypoints of one hand.

        Args:
            image: RGB, upright.
            box: x0, y0, x1, y1 tight around the hand, image pixels; enlarged as in training. None
                takes the whole image, which should show little more than the hand.
            is_left: a left hand; it is mirrored for the network and its keypoints back.

        Returns:
            keypoints f32[21 2] in image pixels, confidence f32[21].

        Raises:
            ValueError: for a box that is empty, not finite or beside the image.
        """
        crop_box = self.crop_box(*image.shape[:2], box=box)
        sample: Sample = {
            'image': image,
            'keypoints': np.zeros((hand.NUM_KEYPOINTS, 2), np.float32),
            'visible': np.zeros(hand.NUM_KEYPOINTS, bool),
            'box': crop_box.astype(np.float32),
            'is_left': is_left,
            'norm_size': 1.0,
            'image_id': '',
        }
        example = crop_example(sample, size=self.config.size)
        found = self._predict(self._variables, example['image'][None])
        keypoints = geometry.apply_affine(
            example['image_from_crop'], np.asarray(found.keypoints[0])
        )
        return Prediction(keypoints.astype(np.float32), np.asarray(found.confidence[0]))

    def crop_box(
        self, height: int, width: int, *, box: Float[np.ndarray, '4'] | None = None
    ) -> Float[np.ndarray, '4']:
        """The square of an image that the network is shown.

        Args:
            height: of the image.
            width: of the image.
            box: see __call__.

        Returns:
            x0, y0, x1, y1 in image pixels.

        Raises:
            ValueError: for a box that is empty, not finite or beside the image.
        """
        if box is None:
            return geometry.square_box(geometry.whole_image_box(height, width))
        check_box(box, height, width)
        return geometry.square_box(box, self.config.data.crop_scale)

    def reliability(
        self, confidence: Float[np.ndarray, '21'], crop_box: Float[np.ndarray, '4']
    ) -> 'Reliability | None':
        """What confidences mean, if the workdir holds a calibration for this checkpoint.

        Args:
            confidence: of a prediction.
            crop_box: that the prediction was made of.
        """
        if self._calibration is None:
            return None
        return reliability(self._calibration, confidence, crop_box)


class Reliability(NamedTuple):
    """How far keypoints can be trusted, see handpose_jax.evaluation.calibration."""

    probability_correct: Float[np.ndarray, '21']
    std_px: Float[np.ndarray, '21']  # along x and along y, image pixels


def reliability(
    fitted: calibration.Calibration,
    confidence: Float[np.ndarray, '21'],
    crop_box: Float[np.ndarray, '4'],
) -> Reliability:
    """Applies a calibration, and scales its pixels of a 224 crop to those of the image.

    Args:
        fitted: on predictions of the same network.
        confidence: of a prediction.
        crop_box: that the prediction was made of, image pixels.
    """
    probability, std_px_224 = fitted.apply(confidence)
    return Reliability(probability, std_px_224 * (geometry.longest_side(crop_box) / EPE_FRAME))


def load_calibration(workdir: str, step: int) -> calibration.Calibration | None:
    """A workdir's calibration; None, with a warning, if it is of another checkpoint than `step`."""
    found = calibration.load(workdir)
    if found is not None and found.step != step:
        warnings.warn(
            f'{workdir}: {calibration.CALIBRATION_FILE} is of step {found.step}, the checkpoint of '
            f'step {step}: predictions go without it; evaluate and calibrate again',
            stacklevel=2,
        )
        return None
    return found


def check_box(box: Float[np.ndarray, '4'], height: int, width: int) -> None:
    """Raises ValueError unless a box is finite, not empty, and touches the image."""
    x0, y0, x1, y1 = (float(value) for value in box)
    if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0:
        raise ValueError(
            f'--box: expected x0,y0,x1,y1 with x0 < x1 and y0 < y1, got {box.tolist()}'
        )
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise ValueError(f'--box {box.tolist()} lies beside the image of {width} x {height} pixels')


def to_json(
    path: Path,
    prediction: Prediction,
    *,
    is_left: bool,
    step: int,
    trust: Reliability | None = None,
) -> dict[str, Any]:
    """A prediction as a record that can be written as JSON, keypoints in image pixels by name.

    Args:
        path: of the photograph.
        prediction: in image pixels.
        is_left: whether a left hand was looked for.
        step: of the checkpoint.
        trust: of the prediction; None leaves probability_correct and std_px null.
    """
    nothing = [None] * hand.NUM_KEYPOINTS
    return {
        'file': path.name,
        'handedness': 'left' if is_left else 'right',
        'checkpoint_step': step,
        'keypoints': [
            {
                'name': name,
                'x': round(float(point[0]), 2),
                'y': round(float(point[1]), 2),
                'confidence': round(float(confidence), 4),
                'probability_correct': probability,
                'std_px': std,
            }
            for name, point, confidence, probability, std in zip(
                hand.KEYPOINT_NAMES,
                prediction.keypoints,
                prediction.confidence,
                _numbers(trust.probability_correct, 4) if trust else nothing,
                _numbers(trust.std_px, 2) if trust else nothing,
                strict=True,
            )
        ],
    }


def _numbers(values: Float[np.ndarray, '21'], digits: int) -> list[float | None]:
    # JSON has no NaN.
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def predict_files(
    workdir: str,
    photos: Sequence[Path],
    out: Path,
    *,
    box: Float[np.ndarray, '4'] | None = None,
    is_left: bool = False,
) -> list[Path]:
    """Predicts each photograph and writes its overlay and JSON.

    Args:
        workdir: of a training run.
        photos: image files.
        out: folder for the results, made if needed.
        box: see Predictor; the same for all photographs.
        is_left: see Predictor.

    Returns:
        The overlays' paths.

    Raises:
        ValueError: for a photograph that cannot be read, two of the same name, or a folder that
        cannot
            be written; nothing is written before every photograph has been read.
    """
    names = [photo.stem for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'several photographs are named {", ".join(twice)}: their results would overwrite one '
            'another; predict them with different --out'
        )
    pictures = [images.read_image(photo) for photo in photos]
    predictor = Predictor(workdir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        overlays = []
        for photo, picture in zip(photos, pictures, strict=True):
            prediction = predictor(picture, box=box, is_left=is_left)
            crop_box = predictor.crop_box(*picture.shape[:2], box=box)
            record = to_json(
                photo,
                prediction,
                is_left=is_left,
                step=predictor.step,
                trust=predictor.reliability(prediction.confidence, crop_box),
            )
            (out / f'{photo.stem}.json').write_text(json.dumps(record, indent=2) + '\n')
            larger, keypoints = visualize.enlarge(
                picture, prediction.keypoints.astype(np.float64), _MIN_OVERLAY_SIDE
            )
            overlay = visualize.draw_hand(larger, keypoints, confidence=prediction.confidence)
            overlays.append(out / f'{photo.stem}.png')
            visualize.save_png(overlays[-1], overlay)
    except OSError as error:
        raise ValueError(
            f'--out {out}: cannot write there ({error.strerror}); give a folder that can be written'
        ) from error
    return overlays


def parse_box(text: str) -> Float[np.ndarray, '4']:
    """Reads x0,y0,x1,y1.

    Raises:
        argparse.ArgumentTypeError: if it is not four numbers.
    """
    try:
        values = [float(value) for value in text.split(',')]
    except ValueError:
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f'expected x0,y0,x1,y1 (four numbers), got {text!r}')
    return np.array(values)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m handpose_jax.predict', description=__doc__)
    parser.add_argument('photos', nargs='+', type=Path, help='image files')
    parser.add_argument('--workdir', required=True, help='folder of a training run')
    parser.add_argument('--out', required=True, type=Path, help='folder for overlays and JSON')
    parser.add_argument(
        '--box',
        type=parse_box,
        help='x0,y0,x1,y1 tight around the hand, pixels; default: the whole image',
    )
    parser.add_argument('--hand', choices=('left', 'right'), default='right')
    flags = parser.parse_args(argv)
    try:
        overlays = predict_files(
            flags.workdir, flags.photos, flags.out, box=flags.box, is_left=flags.hand == 'left'
        )
    except ValueError as error:
        sys.exit(f'error: {error}')
    for overlay in overlays:
        print(overlay)


if __name__ == '__main__':
    main()
