"""Checks of single records: what is annotated and visible, and where it lies."""

import numpy as np
from jaxtyping import Float, Int

from handpose_jax import geometry
from handpose_jax.data.doctor.findings import FEW, Finding, name_keypoints, of_record, split_rows
from handpose_jax.data.doctor.survey import Survey

_SAME_PLACE = 1e-3


def check_visibility(records: Survey) -> list[Finding]:
    """Contradictions and emptiness in what is annotated and visible."""
    found = []
    counts = records.annotated.sum(axis=1)
    for row in np.flatnonzero((counts == 0) & (np.array(records.damage) == '')):
        seen = 'no keypoint is annotated'
        found.append(of_record(records, int(row), 'visibility', 'error', 'at least one', seen))
    odd = records.visible & ~records.annotated
    for row in np.flatnonzero(odd.any(axis=1)):
        seen = f'{name_keypoints(odd[row])} visible, but not annotated'
        expected = 'visible keypoints are annotated'
        found.append(of_record(records, int(row), 'visibility', 'error', expected, seen))
    for split, rows in split_rows(records):
        if len(rows) < FEW:
            continue
        never = ~records.annotated[rows].any(axis=0)
        if never.any():
            seen = f'never annotated: {name_keypoints(never)}'
            found.append(Finding('annotated', 'note', split, '', '', seen))
        if (records.annotated[rows] == records.visible[rows]).all():
            seen = 'no keypoint is marked as hidden in any record: the source does not tell'
            found.append(Finding('annotated', 'note', split, '', '', seen))
    return found


def check_places(records: Survey) -> list[Finding]:
    """Keypoints at (0, 0), on top of each other, or outside the image; boxes that do not fit."""
    found = []
    for row in range(len(records)):
        known = records.annotated[row]
        points = records.keypoints[row][known]
        if len(points) == 0:
            continue
        names = np.flatnonzero(known)
        corner = (np.abs(points) <= _SAME_PLACE).all(axis=1) | (points == -1).all(axis=1)
        if corner.any():
            seen = (
                f'{name_keypoints(names[corner])} at {points[corner][0].tolist()}: a placeholder?'
            )
            found.append(
                of_record(
                    records, row, 'placeholder', 'error', 'a place', seen, float(corner.sum())
                )
            )
        found += _coincident(records, row, points[~corner], names[~corner])
        found += _outside(records, row, points, names)
        found += _unboxed(records, row, points)
    return found


def _coincident(
    records: Survey, row: int, points: Float[np.ndarray, 'k 2'], names: Int[np.ndarray, 'k']
) -> list[Finding]:
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    together = (distances <= _SAME_PLACE).sum(axis=1)
    # Whole pixels bring two keypoints of a small hand together by chance.
    whole = bool((points == np.round(points)).all())
    if len(points) == 0 or together.max() < (3 if whole else 2):
        return []
    where = int(together.argmax())
    same = distances[where] <= _SAME_PLACE
    seen = f'{name_keypoints(names[same])} are all at {np.round(points[where], 2).tolist()}'
    expected = 'a place of its own for each'
    return [of_record(records, row, 'same place', 'warning', expected, seen, float(together.max()))]


def _outside(
    records: Survey, row: int, points: Float[np.ndarray, 'k 2'], names: Int[np.ndarray, 'k']
) -> list[Finding]:
    height, width = records.size[row].tolist()
    if height == 0:
        return []
    x0, y0, x1, y1 = geometry.whole_image_box(height, width)
    beyond = np.maximum(np.array([x0, y0]) - points, points - np.array([x1, y1])).max(axis=1)
    out = beyond > 0
    if not out.any():
        return []
    size = max(np.ptp(points, axis=0).max(), 1.0)
    far = beyond.max() > 0.5 * size
    seen = f'{name_keypoints(names[out])} outside, up to {beyond.max():.0f} px'
    expected = f'inside the {width} x {height} image'
    severity = 'error' if far else 'warning'
    check = 'far outside' if far else 'outside'
    return [of_record(records, row, check, severity, expected, seen, beyond.max() / size)]


def _unboxed(records: Survey, row: int, points: Float[np.ndarray, 'k 2']) -> list[Finding]:
    x0, y0, x1, y1 = records.box[row].tolist()
    shown = np.round(records.box[row], 1).tolist()
    if not (x1 > x0 and y1 > y0):
        seen = f'the box {shown} is empty'
        return [of_record(records, row, 'box', 'error', 'a box around the hand', seen)]
    inside = ((points >= [x0 - 1, y0 - 1]) & (points <= [x1 + 1, y1 + 1])).all(axis=1)
    if inside.mean() < 0.5:
        seen = f'{(~inside).sum()} of {len(points)} keypoints are outside the box {shown}'
        return [of_record(records, row, 'box', 'error', 'a box around the hand', seen)]
    return []
