"""A trained network, ready for photographs: what `handpose_jax.load` returns."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from handpose_jax import geometry, runtimes, sidecars
from handpose_jax.data import images
from handpose_jax.data.transforms import CROP_RULE, crop_image
from handpose_jax.evaluation import calibration
from handpose_jax.evaluation.metrics import EPE_FRAME
from handpose_jax.hand import KEYPOINT_NAMES
from handpose_jax.process import extras

_SIDES = ('left', 'right')

# The ends of the files that an export writes, and the runtime that opens each.
_BACKENDS = {'.tflite': 'tflite', '.onnx': 'onnx', '.stablehlo': 'stablehlo'}


class Hand(NamedTuple):
    """One hand in a photograph.

    Attributes:
        keypoints: f32[21 2], (x, y) in pixels of the photograph, in the order of handpose_jax.hand.
        confidence: f32[21], 0..1, the height of each heatmap's peak; not a probability.
        side: 'left' or 'right', as it was asked for.
        crop_box: f64[4], x0, y0, x1, y1 of the square that the network saw, pixels.
        probability_correct: f64[21], how likely each keypoint is right; None without a calibration.
        std_px: f64[21], the error to expect along x and along y, pixels; None without one.
        presence: how likely the square shows a hand at all, 0..1; None without a calibration that
            knows pictures without hands.
    """

    keypoints: Float[np.ndarray, '21 2']
    confidence: Float[np.ndarray, '21']
    side: str
    crop_box: Float[np.ndarray, '4']
    probability_correct: Float[np.ndarray, '21'] | None
    std_px: Float[np.ndarray, '21'] | None
    presence: float | None


class Predictor:
    """Finds the 21 keypoints of the hand in a picture, or in a box of it."""

    def __init__(
        self,
        runtime: runtimes.Runtime,
        *,
        crop_scale: float,
        step: int,
        fitted: calibration.Calibration | None = None,
    ) -> None:
        """See load, which makes one.

        Args:
            runtime: the network.
            crop_scale: side of the crop that it was trained on over the longest side of the box.
            step: of the checkpoint.
            fitted: what its confidences mean.
        """
        self._runtime = runtime
        self._crop_scale = crop_scale
        self._calibration = fitted
        self.step = step

    def __call__(self, picture: Any, box: Any = None, *, side: str = 'right') -> Any:
        """Finds keypoints.

        Args:
            picture: path of an image file, RGB array u8[h w 3] or PIL image; or a list of them.
            box: x0, y0, x1, y1 tight around the hand, image pixels, as any sequence; it is
                enlarged as in training. None takes the whole picture, which should then show
                little more than the hand. For a list of pictures, None or a list of boxes.
            side: 'left' or 'right': which hand it is. A left hand is mirrored for the network,
                which knows right ones, and its keypoints back.

        Returns:
            A Hand, or a list of them for a list of pictures.

        Raises:
            ValueError: for a picture that cannot be read, or a box that is empty, not finite or
                beside the picture.
        """
        if not isinstance(picture, list | tuple):
            return self._find(as_image(picture), box, side)
        boxes = [None] * len(picture) if box is None else list(box)
        if len(boxes) != len(picture):
            raise ValueError(
                f'box: expected one for each of {len(picture)} pictures, got {len(boxes)}'
            )
        return [
            self._find(as_image(one), its, side) for one, its in zip(picture, boxes, strict=True)
        ]

    def _find(self, image: UInt8[np.ndarray, 'h w 3'], box: Any, side: str) -> Hand:
        if side not in _SIDES:
            raise ValueError(f"side: expected 'left' or 'right', got {side!r}")
        height, width = image.shape[:2]
        if box is None:
            square = geometry.square_box(geometry.whole_image_box(height, width))
        else:
            square = geometry.square_box(as_box(box, height, width), self._crop_scale)
        crop, image_from_crop = crop_image(image, square, self._runtime.size, mirror=side == 'left')
        found = self._runtime(crop[None])
        keypoints = geometry.apply_affine(image_from_crop, found.keypoints[0].astype(np.float64))
        confidence = found.confidence[0]
        probability, std_px, presence = None, None, None
        if self._calibration is not None:
            probability, std_px_224 = self._calibration.apply(confidence)
            std_px = std_px_224 * (geometry.longest_side(square) / EPE_FRAME)
            likely = self._calibration.apply_presence(confidence)
            presence = None if likely is None else float(likely)
        points = keypoints.astype(np.float32)
        return Hand(points, confidence, side, square, probability, std_px, presence)


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Predictor:
    """Opens a trained network.

    Args:
        path: the name of weights that come with the package, the workdir of a training run, or its
            .safetensors, which need JAX; or a .tflite, .onnx or .stablehlo file
            or SavedModel folder that `handpose export` wrote, which needs its own runtime alone.
            The JSON beside an exported file tells how it crops, and must agree with the file.
        threads: of the CPU, for exported files.

    Raises:
        ValueError: for a path that is neither, a workdir without a checkpoint, a damaged file, or a
            runtime that is not installed.
    """
    place = Path(path)
    backend = _BACKENDS.get(place.suffix) or ('saved_model' if _is_saved_model(place) else None)
    if backend is not None:
        scale, step = _read_sidecar(place)
        runtime = runtimes.load(str(place), backend, threads=threads)
        return Predictor(runtime, crop_scale=scale, step=step)
    try:
        from handpose_jax import inference
        from handpose_jax.config import crop_scale
    except ModuleNotFoundError as error:
        told = extras.missing(
            error, f'{path}: a workdir or weights (exported files open without it)'
        )
        if told is None:
            raise
        raise ValueError(told) from error

    run = inference.load_run(str(path))
    return Predictor(
        runtimes.of_run(run),
        crop_scale=crop_scale(run.config),
        step=run.step,
        fitted=_load_calibration(str(path), run.step),
    )


def _is_saved_model(place: Path) -> bool:
    # One that has lost files is still one that was exported, and no workdir.
    return (place / 'saved_model.pb').exists() or (
        place.name == 'saved_model' and sidecars.path_of(place).exists()
    )


def _read_sidecar(path: Path) -> tuple[float, int]:
    about, beside = sidecars.read(path), sidecars.path_of(path)
    try:
        crop, step = about['crop'], int(about['checkpoint_step'])
        scale = float(crop['scale'] or 1.0)
        # Earlier exports were cropped by the same rule, and did not tell all of it.
        rule = {name: crop.get(name, ours) for name, ours in CROP_RULE.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise sidecars.not_ours(beside, error) from error
    for name, ours in CROP_RULE.items():
        if rule[name] != ours:
            raise ValueError(
                f'{beside}: crop.{name}: expected {ours!r}, as this version crops, got '
                f'{rule[name]!r}; export the network again with this version'
            )
    return scale, step


def _load_calibration(workdir: str, step: int) -> calibration.Calibration | None:
    found = calibration.load(workdir)
    if found is not None and found.step != step:
        warnings.warn(
            f'{workdir}: {calibration.CALIBRATION_FILE} is of step {found.step}, the checkpoint of '
            f'step {step}: predictions go without it; evaluate and calibrate again',
            stacklevel=3,
        )
        return None
    return found


def as_image(picture: Any) -> UInt8[np.ndarray, 'h w 3']:
    """Reads a picture of any kind that people have: path, RGB array or PIL image, upright.

    Raises:
        ValueError: for anything else, or a file that cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        return images.read_image(picture)
    if isinstance(picture, Image.Image):
        return np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype == np.uint8
            and picture.ndim == 3
            and picture.shape[2] == 3
            and picture.size
        ):
            return picture
        raise ValueError(
            'picture: expected an RGB array of uint8, height x width x 3, got '
            f'{picture.dtype} of shape {picture.shape}'
        )
    raise ValueError(
        'picture: expected a path, an RGB array or a PIL image, or a list of them, got '
        f'{type(picture).__name__}'
    )


def as_box(box: Any, height: int, width: int) -> Float[np.ndarray, '4']:
    """Reads a box in an image of the given size.

    Args:
        box: x0, y0, x1, y1, image pixels.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: unless it is four finite numbers, not empty, and touches the image.
    """
    try:
        values = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,):
        raise ValueError(f'box: expected four numbers x0, y0, x1, y1, got {box!r}')
    x0, y0, x1, y1 = values.tolist()
    if not np.isfinite(values).all() or x1 <= x0 or y1 <= y0:
        raise ValueError(
            f'box: expected x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {values.tolist()}'
        )
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise ValueError(
            f'box: {values.tolist()} lies beside the picture of {width} x {height} pixels'
        )
    return values


def describe(hand: Hand) -> list[dict[str, Any]]:
    """The keypoints by name, as they can be written as JSON; what is not known is None.

    Args:
        hand: from a Predictor.
    """
    nothing: Sequence[float] = [np.nan] * len(KEYPOINT_NAMES)
    columns = zip(
        KEYPOINT_NAMES,
        hand.keypoints,
        hand.confidence,
        nothing if hand.probability_correct is None else hand.probability_correct,
        nothing if hand.std_px is None else hand.std_px,
        strict=True,
    )
    return [
        {
            'name': name,
            'x': round(float(point[0]), 2),
            'y': round(float(point[1]), 2),
            'confidence': round(float(confidence), 4),
            'probability_correct': as_number(probability, 4),
            'std_px': as_number(std, 2),
        }
        for name, point, confidence, probability, std in columns
    ]


def as_number(value: float | None, digits: int) -> float | None:
    """A number as JSON takes it: rounded, and None where it is not known or not finite."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)
