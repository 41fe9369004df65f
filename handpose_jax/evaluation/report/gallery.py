"""The worst cases of a run: pictures of them, and what may be the matter with each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import geometry, hand, visualize
from handpose_jax.data import prepared, sources, synthetic_hands
from handpose_jax.data.transforms import crop_image
from handpose_jax.evaluation.report.runs import Run
from handpose_jax.synthetic.scene.options import SceneOptions
from handpose_jax.types import Sample

TRUNCATED = 'truncated'
OCCLUDED = 'occluded'
UNSURE = 'low confidence'
SWAPPED = 'left/right'
NONE = 'none of these'

MEANINGS = {
    TRUNCATED: 'an annotated keypoint lies outside the photograph',
    OCCLUDED: 'at least half of the annotated keypoints are hidden by something',
    UNSURE: "the median confidence is among the lowest tenth of the run's hands",
    SWAPPED: 'the error falls below half if the prediction is mirrored, or its fingers are taken '
    'in reverse order',
}
"""The reasons, and when each is given; several may be."""

_TILE = 320
_JPEG_QUALITY = 85
_HIDDEN_SHARE = 0.5
_UNSURE_SHARE = 0.1
_SWAP_FACTOR = 0.5

_FINGERS_REVERSED = [hand.WRIST, *(k for finger in reversed(hand.FINGERS.values()) for k in finger)]


@dataclasses.dataclass(frozen=True)
class Case:
    """One hand.

    Attributes:
        image_id: names the record.
        error: mean over its annotated keypoints, px of the 224 crop; may be infinite.
        confidence: the median of its keypoints.
        hidden: how many of the annotated keypoints are hidden.
        annotated: how many are.
        reasons: of MEANINGS, or NONE alone.
        jpeg: the crop with the prediction in colours and the annotation in white; None without the
            photograph.
        beyond: how many predicted keypoints lie outside this picture.
    """

    image_id: str
    error: float
    confidence: float
    hidden: int
    annotated: int
    reasons: tuple[str, ...]
    jpeg: bytes | None
    beyond: int


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The worst cases of one run, worst first.

    Attributes:
        cases: the hands.
        no_pictures: why there are none; '' where there are.
        among_all: for each reason that needs no photograph, its share of all hands.
    """

    cases: tuple[Case, ...]
    no_pictures: str
    among_all: dict[str, float]


def worst_cases(run: Run, count: int) -> Gallery:
    """Ranks a run's hands by their mean error and looks at the worst.

    Args:
        run: evaluated; its photographs are read from where its config says, if they are there.
        count: how many to show at most.
    """
    errors = run.errors.under(run.protocol)
    annotated = run.errors.select(run.protocol.keypoints).valid
    mean_error = errors.epe_per_hand()
    ranked = np.argsort(np.where(np.isnan(mean_error), np.inf, -mean_error), kind='stable')
    # Without an annotated keypoint there is nothing to be wrong about.
    chosen = [int(i) for i in ranked[:count] if not np.isnan(mean_error[i])]

    reasons = reasons_without_picture(run)
    source: Any = None
    no_pictures = ''
    try:
        source = _open(run) if chosen else None
    except (ValueError, OSError) as error:
        no_pictures = str(error).splitlines()[0]
    cases = []
    for i in chosen:
        found = [reason for reason, has in reasons.items() if has[i]]
        jpeg, beyond = None, 0
        if source is not None:
            try:
                sample = _sample(source, run, i)
            except (ValueError, OSError, IndexError) as error:
                no_pictures = str(error).splitlines()[0]
            else:
                if _is_truncated(sample, run.errors.truth_image[i], annotated[i]):
                    found.insert(0, TRUNCATED)
                jpeg, beyond = _draw_case(run, i, sample)
        cases.append(
            Case(
                image_id=str(run.record.image_id[i]),
                error=float(mean_error[i]),
                confidence=float(np.median(_confidence(run)[i])),
                hidden=int((run.errors.hidden[i] & annotated[i]).sum()),
                annotated=int(annotated[i].sum()),
                reasons=tuple(found) or (NONE,),
                jpeg=jpeg,
                beyond=beyond,
            )
        )
    among_all = {reason: float(has.mean()) for reason, has in reasons.items() if len(has)}
    return Gallery(tuple(cases), no_pictures, among_all)


def reasons_without_picture(run: Run) -> dict[str, Bool[np.ndarray, 'n']]:
    """Which hands have which reason, of those that the evaluation's own arrays tell."""
    errors = run.errors
    counted = errors.select(run.protocol.keypoints).valid
    number = counted.sum(axis=1)
    hidden = (errors.hidden & counted).sum(axis=1)
    confidence = np.median(_confidence(run), axis=1)
    limit = np.quantile(confidence, _UNSURE_SHARE) if len(confidence) else 0.0
    return {
        OCCLUDED: (number > 0) & (hidden >= _HIDDEN_SHARE * number),
        UNSURE: confidence < limit,
        SWAPPED: _is_swapped(errors.predicted_image, errors.truth_image, counted),
    }


def _confidence(run: Run) -> Float[np.ndarray, 'n 21']:
    # Nobody can be sure of a heatmap that is no number.
    return np.nan_to_num(run.errors.confidence, nan=0.0)


def _is_swapped(
    predicted: Float[np.ndarray, 'n 21 2'],
    truth: Float[np.ndarray, 'n 21 2'],
    counted: Bool[np.ndarray, 'n 21'],
) -> Bool[np.ndarray, 'n']:
    """Whether a prediction fits far better as that of the other hand.

    Two things are tried: mirrored about the upright line through the middle of the annotated
    (counted) keypoints, as where a crop was mirrored once too often; and with the fingers in
    reverse order, as where a network takes the back of one hand for the palm of the other. Both
    are (x, y) in the same frame, whichever it is.
    """
    usable = counted & np.isfinite(predicted).all(axis=2)
    truth = np.where(usable[..., None], truth, 0.0)
    predicted = np.where(usable[..., None], predicted, 0.0)
    x = truth[..., 0]
    low = np.where(usable, x, np.inf).min(axis=1)
    high = np.where(usable, x, -np.inf).max(axis=1)
    some = usable.any(axis=1)
    middle = np.where(some, np.where(some, low, 0.0) + np.where(some, high, 0.0), 0.0) / 2
    mirrored = predicted.copy()
    mirrored[..., 0] = 2 * middle[:, None] - predicted[..., 0]

    def error(points: np.ndarray, use: np.ndarray) -> np.ndarray:
        distance = np.where(use, np.linalg.norm(points - truth, axis=2), 0.0)
        return distance.sum(axis=1) / np.maximum(use.sum(axis=1), 1)

    # A keypoint that is not annotated has no place to compare its counterpart's prediction with.
    both = usable & usable[:, _FINGERS_REVERSED]
    fits_mirrored = error(mirrored, usable) < _SWAP_FACTOR * error(predicted, usable)
    in_reverse = predicted[:, _FINGERS_REVERSED]
    return fits_mirrored | (error(in_reverse, both) < _SWAP_FACTOR * error(predicted, both))


def _is_truncated(
    sample: Sample, truth: Float[np.ndarray, '21 2'], counted: Bool[np.ndarray, '21']
) -> bool:
    """Whether an annotated keypoint lies outside the photograph."""
    height, width = sample['image'].shape[:2]
    box = geometry.whole_image_box(height, width)
    inside = ((truth >= box[:2]) & (truth <= box[2:])).all(axis=1)
    return bool((counted & ~inside).any())


def _draw_case(run: Run, i: int, sample: Sample) -> tuple[bytes, int]:
    """The evaluated crop of hand i as a JPEG; how many predicted keypoints lie outside it."""
    # As photographed: the picture is for people, so a left hand stays a left hand.
    crop, image_from_crop = crop_image(sample['image'], sample['box'], _TILE)
    crop_from_image = geometry.invert(image_from_crop)
    predicted = geometry.apply_affine(crop_from_image, run.errors.predicted_image[i])
    truth = geometry.apply_affine(crop_from_image, run.errors.truth_image[i])
    picture = visualize.draw_hand(crop, predicted, confidence=run.errors.confidence[i])
    picture = visualize.draw_hand(
        picture, truth, visible=run.errors.valid[i], thickness=1, colour=(255, 255, 255)
    )
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    jpeg = cv2.imencode('.jpg', picture[..., ::-1], quality)[1].tobytes()
    inside = ((predicted >= -0.5) & (predicted <= _TILE - 0.5)).all(axis=1)
    return jpeg, int((~inside).sum())


def _open(run: Run) -> Any:
    data = run.eval_data
    _check_rendered(data)
    return sources.load_source(**{'split': run.split, **data})


def _check_rendered(data: Mapping[str, Any]) -> None:
    """Raises ValueError for synthetic hands that opening would render first, for minutes."""
    for part in (data.get('parts') or {}).values():
        _check_rendered(part)
    if data['name'] != synthetic_hands.NAME or data.get('root'):
        return
    known = {field.name for field in dataclasses.fields(SceneOptions)}
    options = SceneOptions(**{name: value for name, value in data.items() if name in known})
    folder = synthetic_hands.default_folder(options, count=data['count'], seed=data.get('seed', 0))
    if not prepared.is_prepared(folder):
        raise ValueError(f'the synthetic hands of this run are not in the cache ({folder.name})')


def _sample(source: Any, run: Run, i: int) -> Sample:
    index, name = int(run.errors.index[i]), str(run.record.image_id[i])
    if index >= len(source):
        raise ValueError(f'record {index} ({name}) is gone: the data has changed since')
    sample = source[index]
    if name not in (source.image_id(index), sample['image_id']):
        raise ValueError(
            f'record {index} is {source.image_id(index)}, not {name}: the data has changed since'
        )
    return sample
